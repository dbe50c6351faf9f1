"""Processes of the proof: workers and clients on one database, that can be killed, stopped and continued."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from tests.proof.kit.journal import Journal
from tests.proof.kit.programs import FOLDER_VARIABLE, TABLES

Process = subprocess.Popen[bytes]
PATIENCE_S: Final = 60.0


class Fleet:
    """Starts processes of one database; what it does to them stands in its own journal as faults."""

    def __init__(self, url: str, folder: Path, settings: dict[str, str]) -> None:
        self.url = url
        self.folder = folder
        self.journal = Journal(folder, "fleet")
        self._settings = settings
        self._logs: dict[Process, Path] = {}
        self._numbers = itertools.count()  # tests start processes from several threads

    def worker(
        self, target: str = "tests.proof.kit.programs:worker", *, url: str | None = None, **settings: str
    ) -> Process:
        """Start a worker; returns at once. `url`: through a proxy, for example."""
        return self.start(["-m", "kedge_worker", "run", target], url=url, **settings)

    def client(self, program: str = "load", *, url: str | None = None, **options: object) -> Process:
        """Start `python -m tests.proof.kit.<program> --option value ...`; returns at once."""
        arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        return self.start(["-m", f"tests.proof.kit.{program}", *arguments], url=url)

    def start(self, arguments: list[str], *, url: str | None = None, **settings: str) -> Process:
        """Start a Python process with the database, the journals' folder and the settings in its environment."""
        environment = {
            **os.environ,
            "KEDGE_DATABASE_URL": url or self.url,
            FOLDER_VARIABLE: str(self.folder),
            **{f"KEDGE_{key}": value for key, value in {**self._settings, **settings}.items()},
        }
        # Into a file: a pipe that nobody reads would stop the process as soon as it is full.
        path = self.folder / f"log{next(self._numbers)}"
        with open(path, "wb") as log:
            process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log)
        self._logs[process] = path
        return process

    def log(self, process: Process) -> str:
        """What it has written so far."""
        return self._logs[process].read_text("utf-8", "replace")

    # ---- faults

    def kill(self, process: Process) -> None:
        """End it by SIGKILL, and wait until it is gone."""
        self.journal.write("fault", kind="kill", about=process.pid)
        process.kill()
        process.wait()

    def stop(self, process: Process) -> None:
        """Freeze it."""
        self.journal.write("fault", kind="stop", about=process.pid)
        process.send_signal(signal.SIGSTOP)

    def cont(self, process: Process) -> None:
        """Let it go on."""
        process.send_signal(signal.SIGCONT)

    def terminate(self, process: Process, *, patience_s: float = PATIENCE_S) -> int:
        """Send SIGTERM, wait for the end, answer the exit code."""
        self.journal.write("fault", kind="terminate", about=process.pid)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=patience_s)

    # ---- facts

    def drain(self, patience_s: float = PATIENCE_S) -> None:
        """Return when no run is live and no letter unsorted; fails with what is left."""
        self.wait_until(
            "select not exists (select from kedge.runs) and not exists (select from kedge.inbox)", patience_s
        )

    def wait_until(self, question: str, patience_s: float = PATIENCE_S) -> None:
        """Return when a query answers true; a database that is away is asked again."""
        end = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url, autocommit=True) as conn:
                while not self._answers(conn, question):
                    if time.monotonic() > end:
                        left = conn.execute(
                            "select id, state, workflow, epoch, worker_id, due_at from kedge.runs limit 20"
                        )
                        raise AssertionError(f"never came true: {question}\n{left.fetchall()}")
                    time.sleep(0.05)
                return
            if time.monotonic() > end:
                raise AssertionError(f"the database stayed away; asked for: {question}")
            time.sleep(0.1)

    @staticmethod
    def _answers(conn: psycopg.Connection, question: str) -> bool:
        return conn.execute(question.encode()).fetchone() == (True,)

    def close(self) -> str:
        """End all that are left; answers what all have written."""
        for process in list(self._logs):
            if process.poll() is None:
                process.kill()  # also of a stopped one
            process.wait()
        self.journal.close()
        return "\n".join(self.log(process)[-4000:] for process in list(self._logs))


@contextmanager
def fleet(url: str, folder: Path, **settings: str) -> Generator[Fleet]:
    """Processes for one database, which gets the application's tables; `LEASE="5s"` becomes KEDGE_LEASE."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(TABLES)
    made = Fleet(url, folder, settings)
    try:
        yield made
    except BaseException as error:
        error.add_note(f"what the processes wrote:\n{made.close()}")
        raise
    made.close()
