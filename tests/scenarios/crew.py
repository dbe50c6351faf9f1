"""Worker processes for scenario tests: real ones, that can be killed, stopped and continued."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import LiteralString

import psycopg

TABLES = """
    create table bodies (name text, number int, at timestamptz default now());
    create table ledger (id int generated always as identity primary key, name text);
"""


class Crew:
    """Starts workers on one database, and ends those that are left."""

    def __init__(self, url: str, **settings: str) -> None:
        self.url = url
        self._settings = settings
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, target: str = "tests.scenarios.shop:worker") -> subprocess.Popen[str]:
        """Start one worker process; returns at once."""
        environment = {**os.environ, "KEDGE_DATABASE_URL": self.url, **{f"KEDGE_{k}": v for k, v in self._settings.items()}}
        process = subprocess.Popen(
            [sys.executable, "-m", "kedge_worker", "run", target],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait for the end; answers exit code and what it logged."""
        process.send_signal(number)
        _, log = process.communicate(timeout=30)
        return process.returncode, log

    def close(self) -> None:
        """End all that are left."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@contextmanager
def crew(url: str, **settings: str) -> Generator[Crew]:
    """Workers for one database, which gets the application's tables; short leases unless told otherwise."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(TABLES)
    workers = Crew(url, **{"LEASE": "1s", "POLL": "1s", "GRACE": "5s", **settings})
    try:
        yield workers
    finally:
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
