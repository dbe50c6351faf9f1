"""
Whether a drain slows down while somebody holds a snapshot for minutes, so that nothing that dies may be vacuumed.

Two databases take turns on one server, one of them with a transaction that has seen it before the first run. Each turn
starts a batch in bulk and lets a worker that never stops drain it to the end; nothing is vacuumed by hand.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import psycopg

from benchmarks import measures
from benchmarks.drain import IN_FLIGHT, drainer
from benchmarks.figures import Figures
from benchmarks.measures import Held
from benchmarks.report import Report
from benchmarks.server import BenchServer
from benchmarks.workflows import one_step
from benchmarks.workloads import start_in_bulk

RUNS: Final = 40_000
"""Of one batch: about four seconds."""
LAST: Final = 0.25
"""Of the turns: their median is what the drain does at the end."""
WARM_UP: Final = 0.1
"""Of a batch, by its ends in the order of time: left out of its rate."""
UNDISTURBED_CURVE: Final = "undisturbed, runs/s by minute"
SNAPSHOT_CURVE: Final = "snapshot held, runs/s by minute"
_LONGEST_BATCH_S: Final = 120.0
# The rate between the first tenth of the batch and its last end.
_RATE: Final = """
    with ended as (
        select ended_at, row_number() over (order by ended_at) as place
          from kedge.finished where ended_at > %(since)s::timestamptz)
    select count(*) / extract(epoch from max(ended_at) - min(ended_at))::float8 from ended where place > %(skipped)s
"""


@dataclass
class Database:
    """One of the two."""

    name: str
    url: str
    held: bool
    rates: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Minutes since the beginning, and runs/s."""
    wal_bytes: int = 0
    runs: int = 0


def measure(server: BenchServer, found: Figures, report: Report, *, minutes: float, runs: int) -> None:
    """Take turns until the time is up."""
    report.note(f"for {minutes:g} minutes: undisturbed and with a snapshot held, in turn")
    both = [
        Database(name=name, url=server.fresh_database(name), held=held)
        for name, held in (("undisturbed", False), ("snapshot", True))
    ]
    with ExitStack() as stack:
        for one in both:
            if one.held:
                holder = stack.enter_context(psycopg.connect(one.url, autocommit=True))
                holder.execute("begin isolation level repeatable read")
                holder.execute("select count(*) from kedge.workers")
            process = stack.enter_context(drainer(one.url, "worker_process", str(IN_FLIGHT)))
            process.begin()
        begun = time.monotonic()
        while not both[-1].rates or time.monotonic() - begun < 60 * minutes:
            for one in both:
                _turn(server, one, runs, begun)
        lasted = (time.monotonic() - begun) / 60
        undisturbed, held = (
            _show(server, found, one, names)
            for one, names in zip(both, (measures.UNDISTURBED, measures.SNAPSHOT), strict=True)
        )
    found.add(measures.SNAPSHOT_RATIO, held / undisturbed)
    found.add(measures.SNAPSHOT_MINUTES, lasted)
    found.series[UNDISTURBED_CURVE], found.series[SNAPSHOT_CURVE] = both[0].rates, both[1].rates
    for one in both:
        server.drop_database(one.name)


def at_the_end(rates: list[tuple[float, float]]) -> list[float]:
    """The rates of the last quarter of the turns, one at least."""
    return [rate for _, rate in rates[-max(1, int(len(rates) * LAST)) :]]


def _turn(server: BenchServer, one: Database, runs: int, begun: float) -> None:
    before = server.read(one.url)
    start_in_bulk(one.url, one_step, runs)
    deadline = time.monotonic() + _LONGEST_BATCH_S
    with psycopg.connect(one.url, autocommit=True) as conn:
        while conn.execute("select exists (select from kedge.runs)").fetchone() != (False,):
            assert time.monotonic() < deadline, f"{one.name}: a batch takes longer than {_LONGEST_BATCH_S} s"
            time.sleep(0.1)
        rate = conn.execute(_RATE, {"since": before.server_time, "skipped": int(runs * WARM_UP)}).fetchone()
    assert rate is not None
    one.rates.append(((time.monotonic() - begun) / 60, float(rate[0])))
    one.wal_bytes += server.read(one.url).wal_bytes - before.wal_bytes
    one.runs += runs


def _show(server: BenchServer, found: Figures, one: Database, names: Held) -> float:
    rates = at_the_end(one.rates)
    for rate in rates:
        found.add(names.drain, rate)
    dead = server.dead_rows(one.url)
    found.add(names.wal, one.wal_bytes / one.runs)
    found.add(names.died, dead.made / one.runs)
    found.add(names.dead, dead.standing)
    return sum(rates) / len(rates)
