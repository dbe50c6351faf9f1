"""The drains that are compared: kedge and the bare loop, one step a run and ten, and four processes of kedge."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Final, LiteralString

from benchmarks import limit_loop
from benchmarks.drain import IN_FLIGHT, Drained, Workload, drain
from benchmarks.server import BenchServer
from benchmarks.workflows import STEPS, Done, Task, one_step, ten_steps
from kedge import WorkflowRef
from kedge_client import Client

BATCH: Final = 1_000
"""Runs in one `start_many`."""
LARGE_BATCH: Final = 5_000
"""Where it is the starts that are measured."""

_KEDGE_ENDS: Final[LiteralString] = "select ended_at from kedge.finished"
_LIMIT_ENDS: Final[LiteralString] = "select updated from run where status = 2"
_KEDGE_BEGUN: Final[LiteralString] = "select from kedge.runs where state = 'r'"
_LIMIT_BEGUN: Final[LiteralString] = "select from run where status <> 0"

# More than this machine's like can drain in a second; a drain that runs dry is told from one that does not.
_RUNS_PER_S: Final = {"limit, one step": 40_000, "limit, ten steps": 12_000, "ten steps": 6_000}
_OTHERS_PER_S: Final = 20_000
_SPARE_S: Final = 0.7


def start_in_bulk(url: str, ref: WorkflowRef[Task, Done], runs: int, *, batch: int = BATCH) -> float:
    """Start so many runs with `start_many`, and return how many that were a second."""
    with Client.connect(url) as client:
        client.start_many([ref(Task(0))])  # opens the connection
        begun = perf_counter()
        for first in range(0, runs, batch):
            client.start_many([ref(Task(number)) for number in range(first, min(first + batch, runs))])
        return runs / (perf_counter() - begun)


def _one_steps(url: str, runs: int) -> float:
    return start_in_bulk(url, one_step, runs)


def _ten_steps(url: str, runs: int) -> float:
    return start_in_bulk(url, ten_steps, runs)


_WORKER: Final = ("worker_process", str(IN_FLIGHT))

KEDGE_ONE: Final = Workload(
    name="one step", steps=1, prepare=_one_steps, command=_WORKER, ended_at=_KEDGE_ENDS, begun=_KEDGE_BEGUN
)
KEDGE_FOUR: Final = replace(KEDGE_ONE, name="one step, four processes", processes=4)
KEDGE_TEN: Final = replace(KEDGE_ONE, name="ten steps", steps=STEPS, prepare=_ten_steps)
LIMIT_ONE: Final = Workload(
    name="limit, one step",
    steps=1,
    prepare=limit_loop.prepare,
    command=("limit_loop", "1", str(IN_FLIGHT)),
    ended_at=_LIMIT_ENDS,
    begun=_LIMIT_BEGUN,
    schema=False,
)
LIMIT_TEN: Final = replace(
    LIMIT_ONE, name="limit, ten steps", steps=STEPS, command=("limit_loop", str(STEPS), str(IN_FLIGHT))
)


def drain_fresh(server: BenchServer, workload: Workload, *, seconds: float) -> Drained:
    """Prepare a fresh database, and drain it for a while."""
    url = server.fresh_database("drain", schema=workload.schema)
    workload.prepare(url, int(_RUNS_PER_S.get(workload.name, _OTHERS_PER_S) * (seconds + _SPARE_S)))
    server.settle(url)
    found = drain(server, url, workload, seconds=seconds)
    server.drop_database("drain")
    return found
