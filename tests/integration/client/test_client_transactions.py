"""A start or a cancel inside the caller's own transaction: there if and only if that commits."""

from typing import Any, cast

import psycopg
import pytest
from psycopg.rows import dict_row

from kedge import (
    InputConflictError,
    InvalidOptionError,
    ResultTimeoutError,
    RunNotFoundError,
    TransactionStateError,
)
from tests import ends
from tests.integration.client.orders import NOTIFY, ORDER, PROCESS, RECEIPT, Order
from tests.integration.client.test_client_start import is_rung, sleep_as_worker, was_rung
from tests.twins import ASYNC, SYNC, AnyClient, Twin, connected, opened

LEVELS = [
    psycopg.IsolationLevel.READ_COMMITTED,
    psycopg.IsolationLevel.REPEATABLE_READ,
    psycopg.IsolationLevel.SERIALIZABLE,
]


async def set_level(twin: Twin, conn: psycopg.Connection, level: psycopg.IsolationLevel) -> None:
    await twin.do(
        conn.execute, f"set default_transaction_isolation = '{level.name.replace('_', ' ').lower()}'".encode()
    )
    await twin.do(conn.commit)


@pytest.mark.parametrize("level", LEVELS, ids=[level.name for level in LEVELS])
async def test_a_run_exists_when_its_transaction_commits(
    twin: Twin, client: AnyClient, database_url: str, level: psycopg.IsolationLevel
) -> None:
    async with connected(twin, database_url) as mine:
        await set_level(twin, mine, level)

        run = await twin.do(client.start, PROCESS(ORDER, key="k", tags=["t"]), conn=mine)
        many = await twin.do(client.start_many, [PROCESS(ORDER), NOTIFY("hi"), PROCESS(ORDER, key="k2")], conn=mine)
        with pytest.raises(RunNotFoundError):
            await twin.do(client.get, run.id)
        await twin.do(mine.commit)

        views = [await twin.do(client.get, started) for started in (run, *many)]
        assert [view.workflow for view in views] == ["process-order", "process-order", "notify", "process-order"]
        assert all(started.created for started in (run, *many))


@pytest.mark.parametrize("level", LEVELS, ids=[level.name for level in LEVELS])
async def test_a_run_never_was_when_its_transaction_is_rolled_back(
    twin: Twin, client: AnyClient, database_url: str, level: psycopg.IsolationLevel
) -> None:
    async with connected(twin, database_url) as mine:
        await set_level(twin, mine, level)

        run = await twin.do(client.start, PROCESS(ORDER, key="k", tags=["t"]), conn=mine)
        await twin.do(client.start_many, [PROCESS(ORDER), PROCESS(ORDER, key="k2")], conn=mine)
        await twin.do(mine.rollback)

        with pytest.raises(RunNotFoundError):
            await twin.do(client.get, run.id)
        assert await twin.do(client.count_runs) == 0
        again = await twin.do(client.start, PROCESS(Order("another"), key="k"))
        assert again.created


