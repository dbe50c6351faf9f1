"""A client with bad intentions beside a worker at work: it may be slower, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import md5
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest

from kedge import EventRef, WorkflowRef
from kedge_client import AsyncClient
from kedge_worker import Context, Worker, workflow
from kedge_worker._claimer import Claimer
from tests.proof.kit.lanes import amount
from tests.proof.kit.plugin import Figure
from tests.proof.security.roles import Land

greet = WorkflowRef("greet", str, str)
meet = WorkflowRef("meet", str, str)
parent = WorkflowRef("parent", str, str)
go = EventRef("go", int)
FLOOD = amount(thin=1_000, full=10_000)


@workflow(greet)
async def run_greet(ctx: Context, name: str) -> str:
    del ctx
    return f"hello {name}"


@workflow(meet)
async def run_meet(ctx: Context, name: str) -> str:
    await ctx.wait_for("go", go)
    return f"met {name}"


@workflow(parent)
async def run_parent(ctx: Context, name: str) -> str:
    return await ctx.call("child", meet(name))


@asynccontextmanager
async def at_work(land: Land, *, poll: str = "1 s") -> AsyncGenerator[AsyncClient]:
    """A worker, asleep, and a client."""
    worker = Worker(land.url_of("worker"), workflows=[run_greet, run_meet, run_parent], poll=poll)
    task = asyncio.create_task(worker.run())
    try:
        async with AsyncClient.connect(land.url_of("client")) as client:
            first = await client.start(greet("first"))
            assert await first.result(timeout="20 s") == "hello first"
            yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def asleep(land: Land) -> str:
    """Wait until the worker sleeps, and answer its channel."""
    async with asyncio.timeout(20):
        while True:
            if found := await asyncio.to_thread(land.rows, "select kedge.worker_channel(worker_id) from kedge.idle"):
                return str(found[0][0])
            await asyncio.sleep(0.01)


async def test_a_flood_of_false_notifications_costs_looks_and_nothing_else(
    land: Land, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    looks = 0
    look = Claimer.look

    async def counted(claimer: Claimer) -> object:
        nonlocal looks
        looks += 1
        return await look(claimer)

    monkeypatch.setattr(Claimer, "look", counted)
    async with at_work(land) as client:
        channel = await asleep(land)
        before = looks

        def flood() -> None:
            with land.open("client") as conn, conn.pipeline():
                for number in range(FLOOD):
                    conn.execute(
                        "select pg_notify(%s, %s)", (channel, ("", "mail", "nonsense", "x" * 7000)[number % 4])
                    )

        attack = asyncio.create_task(asyncio.to_thread(flood))
        run = await client.start(greet("during"))
        assert await run.result(timeout="20 s") == "hello during"
        await attack
        await asleep(land)
        figure(f"looks for {FLOOD:,} false notifications", looks - before, goal=FLOOD)
        # Many of them are one: what the bell has said already it does not say again.
        assert looks - before < FLOOD

        run = await client.start(greet("after"))
        assert await run.result(timeout="20 s") == "hello after"


async def test_who_takes_all_doorbells_into_an_endless_transaction_delays_by_a_poll(land: Land) -> None:
    async with at_work(land) as client:
        await asleep(land)
        with psycopg.connect(land.url_of("client")) as held:
            held.execute("select kedge.ring_v1(null, null)")

            run = await client.start(greet("beside it"))
            assert await run.result(timeout="30 s") == "hello beside it"
            held.rollback()
        run = await client.start(greet("behind it"))
        assert await run.result(timeout="20 s") == "hello behind it"


async def test_no_clients_letter_has_the_id_of_one_of_the_engines_own(land: Land) -> None:
    async with at_work(land) as client:
        run = await client.start(parent("x"))
        child, watcher, key = await one_row(land, "select run_id, watcher_id, key from kedge.run_watchers")
        # Whoever knows the ids can reckon what the letters of the child's end will be called, in whatever epoch.
        with psycopg.connect(land.url_of("client")) as held:
            for epoch in range(5):
                about = f"{child}:{epoch}:{key}"
                ((letter,),) = land.rows("select kedge.engine_letter(%s)", about)
                for call in (
                    "select * from kedge.send_v1(%s, %s, null, 'go', null, '\\x0131')",
                    "select * from kedge.cancel_run_v1(%s, %s, null, null)",
                ):
                    with pytest.raises(psycopg.Error) as refused, held.transaction():
                        held.execute(call.encode(), (letter, watcher))
                    assert refused.value.sqlstate == "KE005"
                held.execute(
                    "select * from kedge.send_v1(md5(%s)::uuid, %s, null, 'go', null, '\\x0131')"
                    if UUID(hex=md5(about.encode(), usedforsecurity=False).hexdigest()).hex[12] != "8"
                    else "select %s, %s",
                    (about, watcher),
                )
            with land.open("client") as other:
                other.execute(
                    "select * from kedge.send_v1(gen_random_uuid(), %s, null, 'go', null, '\\x0131')", (child,)
                )
            assert await run.result(timeout="20 s") == "met x"
            held.rollback()


async def test_what_another_client_watches_by_is_no_trap_for_those_who_wait(land: Land) -> None:
    async with at_work(land) as client:
        run = await client.start(meet("y"))
        with land.open("client") as other:
            for channel in ("", "c" * 64):
                with pytest.raises(psycopg.Error) as refused:
                    other.execute("select kedge.watch_v1(array[%s::uuid], %s)", (run.id, channel))
                assert refused.value.sqlstate == "KE005"
        waiting = asyncio.create_task(run.result(timeout="20 s"))
        await one_row(land, "select 1 from kedge.watchers where run_id = %s", run.id)
        await run.send(go(1))

        assert await waiting == "met y"


async def one_row(land: Land, query: LiteralString, *values: object) -> tuple[Any, ...]:
    async with asyncio.timeout(20):
        while True:
            if found := await asyncio.to_thread(land.rows, query, *values):
                return found[0]
            await asyncio.sleep(0.01)
