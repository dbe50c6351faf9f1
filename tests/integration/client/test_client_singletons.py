"""Singletons: at most one run of a workflow and key is active, whatever the next start does about it."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from kedge import InvalidOptionError, RunActiveError, Singleton, WorkflowRef
from tests import ends
from tests.integration.client.orders import NOTIFY, ORDER, PROCESS, RECEIPT, Order
from tests.integration.client.test_client_start import is_rung, sleep_as_worker
from tests.twins import AnyClient, Twin, connected

BY_ORDER = WorkflowRef("process-order", Order, str, key=lambda order: f"order:{order.order_id}")
OTHER = Order("o-2")


async def test_raise_says_which_run_is_active(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, singleton="raise"))

    with pytest.raises(RunActiveError, match="of workflow 'process-order' is active") as caught:
        await twin.do(client.start, PROCESS(OTHER, singleton="raise"))

    assert (caught.value.existing_id, caught.value.workflow, caught.value.key) == (first.id, "process-order", "")
    assert await twin.do(client.count_runs) == 1
    assert (await twin.do(first.view)).key is None


async def test_return_answers_with_the_active_run(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, singleton="return"))
    second = await twin.do(client.start, PROCESS(OTHER, singleton="return"))

    assert first == second
    assert (first.created, second.created) == (True, False)


async def test_cancel_old_starts_a_run_that_waits_for_the_old_ones_end(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, key="k", singleton="cancel_old"))
    second = await twin.do(client.start, PROCESS(OTHER, key="k", singleton="cancel_old"))

    old, new = await twin.do(first.view), await twin.do(second.view)
    assert (second.created, new.status, new.key) == (True, "waiting", "k")
    assert (old.status, old.request) == ("pending", "cancelled")


async def test_a_key_is_the_singletons_and_so_is_one_that_the_ref_makes(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, BY_ORDER(ORDER, singleton="return"))

    assert (await twin.do(client.start, BY_ORDER(OTHER, singleton="return"))).created
    assert await twin.do(client.start, BY_ORDER(ORDER, singleton="return")) == first
    assert await twin.do(client.start, PROCESS(ORDER, key="order:o-1", singleton="return")) == first
    assert (await twin.do(client.start, BY_ORDER(ORDER, key=None, singleton="return"))).created


async def test_a_key_is_free_again_when_the_run_has_ended(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    for _ in range(3):
        run = await twin.do(client.start, PROCESS(ORDER, key="k", singleton="raise"))
        assert run.created
        ends.complete(conn, run.id, RECEIPT)

    assert await twin.do(client.count_runs) == 3


async def test_an_idempotency_key_and_a_singletons_are_two_things(twin: Twin, client: AnyClient) -> None:
    keyed = await twin.do(client.start, PROCESS(ORDER, key="k"))
    single = await twin.do(client.start, PROCESS(ORDER, key="k", singleton="raise"))

    assert keyed != single
    assert await twin.do(client.start, PROCESS(ORDER, key="k")) == keyed


@pytest.mark.parametrize("policy", ["raise", "return", "cancel_old"])
async def test_a_singleton_is_one_for_each_resource(twin: Twin, client: AnyClient, policy: Singleton) -> None:
    first = await twin.do(client.scoped("alice").start, PROCESS(ORDER, singleton=policy))
    unscoped = await twin.do(client.start, PROCESS(ORDER, singleton=policy))
    second = await twin.do(client.scoped("bob").start, PROCESS(ORDER, singleton=policy))

    assert (first.created, unscoped.created, second.created) == (True, True, True)
    assert {await twin.do(run.status) for run in (first, unscoped, second)} == {"pending"}
    assert (await twin.do(first.view)).request is None
    with pytest.raises(RunActiveError) as caught:
        await twin.do(client.start, PROCESS(ORDER, singleton="raise", resource="bob"))
    assert caught.value.existing_id == second.id


@pytest.mark.parametrize("policy", ["raise", "return", "cancel_old"])
async def test_of_racing_starters_one_is_active(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, policy: Singleton
) -> None:
    outcomes = await asyncio.gather(
        *(twin.do(client.start, PROCESS(ORDER, singleton=policy)) for _ in range(8)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(error) for error in refused] == ([RunActiveError] * 7 if policy == "raise" else [])
    active = conn.execute(
        "select count(*) from kedge.runs r"
        " where not exists (select 1 from kedge.waits w where w.run_id = r.id and w.kind = 'g')"
    ).fetchone()
    assert active == (1,)
    assert await twin.do(client.count_runs) == (8 if policy == "cancel_old" else 1)


async def test_a_start_in_a_transaction_keeps_the_others_waiting_until_its_end(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        first = await twin.do(client.start, PROCESS(ORDER, singleton="return"), conn=mine)
        racing = asyncio.create_task(twin.do(client.start, PROCESS(ORDER, singleton="return")))
        async with asyncio.timeout(30):
            while conn.execute("select 1 from pg_locks where not granted limit 1").fetchone() is None:
                await asyncio.sleep(0)

        await twin.do(mine.commit)

        assert await racing == first


async def test_a_refused_start_leaves_the_callers_transaction_alone(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, singleton="raise"))

    async with connected(twin, database_url) as mine:
        await twin.do(mine.execute, "create temp table mine (id int)")
        with pytest.raises(RunActiveError) as caught:
            await twin.do(client.start, PROCESS(ORDER, singleton="raise"), conn=mine)
        with pytest.raises(RunActiveError):
            await twin.do(client.start_many, [NOTIFY("a"), PROCESS(ORDER, singleton="raise")], conn=mine)
        await twin.do(mine.execute, "insert into mine values (1)")
        await twin.do(mine.commit)

    assert caught.value.existing_id == first.id
    assert await twin.do(client.count_runs) == 1


async def test_a_bulk_start_takes_singletons_with_everything_else(twin: Twin, client: AnyClient) -> None:
    taken = await twin.do(client.start, PROCESS(ORDER, key="k-1", singleton="return"))
    requests = [
        NOTIFY("a"),
        PROCESS(ORDER, key="k-2", singleton="return"),
        PROCESS(ORDER, key="k-1", singleton="return"),
        PROCESS(ORDER, key="k-1"),
        PROCESS(ORDER, key="k-1", singleton="cancel_old"),
        PROCESS(ORDER, singleton="return", timeout="1h"),
    ]

    runs = await twin.do(client.start_many, requests)

    assert [run.created for run in runs] == [True, True, False, True, True, True]
    assert runs[2] == taken
    views = [await twin.do(run.view) for run in runs]
    assert [view.status for view in views] == ["pending", "pending", "pending", "pending", "waiting", "pending"]


async def test_a_bulk_start_is_all_or_nothing(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, singleton="raise"))

    with pytest.raises(RunActiveError) as caught:
        await twin.do(client.start_many, [NOTIFY("a"), PROCESS(ORDER, singleton="raise")])

    assert caught.value.existing_id == first.id
    assert await twin.do(client.count_runs) == 1


async def test_who_takes_anothers_place_wakes_somebody_to_sort_the_letters(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, database_url: str
) -> None:
    await twin.do(client.start, PROCESS(ORDER, singleton="raise"))

    sleep_as_worker(conn, "mail", "notify")
    await twin.do(client.start, PROCESS(ORDER, singleton="cancel_old"))
    assert is_rung(conn)

    conn.execute("delete from kedge.workers")
    sleep_as_worker(conn, "mail", "notify")
    async with connected(twin, database_url) as mine:
        await twin.do(client.start, PROCESS(ORDER, singleton="cancel_old"), conn=mine)
        await twin.do(mine.commit)
    assert is_rung(conn)


def test_a_singleton_and_on_conflict_exclude_each_other() -> None:
    with pytest.raises(InvalidOptionError, match="exclude each other"):
        PROCESS(ORDER, key="k", singleton="raise", on_conflict="raise")
