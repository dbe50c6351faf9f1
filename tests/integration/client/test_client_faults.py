"""The database is away, dies under load, falls silent or loses an answer: typed errors, and nothing done twice."""

from __future__ import annotations

import asyncio
from uuid import UUID

import psycopg
import pytest

from kedge import (
    KedgeError,
    OutcomeUnknownError,
    PrivilegesError,
    RunNotFoundError,
    TransactionStateError,
    UnavailableError,
    new_run_id,
)
from kedge_client import _attempts
from kedge_worker.testing import PostgresServer
from tests import ends
from tests.integration.client.orders import NOTIFY, ORDER, PROCESS, RECEIPT
from tests.integration.client.test_client_keys import until_somebody_waits
from tests.integration.client.test_client_results import waiting
from tests.proxy import Proxy
from tests.twins import ASYNC, AnyClient, Twin, connected, opened

MISSING = UUID("0198c0de-0000-7000-8000-000000000000")

STOP_WAITING_FOR_STANDBY = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"


# ---- lost answers


async def test_a_start_whose_answer_is_lost_is_settled_by_repeating_it(
    twin: Twin, wire: Proxy, conn: psycopg.Connection
) -> None:
    async with opened(twin, wire.url) as client:
        wire.lose_answers(b"start")

        run = await twin.do(client.start, PROCESS(ORDER))

        assert wire.cuts_made == 1
        assert run.created
        assert conn.execute("select array_agg(id) from kedge.runs").fetchone() == ([run.id],)


async def test_a_bulk_start_whose_answer_is_lost_is_settled_by_repeating_it(
    twin: Twin, wire: Proxy, conn: psycopg.Connection
) -> None:
    async with opened(twin, wire.url) as client:
        wire.lose_answers(b"start_many")

        runs = await twin.do(client.start_many, [PROCESS(ORDER), NOTIFY("a", key="k"), PROCESS(ORDER, tags=["t"])])

        assert wire.cuts_made == 1
        assert all(run.created for run in runs)
        assert {row[0] for row in conn.execute("select id from kedge.runs")} == {run.id for run in runs}


async def test_a_keyed_start_whose_answer_is_lost_is_still_the_one_that_made_the_run(twin: Twin, wire: Proxy) -> None:
    async with opened(twin, wire.url) as client:
        wire.lose_answers(b"start")

        run = await twin.do(client.start, PROCESS(ORDER, key="k", on_conflict="raise"))

        assert run.created


async def test_a_cancel_whose_answer_is_lost_is_one_letter(twin: Twin, wire: Proxy, conn: psycopg.Connection) -> None:
    async with opened(twin, wire.url) as client:
        run = await twin.do(client.start, PROCESS(ORDER))
        wire.lose_answers(b"cancel")

        assert await twin.do(run.cancel) == "pending"

        assert conn.execute("select count(*) from kedge.inbox").fetchone() == (1,)


async def test_an_outcome_that_repeating_does_not_settle_is_called_unknown(
    twin: Twin, wire: Proxy, conn: psycopg.Connection
) -> None:
    async with opened(twin, wire.url) as client:
        wire.lose_answers(b"start", times=100)

        with pytest.raises(OutcomeUnknownError, match="did not answer"):
            await twin.do(client.start, PROCESS(ORDER))

        assert wire.cuts_made == _attempts.MAX_TRIES
        assert conn.execute("select count(*) from kedge.runs").fetchone() == (1,)


async def test_a_read_that_is_never_answered_has_no_unknown_outcome(twin: Twin, wire: Proxy) -> None:
    async with opened(twin, wire.url) as client:
        wire.lose_answers(b"count", times=100)

        with pytest.raises(UnavailableError):
            await twin.do(client.count_runs)


async def test_what_could_not_be_sent_is_not_called_unknown(twin: Twin, wire: Proxy) -> None:
    async with opened(twin, wire.url) as client:
        await twin.do(client.start, PROCESS(ORDER))
        wire.refuse()

        for call in (client.start, client.start_many):
            with pytest.raises(UnavailableError) as caught:
                await twin.do(call, PROCESS(ORDER) if call == client.start else [PROCESS(ORDER)])
            assert isinstance(caught.value, ConnectionError)


async def test_idle_connections_that_were_cut_cost_no_try(twin: Twin, wire: Proxy) -> None:
    async with opened(twin, wire.url) as client:
        await asyncio.gather(*(twin.do(client.get, MISSING) for _ in range(8)), return_exceptions=True)
        wire.cut()

        run = await twin.do(client.start, PROCESS(ORDER))

        assert run.created


async def test_a_callers_transaction_that_breaks_is_his_to_repeat(twin: Twin, client: AnyClient, wire: Proxy) -> None:
    mine = await twin.open(wire.url)
    await twin.do(mine.execute, "select 1")
    wire.cut()

    with pytest.raises(TransactionStateError, match="broke"):
        await twin.do(client.start, PROCESS(ORDER), conn=mine)

    await twin.do(mine.close)


