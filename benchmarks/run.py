"""
`make bench`: runs/s, steps/s, starts/s, latencies, and what they cost.

Worker processes, the client's process and Postgres share the machine. What is compared is measured in turn, each
repetition anew, in fresh databases; medians are shown with their range, beside the goals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import figures, footprint, idle, latency, measures, memory, starts
from benchmarks.drain import Drained, Workload
from benchmarks.figures import FOLDER, Figures
from benchmarks.measures import Measure
from benchmarks.report import Report
from benchmarks.server import BenchServer, bench_server
from benchmarks.workflows import one_step
from benchmarks.workloads import (
    KEDGE_FOUR,
    KEDGE_ONE,
    KEDGE_TEN,
    LARGE_BATCH,
    LIMIT_ONE,
    LIMIT_TEN,
    drain_fresh,
    start_in_bulk,
)

COMMAND: Final = "make bench"
_KIB_PER_MIB: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often."""

    repetitions: int
    drain_s: float
    start_s: float
    bulk: int
    samples: int
    few_samples: int
    half_s: float
    idle_s: float


QUICK: Final = Plan(repetitions=1, drain_s=1, start_s=1, bulk=10_000, samples=50, few_samples=20, half_s=2, idle_s=5)
FULL: Final = Plan(repetitions=3, drain_s=3, start_s=4, bulk=60_000, samples=200, few_samples=50, half_s=5, idle_s=60)


