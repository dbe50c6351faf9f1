"""Waiting for results: pushed by one listener, polled by one query, and what interrupts a wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kedge import (
    ClosedClientError,
    NotDecodableError,
    ResultTimeoutError,
    RunCancelledError,
    RunFailedError,
    RunNotFoundError,
    WorkflowRef,
)
from kedge_client import _waiting_room
from tests import ends
from tests.integration.client.orders import NIGHTLY, ORDER, PROCESS, RECEIPT, CardDeclined, Receipt
from tests.twins import ASYNC, AnyClient, AnyHandle, Twin, opened

PATIENCE_S = 30.0


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


def watched(conn: psycopg.Connection) -> set[UUID]:
    return {row[0] for row in conn.execute("select run_id from kedge.watchers")}


@contextlib.asynccontextmanager
async def waiting(twin: Twin, conn: psycopg.Connection, *runs: AnyHandle) -> AsyncGenerator[list[asyncio.Task[Any]]]:
    """Wait for runs in tasks, and go on when the database knows that they are waited for."""
    tasks = [asyncio.create_task(twin.do(run.result, PATIENCE_S)) for run in runs]
    await until(lambda: {run.id for run in runs} <= watched(conn))
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def pushed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but a notification wake the listener."""
    monkeypatch.setattr(_waiting_room, "BACKSTOP_S", 3600.0)


# ---- what a run's end means


