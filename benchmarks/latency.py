"""From start to result and from event to result, with one worker process and this process as the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg

from benchmarks.drain import IN_FLIGHT, drainer
from benchmarks.peers import adapter
from benchmarks.peers.with_kedge import WithKedge

# So that the worker has gone to sleep again before the next run comes.
PAUSE_S: Final = 0.03
# Shorter than a worker keeps a waiting run in memory, and far longer.
IN_MEMORY_S: Final = 0.02
PARKED_S: Final = 1.0
_PATIENCE_S: Final = 30.0

Percentiles = dict[str, float]
Work = Callable[[WithKedge], Awaitable[Percentiles]]


def idle(url: str, *, samples: int) -> Percentiles:
    """One run of one step at a time, with pauses in which the worker goes to sleep."""
    return _measured(url, "one", lambda client: adapter.latency(client, "one", samples, PAUSE_S))


def one_after_the_other(url: str, *, samples: int) -> Percentiles:
    """The same without pauses."""
    return _measured(url, "one", lambda client: adapter.latency(client, "one", samples, 0))


def at_rate(url: str, *, rate: float, seconds: float) -> Percentiles:
    """Runs of one step, started at a rate whatever is still under way."""
    return _measured(url, "one", lambda client: adapter.paced(client, rate, seconds))


def event_in_memory(url: str, *, samples: int) -> Percentiles:
    """From the send of an event to the result of a run that has begun to wait for it a moment ago."""
    return _measured(url, "event", lambda client: adapter.event(client, samples, IN_MEMORY_S))


def event_parked(url: str, *, samples: int) -> Percentiles:
    """The same with runs that have long left the worker's memory: their handlers are replayed."""

    async def look_and_measure(client: WithKedge) -> Percentiles:
        found = await adapter.parked(client, samples, PARKED_S, PAUSE_S)
        with psycopg.connect(url) as conn:
            replayed = conn.execute("select count(*) from kedge.finished where epoch > 1").fetchone()
        # Each claim of a run is an epoch: what was evicted has been claimed twice.
        assert replayed is not None
        assert replayed[0] >= samples, f"only {replayed[0]} of {samples} runs had left the worker's memory"
        return found

    return _measured(url, "event", look_and_measure)


def fan(url: str, *, samples: int) -> Percentiles:
    """From the start to the result of one run with a hundred steps at once."""
    return _measured(url, "fan", lambda client: adapter.latency(client, "fan", samples, PAUSE_S))


def _measured(url: str, workflow: str, work: Work) -> Percentiles:
    async def measure() -> Percentiles:
        client = WithKedge()
        async with adapter.opened(client, url):
            return await work(client)

    with drainer(url, "worker_process", str(IN_FLIGHT), workflow) as process:
        process.begin()
        _wait_for_a_worker(url)
        found = asyncio.run(measure())
        process.end()
    return found


def _wait_for_a_worker(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    with psycopg.connect(url, autocommit=True) as conn:
        while conn.execute("select exists (select from kedge.idle)").fetchone() != (True,):
            assert time.monotonic() < deadline, "no worker has gone to sleep"
            time.sleep(0.05)
