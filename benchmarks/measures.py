"""
Every number that the commands print, with its unit and the goal that it is held against.

Goals are for two cores that client, one worker process and Postgres share, with durable commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to be reached: at least, or at most."""

    least: float | None = None
    most: float | None = None

    def is_reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        least = [] if self.least is None else [f"at least {self.least:,g}"]
        return " and ".join(least if self.most is None else [*least, f"at most {self.most:,g}"])


@dataclass(frozen=True)
class Measure:
    """One line of a table."""

    name: str
    unit: str = ""
    goal: Goal | None = None
    digits: int = 0
    """Behind the point."""


def ratio(name: str, *, least: float | None = None, most: float | None = None) -> Measure:
    """Of two numbers that were measured in turn."""
    goal = None if least is None and most is None else Goal(least=least, most=most)
    return Measure(name, "", goal, 2)


def milliseconds(name: str, **most: float) -> dict[str, Measure]:
    """p50, p95 and p99, each with the most that it may be, if there is one."""
    return {
        percentile: Measure(
            f"{name}, {percentile}", "ms", Goal(most=most[percentile]) if percentile in most else None, 1
        )
        for percentile in ("p50", "p95", "p99")
    }


# ---- drains

ONE_STEP: Final = Measure("one step, 100 in flight", "runs/s")
ONE_STEP_LOOP: Final = Measure("one step, the bare loop", "runs/s")
ONE_STEP_RATIO: Final = ratio("one step, ratio to the bare loop", least=0.5)
TEN_STEPS: Final = Measure("ten steps, 100 in flight", "steps/s")
TEN_STEPS_LOOP: Final = Measure("ten steps, the bare loop", "steps/s")
TEN_STEPS_RATIO: Final = ratio("ten steps, ratio to the bare loop", least=0.5)
FOUR_WORKERS: Final = Measure("one step, four worker processes", "runs/s")
FOUR_WORKERS_RATIO: Final = ratio("four worker processes, ratio to one", least=0.9)

# ---- what a run costs while it is drained with others


def costs(what: str) -> dict[str, Measure]:
    """Keyed by the fields of `Drained`."""
    return {
        "round_trips_per_run": Measure(f"{what}: round trips of the worker", "", None, 3),
        "statements_per_run": Measure(f"{what}: statements of the worker", "", None, 3),
        "transactions_per_run": Measure(f"{what}: transactions of the database", "", None, 3),
        "wal_bytes_per_run": Measure(f"{what}: WAL", "bytes"),
        "dead_rows_per_run": Measure(f"{what}: row versions that die", "", None, 2),
        "python_us_per_run": Measure(f"{what}: Python", "us", None, 1),
        "postgres_us_per_run": Measure(f"{what}: Postgres", "us", None, 1),
    }


ONE_STEP_COSTS: Final = costs("a run of one step")
TEN_STEPS_COSTS: Final = costs("a run of ten steps")

# ---- starts

ONE_START: Final = Measure("starts, one thread", "/s")
ONE_START_LOOP: Final = Measure("inserts, one thread, the bare loop", "/s")
ONE_START_RATIO: Final = ratio("starts in one thread, ratio to the bare loop", least=0.9)
ONE_AWAITED: Final = Measure("starts, one awaited", "/s")
ONE_AWAITED_LOOP: Final = Measure("inserts, one awaited, the bare loop", "/s")
ONE_AWAITED_RATIO: Final = ratio("starts awaited one by one, ratio to the bare loop", least=0.9)
MANY_STARTS: Final = Measure("starts, 50 concurrent", "/s", Goal(least=10_000))
BULK_STARTS: Final = Measure("starts, bulk", "/s", Goal(least=60_000))

# ---- latencies

