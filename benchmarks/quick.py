"""
`make bench-quick`: under two minutes, shares of what a plain psycopg loop does with the same least statements.

kedge and the loop take turns in short rounds on one server. The shares are appended to benchmarks/history.jsonl and
compared with the last ones of the same kind of machine; a share that has fallen by more than the noise is named.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import history, latency, ping_pong, starts
from benchmarks.drain import Workload
from benchmarks.history import Comparison
from benchmarks.report import Report, spread
from benchmarks.server import BenchServer, bench_server
from benchmarks.workloads import KEDGE_ONE, KEDGE_TEN, LIMIT_ONE, LIMIT_TEN, drain_fresh

ROUNDS: Final = 3
DRAIN_S: Final = 1.0
START_S: Final = 1.0
SAMPLES: Final = 40

Ratios = dict[str, list[float]]


def measure(server: BenchServer, report: Report, rounds: int) -> Ratios:
    """All shares, round by round; more is better."""
    ratios: Ratios = defaultdict(list)
    for number in range(1, rounds + 1):
        report.note(f"round {number} of {rounds}")
        ratios["drain, one step"].append(_drain(server, KEDGE_ONE, LIMIT_ONE))
        ratios["drain, ten steps"].append(_drain(server, KEDGE_TEN, LIMIT_TEN))
        url = server.fresh_database("quick")
        # The least latency is no share of anything: the loop's by ours, so that more is better here as well.
        loop = ping_pong.measure(url, samples=SAMPLES, pause_s=latency.PAUSE_S)
        ratios["start to result, idle, p50"].append(loop["p50"] / latency.idle(url, samples=SAMPLES)["p50"])
        in_thread, awaited = starts.by_one(url, seconds=START_S), starts.by_one_awaited(url, seconds=START_S)
        ratios["starts, one thread"].append(in_thread.starts / in_thread.inserts)
        ratios["starts, one awaited"].append(awaited.starts / awaited.inserts)
        server.drop_database("quick")
    return ratios


def show(comparisons: Sequence[Comparison], ratios: Ratios, report: Report) -> None:
    """Print the table."""
    for one in comparisons:
        before = "-" if one.before is None else f"{one.before:.2f}"
        change = "first of its kind" if one.change is None else f"{one.change:+.0%}"
        fallen = "FALLEN BY MORE THAN THE NOISE" if one.has_fallen else ""
        report.row(one.name, spread(ratios[one.name], 2), before, change, f"{one.noise:.0%}", fallen)
    report.table("share of the plain loop", "median (range)", "before", "change", "noise", "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if a share has fallen by more than the noise"
    )
    parser.add_argument("--no-history", action="store_true", help="compare, and append nothing")
    parser.add_argument("--history", type=Path, default=history.FILE, help="default: benchmarks/history.jsonl")
    options = parser.parse_args(arguments)
    report = Report()
    with bench_server() as server:
        machine = server.describe()
        report.note(str(machine))
        ratios = measure(server, report, options.rounds)
    found = history.entry(machine, ratios)
    comparisons = history.compare(found, history.read(options.history))
    show(comparisons, ratios, report)
    if not options.no_history:
        history.append(found, options.history)
    return 1 if options.strict and any(one.has_fallen for one in comparisons) else 0


def _drain(server: BenchServer, workload: Workload, limit: Workload) -> float:
    bare = drain_fresh(server, limit, seconds=DRAIN_S)
    return drain_fresh(server, workload, seconds=DRAIN_S).runs_per_s / bare.runs_per_s


if __name__ == "__main__":
    sys.exit(main())
