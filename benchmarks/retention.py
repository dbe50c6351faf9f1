"""
`python -m benchmarks.retention`: what deleting ended runs costs, and what an index for it would cost each end.

Beside 100,000 waiting runs; runs of one step, whose input, value and output have three bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final
from uuid import UUID

import psycopg

from benchmarks.report import Report, spread
from benchmarks.server import BenchServer, bench_server
from kedge.schema import render
from kedge_worker._settings import WorkerSettings
from kedge_worker._upkeep import DELETE_ENDED

WAITING: Final = 100_000
INDEXES: Final = ("(ended_at)", "(workflow, ended_at)", "(workflow, status, ended_at)")
FIRST: Final = UUID(int=0)

# Ten a second, from 40 days ago on; the ids have the time in them.
_ID: Final = (
    "(left(kedge.id_floor(date_trunc('day', now()) - interval '40 days' + n * interval '0.1 s')::text, 13)"
    " || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
)
_JOURNAL: Final = f"""
    insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
    select {_ID}, now(), seq, seq, 0, case seq when 0 then 'i' else 's' end::"char", 'work', '\\x017b7d', ''
      from generate_series($1::int, $2::int) as n, generate_series(0, 1) as seq"""
_FINISHED: Final = f"""
    insert into kedge.finished (id, ended_at, started_at, epoch, next_seq, rank, attempt, crashes, status, queue,
                                workflow, output)
    select {_ID}, date_trunc('day', now()) - interval '40 days' + n * interval '0.1 s', now(), 1, 2, 0, 0, 0, 'c',
           'default', 'order', '\\x017b7d' from generate_series($1::int, $2::int) as n"""
_WAITING: Final = f"""
    insert into kedge.runs (id, since, due_at, state, queue, workflow)
    select {_ID}, now(), now() + interval '1 day', 'w', 'default', 'order'
      from generate_series($1::int, $2::int) as n"""


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    us: float
    wal_bytes: float


class Database:
    """One database with history, seen as its owner and as a remover."""

    def __init__(self, server: BenchServer, runs: int) -> None:
        self._server = server
        self.url = server.fresh_database("retention")
        self.conn = psycopg.connect(self.url, autocommit=True, prepare_threshold=None)
        self._ask = psycopg.RawCursor(self.conn)
        settings = WorkerSettings(database_url=self.url)
        self._remover = psycopg.connect(settings.removal_conninfo(), autocommit=True)
        # Autovacuum would come in the middle.
        for table in ("journal", "finished", "runs"):
            self.conn.execute(f"alter table kedge.{table} set (autovacuum_enabled = off)".encode())
        self.fill(1, runs)
        self.rows(_WAITING, runs + 1, runs + WAITING)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        cursor = self._ask.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description is not None else []

    def fill(self, first: int, last: int) -> None:
        for statement in (_JOURNAL, _FINISHED):
            self.rows(statement, first, last)

    def keep(self, seconds: float | None) -> None:
        self.rows(
            "select kedge.register_definitions('{order}', '{null}', array[''::bytea], array[$1]::float8[],"
            " array[$1]::float8[], array[3e8]::float8[])",
            seconds,
        )

    def delete(self, after: UUID, limit: int) -> tuple[UUID, int, bool]:
        """One batch: where it stopped, how many went, and whether that was the end."""
        given = {"workflows": ["order"], "after": [after], "limit": limit, "rows": 10 * limit}
        ((_, stopped_at, deleted, is_done),) = self._remover.execute(render(DELETE_ENDED, "kedge").encode(), given)
        return stopped_at, deleted, is_done

    def cost(self, work: Callable[[], int]) -> Cost:
        """Of each of the runs that the work says it was done for."""
        before, begun = self._server.read(self.url), perf_counter()
        runs = work()
        took_s, after = perf_counter() - begun, self._server.read(self.url)
        return Cost(took_s / runs * 1e6, (after.wal_bytes - before.wal_bytes) / runs)

    def close(self) -> None:
        self._remover.close()
        self.conn.close()


def index_prices(server: BenchServer, report: Report, repetitions: int) -> None:
    """What an end pays for an index that only a deletion reads: the insert into `finished`, in batches of 100."""
    database = Database(server, 60_000)
    costs: dict[str, list[Cost]] = {index: [] for index in ("none", *INDEXES)}

    def insert() -> int:
        for first in range(60_001, 100_001, 100):
            database.rows(_FINISHED, first, first + 99)
        return 40_000

    for _ in range(repetitions):
        for index, found in costs.items():
            database.rows("drop index if exists kedge.by_end")
            database.rows("truncate kedge.finished")
            database.rows(_FINISHED, 1, 60_000)
            if index != "none":
                database.rows(f"create index by_end on kedge.finished {index}")
            server.settle(database.url)
            found.append(database.cost(insert))
    for index, found in costs.items():
        report.row(f"an end, index {index}", spread([c.us for c in found], 1), spread([c.wal_bytes for c in found]))
    database.close()


def deletions(server: BenchServer, report: Report, runs: int) -> None:
    """Batches of several sizes, what autovacuum has to do behind them, and a walk over runs that are kept."""
    database = Database(server, runs)
    ((size,),) = database.rows(
        "select pg_total_relation_size('kedge.journal') + pg_total_relation_size('kedge.finished')"
    )
    report.note(f"{size / runs:,.0f} bytes of journal and finished, with their indexes, for each run")
    database.keep(7 * 86_400)
    place, share = FIRST, runs // 8

    def batches(limit: int, slowest: list[float]) -> int:
        nonlocal place
        gone = 0
        while gone < share:
            begun = perf_counter()
            place, deleted, _ = database.delete(place, limit)
            slowest.append((perf_counter() - begun) * 1000)
            gone += deleted
        return gone

    for limit in (25, 100, 400):
        server.settle(database.url)
        times_ms: list[float] = []
        cost = database.cost(partial(batches, limit, times_ms))
        report.row(f"deleted in batches of {limit}", f"{cost.us:.1f}", f"{cost.wal_bytes:,.0f}")
        report.note(f"a batch of {limit}: {spread(times_ms, 1)} ms")

    def vacuum() -> int:
        for table in ("journal", "finished"):
            database.rows(f"vacuum kedge.{table}")
        return 3 * share

    cost = database.cost(vacuum)
    report.row("vacuum behind these", f"{cost.us:.1f}", f"{cost.wal_bytes:,.0f}")

    database.keep(None)
    place, is_done, left = FIRST, False, database.rows("select count(*) from kedge.finished")[0][0]

    def walk() -> int:
        nonlocal place, is_done
        while not is_done:
            place, _, is_done = database.delete(place, 400)
        return int(left)

    cost = database.cost(walk)
    report.row("passed over, for it is kept", f"{cost.us:.2f}", f"{cost.wal_bytes:,.0f}")

    def drop() -> int:
        database.rows("begin")
        database.rows("drop table kedge.journal, kedge.finished cascade")
        database.rows("rollback")
        return int(left)

    cost = database.cost(drop)
    report.row("dropped with their tables", f"{cost.us:.2f}", f"{cost.wal_bytes:,.0f}")
    database.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=("indexes", "deletions"))
    options = parser.parse_args(arguments)
    report = Report()
    with bench_server() as server:
        report.note(str(server.describe()))
        if options.only != "deletions":
            index_prices(server, report, options.repetitions)
        if options.only != "indexes":
            deletions(server, report, options.runs)
        report.table("each run", "us", "bytes of WAL")


if __name__ == "__main__":
    main()
