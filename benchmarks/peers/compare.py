"""
`make bench-peers`: kedge beside DBOS and Absurd, and Procrastinate and PgQueuer as plain queues, on one server.

Each measurement has a fresh database. Within a repetition the engines take turns, in another order each time; medians
are shown with their range. What the file has already is not measured again, so an hour may be cut into parts. The
Makefile makes the peers' environment; Absurd needs ABSURD_SQL, its sql/absurd.sql.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

from benchmarks.figures import FOLDER
from benchmarks.machine import ROOT
from benchmarks.peers.engines import ENGINES, PYTHON_VARIABLE, Engine
from benchmarks.peers.results import Line, Results, cell, engines_of, table
from benchmarks.report import Report
from benchmarks.server import BenchServer, bench_server

WORKLOADS: Final = ("one", "ten", "starts", "bulk", "latency", "half", "event", "fan", "finished", "waiting", "idle")
FINISHED: Final = 500_000
WAITING: Final = 100_000
SAMPLES: Final = 100
PAUSE_S: Final = "0.03"
PATIENCE_S: Final = 180.0

Values = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How long a window is, how many samples a latency has, and how many other runs stand in the tables."""

    seconds: float
    samples: int
    finished: int
    waiting: int


class Peers:
    """One engine on one server."""

    def __init__(self, server: BenchServer, engine: Engine, size: Size) -> None:
        self._server = server
        self._engine = engine
        self._size = size
        self._seconds = size.seconds

    def measure(self, workload: str) -> dict[str, Values]:
        """Measure one workload in a fresh database; answers one line a number of the table."""
        url = self._server.fresh_database("peer", schema=False)
        self._call("setup", url)
        self._server.settle(url)
        measure: Callable[[str], dict[str, Values]] = getattr(self, f"_{workload}")
        found = measure(url)
        self._server.drop_database("peer")
        return found

    # ---- workloads

    def _one(self, url: str) -> dict[str, Values]:
        return {"one step, runs/s": {"rate": self._drain(url, "one", self._engine.runs_per_s)}}

    def _ten(self, url: str) -> dict[str, Values]:
        return {"ten steps, steps/s": {"rate": 10 * self._drain(url, "ten", self._engine.ten_runs_per_s)}}

    def _starts(self, url: str) -> dict[str, Values]:
        return {
            f"starts/s, {number} awaited": self._call("starts", url, str(number), str(self._seconds))
            for number in (1, 50)
        }

    def _bulk(self, url: str) -> dict[str, Values]:
        return {"starts/s, bulk": self._call("bulk", url, "one", str(3 * self._engine.runs_per_s))}

    def _latency(self, url: str) -> dict[str, Values]:
        with self._worker(url):
            return {"start to result, idle, ms": self._call("latency", url, "one", str(self._size.samples), PAUSE_S)}

    def _half(self, url: str) -> dict[str, Values]:
        rate = self._drain(url, "one", self._engine.runs_per_s) / 2
        with self._worker(url):
            self._wait_until_drained(url)
            return {"start to result at half load, ms": self._call("paced", url, f"{rate:.0f}", str(self._seconds))}

    def _event(self, url: str) -> dict[str, Values]:
        with self._worker(url):
            return {"event to result, ms": self._call("event", url, str(self._size.samples // 2), "0.1")}

    def _fan(self, url: str) -> dict[str, Values]:
        with self._worker(url):
            return {"100 steps at once, ms": self._call("latency", url, "fan", "15", PAUSE_S)}

    def _finished(self, url: str) -> dict[str, Values]:
        return self._beside(url, f"beside {self._size.finished:,} finished", self._engine.finished, self._size.finished)

    def _waiting(self, url: str) -> dict[str, Values]:
        return self._beside(url, f"beside {self._size.waiting:,} waiting", self._engine.waiting, self._size.waiting)

    def _idle(self, url: str) -> dict[str, Values]:
        with self._server.without_autovacuum(), self._worker(url) as process:
            time.sleep(12)  # a backend that has gone to sleep reports its last transactions up to ten seconds later
            before, cpu = self._server.read(url), cpu_s(process)
            time.sleep(10)
            after = self._server.read(url)
            took = after.at - before.at
            return {
                "idle worker, transactions/s": {"rate": (after.transactions - before.transactions) / took},
                "idle worker, % of a core": {"rate": 100 * (cpu_s(process) - cpu) / took},
            }

    def _beside(self, url: str, name: str, fill: Sequence[str], number: int) -> dict[str, Values]:
        with self._worker(url):
            self._call("latency", url, "one", "1", "0")  # one finished run, for the pattern
        with psycopg.connect(url) as conn:
            for statement in fill:
                conn.execute(statement.replace("{n}", str(number)).encode())
        self._server.settle(url)
        found = {f"one step, {name}, runs/s": {"rate": self._drain(url, "one", self._engine.runs_per_s)}}
        with self._worker(url):
            self._wait_until_drained(url)
            found[f"start to result, {name}, ms"] = self._call(
                "latency", url, "one", str(self._size.samples // 2), PAUSE_S
            )
        return found

    # ---- processes

    def _call(self, *arguments: str) -> Any:
        done = subprocess.run(
            self._engine.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self._engine.name} {arguments[0]}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return json.loads(lines[-1]) if lines else None

    @contextmanager
    def _worker(self, url: str) -> Generator[psutil.Process]:
        command = self._engine.command("worker", url, str(self._engine.in_flight))
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            while "READY" not in (line := process.stdout.readline()):
                if not line:
                    raise RuntimeError(f"the worker of {self._engine.name} has ended")
            time.sleep(1)
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _drain(self, url: str, workload: str, runs_per_s: int) -> float:
        """Ends a second within a window, from the first that is seen."""
        runs = int(runs_per_s * (self._seconds + 1))
        with psycopg.connect(url, autocommit=True) as conn:
            before = self._left(conn)
            self._call("bulk", url, workload, str(runs))
            self._server.settle(url)
            with self._worker_at_once(url):
                first: tuple[float, int] | None = None
                begun = time.perf_counter()
                while True:
                    asked = time.perf_counter()
                    done = runs - (self._left(conn) - before)
                    now = time.perf_counter()
                    if first is None and done > 0:
                        first = (now, done)
                    elif first is not None and (done >= runs or now - first[0] > self._seconds):
                        return (done - first[1]) / (now - first[0])
                    if now - begun > PATIENCE_S:
                        raise RuntimeError(f"{self._engine.name}: {done} of {runs} after {PATIENCE_S} s")
                    # Counting costs the server something: a twentieth of the time at most.
                    time.sleep(max(0.05, 20 * (now - asked)))

    @contextmanager
    def _worker_at_once(self, url: str) -> Generator[None]:
        command = self._engine.command("worker", url, str(self._engine.in_flight))
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def _wait_until_drained(self, url: str) -> None:
        end = time.monotonic() + PATIENCE_S
        with psycopg.connect(url, autocommit=True) as conn:
            while self._left(conn) > 0:
                if time.monotonic() > end:
                    raise RuntimeError(f"{self._engine.name}: not drained after {PATIENCE_S} s")
                time.sleep(0.2)
        time.sleep(0.5)

    def _left(self, conn: psycopg.Connection) -> int:
        row = conn.execute(self._engine.left.encode()).fetchone()
        assert row is not None
        return int(row[0])


def cpu_s(process: psutil.Process) -> float:
    """Seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.compare", description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=[engine.name for engine in ENGINES], metavar="ENGINE")
    parser.add_argument("--only", nargs="+", default=WORKLOADS, choices=WORKLOADS, metavar="WORKLOAD")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window (%(default)s)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of a latency (%(default)s)")
    parser.add_argument("--finished", type=int, default=FINISHED, help="finished runs in the tables (%(default)s)")
    parser.add_argument("--waiting", type=int, default=WAITING, help="waiting runs in the tables (%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure again what the file has")
    parser.add_argument("--json", type=Path, default=FOLDER / "peers.json", help="added to by each run (%(default)s)")
    options = parser.parse_args(arguments)
    named = options.engines or [engine.name for engine in ENGINES]
    engines = [engine for engine in ENGINES if engine.name in named and is_here(engine)]
    size = Size(seconds=options.seconds, samples=options.samples, finished=options.finished, waiting=options.waiting)
    report, results = Report(), Results(options.json)
    with bench_server() as server:
        machine = server.describe()
        report.note(str(machine))
        for engine in engines:
            report.note(f"{engine.name}: {engine.settings}")
        for repetition in range(1, options.repetitions + 1):
            for workload in options.only:
                for engine in random.sample(engines, len(engines)):
                    if workload not in engine.workloads:
                        continue
                    if results.has(engine, workload, repetition, machine.commit) and not options.again:
                        report.note(f"{repetition}, {workload}, {engine.name}: in {options.json} already")
                        continue
                    try:
                        values = Peers(server, engine, size).measure(workload)
                    except (RuntimeError, subprocess.TimeoutExpired) as error:  # the others are worth the hour
                        report.note(f"{repetition}, {workload}, {engine.name}: NOT MEASURED: {error}")
                        continue
                    line = {"engine": engine.name, "workload": workload, "repetition": repetition, "values": values}
                    report.note(f"{repetition}, {workload}, {engine.name}: {json.dumps(values)}")
                    results.add({**line, "commit": machine.commit}, machine)
    show(results.lines, report)


def show(lines: Sequence[Line], report: Report) -> None:
    """One line a number, one column an engine: all that the file has."""
    engines = engines_of(lines)
    for title, by_engine in table(lines).items():
        report.row(title, *(cell(by_engine.get(engine, [])) for engine in engines))
    report.table("what", *engines)


def is_here(engine: Engine) -> bool:
    """Whether it can be run; says what is missing."""
    missing = None
    if not engine.is_ours and PYTHON_VARIABLE not in os.environ:
        missing = f"{PYTHON_VARIABLE} does not name the peers' Python; `make bench-peers` makes one"
    elif engine.name == "Absurd" and not Path(os.environ.get("ABSURD_SQL", "")).is_file():
        missing = "ABSURD_SQL does not name sql/absurd.sql of its repository, which its package lacks"
    if missing:
        sys.stderr.write(f"{engine.name} is left out: {missing}\n")
    return missing is None


if __name__ == "__main__":
    main()