@pytest.mark.parametrize("level", LEVELS, ids=[level.name for level in LEVELS])
async def test_a_cancel_is_sent_when_its_transaction_commits(
    twin: Twin, client: AnyClient, database_url: str, level: psycopg.IsolationLevel
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    async with connected(twin, database_url) as mine:
        await set_level(twin, mine, level)

        assert await twin.do(client.cancel, run, reason="no stock", conn=mine) == "pending"
        assert (await twin.do(run.view)).request is None
        await twin.do(mine.commit)

        assert (await twin.do(run.view)).request == "cancelled"


@pytest.mark.parametrize("level", LEVELS, ids=[level.name for level in LEVELS])
async def test_a_start_leaves_the_transaction_to_its_owner(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection, level: psycopg.IsolationLevel
) -> None:
    conn.execute("create table orders (id text); grant all on orders to public")
    async with connected(twin, database_url, row_factory=dict_row) as mine:
        await set_level(twin, mine, level)
        await twin.do(mine.execute, "insert into orders values ('o-1')")

        await twin.do(client.start, PROCESS(ORDER), conn=mine)

        assert mine.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert conn.execute("select count(*) from orders").fetchone() == (0,)
        await twin.do(mine.commit)
        assert conn.execute("select count(*) from orders").fetchone() == (1,)


async def test_a_lost_serialization_race_is_told_as_the_callers_to_repeat(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        await set_level(twin, mine, psycopg.IsolationLevel.REPEATABLE_READ)
        await twin.do(mine.execute, "select 1")
        await twin.do(client.start, PROCESS(ORDER, key="k"))

        with pytest.raises(TransactionStateError, match="repeat it") as caught:
            await twin.do(client.start, PROCESS(ORDER, key="k"), conn=mine)

        assert caught.value.sqlstate == "40001"
        await twin.do(mine.rollback)
        repeated = await twin.do(client.start, PROCESS(ORDER, key="k"), conn=mine)
        assert repeated.created is False


async def test_a_failed_transaction_is_refused_before_anything_is_sent(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await twin.do(mine.execute, "select * from nowhere")

        for call in (
            twin.do(client.start, PROCESS(ORDER), conn=mine),
            twin.do(client.start_many, [PROCESS(ORDER)], conn=mine),
            twin.do(client.cancel, "0198c0de-0000-7000-8000-000000000000", conn=mine),
        ):
            with pytest.raises(TransactionStateError, match="failed transaction"):
                await call


async def test_a_closed_connection_is_refused(twin: Twin, client: AnyClient, database_url: str) -> None:
    async with connected(twin, database_url) as mine:
        await twin.do(mine.close)

        with pytest.raises(TransactionStateError, match="closed"):
            await twin.do(client.start, PROCESS(ORDER), conn=mine)


async def test_the_other_clients_connection_is_refused(twin: Twin, client: AnyClient, database_url: str) -> None:
    other = ASYNC if twin is SYNC else SYNC
    async with connected(other, database_url) as foreign:
        with pytest.raises(InvalidOptionError, match=f"that is for {'Async' if twin is SYNC else ''}Client"):
            await twin.do(client.start, PROCESS(ORDER), conn=foreign)


@pytest.mark.parametrize("foreign", ["a session", object(), 3], ids=["text", "object", "number"])
async def test_what_is_no_psycopg_connection_is_shown_the_way(twin: Twin, client: AnyClient, foreign: object) -> None:
    with pytest.raises(InvalidOptionError, match=r"client\.start_statement\(request\)"):
        await twin.do(client.start, PROCESS(ORDER), conn=foreign)


async def test_a_caller_that_commits_by_itself_has_the_run_at_once(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url, autocommit=True) as mine:
        run = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        many = await twin.do(client.start_many, [PROCESS(ORDER), NOTIFY("hi")], conn=mine)

        assert await twin.do(client.count_runs) == 3
        assert await twin.do(run.status) == "pending"
        assert await twin.do(many[1].status) == "pending"


async def test_a_block_inside_the_transaction_can_take_a_start_back(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        await twin.do(mine.execute, "savepoint before")
        taken_back = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(mine.execute, "rollback to savepoint before")
        kept = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(mine.commit)

    assert await twin.do(kept.status) == "pending"
    with pytest.raises(RunNotFoundError):
        await twin.do(taken_back.status)


async def test_a_start_works_in_the_callers_pipeline(database_url: str) -> None:
    async with opened(ASYNC, database_url) as client, connected(ASYNC, database_url) as mine:
        async with cast("psycopg.AsyncConnection[Any]", mine).pipeline():
            run = await ASYNC.do(client.start, PROCESS(ORDER), conn=mine)
        await ASYNC.do(mine.commit)

        assert await ASYNC.do(run.status) == "pending"


async def test_the_doorbell_rings_when_the_caller_commits(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    sleep_as_worker(conn, "default", "process-order")
    async with connected(twin, database_url) as mine:
        await twin.do(client.start, PROCESS(ORDER), conn=mine)
        before = was_rung(conn)

        await twin.do(mine.commit)

        assert (before, is_rung(conn)) == (False, True)


async def test_no_doorbell_rings_in_a_transaction_of_a_client_that_shall_not_wake(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    sleep_as_worker(conn, "default", "process-order")
    async with opened(twin, database_url, wake=False) as client, connected(twin, database_url) as mine:
        run = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(client.start_many, [PROCESS(ORDER)], conn=mine)
        await twin.do(client.cancel, run, conn=mine)
        await twin.do(mine.commit)

    assert not was_rung(conn)


async def test_the_result_cannot_be_awaited_inside_the_transaction_that_starts_the_run(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        run = await twin.do(client.start, PROCESS(ORDER), conn=mine)

        with pytest.raises(TransactionStateError, match="leave the transaction"):
            await twin.do(run.result)


async def test_the_result_comes_although_the_connection_is_in_its_next_transaction(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    async with connected(twin, database_url) as mine:
        run = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(mine.commit)
        await twin.do(mine.execute, "select 1")
        ends.complete(conn, run.id, RECEIPT)

        assert await twin.do(run.result, timeout=30) == RECEIPT


async def test_a_run_whose_start_was_rolled_back_is_not_waited_for(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        run = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(mine.rollback)

        with pytest.raises(RunNotFoundError, match="committed"):
            await twin.do(run.result)


async def test_a_run_whose_connection_is_gone_may_be_committed_yet(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        run = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(mine.close)

        with pytest.raises(ResultTimeoutError, match="commit the transaction") as caught:
            await twin.do(run.result, timeout=0.01)

    assert caught.value.status is None


async def test_a_key_conflict_in_a_bulk_start_leaves_the_callers_transaction_as_it_was(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    await twin.do(client.start, PROCESS(ORDER, key="taken"))
    async with connected(twin, database_url) as mine:
        first = await twin.do(client.start, NOTIFY("before"), conn=mine)

        with pytest.raises(InputConflictError):
            await twin.do(
                client.start_many,
                [PROCESS(ORDER), PROCESS(ORDER, key="free"), PROCESS(Order("other"), key="taken")],
                conn=mine,
            )
        await twin.do(mine.commit)

    assert await twin.do(first.status) == "pending"
    assert await twin.do(client.count_runs, workflow=PROCESS) == 1


async def test_a_bulk_start_as_the_first_statement_commits_nothing_by_itself(
    twin: Twin, client: AnyClient, database_url: str
) -> None:
    async with connected(twin, database_url) as mine:
        await twin.do(client.start_many, [PROCESS(ORDER, key="a"), PROCESS(ORDER, key="b")], conn=mine)
        await twin.do(mine.rollback)

    assert await twin.do(client.count_runs) == 0
