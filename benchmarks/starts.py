"""How fast single runs are started, by clients and Postgres alone: no worker is there."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

from benchmarks.workflows import Task, one_step
from kedge_client import AsyncClient, Client

STARTERS: Final = 50
CONNECTIONS: Final = 8


def by_one(url: str, *, seconds: float) -> float:
    """Return starts/s of one thread that starts one run after the other."""
    with Client.connect(url) as client:
        client.start(one_step(Task(0)))  # opens the connection
        started = 0
        begun = perf_counter()
        while perf_counter() - begun < seconds:
            client.start(one_step(Task(started)))
            started += 1
        return started / (perf_counter() - begun)


def by_many(url: str, *, seconds: float) -> float:
    """Return starts/s of 50 tasks that share one client and its 8 connections."""
    return asyncio.run(_by_many(url, seconds))


async def _by_many(url: str, seconds: float) -> float:
    started = 0

    async def start_and_start() -> None:
        nonlocal started
        while perf_counter() - begun < seconds:
            await client.start(one_step(Task(started)))
            started += 1

    async with AsyncClient.connect(url, max_connections=CONNECTIONS) as client:
        await asyncio.gather(*(client.start(one_step(Task(0))) for _ in range(CONNECTIONS)))
        begun = perf_counter()
        await asyncio.gather(*(start_and_start() for _ in range(STARTERS)))
        return started / (perf_counter() - begun)