async def test_a_result_has_the_type_of_its_ref(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.complete(conn, run.id, RECEIPT)

    assert await twin.do(run.result) == RECEIPT
    assert await twin.do(client.result, PROCESS, run.id) == RECEIPT
    assert await twin.do(client.result, PROCESS, str(run.id), timeout="1s") == RECEIPT
    assert isinstance(await twin.do(client.handle(PROCESS, run.id).result, timeout=0), Receipt)


async def test_a_workflow_without_output_returns_none(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, NIGHTLY())
    ends.complete(conn, run.id)

    assert await twin.do(run.result) is None


async def test_a_declared_error_comes_back_as_its_class(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.fail(conn, run.id, CardDeclined(code="expired"))

    with pytest.raises(CardDeclined) as caught:
        await twin.do(run.result)

    assert caught.value.code == "expired"
    assert isinstance(caught.value.__cause__, RunFailedError)


async def test_any_other_error_comes_as_run_failed(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    undeclared = WorkflowRef("process-order", type(ORDER), Receipt)
    run = await twin.do(client.start, undeclared(ORDER))
    ends.fail(conn, run.id, CardDeclined(code="expired"))

    with pytest.raises(RunFailedError, match="CardDeclined") as caught:
        await twin.do(run.result)

    assert caught.value.run_id == run.id
    assert caught.value.error.data == {"code": "expired"}


async def test_a_cancelled_run_says_why(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.cancel(conn, run.id, "no stock")

    with pytest.raises(RunCancelledError, match="no stock") as caught:
        await twin.do(run.result)

    assert caught.value.reason == "no stock"


async def test_a_result_of_another_type_is_told_as_such(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.complete(conn, run.id, {"order_id": 3})

    with pytest.raises(NotDecodableError, match="process-order"):
        await twin.do(run.result)


# ---- time


async def test_a_wait_of_zero_looks_once(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    with pytest.raises(ResultTimeoutError) as caught:
        await twin.do(run.result, timeout=0)

    assert (caught.value.run_id, caught.value.status) == (run.id, "pending")
    assert watched(conn) == set()


async def test_a_wait_that_is_too_short_says_where_the_run_stands(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, PROCESS(ORDER, delay="1h"))

    # A machine that is busy may not even have looked by then; that is said too.
    with pytest.raises(ResultTimeoutError, match=r"goes on|was not seen") as caught:
        await twin.do(client.handle(PROCESS, run.id).result, timeout=0.05)

    assert isinstance(caught.value, TimeoutError)
    assert caught.value.timeout_s == 0.05
    assert await twin.do(run.status) == "waiting"


async def test_a_callers_own_timeout_ends_the_wait_and_nothing_else(
    database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(ASYNC, database_url) as client:
        run = await ASYNC.do(client.start, PROCESS(ORDER))

        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await ASYNC.do(run.result, timeout=PATIENCE_S)

        assert type(caught.value) is TimeoutError
        ends.complete(conn, run.id, RECEIPT)
        assert await ASYNC.do(run.result) == RECEIPT


# ---- pushed


@pytest.mark.usefixtures("pushed_only")
async def test_a_notification_brings_the_result(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    async with waiting(twin, conn, run) as (task,):
        ends.complete(conn, run.id, RECEIPT)

        assert await task == RECEIPT


@pytest.mark.usefixtures("pushed_only")
async def test_a_run_that_ends_before_its_waiter_is_registered_is_seen_by_the_look(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    conn.execute(
        "alter function kedge.watch_v1(uuid[], text) rename to watch_after;"
        "create table kedge.gate ();"
        "create function kedge.watch_v1(p_ids uuid[], p_channel text) returns void"
        " language plpgsql security definer as $$"
        " begin lock table kedge.gate; perform kedge.watch_after(p_ids, p_channel); end $$"
    )
    with conn.transaction():
        conn.execute("lock table kedge.gate")
        task = asyncio.create_task(twin.do(run.result, timeout=PATIENCE_S))
        await until(lambda: conn.execute("select 1 from pg_locks where not granted").fetchone() is not None)
        # Whoever ends it now finds nobody to tell.
        ends.complete(conn, run.id, RECEIPT)

    assert await task == RECEIPT


@pytest.mark.usefixtures("pushed_only")
async def test_many_waiters_share_one_listener(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    runs = await twin.do(client.start_many, [PROCESS(ORDER) for _ in range(20)])

    async with waiting(twin, conn, *runs, *runs) as tasks:
        channels = conn.execute("select count(distinct channel) from kedge.watchers").fetchone()
        listeners = conn.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name = 'kedge-client'"
        ).fetchone()
        for number, run in enumerate(runs):
            ends.complete(conn, run.id, Receipt("o-1", str(number)))

        results = await asyncio.gather(*tasks)

    assert channels == (1,)
    assert listeners is not None
    # The others are those that started and looked.
    assert listeners[0] <= 1 + 4
    assert [result.charge_id for result in results] == [str(number) for number in range(20)] * 2
    assert watched(conn) == set()


@pytest.mark.usefixtures("pushed_only")
async def test_a_listener_that_is_cut_off_comes_back_and_misses_nothing(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    runs = await twin.do(client.start_many, [PROCESS(ORDER) for _ in range(3)])

    async with waiting(twin, conn, *runs) as tasks:
        ends.complete(conn, runs[0].id, RECEIPT)
        assert await tasks[0] == RECEIPT
        # All but the first end while nobody listens: the registrations are gone with the server's memory, say.
        conn.execute("delete from kedge.watchers")
        terminate_clients(conn)
        ends.complete(conn, runs[1].id, RECEIPT)
        assert await tasks[1] == RECEIPT
        await until(lambda: watched(conn) == {runs[2].id})
        ends.complete(conn, runs[2].id, RECEIPT)

        assert await tasks[2] == RECEIPT


def terminate_clients(conn: psycopg.Connection) -> None:
    conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and application_name = 'kedge-client'"
    )


async def test_a_lost_notification_costs_no_more_than_the_next_look(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waiting_room, "BACKSTOP_S", 0.05)
    run = await twin.do(client.start, PROCESS(ORDER))

    async with waiting(twin, conn, run) as (task,):
        ends.complete(conn, run.id, RECEIPT, tell=False)

        assert await task == RECEIPT


async def test_who_waits_no_more_is_not_told_any_more(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waiting_room, "BACKSTOP_S", 0.05)
    run = await twin.do(client.start, PROCESS(ORDER))

    with pytest.raises(ResultTimeoutError):
        await twin.do(run.result, timeout=0.2)

    await until(lambda: watched(conn) == set())


@pytest.mark.usefixtures("pushed_only")
async def test_what_others_write_on_the_channel_wakes_nobody_wrongly(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run, other = await twin.do(client.start_many, [PROCESS(ORDER), PROCESS(ORDER)])

    async with waiting(twin, conn, run) as (task,):
        (channel,) = conn.execute("select channel from kedge.watchers").fetchone() or ("",)
        for payload in ("", "nonsense", f"{other.id},,x", str(run.id)):
            conn.execute("select pg_notify(%s, %s)", (channel, payload))
        ends.complete(conn, run.id, RECEIPT)

        assert await task == RECEIPT


async def test_a_run_that_is_removed_is_not_waited_for(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    async with waiting(twin, conn, run) as (task,):
        conn.execute("delete from kedge.runs")
        conn.execute("delete from kedge.journal")
        conn.execute("select kedge.notify_watchers(array[%s]::uuid[])", (run.id,))

        with pytest.raises(RunNotFoundError):
            await task


async def test_closing_the_client_ends_its_waits(twin: Twin, database_url: str, conn: psycopg.Connection) -> None:
    async with opened(twin, database_url) as client:
        run = await twin.do(client.start, PROCESS(ORDER))
        async with waiting(twin, conn, run) as (task,):
            await twin.close(client)

            with pytest.raises(ClosedClientError):
                await task
        with pytest.raises(ClosedClientError):
            await twin.do(client.start, PROCESS(ORDER))
        with pytest.raises(ClosedClientError):
            await twin.do(run.result)


async def test_a_closed_client_begins_no_wait(twin: Twin, database_url: str) -> None:
    async with opened(twin, database_url) as client:
        run = await twin.do(client.start, PROCESS(ORDER))

    with pytest.raises(ClosedClientError):
        await twin.do(run.result)


# ---- polled


@pytest.fixture
def looks(conn: psycopg.Connection) -> Callable[[int], bool]:
    """Count looks for results, and tell whether one has asked for so many runs."""
    conn.execute("create table kedge.looks (ids int); grant insert on kedge.looks to public")
    conn.execute(
        "create or replace function kedge.results_v1(p_ids uuid[]) returns table"
        " (id uuid, status text, resource text, reason text, output bytea, error bytea)"
        " language sql security definer as $$"
        " insert into kedge.looks values (cardinality(p_ids));"
        " select a.id, a.status, a.resource, a.reason, a.output, a.error"
        "   from kedge.all_runs a where a.id = any (p_ids) $$"
    )
    return lambda ids: conn.execute("select 1 from kedge.looks where ids = %s", (ids,)).fetchone() is not None


async def test_a_client_that_does_not_listen_polls(
    twin: Twin, database_url: str, conn: psycopg.Connection, looks: Callable[[int], bool]
) -> None:
    async with opened(twin, database_url, listen=False) as client:
        run = await twin.do(client.start, PROCESS(ORDER))
        task = asyncio.create_task(twin.do(run.result, timeout=PATIENCE_S))
        await until(lambda: looks(1))
        ends.complete(conn, run.id, RECEIPT, tell=False)

        assert await task == RECEIPT
    assert watched(conn) == set()


async def test_all_who_wait_share_one_polling_query(
    twin: Twin, database_url: str, conn: psycopg.Connection, looks: Callable[[int], bool]
) -> None:
    async with opened(twin, database_url, listen=False) as client:
        runs = await twin.do(client.start_many, [PROCESS(ORDER) for _ in range(10)])
        tasks = [asyncio.create_task(twin.do(run.result, timeout=PATIENCE_S)) for run in runs]
        await until(lambda: looks(10))
        for run in runs:
            ends.complete(conn, run.id, RECEIPT, tell=False)

        assert await asyncio.gather(*tasks) == [RECEIPT] * 10


async def test_a_client_polls_where_listening_is_refused(
    twin: Twin, database_url: str, conn: psycopg.Connection, looks: Callable[[int], bool]
) -> None:
    conn.execute("drop function kedge.watch_v1(uuid[], text)")
    async with opened(twin, database_url) as client:
        run = await twin.do(client.start, PROCESS(ORDER))
        task = asyncio.create_task(twin.do(run.result, timeout=PATIENCE_S))
        await until(lambda: looks(1))
        ends.complete(conn, run.id, RECEIPT, tell=False)

        assert await task == RECEIPT


async def test_a_client_polls_where_there_is_no_connection_left_to_listen_on(
    twin: Twin, database_url: str, conn: psycopg.Connection, looks: Callable[[int], bool]
) -> None:
    role = f"single_{os.getpid()}"
    conn.execute(f"create role {role} login password 'single' connection limit 1".encode())
    try:
        for things in ("schema kedge", "all functions in schema kedge"):
            conn.execute(f"grant all on {things} to {role}".encode())
        as_single = make_conninfo(database_url, user=role, password="single")
        async with opened(twin, as_single, max_connections=1) as client:
            run = await twin.do(client.start, PROCESS(ORDER))
            task = asyncio.create_task(twin.do(run.result, timeout=PATIENCE_S))
            await until(lambda: looks(1))
            ends.complete(conn, run.id, RECEIPT, tell=False)

            assert await task == RECEIPT
    finally:
        conn.execute(f"drop owned by {role}".encode())
        conn.execute(f"drop role {role}".encode())
