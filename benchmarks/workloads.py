"""The four drains that are compared: kedge and the bare loop, one step a run and ten."""

from __future__ import annotations

from time import perf_counter
from typing import Final, LiteralString

from benchmarks import limit_loop
from benchmarks.drain import IN_FLIGHT, Workload
from benchmarks.workflows import STEPS, Done, Task, one_step, ten_steps
from kedge import WorkflowRef
from kedge_client import Client

BATCH: Final = 1_000
"""Runs in one `start_many`."""

_KEDGE_ENDS: Final[LiteralString] = "select ended_at from kedge.finished"
_LIMIT_ENDS: Final[LiteralString] = "select updated from run where status = 2"


def start_in_bulk(url: str, ref: WorkflowRef[Task, Done], runs: int) -> float:
    """Start so many runs with `start_many`, and return how many that were a second."""
    with Client.connect(url) as client:
        client.start_many([ref(Task(0))])  # opens the connection
        begun = perf_counter()
        for first in range(0, runs, BATCH):
            client.start_many([ref(Task(number)) for number in range(first, min(first + BATCH, runs))])
        return runs / (perf_counter() - begun)


def _one_steps(url: str, runs: int) -> float:
    return start_in_bulk(url, one_step, runs)


def _ten_steps(url: str, runs: int) -> float:
    return start_in_bulk(url, ten_steps, runs)


_WORKER: Final = ("worker_process", str(IN_FLIGHT))

KEDGE_ONE: Final = Workload(name="one step", steps=1, prepare=_one_steps, command=_WORKER, ended_at=_KEDGE_ENDS)
KEDGE_TEN: Final = Workload(name="ten steps", steps=STEPS, prepare=_ten_steps, command=_WORKER, ended_at=_KEDGE_ENDS)
LIMIT_ONE: Final = Workload(
    name="limit, one step",
    steps=1,
    prepare=limit_loop.prepare,
    command=("limit_loop", "1", str(IN_FLIGHT)),
    ended_at=_LIMIT_ENDS,
    schema=False,
)
LIMIT_TEN: Final = Workload(
    name="limit, ten steps",
    steps=STEPS,
    prepare=limit_loop.prepare,
    command=("limit_loop", str(STEPS), str(IN_FLIGHT)),
    ended_at=_LIMIT_ENDS,
    schema=False,
)
