"""
What an adapter of an engine offers, and its command line: one process a command, in the engine's own environment.

    python -m benchmarks.peers.with_<engine> setup|worker|bulk|starts|latency|paced|event|parked URL [ARGUMENT...]

Workflows: `one` has one trivial step, `ten` ten in a row, `fan` a hundred at once, `event` waits for an event. Answers
are one line of JSON. Only the standard library here: what an engine needs is imported by its adapter.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from benchmarks.percentiles import percentiles

WARM_UP = 5
STARTERS = 50


class Adapter:
    """One engine. What it cannot do stays unwritten."""

    batch = 500
    """Runs in one bulk start."""

    async def setup(self, url: str) -> None:
        """Make its tables."""

    async def worker(self, url: str, in_flight: int) -> None:
        """Print READY and work until the process is ended."""
        raise NotImplementedError

    async def open(self, url: str) -> None:
        """Be a client."""

    async def start(self, workflow: str) -> object:
        """Answer what `result` and `send` understand."""
        raise NotImplementedError

    async def bulk(self, workflow: str, number: int) -> None:
        """Start many at once, if the engine can."""
        raise NotImplementedError

    async def result(self, run: object) -> object:
        """Wait for the end."""
        raise NotImplementedError

    async def send(self, run: object) -> None:
        """Send the event that the run waits for."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of all connections."""


async def bulk(adapter: Adapter, workflow: str, number: str) -> dict[str, object]:
    """The fastest way in which the engine starts so many runs."""
    left, begun, how = int(number), time.perf_counter(), "bulk"
    try:
        for first in range(0, left, adapter.batch):
            await adapter.bulk(workflow, min(adapter.batch, left - first))
    except NotImplementedError:
        how, todo = f"{STARTERS} starters", iter(range(left))

        async def starter() -> None:
            for _ in todo:
                await adapter.start(workflow)

        await asyncio.gather(*(starter() for _ in range(STARTERS)))
    return {"rate": left / (time.perf_counter() - begun), "how": how}


async def starts(adapter: Adapter, starters: str, seconds: str) -> dict[str, object]:
    """So many at once, each awaiting one start after the other."""
    await adapter.start("one")
    begun, count = time.perf_counter(), itertools.count()

    async def starter() -> None:
        while time.perf_counter() - begun < float(seconds):
            await adapter.start("one")
            next(count)

    await asyncio.gather(*(starter() for _ in range(int(starters))))
    return {"rate": next(count) / (time.perf_counter() - begun)}


async def latency(adapter: Adapter, workflow: str, samples: str | int, pause_s: str | float) -> dict[str, float]:
    """From start to result, one run at a time, with pauses in which the worker may fall asleep."""
    took: list[float] = []
    for _ in range(WARM_UP + int(samples)):
        await asyncio.sleep(float(pause_s) * random.uniform(0.5, 1.5))
        begun = time.perf_counter()
        await adapter.result(await adapter.start(workflow))
        took.append(time.perf_counter() - begun)
    return percentiles(took[WARM_UP:])


async def paced(adapter: Adapter, rate: str | float, seconds: str | float) -> dict[str, float]:
    """From start to result at a rate, whatever is still under way; `rate` is what ended a second, until the last."""
    took: list[float] = []

    async def one() -> None:
        begun = time.perf_counter()
        await adapter.result(await adapter.start("one"))
        took.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(float(rate) * float(seconds))):
            await asyncio.sleep(max(0.0, begun + number / float(rate) - time.perf_counter()))
            group.create_task(one())
    return {**percentiles(took[len(took) // 5 :]), "rate": len(took) / (time.perf_counter() - begun)}


async def event(adapter: Adapter, samples: str | int, wait_s: str | float) -> dict[str, float]:
    """From the send of an event to the result of the run that has waited for it for a while."""
    took: list[float] = []
    for _ in range(WARM_UP + int(samples)):
        run = await adapter.start("event")
        await asyncio.sleep(float(wait_s))
        took.append(await _event_to_result(adapter, run))
    return percentiles(took[WARM_UP:])


async def parked(adapter: Adapter, samples: str | int, wait_s: str | float, pause_s: str | float) -> dict[str, float]:
    """The same with runs that have all been waiting for so long."""
    runs = [await adapter.start("event") for _ in range(WARM_UP + int(samples))]
    await asyncio.sleep(float(wait_s))
    took: list[float] = []
    for run in runs:
        await asyncio.sleep(float(pause_s) * random.uniform(0.5, 1.5))
        took.append(await _event_to_result(adapter, run))
    return percentiles(took[WARM_UP:])


async def _event_to_result(adapter: Adapter, run: object) -> float:
    begun = time.perf_counter()
    await adapter.send(run)
    await adapter.result(run)
    return time.perf_counter() - begun


@asynccontextmanager
async def opened(adapter: Adapter, url: str) -> AsyncGenerator[None]:
    """
    Be a client, as a service is one that has just started: what it has imported is looked through no more.

    A full collection of those objects takes 20 ms, in which nothing is started and no result is taken.
    """
    await adapter.open(url)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        await adapter.close()
        gc.unfreeze()


COMMANDS: dict[str, Callable[..., Awaitable[Mapping[str, object]]]] = {
    "bulk": bulk,
    "starts": starts,
    "latency": latency,
    "paced": paced,
    "event": event,
    "parked": parked,
}


def main(adapter: Adapter) -> None:
    """Do what the command line says."""
    command, url, *arguments = sys.argv[1:]

    async def do() -> None:
        if command == "setup":
            await adapter.setup(url)
        elif command == "worker":
            await adapter.worker(url, int(arguments[0]))
        else:
            async with opened(adapter, url):
                print(json.dumps(await COMMANDS[command](adapter, *arguments)), flush=True)

    asyncio.run(do())
