"""
How fast single runs are started, by clients and Postgres alone: no worker is there.

One start after the other is measured in turn with the least that a client could do: one insert of one row, autocommit,
through psycopg.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import psycopg

from benchmarks import limit_loop
from benchmarks.workflows import Task, one_step
from kedge.ids import new_run_id
from kedge_client import AsyncClient, Client

STARTERS: Final = 50
CONNECTIONS: Final = 8
ROUNDS: Final = 4
"""In which starts and inserts take turns."""
_INSERT: Final = "insert into run (id, name, input) values (%s, 'one-step', %s)"


@dataclass(frozen=True, kw_only=True)
class BesideInserts:
    """A second of each."""

    starts: float
    inserts: float


def by_one(url: str, *, seconds: float) -> BesideInserts:
    """One thread that starts one run after the other, and one that inserts one row after the other."""
    limit_loop.make_tables(url)
    with ExitStack() as stack:
        client = stack.enter_context(Client.connect(url))
        conn = stack.enter_context(psycopg.connect(url, autocommit=True))

        def start(number: int) -> object:
            return client.start(one_step(Task(number)))

        def insert(number: int) -> object:
            return conn.execute(_INSERT, (new_run_id(), b"%d" % number))

        started = inserted = 0.0
        for _ in range(ROUNDS):
            inserted += _a_second(insert, seconds / ROUNDS)
            started += _a_second(start, seconds / ROUNDS)
    return BesideInserts(starts=started / ROUNDS, inserts=inserted / ROUNDS)


def by_one_awaited(url: str, *, seconds: float) -> BesideInserts:
    """The same with one task."""
    limit_loop.make_tables(url)
    return asyncio.run(_by_one_awaited(url, seconds))


def by_many(url: str, *, seconds: float) -> float:
    """Return starts/s of 50 tasks that share one client and its 8 connections."""
    return asyncio.run(_by_many(url, seconds))


def _a_second(work: Callable[[int], object], seconds: float) -> float:
    work(0)  # opens the connection
    done = 0
    begun = perf_counter()
    while perf_counter() - begun < seconds:
        work(done)
        done += 1
    return done / (perf_counter() - begun)


async def _by_one_awaited(url: str, seconds: float) -> BesideInserts:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient.connect(url))
        conn = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))

        async def start(number: int) -> None:
            await client.start(one_step(Task(number)))

        async def insert(number: int) -> None:
            await conn.execute(_INSERT, (new_run_id(), b"%d" % number))

        started = inserted = 0.0
        for _ in range(ROUNDS):
            inserted += await _awaited_a_second(insert, seconds / ROUNDS)
            started += await _awaited_a_second(start, seconds / ROUNDS)
    return BesideInserts(starts=started / ROUNDS, inserts=inserted / ROUNDS)


async def _awaited_a_second(work: Callable[[int], Awaitable[None]], seconds: float, *, tasks: int = 1) -> float:
    await asyncio.gather(*(work(0) for _ in range(tasks)))  # opens the connections
    done = 0

    async def work_and_work() -> None:
        nonlocal done
        while perf_counter() - begun < seconds:
            await work(done)
            done += 1

    begun = perf_counter()
    await asyncio.gather(*(work_and_work() for _ in range(tasks)))
    return done / (perf_counter() - begun)


async def _by_many(url: str, seconds: float) -> float:
    async with AsyncClient.connect(url, max_connections=CONNECTIONS) as client:

        async def start(number: int) -> None:
            await client.start(one_step(Task(number)))

        return await _awaited_a_second(start, seconds, tasks=STARTERS)
