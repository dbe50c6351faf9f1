"""
`make bench-growth`: whether a claim, a drain and an idle start cost more when the tables are full of other runs.

The same is measured beside nothing, beside rising numbers of finished runs, and beside waiting runs; then for minutes
while somebody holds a snapshot, so that no dead row and no dead entry of an index may go (benchmarks/snapshot.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import claims, figures, latency, measures, snapshot
from benchmarks.drain import drain
from benchmarks.figures import FOLDER, Figures
from benchmarks.measures import Beside
from benchmarks.report import Report
from benchmarks.server import BenchServer, bench_server
from benchmarks.surroundings import ALONE, Surroundings, fill, forget_the_ready
from benchmarks.workflows import one_step
from benchmarks.workloads import KEDGE_ONE, start_in_bulk

COMMAND: Final = "make bench-growth"
RUNS_PER_S: Final = 20_000
"""More than a worker can drain here."""
STEPS: Final = 4
"""Points of the curve over the finished runs."""
DRAIN_CURVE: Final = "drain beside finished runs, runs/s"
LATENCY_CURVE: Final = "start to result beside finished runs, p50 ms"


class Growth:
    """All surroundings on one server; ratios are to those that are empty, repetition by repetition."""

    def __init__(self, server: BenchServer, found: Figures, *, drain_s: float, samples: int) -> None:
        self._server = server
        self._found = found
        self._drain_s = drain_s
        self._samples = samples
        self._urls: dict[Surroundings, str] = {}

    def prepare(self, what: Surroundings) -> None:
        """Fill a database of its own; the empty one is made anew each time."""
        self._urls[what] = self._server.fresh_database(what.database)
        fill(self._urls[what], what)

    def measure(self, what: Surroundings, names: Beside, alone: Beside) -> None:
        """Claim for a while and give everything back, let a worker drain it, then start one run at a time."""
        if what == ALONE:
            self.prepare(what)
        url = self._urls[what]
        forget_the_ready(url)
        start_in_bulk(url, one_step, int(RUNS_PER_S * (self._drain_s + 0.7)))
        self._server.settle(url)
        claim = claims.measure(url)["p50"]
        drained = drain(self._server, url, KEDGE_ONE, seconds=self._drain_s)
        forget_the_ready(url)
        self._server.settle(url)
        one = latency.idle(url, samples=self._samples)
        found = self._found
        found.add(names.claim, claim)
        found.add(names.drain, drained.runs_per_s)
        found.add_all(names.latency, one)
        found.add(names.wal, drained.wal_bytes_per_run)
        found.add(names.died, drained.dead_rows_per_run)
        found.add(names.dead, drained.dead_rows)
        if what != ALONE:
            for measure, of, base in (
                (names.claim_ratio, names.claim, alone.claim),
                (names.drain_ratio, names.drain, alone.drain),
                (names.latency_ratio, names.latency["p50"], alone.latency["p50"]),
            ):
                self._ratio(measure, of, base)

    def clear(self) -> None:
        """Leave no database behind."""
        for what in self._urls:
            self._server.drop_database(what.database)

    def _ratio(self, measure: measures.Measure, of: measures.Measure, base: measures.Measure) -> None:
        one, other = self._found.last(of), self._found.last(base)
        assert one is not None
        assert other is not None
        self._found.add(measure, one / other)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once, short, few others, a snapshot held for 20 seconds")
    parser.add_argument("--finished", type=int, help="finished runs, with two journal rows each (500,000)")
    parser.add_argument("--waiting", type=int, help="waiting runs (100,000)")
    parser.add_argument("--repetitions", type=int, help="3")
    parser.add_argument("--minutes", type=float, help="for which a snapshot is held (5); 0 leaves that out")
    parser.add_argument("--json", type=Path, default=FOLDER / "growth.json", help="for machines (%(default)s)")
    options = parser.parse_args(arguments)
    quick: bool = options.quick
    finished = options.finished or (40_000 if quick else 500_000)
    waiting = options.waiting or (10_000 if quick else 100_000)
    repetitions = options.repetitions or (1 if quick else 3)
    minutes = options.minutes if options.minutes is not None else 1 / 3 if quick else 5.0
    steps = (STEPS,) if quick else (1, 2, STEPS)
    everything = [
        ALONE,
        *(Surroundings(finished=finished * step // STEPS) for step in steps),
        Surroundings(waiting=waiting),
    ]
    names = {
        what: measures.beside(what.name, has_goals=what.finished == finished or what.waiting > 0) for what in everything
    }
    report, found = Report(), Figures()
    with bench_server() as server:
        machine = server.describe()
        report.note(str(machine))
        growth = Growth(server, found, drain_s=1 if quick else 3, samples=30 if quick else 100)
        for what in everything[1:]:
            report.note(f"preparing: {what.name}")
            growth.prepare(what)
        for repetition in range(1, repetitions + 1):
            for what in everything:
                report.note(f"repetition {repetition} of {repetitions}: {what.name}")
                growth.measure(what, names[what], names[ALONE])
        growth.clear()
        if minutes:
            snapshot.measure(server, found, report, minutes=minutes, runs=10_000 if quick else snapshot.RUNS)
    add_curves(found, {what: names[what] for what in everything if not what.waiting})
    figures.show(found, report)
    figures.write(options.json, COMMAND, machine, found)
    report.note(f"written to {options.json}")


def add_curves(found: Figures, names: dict[Surroundings, Beside]) -> None:
    """Points of the medians over the number of finished runs."""
    medians = {one["name"]: float(one["median"]) for one in found.as_json()}
    found.series[DRAIN_CURVE] = [(what.finished, medians[beside.drain.name]) for what, beside in names.items()]
    found.series[LATENCY_CURVE] = [
        (what.finished, medians[beside.latency["p50"].name]) for what, beside in names.items()
    ]


if __name__ == "__main__":
    main()
