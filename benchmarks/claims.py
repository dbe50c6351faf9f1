"""What one claim costs, through the worker's own store."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final
from uuid import uuid4

import psycopg

from benchmarks.percentiles import percentiles
from benchmarks.workflows import one_step
from kedge_worker._claims import LOWEST, ClaimAnswer, ClaimRequest
from kedge_worker._leased_store import LeasedStore
from kedge_worker._runs import Batch
from kedge_worker._settings import WorkerSettings

CLAIM: Final = 50
"""Runs in one claim."""
CLAIMS: Final = 200
LANE: Final = ("default", one_step.qualified_name)


def measure(url: str) -> dict[str, float]:
    """Milliseconds of one round trip that claims 50 runs and reads their inputs; all are given back."""
    return asyncio.run(_claim_and_give_back(url))


async def _claim_and_give_back(url: str) -> dict[str, float]:
    worker_id = uuid4()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """insert into kedge.workers (id, lease_until, lease, started_at, protocol, name, queues, workflows)
               values (%s, clock_timestamp() + interval '1 hour', interval '15 s', now(), 1, 'bench', %s, %s)""",
            (worker_id, [LANE[0]], [LANE[1]]),
        )
    settings = WorkerSettings(database_url=url)
    store = LeasedStore(settings.journal_conninfo(), worker_id=worker_id, schema="kedge", timeout_s=10)
    await store.connect()
    took: list[float] = []
    floor = LOWEST
    for _ in range(CLAIMS):
        begun = perf_counter()
        answer = (await store.flush(Batch(), ClaimRequest(CLAIM, {LANE: floor}, {}))).claim
        took.append(perf_counter() - begun)
        floor = _floor(answer)
    owned = await store.owned()
    assert len(owned) == CLAIM * CLAIMS, f"{len(owned)} runs were claimed"
    ids = list(owned.items())
    for first in range(0, len(ids), 500):
        await store.give_back(dict(ids[first : first + 500]))
    store.abort()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("delete from kedge.workers where id = %s", (worker_id,))
    return percentiles(took)


def _floor(answer: ClaimAnswer | None) -> tuple[int, int]:
    assert answer is not None
    return answer.highest.get(LANE, LOWEST)
