"""The demo's mishaps: workers that are killed in the middle of their runs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg

from examples.orders.stage.services import Service

# How long to wait before another look at the tables.
LOOK_S: Final = 0.005

# Of these processes the one with most runs in hand; a worker calls itself host:pid.
BUSIEST: Final = """
    select w.id, split_part(w.name, ':', 2)::int as pid from kedge.workers w join kedge.runs r on r.worker_id = w.id
     where split_part(w.name, ':', 2)::int = any(%s)
     group by w.id order by count(*) desc limit 1
"""
# The server's side of a dead worker: until it has gone, what the worker sent last may still be committed.
BACKENDS: Final = """
    select a.pid from pg_stat_activity a
     where a.pid in (select unnest(w.pids) from kedge.workers w where w.id = %s)
"""
ORPHANS: Final = "select r.id, r.epoch from kedge.runs r where r.worker_id = %s"


@dataclass(frozen=True)
class Mishap:
    """A worker that was killed, and the runs that it left behind, each with the epoch that it had then."""

    victim: str
    orphans: dict[UUID, int]


async def kill_a_busy_worker(conn: psycopg.AsyncConnection, workers: Sequence[Service]) -> Mishap:
    """
    Kill the worker with most runs in hand (kill -9), and start it again.

    One that left no run behind, because it had just ended its last, does not count: the next one is killed.
    """
    while True:
        alive = {worker.pid: worker for worker in workers}
        async for worker_id, pid in await conn.execute(BUSIEST, (list(alive),)):
            victim = alive[pid]
            victim.kill()
            orphans = await _left_behind(conn, worker_id)
            victim.start()
            if orphans:
                return Mishap(victim.name, orphans)
        await asyncio.sleep(LOOK_S)


async def _left_behind(conn: psycopg.AsyncConnection, worker_id: UUID) -> dict[UUID, int]:
    while True:
        if await (await conn.execute(BACKENDS, (worker_id,))).fetchone() is None:
            return {run_id: epoch async for run_id, epoch in await conn.execute(ORPHANS, (worker_id,))}
        await asyncio.sleep(LOOK_S)