class Bench:
    """One server, and what has been found on it."""

    def __init__(self, server: BenchServer, plan: Plan, report: Report) -> None:
        self.found: Final = Figures()
        self._server = server
        self._plan = plan
        self._report = report

    def one(self) -> None:
        """One step, kedge and the bare loop."""
        self._compare(
            LIMIT_ONE, KEDGE_ONE, measures.ONE_STEP_LOOP, measures.ONE_STEP, measures.ONE_STEP_RATIO,
            measures.ONE_STEP_COSTS,
        )  # fmt: skip

    def ten(self) -> None:
        """Ten steps, kedge and the bare loop."""
        self._compare(
            LIMIT_TEN, KEDGE_TEN, measures.TEN_STEPS_LOOP, measures.TEN_STEPS, measures.TEN_STEPS_RATIO,
            measures.TEN_STEPS_COSTS,
        )  # fmt: skip

    def processes(self) -> None:
        """Four processes beside one."""
        alone = self._one_step_rate()
        four = self._drain(KEDGE_FOUR).runs_per_s
        self.found.add(measures.FOUR_WORKERS, four)
        self.found.add(measures.FOUR_WORKERS_RATIO, four / alone)

    def starts(self) -> None:
        """One after the other beside inserts, many at once, and in bulk."""
        url = self._fresh()
        for measure, loop, ratio, found in (
            (measures.ONE_START, measures.ONE_START_LOOP, measures.ONE_START_RATIO, starts.by_one),
            (measures.ONE_AWAITED, measures.ONE_AWAITED_LOOP, measures.ONE_AWAITED_RATIO, starts.by_one_awaited),
        ):
            both = found(url, seconds=self._plan.start_s)
            self.found.add(loop, both.inserts)
            self.found.add(measure, both.starts)
            self.found.add(ratio, both.starts / both.inserts)
        self.found.add(measures.MANY_STARTS, starts.by_many(url, seconds=self._plan.start_s / 2))
        bulk = start_in_bulk(url, one_step, self._plan.bulk, batch=LARGE_BATCH)
        self.found.add(measures.BULK_STARTS, bulk)

    def latency(self) -> None:
        """Start to result on an idle system."""
        url, samples = self._fresh(), self._plan.samples
        self.found.add_all(measures.START_TO_RESULT, latency.idle(url, samples=samples))
        self.found.add_all(measures.ONE_AFTER_THE_OTHER, latency.one_after_the_other(url, samples=samples))

    def half(self) -> None:
        """Start to result while half of what one worker can drain is started."""
        rate = self._one_step_rate() / 2
        found = latency.at_rate(self._fresh(), rate=rate, seconds=self._plan.half_s)
        self.found.add(measures.HALF_LOAD_RATE, rate)
        self.found.add(measures.HALF_LOAD_REACHED, found["rate"] / rate)
        self.found.add_all(measures.HALF_LOAD, found)

    def event(self) -> None:
        """Event to result on an idle system."""
        samples = self._plan.few_samples
        self.found.add_all(measures.EVENT_IN_MEMORY, latency.event_in_memory(self._fresh(), samples=samples))
        self.found.add_all(measures.EVENT_PARKED, latency.event_parked(self._fresh(), samples=samples))

    def fan(self) -> None:
        """A hundred steps at once."""
        self.found.add_all(measures.FAN, latency.fan(self._fresh(), samples=self._plan.few_samples))

    def idle(self) -> None:
        """A worker with nothing to do."""
        found = idle.measure(self._server, self._fresh(), seconds=self._plan.idle_s)
        self.found.add_all(
            {
                "transactions": measures.IDLE_TRANSACTIONS,
                "python": measures.IDLE_PYTHON,
                "postgres": measures.IDLE_POSTGRES,
            },
            found,
        )

    def memory(self) -> None:
        """A worker with much to do."""
        self.found.add(measures.RUN_MEMORY, memory.a_run_in_flight(self._server))
        few, many = (memory.with_many_ready(self._server, runs) for runs in memory.READY)
        self.found.add(measures.READY_MEMORY, many / _KIB_PER_MIB)
        self.found.add(measures.READY_RATIO, many / few)
        few, many = (memory.with_large_ready(self._server, runs) for runs in memory.LARGE_READY)
        self.found.add(measures.LARGE_MEMORY, many / _KIB_PER_MIB)
        self.found.add(measures.LARGE_RATIO, many / few)
        few, many = (memory.with_large_histories(self._server, runs) for runs in memory.SHELVED)
        self.found.add(measures.HISTORY_MEMORY, many / _KIB_PER_MIB)
        self.found.add(measures.HISTORY_RATIO, many / few)

    def footprint(self) -> None:
        """The client, in a fresh environment."""
        self.found.add_all(
            {
                "import": measures.IMPORT,
                "distributions": measures.DISTRIBUTIONS,
                "installed": measures.INSTALLED,
            },
            footprint.measure(),
        )

    def clear(self) -> None:
        """Leave no database behind."""
        self._server.drop_database("bench")

    def _compare(
        self,
        limit: Workload,
        workload: Workload,
        loop: Measure,
        measure: Measure,
        ratio: Measure,
        costs: dict[str, Measure],
    ) -> None:
        bare, found = self._drain(limit), self._drain(workload)
        self.found.add(measure, found.runs_per_s * workload.steps)
        self.found.add(loop, bare.runs_per_s * limit.steps)
        self.found.add(ratio, found.runs_per_s / bare.runs_per_s)
        self.found.add_all(costs, found.costs())

    def _drain(self, workload: Workload) -> Drained:
        found = drain_fresh(self._server, workload, seconds=self._plan.drain_s)
        if found.ran_dry:
            self._report.note(f"{workload.name}: nothing was left before the window closed; the rate is until then")
        return found

    def _one_step_rate(self) -> float:
        rate = self.found.last(measures.ONE_STEP)
        if rate is None:
            self.one()
            rate = self.found.last(measures.ONE_STEP)
        assert rate is not None
        return rate

    def _fresh(self) -> str:
        url = self._server.fresh_database("bench")
        self._server.settle(url)
        return url


WORKLOADS: Final[dict[str, Callable[[Bench], None]]] = {
    "one": Bench.one,
    "ten": Bench.ten,
    "processes": Bench.processes,
    "starts": Bench.starts,
    "latency": Bench.latency,
    "half": Bench.half,
    "event": Bench.event,
    "fan": Bench.fan,
    "idle": Bench.idle,
    "memory": Bench.memory,
    "footprint": Bench.footprint,
}
# What a repetition would repeat to the letter.
ONCE: Final = frozenset({"idle", "memory", "footprint"})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once and short: shows that it works, and little else")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--json", type=Path, default=FOLDER / "bench.json", help="the file for machines (%(default)s)")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    repetitions = options.repetitions or plan.repetitions
    report = Report()
    with bench_server() as server:
        machine = server.describe()
        report.note(str(machine))
        bench = Bench(server, plan, report)
        for repetition in range(1, repetitions + 1):
            for name in options.only:
                if name not in ONCE or repetition == repetitions:
                    report.note(f"repetition {repetition} of {repetitions}: {name}")
                    WORKLOADS[name](bench)
        bench.clear()
    figures.show(bench.found, report)
    figures.write(options.json, COMMAND, machine, bench.found)
    report.note(
        f"written to {options.json}; python -m benchmarks.publish takes it into docs/explanation/performance.md"
    )


if __name__ == "__main__":
    main()