START_TO_RESULT: Final = milliseconds("start to result, idle", p50=3, p99=10)
ONE_AFTER_THE_OTHER: Final = milliseconds("start to result, one after the other")
HALF_LOAD: Final = milliseconds("start to result at half of the drain rate", p99=30)
HALF_LOAD_RATE: Final = Measure("half of the drain rate", "runs/s")
HALF_LOAD_REACHED: Final = ratio("half of the drain rate, share that ended in its time")
EVENT_IN_MEMORY: Final = milliseconds("event to result, freshly parked", p50=3, p99=10)
EVENT_PARKED: Final = milliseconds("event to result, long parked", p50=3, p99=10)
FAN: Final = milliseconds("100 parallel steps", p50=10)

# ---- what a worker and a client cost

IDLE_TRANSACTIONS: Final = Measure("idle worker, transactions", "/s", Goal(most=1), 2)
IDLE_PYTHON: Final = Measure("idle worker, of a core", "%", Goal(most=0.3), 2)
IDLE_POSTGRES: Final = Measure("idle worker, Postgres, of a core", "%", None, 2)
RUN_MEMORY: Final = Measure("worker memory, a run in flight", "KiB", Goal(most=20), 1)
READY_MEMORY: Final = Measure("worker memory at most, 100,000 runs ready", "MiB", None, 1)
READY_RATIO: Final = ratio("worker memory, 100,000 runs ready, ratio to 10,000", most=1.1)
LARGE_MEMORY: Final = Measure("worker memory at most, 800 runs of 256 KiB ready", "MiB", None, 1)
LARGE_RATIO: Final = ratio("worker memory, 800 runs of 256 KiB ready, ratio to 200", most=1.25)
HISTORY_MEMORY: Final = Measure("worker memory at most, 80 runs woken that have kept 8 MiB", "MiB", None, 1)
HISTORY_RATIO: Final = ratio("worker memory, 80 runs woken that have kept 8 MiB, ratio to 20", most=1.25)
IMPORT: Final = Measure("import of the client, over psycopg and msgspec", "ms", Goal(most=30), 1)
DISTRIBUTIONS: Final = Measure("distributions installed beside the client's own two", "", Goal(most=4))
INSTALLED: Final = Measure("installed with the client", "MB", None, 1)


# ---- growth and snapshots


@dataclass(frozen=True)
class Beside:
    """What is measured in one surrounding; ratios are to an otherwise empty database."""

    claim: Measure
    claim_ratio: Measure
    drain: Measure
    drain_ratio: Measure
    latency: dict[str, Measure]
    latency_ratio: Measure
    wal: Measure
    died: Measure
    dead: Measure


def beside(what: str, *, has_goals: bool) -> Beside:
    """Flat means: not slower than a tenth. Faster is no fault."""
    return Beside(
        claim=Measure(f"{what}: claim of 50", "ms", None, 2),
        claim_ratio=ratio(f"{what}: claim, ratio"),
        drain=Measure(f"{what}: drain", "runs/s"),
        drain_ratio=ratio(f"{what}: drain, ratio", least=0.9 if has_goals else None),
        latency=milliseconds(f"{what}: start to result"),
        latency_ratio=ratio(f"{what}: start to result p50, ratio", most=1.1 if has_goals else None),
        wal=Measure(f"{what}: WAL a run", "bytes"),
        died=Measure(f"{what}: row versions that die a run", "", None, 2),
        dead=Measure(f"{what}: dead rows that stand at the end"),
    )


@dataclass(frozen=True)
class Held:
    """What is measured while a snapshot is held, and beside it without one."""

    drain: Measure
    wal: Measure
    died: Measure
    dead: Measure


def held(what: str) -> Held:
    """The drain at the end of the minutes."""
    return Held(
        drain=Measure(f"{what}: drain at the end", "runs/s"),
        wal=Measure(f"{what}: WAL a run", "bytes"),
        died=Measure(f"{what}: row versions that die a run", "", None, 2),
        dead=Measure(f"{what}: dead rows that stand at the end"),
    )


UNDISTURBED: Final = held("undisturbed")
SNAPSHOT: Final = held("snapshot held")
SNAPSHOT_RATIO: Final = ratio("drain at the end of the minutes with a snapshot held, ratio to undisturbed", least=0.8)
SNAPSHOT_MINUTES: Final = Measure("minutes that the snapshot was held", "", None, 1)
