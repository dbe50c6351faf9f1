"""How fast one process drains what was prepared: its rate, and what that cost Python and Postgres."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString

import psutil
import psycopg

from benchmarks.server import BenchServer

IN_FLIGHT: Final = 100
WARM_UP_S: Final = 0.3
_LONGEST_START_S: Final = 20


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Something to drain: what prepares it, who drains it, and how its ends are seen in the database."""

    name: str
    steps: int
    """A run."""
    prepare: Callable[[str, int], object]
    """Given the URL and how many runs."""
    command: tuple[str, ...]
    """Module and arguments behind the URL."""
    ended_at: LiteralString
    """A select of when each run that has ended did."""
    begun: LiteralString
    """A select that answers a row once the first run has been claimed, and costs little until then."""
    schema: bool = True
    processes: int = 1
    """That drain together."""


@dataclass(frozen=True, kw_only=True)
class Drained:
    """What a window of the drain showed."""

    runs: int
    seconds: float
    ran_dry: bool
    """Nothing was left before the window closed: seconds are those until the last end, CPU shares are too low."""
    worker_cpu: float
    """Of one core, all processes together."""
    postgres_cpu: float | None
    wal_bytes_per_run: float
    transactions_per_run: float
    """Of the measured database, over the whole drain, as everything below."""
    statements_per_run: float
    """Sent on the connection that writes; those inside of functions are not counted."""
    round_trips_per_run: float
    dead_rows_per_run: float
    """Row versions that updates and deletes have left behind."""
    dead_rows: int
    """That stood at the end."""

    @property
    def runs_per_s(self) -> float:
        return self.runs / self.seconds

    def costs(self) -> dict[str, float | None]:
        """What one run cost, by name; microseconds from the shares of a core."""
        us_per_run = 1e6 / self.runs_per_s
        return {
            "round_trips_per_run": self.round_trips_per_run,
            "statements_per_run": self.statements_per_run,
            "transactions_per_run": self.transactions_per_run,
            "wal_bytes_per_run": self.wal_bytes_per_run,
            "dead_rows_per_run": self.dead_rows_per_run,
            "python_us_per_run": self.worker_cpu * us_per_run,
            "postgres_us_per_run": None if self.postgres_cpu is None else self.postgres_cpu * us_per_run,
        }


class Drainer:
    """The process, from its start to its end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._seen = psutil.Process(process.pid)

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", f"the process ended, or says {line!r}"

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()

    def cpu_s(self) -> float:
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    def memory_kib(self) -> float:
        """What only this process has in memory."""
        return float(self._seen.memory_full_info().uss) / 1024

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> dict[str, float]:
        """Let it end, and return what it counted."""
        self._process.terminate()
        said, _ = self._process.communicate(timeout=30)
        words: dict[str, float] = json.loads(said.splitlines()[-1])
        return words


@contextmanager
def drainer(url: str, module: str, *arguments: str) -> Generator[Drainer]:
    """Start it; it waits for `begin`."""
    command = [sys.executable, "-m", f"benchmarks.{module}", url, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        found = Drainer(process)
        found.wait_until_ready()
        yield found
    finally:
        process.kill()
        process.communicate()


def drain(server: BenchServer, url: str, workload: Workload, *, seconds: float) -> Drained:
    """Drain a prepared database for a while."""
    until_last = "extract(epoch from max(e.at) - %(since)s::timestamptz)::float8"
    ended = f"""select count(*), {until_last} from ({workload.ended_at}) as e(at)
                 where e.at > %(since)s::timestamptz and e.at <= %(until)s::timestamptz"""
    module, *arguments = workload.command
    with (
        psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn,
        ExitStack() as started,
    ):
        processes = [started.enter_context(drainer(url, module, *arguments)) for _ in range(workload.processes)]
        begun, dead_before = server.read(url), server.dead_rows(url)
        for process in processes:
            process.begin()
        _wait_for_the_first(conn, workload, processes)
        time.sleep(WARM_UP_S)
        before, cpu_before = server.read(url), cpu_s(processes)
        time.sleep(seconds)
        cpu_after, after = cpu_s(processes), server.read(url)
        words = [process.end() for process in processes]
        runs, until_last_s = _row(conn, ended, {"since": before.server_time, "until": after.server_time})
        all_runs, _ = _row(conn, ended, {"since": begun.server_time, "until": "infinity"})
        last, dead_after = server.read(url), server.dead_rows(url)
    took = after.at - before.at
    dry = runs == 0 or took - until_last_s > 0.1
    return Drained(
        runs=runs,
        seconds=until_last_s if dry and runs else took,
        ran_dry=dry,
        worker_cpu=(cpu_after - cpu_before) / took,
        postgres_cpu=before.cpu_until(after),
        wal_bytes_per_run=(after.wal_bytes - before.wal_bytes) / max(runs, 1),
        transactions_per_run=(last.transactions - begun.transactions) / max(all_runs, 1),
        statements_per_run=sum(word["statements"] for word in words) / max(all_runs, 1),
        round_trips_per_run=sum(word["round_trips"] for word in words) / max(all_runs, 1),
        dead_rows_per_run=(dead_after.made - dead_before.made) / max(all_runs, 1),
        dead_rows=dead_after.standing,
    )


def cpu_s(processes: Sequence[Drainer]) -> float:
    """Seconds that they have used together."""
    return sum(process.cpu_s() for process in processes)


def _wait_for_the_first(conn: psycopg.Connection, workload: Workload, processes: Sequence[Drainer]) -> None:
    deadline = time.monotonic() + _LONGEST_START_S
    while conn.execute(f"select exists ({workload.begun})".encode()).fetchone() != (True,):
        if any(process.has_ended() for process in processes) or time.monotonic() > deadline:
            raise RuntimeError(f"{workload.name}: the drain has not begun")
        time.sleep(0.02)


def _row(conn: psycopg.Connection, query: str, parameters: dict[str, str]) -> tuple[int, float]:
    row = conn.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return int(row[0]), float(row[1] or 0)
