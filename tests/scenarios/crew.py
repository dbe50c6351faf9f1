"""Worker processes for scenario tests: real ones, that can be killed, stopped and continued."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg

TABLES = "create table ledger (id int generated always as identity primary key, name text)"


class Crew:
    """Starts workers on one database, and ends those that are left."""

    def __init__(self, url: str, folder: Path, **settings: str) -> None:
        self.url = url
        self._folder = folder
        self._bodies = folder / "bodies"
        self._bodies.touch()
        self._settings = settings
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, target: str = "tests.scenarios.shop:worker", *, processes: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one worker process, or a command that starts several; returns at once."""
        several = [] if processes is None else ["--processes", str(processes)]
        environment = {
            **os.environ,
            "KEDGE_DATABASE_URL": self.url,
            "SHOP_BODIES": str(self._bodies),
            **{f"KEDGE_{key}": value for key, value in self._settings.items()},
        }
        # Into a file: a pipe that nobody reads would stop the worker as soon as it is full.
        with open(self._folder / f"log{len(self._processes)}", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kedge_worker", "run", target, *several], env=environment, stderr=log
            )
        self._processes.append(process)
        return process

    def bodies(self) -> Counter[str]:
        """How often each step's body began."""
        return Counter(self._bodies.read_text("utf-8").splitlines())

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What it has logged so far."""
        return (self._folder / f"log{self._processes.index(process)}").read_text("utf-8")

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, answer the exit code."""
        process.send_signal(number)
        return process.wait(timeout=30)

    def close(self) -> str:
        """End all that are left; answers what all have logged."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        return "\n".join(self.log(process) for process in self._processes)


@contextmanager
def crew(url: str, **settings: str) -> Generator[Crew]:
    """Workers for one database, which gets the application's tables; short leases unless told otherwise."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(TABLES)
    with tempfile.TemporaryDirectory() as folder:
        workers = Crew(url, Path(folder), **{"LEASE": "1s", "POLL": "1s", "GRACE": "5s", **settings})
        try:
            yield workers
        except BaseException as error:
            error.add_note(f"what the workers logged:\n{workers.close()}")
            raise
        workers.close()


def wait_until(question: Callable[[], bool], what: str, *, at_most_s: float = 30.0) -> None:
    """Ask until it is so; the limit is for a broken build, not a promise."""
    end = time.monotonic() + at_most_s
    while not question():
        if time.monotonic() > end:
            raise AssertionError(f"it never came to this: {what}")
        time.sleep(0.01)


def count(conn: psycopg.Connection, query: LiteralString) -> int:
    """The one number that a query answers."""
    row = conn.execute(query).fetchone()
    return 0 if row is None else int(row[0])
