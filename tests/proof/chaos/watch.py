"""What a chaos test sees of a worker from outside: its row, its files and connections, the time of its processor."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import psycopg

from tests.proof.kit.fleet import Process
from tests.proof.kit.oracle import Report

PATIENCE_S = 60.0


def wait_until(question: Callable[[], object], what: str, *, at_most_s: float = PATIENCE_S) -> float:
    """Ask until it is so, and answer how long that took; the limit is for a broken build, not a promise."""
    begin = time.monotonic()
    while not question():
        if time.monotonic() > begin + at_most_s:
            raise AssertionError(f"it never came to this: {what}")
        time.sleep(0.02)
    return time.monotonic() - begin


def rows(url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What stands in the tables."""
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(query.encode(), values or None).fetchall()


def number(url: str, query: str, *values: object) -> int:
    """The one number that a query answers."""
    ((value,),) = rows(url, query, *values)
    return int(value or 0)


def is_registered(url: str, process: Process) -> bool:
    """Whether this process works: its row stands, and its lease is valid."""
    query = "select count(*) from kedge.workers where name = %s and lease_until > clock_timestamp()"
    return number(url, query, name_of(process)) > 0


def name_of(process: Process) -> str:
    """How its row is named."""
    return f"{socket.gethostname()}:{process.pid}"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def processor_s(process: Process) -> float:
    """Seconds of processor that it has used so far."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def open_files(process: Process) -> int:
    """File descriptors that it has."""
    return int(psutil.Process(process.pid).num_fds())


def sessions(url: str, like: str = "kedge%") -> dict[str, int]:
    """The server's sessions by the name of their application."""
    query = "select application_name, count(*) from pg_stat_activity where application_name like %s group by 1"
    return {str(name): int(count) for name, count in rows(url, query, like)}


def broken(report: Report) -> list[str]:
    """
    The violations, where connections are cut beneath transactional steps.

    A transaction whose commit did not arrive was rolled back: its body runs again in the same life, as for any fault
    that hits it. How often is for the test to bound, by `extra_bodies`.
    """
    return [what for what in report.violations if not re.match(r"I6: step t\d+ of ", what)]
