"""
`make bench`: runs/s, steps/s, starts/s, latencies, and what they cost.

One worker process, the client's process and Postgres share the machine. Only the drain is timed, not the starts before
it. What is compared is measured in turn, each repetition anew, in fresh databases; medians are shown with their range.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks import latency, starts
from benchmarks.drain import IN_FLIGHT, Drained, Workload, drain
from benchmarks.report import Report, share, spread
from benchmarks.server import BenchServer, bench_server
from benchmarks.workflows import one_step
from benchmarks.workloads import KEDGE_ONE, KEDGE_TEN, LIMIT_ONE, LIMIT_TEN, start_in_bulk

# More than this machine's like can drain in a second; a drain that runs dry is told from one that does not.
RUNS_PER_S: Final = {LIMIT_ONE: 40_000, KEDGE_ONE: 20_000, LIMIT_TEN: 12_000, KEDGE_TEN: 6_000}
SPARE_S: Final = 0.7
PAIRS: Final = ((KEDGE_ONE, LIMIT_ONE), (KEDGE_TEN, LIMIT_TEN))


@dataclass(frozen=True, kw_only=True)
class Plan:
    repetitions: int
    drain_s: float
    start_s: float
    bulk: int
    samples: int
    idle_s: float


QUICK: Final = Plan(repetitions=1, drain_s=2, start_s=1, bulk=20_000, samples=200, idle_s=0)
FULL: Final = Plan(repetitions=3, drain_s=3, start_s=2, bulk=30_000, samples=200, idle_s=12)


class Results:
    """All repetitions of everything."""

    def __init__(self) -> None:
        self.drained: dict[Workload, list[Drained]] = defaultdict(list)
        self.starts: dict[str, list[float]] = defaultdict(list)
        self.paused: list[latency.Latency] = []
        self.at_once: list[latency.Latency] = []
        self.idle: list[latency.Idle] = []


def measure(server: BenchServer, plan: Plan, report: Report) -> Results:
    """Measure everything, in turn."""
    results = Results()
    for repetition in range(1, plan.repetitions + 1):
        report.note(f"repetition {repetition} of {plan.repetitions}")
        for workload in (LIMIT_ONE, KEDGE_ONE, LIMIT_TEN, KEDGE_TEN):
            url = server.fresh_database("drain", schema=workload.schema)
            workload.prepare(url, int(RUNS_PER_S[workload] * (plan.drain_s + SPARE_S)))
            server.settle(url)
            found = drain(server, url, workload, seconds=plan.drain_s)
            results.drained[workload].append(found)
            report.measured(workload.name, repetition, {**dataclasses.asdict(found), "runs_per_s": found.runs_per_s})
        server.drop_database("drain")

        url = server.fresh_database("starts")
        server.settle(url)
        for name, rate in (
            ("starts/s, 1 starter", starts.by_one(url, seconds=plan.start_s)),
            (f"starts/s, {starts.STARTERS} async starters", starts.by_many(url, seconds=plan.start_s)),
            ("starts/s, start_many", start_in_bulk(url, one_step, plan.bulk)),
        ):
            results.starts[name].append(rate)
            report.measured(name, repetition, {"starts_per_s": rate})
        server.drop_database("starts")

        url = server.fresh_database("latency")
        server.settle(url)
        idle_s = plan.idle_s if repetition == plan.repetitions else 0
        paused, at_once, idle = latency.measure(server, url, samples=plan.samples, idle_s=idle_s)
        results.paused.append(paused)
        results.at_once.append(at_once)
        report.measured("start to result, idle system", repetition, dataclasses.asdict(paused))
        report.measured("start to result, one after the other", repetition, dataclasses.asdict(at_once))
        if idle is not None:
            results.idle.append(idle)
            report.measured("idle worker", repetition, dataclasses.asdict(idle))
        server.drop_database("latency")
    return results


def show(results: Results, report: Report) -> None:
    """Print the table."""
    for workload, limit in PAIRS:
        _show_drain(report, f"{workload.name}, {IN_FLIGHT} in flight", workload, results, limit)
        _show_drain(report, "  the bare loop", limit, results, None)
    for name, rates in results.starts.items():
        report.row(name, spread(rates), *[""] * 5)
    for name, found in (("idle system", results.paused), ("one after the other", results.at_once)):
        for percentile in ("p50", "p95", "p99"):
            values = [getattr(one, f"{percentile}_ms") for one in found]
            report.row(f"start to result, {name}, {percentile} ms", spread(values, 1), *[""] * 5)
    for idle in results.idle:
        cpu = (share([idle.worker_cpu]), share([idle.postgres_cpu]))
        report.row("idle worker, transactions/s", f"{idle.transactions_per_s:.1f}", "", *cpu, "", "")
    report.table("what", "median (range)", "ratio to the loop", "python", "postgres", "WAL bytes/run", "statements/run")


def _show_drain(report: Report, name: str, workload: Workload, results: Results, limit: Workload | None) -> None:
    found = results.drained[workload]
    unit = "runs/s" if workload.steps == 1 else "steps/s"
    dry = " (ran dry)" if any(one.ran_dry for one in found) else ""
    ratio = ""
    if limit is not None:
        pairs = zip(found, results.drained[limit], strict=True)
        ratio = spread([one.runs_per_s / bare.runs_per_s for one, bare in pairs], 2)
    report.row(
        f"{name}, {unit}",
        spread([one.runs_per_s * workload.steps for one in found]) + dry,
        ratio,
        share(one.worker_cpu for one in found),
        share(one.postgres_cpu for one in found),
        f"{statistics.median(one.wal_bytes_per_run for one in found):,.0f}",
        f"{statistics.median(one.statements_per_run for one in found):.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once instead of three times, without the idle worker")
    parser.add_argument("--json", action="store_true", help="one line of JSON a measurement instead of the table")
    options = parser.parse_args(arguments)
    report = Report(as_json=options.json)
    with bench_server() as server:
        report.note(server.describe())
        results = measure(server, QUICK if options.quick else FULL, report)
    show(results, report)


if __name__ == "__main__":
    main()
