"""
`make bench-growth`: whether a claim, and with it a drain, costs more when the tables are full of other runs.

The same is measured beside nothing, beside 1,000,000 ended and 100,000 waiting runs, and beside those while somebody
holds an old snapshot, so that no dead row and no dead entry of an index may go.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Final
from uuid import uuid4

import psycopg

from benchmarks.drain import Drained, drain
from benchmarks.report import Report, spread
from benchmarks.server import BenchServer, bench_server
from benchmarks.workflows import one_step
from benchmarks.workloads import KEDGE_ONE, start_in_bulk
from kedge_worker._claims import LOWEST, ClaimAnswer, ClaimRequest
from kedge_worker._leased_store import LeasedStore
from kedge_worker._runs import Batch
from kedge_worker._settings import WorkerSettings

CLAIM: Final = 50
"""Runs in one claim."""
CLAIMS: Final = 200
DRAIN_S: Final = 3.0
RUNS: Final = 70_000
"""Prepared for one repetition: more than the claims take and the drain can do."""
LANE: Final = ("default", one_step.qualified_name)

# The journal of a run that has ended: its input and one step; of one that waits: its input.
_FILL: Final = (
    """insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
       select {id}, now(), seq, seq, 0, case seq when 0 then 'i' else 's' end::"char", 'work', '\\x017b7d', ''
         from generate_series(1, {ended}) as n, generate_series(0, 1) as seq""",
    """insert into kedge.finished (id, ended_at, epoch, next_seq, rank, attempt, crashes, status, queue, workflow,
                                   output)
       select {id}, now(), 1, 2, 0, 0, 0, 'c', 'default', '{workflow}', '\\x017b7d'
         from generate_series(1, {ended}) as n""",
    """insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
       select {id}, now(), 0, 0, 0, 'i', '', '\\x017b7d', ''
         from generate_series({ended} + 1, {ended} + {waiting}) as n""",
    """insert into kedge.runs (id, since, due_at, state, queue, workflow)
       select {id}, now(), now() + interval '1 day' + n * interval '1 s', 'w', 'default', '{workflow}'
         from generate_series({ended} + 1, {ended} + {waiting}) as n""",
)
# In the order of time, and long ago.
_ID: Final = "('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Milliseconds of one round trip that claims 50 runs and reads their inputs."""

    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What else is in the tables."""

    name: str
    database: str
    snapshot: bool


ALONE: Final = Surroundings(name="nothing else", database="alone", snapshot=False)
BESIDE: Final = Surroundings(name="beside the others", database="grown", snapshot=False)
HELD: Final = Surroundings(name="beside the others, snapshot held", database="grown", snapshot=True)
ALL: Final = (ALONE, BESIDE, HELD)


def fill(url: str, *, ended: int, waiting: int) -> None:
    """Insert the others."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in _FILL:
            text = statement.format(id=_ID, ended=ended, waiting=waiting, workflow=one_step.qualified_name)
            conn.execute(text.encode())


def measure(server: BenchServer, url: str, surroundings: Surroundings) -> tuple[Claims, Drained]:
    """Claim for a while, give everything back, and let a worker drain it."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("delete from kedge.runs where state <> 'w'")  # the rest of the repetition before
    server.settle(url)
    with _old_snapshot(url, held=surroundings.snapshot):
        start_in_bulk(url, one_step, RUNS)
        server.settle(url)
        claims = asyncio.run(_claim_and_give_back(url))
        return claims, drain(server, url, KEDGE_ONE, seconds=DRAIN_S)


@contextmanager
def _old_snapshot(url: str, *, held: bool) -> Generator[None]:
    with psycopg.connect(url, autocommit=True) as conn:
        if held:
            conn.execute("begin isolation level repeatable read")
            conn.execute("select count(*) from kedge.workers")
        yield


async def _claim_and_give_back(url: str) -> Claims:
    worker_id = uuid4()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """insert into kedge.workers (id, lease_until, lease, started_at, protocol, name, queues, workflows)
               values (%s, clock_timestamp() + interval '1 hour', interval '15 s', now(), 1, 'bench', %s, %s)""",
            (worker_id, [LANE[0]], [LANE[1]]),
        )
    settings = WorkerSettings(database_url=url)
    store = LeasedStore(settings.journal_conninfo(), worker_id=worker_id, schema="kedge", timeout_s=10)
    await store.connect()
    took: list[float] = []
    floor = LOWEST
    for _ in range(CLAIMS):
        begun = perf_counter()
        answer = (await store.flush(Batch(), ClaimRequest(CLAIM, {LANE: floor}, {}))).claim
        took.append((perf_counter() - begun) * 1000)
        floor = _floor(answer)
    owned = await store.owned()
    assert len(owned) == CLAIM * CLAIMS, f"{len(owned)} runs were claimed"
    ids = list(owned.items())
    for first in range(0, len(ids), 500):
        await store.give_back(dict(ids[first : first + 500]))
    store.abort()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("delete from kedge.workers where id = %s", (worker_id,))
    return Claims(p50_ms=statistics.median(took), p95_ms=statistics.quantiles(took, n=20)[-1])


def _floor(answer: ClaimAnswer | None) -> tuple[int, int]:
    assert answer is not None
    return answer.highest.get(LANE, LOWEST)


def show(claims: dict[str, list[Claims]], drained: dict[str, list[Drained]], report: Report) -> None:
    """Print the table; ratios are to the first line, repetition by repetition."""
    alone = ALONE.name
    for where in (surroundings.name for surroundings in ALL):
        cost = [one.p50_ms / other.p50_ms for one, other in zip(claims[where], claims[alone], strict=True)]
        rate = [one.runs_per_s / other.runs_per_s for one, other in zip(drained[where], drained[alone], strict=True)]
        dry = " (ran dry)" if any(one.ran_dry for one in drained[where]) else ""
        report.row(
            where,
            spread([one.p50_ms for one in claims[where]], 2),
            spread([one.p95_ms for one in claims[where]], 2),
            spread(cost, 2),
            spread([one.runs_per_s for one in drained[where]]) + dry,
            spread(rate, 2),
        )
    report.table("what else is there", f"claim of {CLAIM}, p50 ms", "p95 ms", "ratio", "drain, runs/s", "ratio")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--ended", type=int, default=1_000_000, help="ended runs, with two journal rows each")
    parser.add_argument("--waiting", type=int, default=100_000, help="waiting runs")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON a measurement instead of the table")
    options = parser.parse_args(arguments)
    report = Report(as_json=options.json)
    claims: dict[str, list[Claims]] = defaultdict(list)
    drained: dict[str, list[Drained]] = defaultdict(list)
    with bench_server() as server:
        report.note(server.describe())
        report.note(f"inserting {options.ended:,} ended and {options.waiting:,} waiting runs")
        urls = {database: server.fresh_database(database) for database in ("alone", "grown")}
        fill(urls["grown"], ended=options.ended, waiting=options.waiting)
        for repetition in range(1, options.repetitions + 1):
            report.note(f"repetition {repetition} of {options.repetitions}")
            for surroundings in ALL:
                found = measure(server, urls[surroundings.database], surroundings)
                claims[surroundings.name].append(found[0])
                drained[surroundings.name].append(found[1])
                report.measured(f"claim, {surroundings.name}", repetition, asdict(found[0]))
                values = {**asdict(found[1]), "runs_per_s": found[1].runs_per_s}
                report.measured(f"drain, {surroundings.name}", repetition, values)
        for database in urls:
            server.drop_database(database)
    show(claims, drained, report)


if __name__ == "__main__":
    main()
