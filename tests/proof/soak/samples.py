"""Looks at processes and tables every few seconds, for the question whether anything grows that should not."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import psycopg

EVERY_S: Final = 5.0
HOT: Final = ("runs", "inbox", "waits", "workers", "idle", "watchers", "observers", "run_watchers", "singletons")
"""Tables that hold what is live; journal, finished, events and failures hold history, as much as is kept."""

_LOOK: Final = """
    select (select sum(pg_total_relation_size(('kedge.' || t)::regclass)) from unnest(%s::text[]) t)::bigint,
           (select count(*) from kedge.runs),
           (select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()),
           (select coalesce(extract(epoch from max(clock_timestamp() - xact_start)), 0)::float8 from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid())
"""


@dataclass(frozen=True)
class Sample:
    """One look."""

    at_s: float
    memory: dict[str, int]
    """Resident bytes of each watched process."""
    hot_bytes: int
    live_runs: int
    sessions: int
    oldest_transaction_s: float


class Samples:
    """All looks so far."""

    def __init__(self) -> None:
        self.all: list[Sample] = []

    def growth(self, of: Callable[[Sample], float]) -> float:
        """The median of the last fifth over that of the second fifth: 1 is a plateau."""
        fifth = max(len(self.all) // 5, 1)
        early, late = self.all[fifth : 2 * fifth] or self.all, self.all[-fifth:]
        return median(map(of, late)) / max(median(map(of, early)), 1)


@contextmanager
def sampled(url: str, processes: dict[str, int], *, every_s: float = EVERY_S) -> Generator[Samples]:
    """Look until the block is left; `processes`: name -> pid, of those that live through all of it."""
    samples, over = Samples(), threading.Event()
    thread = threading.Thread(target=_look, args=(url, processes, samples, over, every_s))
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _look(url: str, processes: dict[str, int], samples: Samples, over: threading.Event, every_s: float) -> None:
    begin = time.monotonic()
    while not over.wait(every_s):
        # A server that is away is looked at next time.
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as conn:
            row = conn.execute(_LOOK, (list(HOT),)).fetchone()
            assert row is not None
            memory = {name: resident_bytes(pid) for name, pid in processes.items()}
            samples.all.append(Sample(time.monotonic() - begin, memory, *row))


def resident_bytes(pid: int) -> int:
    """How much memory a process holds; 0 when it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def shown(samples: Sequence[Sample], lines: int = 20) -> str:
    """A table for people."""
    step = max(len(samples) // lines, 1)
    return "\n".join(
        f"{s.at_s:7.0f} s  {s.live_runs:6} live  {s.hot_bytes / 2**20:7.1f} MiB hot  {s.sessions:3} sessions  "
        + "  ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in s.memory.items())
        for s in samples[::step]
    )