async def test_a_lost_answer_on_a_connection_that_commits_by_itself_is_unknown(
    twin: Twin, client: AnyClient, wire: Proxy, conn: psycopg.Connection
) -> None:
    mine = await twin.open(wire.url, autocommit=True)
    wire.lose_answers(b"start_run_v1")

    with pytest.raises(OutcomeUnknownError):
        await twin.do(client.start, PROCESS(ORDER), conn=mine)

    await twin.do(mine.close)
    assert conn.execute("select count(*) from kedge.runs").fetchone() == (1,)


# ---- a server that goes and comes back


async def test_without_a_server_every_call_says_so(twin: Twin, breakable_postgres: PostgresServer) -> None:
    breakable_postgres.stop()
    async with opened(twin, breakable_postgres.url) as client:
        handle = client.handle(PROCESS, MISSING)
        for call in (
            twin.do(client.start, PROCESS(ORDER)),
            twin.do(client.start_many, [PROCESS(ORDER)]),
            twin.do(client.get, MISSING),
            twin.do(client.cancel, MISSING),
            twin.do(client.list_runs),
            twin.do(handle.result, timeout=30),
        ):
            with pytest.raises(UnavailableError):
                await call

        breakable_postgres.start()

        assert (await twin.do(client.start, PROCESS(ORDER))).created


async def test_a_restart_between_two_calls_is_not_noticed(twin: Twin, breakable_postgres: PostgresServer) -> None:
    async with opened(twin, breakable_postgres.url) as client:
        await asyncio.gather(*(twin.do(client.start, PROCESS(ORDER, key=str(i))) for i in range(4)))

        breakable_postgres.restart()

        assert (await twin.do(client.start, PROCESS(ORDER))).created
        assert await twin.do(client.count_runs) == 5


async def test_a_result_comes_although_the_server_was_restarted_meanwhile(
    twin: Twin, breakable_postgres: PostgresServer
) -> None:
    async with opened(twin, breakable_postgres.url) as client:
        run = await twin.do(client.start, PROCESS(ORDER))
        with psycopg.connect(breakable_postgres.url, autocommit=True) as before:
            async with waiting(twin, before, run) as (task,):
                breakable_postgres.kill()
                breakable_postgres.start()
                with psycopg.connect(breakable_postgres.url, autocommit=True) as after:
                    ends.complete(after, run.id, RECEIPT)

                assert await task == RECEIPT


async def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing_that_was_acknowledged(
    twin: Twin, breakable_postgres: PostgresServer
) -> None:
    started: list[UUID] = []
    refused: list[KedgeError] = []
    enough = asyncio.Event()

    async def starter(client: AnyClient) -> None:
        while not refused:
            try:
                started.append((await twin.do(client.start, PROCESS(ORDER))).id)
            except KedgeError as error:
                refused.append(error)
            if len(started) > 50:
                enough.set()

    async with opened(twin, breakable_postgres.url, timeout="2s") as client:
        starters = [asyncio.create_task(starter(client)) for _ in range(6)]
        await enough.wait()
        breakable_postgres.kill()
        await asyncio.gather(*starters)
        breakable_postgres.start()

        there = {view.id for view in await twin.listed(client.iter_runs())}

    assert len(set(started)) == len(started)
    assert set(started) <= there
    unknown = [error for error in refused if isinstance(error, OutcomeUnknownError)]
    assert all(isinstance(error, UnavailableError | OutcomeUnknownError) for error in refused)
    assert len(there) <= len(started) + 6
    if not unknown:
        assert len(there) == len(started)


async def test_a_silent_server_hangs_no_call_for_ever(
    twin: Twin, breakable_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attempts, "GRACE_S", 0.1)
    async with opened(twin, breakable_postgres.url, timeout="300ms") as client:
        await asyncio.gather(*(twin.do(client.start, PROCESS(ORDER, key=str(i))) for i in range(4)))
        breakable_postgres.freeze()

        with pytest.raises(OutcomeUnknownError):
            await twin.do(client.start, PROCESS(ORDER))
        with pytest.raises(UnavailableError):
            await twin.do(client.count_runs)

        breakable_postgres.thaw()
        assert (await twin.do(client.start, PROCESS(ORDER))).created


