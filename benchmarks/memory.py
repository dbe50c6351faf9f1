"""What a worker has in memory: for a run in flight, and at most, however much is ready."""

from __future__ import annotations

import base64
import os
import time
from typing import Final, LiteralString

import psycopg

from benchmarks.drain import IN_FLIGHT, Drainer, drainer
from benchmarks.server import BenchServer
from benchmarks.workflows import Task, holding, large, one_step, shelved, taken_out
from benchmarks.workloads import start_in_bulk
from kedge_client import Client

FEW: Final = 1_000
MANY: Final = 5_000
READY: Final = (10_000, 100_000)
LARGE_READY: Final = (200, 800)
LARGE_BYTES: Final = 256 * 1024
SHELVED: Final = (20, 80)
DRAIN_S: Final = 4.0
_AT_ONCE: Final = 20
"""Large runs in one `start_many`."""
_PATIENCE_S: Final = 60.0
_IN_FLIGHT: Final[LiteralString] = "select count(*) from kedge.runs where state = 'r'"
_WAITING: Final[LiteralString] = "select count(*) from kedge.runs where state = 'w'"
_LEFT: Final[LiteralString] = "select count(*) from kedge.runs"


def a_run_in_flight(server: BenchServer) -> float:
    """KiB: what memory grows by from 1,000 runs that are all in a step to 5,000."""
    url = server.fresh_database("memory")
    with drainer(url, "worker_process", str(MANY), holding.name) as process:
        process.begin()
        few = _held(url, process, FEW, FEW)
        many = _held(url, process, MANY - FEW, MANY)
    server.drop_database("memory")
    return (many - few) / (MANY - FEW)


def with_many_ready(server: BenchServer, runs: int) -> float:
    """KiB at most, while runs of one step are drained for a while."""
    url = server.fresh_database("memory")
    start_in_bulk(url, one_step, runs)
    return _peak(server, url, one_step.name)


def with_large_ready(server: BenchServer, runs: int) -> float:
    """KiB at most, while runs are drained whose input, step and output are large."""
    url = server.fresh_database("memory")
    text = base64.b64encode(os.urandom(LARGE_BYTES * 3 // 4)).decode()
    with Client.connect(url) as client:
        for _ in range(0, runs, _AT_ONCE):
            client.start_many([large(text) for _ in range(_AT_ONCE)])
    return _peak(server, url, large.name, until_drained=True)


def with_large_histories(server: BenchServer, runs: int) -> float:
    """KiB at most, while runs are taken up again that have kept 8 MiB each, all at once."""
    url = server.fresh_database("memory")
    with Client.connect(url) as client:
        started = client.start_many([shelved() for _ in range(runs)])
        with drainer(url, "worker_process", str(IN_FLIGHT), shelved.name) as process:
            process.begin()
            _wait_until(url, _WAITING, runs)
            process.end()
        for run in started:
            run.send(taken_out())
    return _peak(server, url, shelved.name, until_drained=True)


def _held(url: str, process: Drainer, runs: int, in_flight: int) -> float:
    with Client.connect(url) as client:
        client.start_many([holding(Task(number)) for number in range(runs)])
    _wait_until(url, _IN_FLIGHT, in_flight)
    return process.memory_kib()


def _peak(server: BenchServer, url: str, workflow: str, *, until_drained: bool = False) -> float:
    server.settle(url)
    with drainer(url, "worker_process", str(IN_FLIGHT), workflow) as process:
        process.begin()
        if until_drained:
            _wait_until(url, _LEFT, 0)
        else:
            time.sleep(DRAIN_S)
        words = process.end()
    server.drop_database("memory")
    return words["peak_kib"]


def _wait_until(url: str, count: LiteralString, wanted: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    with psycopg.connect(url, autocommit=True) as conn:
        while (found := conn.execute(count).fetchone()) != (wanted,):
            assert time.monotonic() < deadline, f"{found} runs after {_PATIENCE_S} s, and not {wanted}"
            time.sleep(0.05)
