"""What a client is told of a run that was deleted: as of one that never was, and never nothing at all."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from kedge import EventRef, WorkflowRef
from kedge_client import AsyncClient, Client, RunNotFoundError
from kedge_client import _waiting_room as waiting_room
from kedge_worker import Context, Worker, workflow
from kedge_worker._remover import Remover
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Store
from kedge_worker.testing import Clock
from tests import moves
from tests.retention import deleted, keep
from tests.sessions import open_sessions

double = WorkflowRef("double", int, int)
paid = EventRef("paid", int)
URGENT = WorkflowRef("urgent", int, int)


@workflow(double, retention="7d")
async def handle_double(ctx: Context, number: int) -> int:
    async def twice() -> int:
        return 2 * number

    return await ctx.step("twice", twice)


@workflow(URGENT, retention="7d")
async def handle_urgent(ctx: Context, number: int) -> int:
    raise ValueError("too urgent")


async def remove(url: str) -> int:
    settings = WorkerSettings(database_url=url)
    remover = Remover(lambda: Store(settings.removal_conninfo(), worker_id=UUID(int=7), schema="kedge", timeout_s=10))
    return await remover.round()


async def test_a_deleted_run_is_unknown_to_all_that_a_client_asks_or_wants_of_it(
    database_url: str, clock: Clock
) -> None:
    async with AsyncClient.connect(database_url) as client:
        run = await client.start(URGENT(1, tags=["a"]))
        await Worker(database_url, workflows=[handle_double, handle_urgent]).run_until_idle()
        clock.advance("8 days")

        assert await remove(database_url) == 1

        for ask in (
            lambda: run.result(timeout=0),
            lambda: run.result(timeout="10s"),
            lambda: client.get(run),
            lambda: client.steps(run),
            lambda: client.retry(run),
            lambda: client.cancel(run),
            lambda: client.pause(run),
            lambda: client.resume(run),
            lambda: client.send(paid(1), run=run),
            lambda: client.rerun_from(run, "twice"),
        ):
            with pytest.raises(RunNotFoundError):
                await ask()
        assert (await client.list_runs(tag="a")).items == []
        assert await client.count_runs() == 0


def test_a_sync_client_is_told_the_same(database_url: str, clock: Clock) -> None:
    with Client.connect(database_url) as client:
        run = client.start(double(1))
        asyncio.run(Worker(database_url, workflows=[handle_double]).run_until_idle())
        clock.advance("8 days")

        assert asyncio.run(remove(database_url)) == 1

        with pytest.raises(RunNotFoundError):
            run.result(timeout="10s")


async def test_the_key_of_a_deleted_run_starts_a_new_one_and_that_of_a_kept_run_does_not(
    database_url: str, clock: Clock
) -> None:
    worker = Worker(database_url, workflows=[handle_double])
    async with AsyncClient.connect(database_url) as client:
        old = await client.start(double(2, key="k"))
        await worker.run_until_idle()
        clock.advance("6 days")
        await remove(database_url)
        same = await client.start(double(2, key="k"))
        clock.advance("2 days")
        await remove(database_url)

        new = await client.start(double(2, key="k"))
        await Worker(database_url, workflows=[handle_double]).run_until_idle()

        assert same.id == old.id
        assert new.id != old.id
        assert await new.result(timeout=0) == 4


@pytest.mark.parametrize("listen", [True, False])
async def test_a_client_that_waits_for_a_run_of_which_the_end_was_missed_and_is_deleted_does_not_wait_for_ever(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, listen: bool
) -> None:
    monkeypatch.setattr(waiting_room, "BACKSTOP_S", 0.05)
    async with AsyncClient.connect(database_url, listen=listen) as client:
        with open_sessions(database_url) as sessions:
            db = sessions.open()
            keep(db, "double")
            run = await client.start(double(1))
            waiting = asyncio.create_task(run.result(timeout=None))
            while not db.value("select $1 = false or exists (select 1 from kedge.watchers)", (listen,)):
                await asyncio.sleep(0.01)
            clock.advance("30 days")
            worker = moves.register(db)

            # All in one transaction, and nobody is told: what there was is not to be seen.
            db.begin()
            moves.hold(db, worker)
            (claimed,) = moves.claim(db, worker, floors={(moves.QUEUE, "double"): moves.LOWEST})
            moves.end(db, worker, claimed)
            db.rows("update kedge.finished set ended_at = ended_at - interval '20 days'")
            count = deleted(db, "double")
            db.commit()

            assert count == 1
            with pytest.raises(RunNotFoundError):
                await asyncio.wait_for(waiting, 30)