async def test_a_commit_that_no_standby_has_confirmed_is_unknown(
    twin: Twin, breakable_postgres: PostgresServer
) -> None:
    with psycopg.connect(breakable_postgres.url, autocommit=True) as admin:
        async with opened(twin, breakable_postgres.url) as client:
            await twin.do(client.start, PROCESS(ORDER))
            admin.execute("alter system set synchronous_standby_names = 'nobody'")
            admin.execute("alter system set synchronous_commit = 'on'")
            admin.execute("select pg_reload_conf()")
            start = asyncio.create_task(twin.do(client.start, PROCESS(ORDER)))
            async with asyncio.timeout(30):
                while admin.execute(STOP_WAITING_FOR_STANDBY).fetchone() is None:
                    # The checkpointer has not told everybody yet.
                    if start.done():
                        start = asyncio.create_task(twin.do(client.start, PROCESS(ORDER)))
                    await asyncio.sleep(0)

            with pytest.raises(OutcomeUnknownError, match="standby"):
                await start

            admin.execute("alter system reset synchronous_standby_names")
            admin.execute("select pg_reload_conf()")


# ---- refusals


@pytest.mark.owners_client("a member of kedge_client may not take on another role")
async def test_a_role_without_rights_is_told_so(twin: Twin, database_url: str, conn: psycopg.Connection) -> None:
    conn.execute("create role nobody_there")
    try:
        async with connected(twin, database_url) as mine, opened(twin, database_url) as client:
            await twin.do(mine.execute, "set role nobody_there")

            with pytest.raises(PrivilegesError) as caught:
                await twin.do(client.start, PROCESS(ORDER), conn=mine)

        assert caught.value.sqlstate == "42501"
    finally:
        conn.execute("drop role nobody_there")


async def test_a_start_that_waits_too_long_for_its_key_was_not_done(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(twin, database_url, timeout="300ms") as client, connected(twin, database_url) as mine:
        await twin.do(client.start, PROCESS(ORDER, key="k"), conn=mine)

        with pytest.raises(UnavailableError, match="too long") as caught:
            await twin.do(client.start, PROCESS(ORDER, key="k"))

        assert caught.value.sqlstate == "57014"
        await twin.do(mine.rollback)
    assert conn.execute("select count(*) from kedge.runs").fetchone() == (0,)


async def test_a_start_that_hangs_holds_up_no_other(database_url: str, conn: psycopg.Connection) -> None:
    conn.execute(
        """create function held() returns trigger language plpgsql as
            $$ begin perform pg_catalog.pg_advisory_xact_lock(1); return new; end $$"""
    )
    conn.execute(
        "create trigger held before insert on kedge.runs for each row when (new.workflow <> 'notify')"
        " execute function held()"
    )
    async with opened(ASYNC, database_url) as client:
        conn.execute("select pg_advisory_lock(1)")
        hangs = asyncio.create_task(ASYNC.do(client.start, PROCESS(ORDER)))
        await until_somebody_waits(conn)

        async with asyncio.timeout(5):
            others = await asyncio.gather(*(ASYNC.do(client.start, NOTIFY("other")) for _ in range(3)))

        assert not hangs.done()
        conn.execute("select pg_advisory_unlock(1)")
        assert (await hangs).created
        assert all(run.created for run in others)


async def test_a_cancelled_call_leaves_its_connection_to_nobody(database_url: str, conn: psycopg.Connection) -> None:
    async with opened(ASYNC, database_url, max_connections=1) as client, connected(ASYNC, database_url) as mine:
        await ASYNC.do(client.start, PROCESS(ORDER, key="k"), conn=mine)
        blocked = asyncio.create_task(ASYNC.do(client.start, PROCESS(ORDER, key="k")))
        await until_somebody_waits(conn)

        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked

        run = await ASYNC.do(client.start, NOTIFY("other"))
        assert (await ASYNC.do(run.view)).workflow == "notify"
        await ASYNC.do(mine.rollback)


async def test_errors_of_the_database_tell_no_password(twin: Twin, database_url: str) -> None:
    secret = "correct-horse"
    for dsn in (
        f"postgresql://somebody:{secret}@127.0.0.1:1/nowhere",
        f"host=127.0.0.1 port=1 user=somebody password={secret} connect_timeout=2",
    ):
        async with opened(twin, dsn) as client:
            with pytest.raises(UnavailableError) as caught:
                await twin.do(client.start, PROCESS(ORDER))
        error: BaseException | None = caught.value
        while error is not None:
            assert secret not in str(error)
            error = error.__cause__ or error.__context__


async def test_an_unknown_outcome_leaves_a_run_that_can_be_looked_for(
    twin: Twin, wire: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = new_run_id()
    monkeypatch.setattr("kedge_client._requests.new_run_id", lambda: run_id)
    async with opened(twin, wire.url) as client:
        wire.lose_answers(b"start", times=3)
        with pytest.raises(OutcomeUnknownError):
            await twin.do(client.start, PROCESS(ORDER))

        again = await twin.do(client.start, PROCESS(ORDER))

        assert again.id == run_id
        with pytest.raises(RunNotFoundError):
            await twin.do(client.get, MISSING)
        assert await twin.do(client.count_runs) == 1
