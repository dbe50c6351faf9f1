"""From start to result while nothing else goes on, and what a worker does while nothing at all goes on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.drain import IN_FLIGHT, Drainer, drainer
from benchmarks.server import BenchServer
from benchmarks.workflows import Task, one_step
from kedge_client import AsyncClient

# So that the worker has gone to sleep again before the next run comes.
PAUSE_S: Final = (0.015, 0.045)
# A backend that has gone to sleep reports its last transactions up to ten seconds later.
_SETTLING_S: Final = 11.0
_WARM_UP: Final = 20


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds from the call of `start` to the return of `result`."""

    samples: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Idle:
    """What a worker with nothing to do costs."""

    seconds: float
    transactions_per_s: float
    worker_cpu: float
    postgres_cpu: float | None


def measure(server: BenchServer, url: str, *, samples: int, idle_s: float) -> tuple[Latency, Latency, Idle | None]:
    """
    Measure with one worker process and this process as the client, one run at a time.

    Returns:
        With pauses, in which the worker goes to sleep; without; and the idle worker, if that has any time.
    """
    with drainer(url, "worker_process", str(IN_FLIGHT)) as process:
        process.begin()
        paused = asyncio.run(_latency(url, samples, PAUSE_S))
        at_once = asyncio.run(_latency(url, samples, None))
        idle = _idle(server, url, process, idle_s) if idle_s else None
        process.end()
    return paused, at_once, idle


async def _latency(url: str, samples: int, pause_s: tuple[float, float] | None) -> Latency:
    took: list[float] = []
    async with AsyncClient.connect(url) as client:
        for number in range(_WARM_UP + samples):
            if pause_s is not None:
                await asyncio.sleep(random.uniform(*pause_s))
            begun = time.perf_counter()
            run = await client.start(one_step(Task(number)))
            await run.result(timeout="20s")
            took.append(time.perf_counter() - begun)
    took = sorted(took[_WARM_UP:])
    return Latency(samples=samples, p50_ms=_at(took, 50), p95_ms=_at(took, 95), p99_ms=_at(took, 99))


def _idle(server: BenchServer, url: str, process: Drainer, seconds: float) -> Idle:
    time.sleep(_SETTLING_S)
    before, cpu_before = server.read(url), process.cpu_s()
    time.sleep(seconds)
    after, cpu_after = server.read(url), process.cpu_s()
    took = after.at - before.at
    postgres_s = None if after.cpu_s is None or before.cpu_s is None else after.cpu_s - before.cpu_s
    return Idle(
        seconds=took,
        transactions_per_s=(after.transactions - before.transactions) / took,
        worker_cpu=(cpu_after - cpu_before) / took,
        postgres_cpu=None if postgres_s is None else postgres_s / took,
    )


def _at(ordered: Sequence[float], percentile: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percentile // 100)] * 1000
