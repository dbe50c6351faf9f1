"""Whose connections a client uses, how many, and how it leaves them; loops, threads and forks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from kedge import ClosedClientError, InvalidOptionError, SchemaError, TransactionStateError, UnavailableError
from kedge_client import AsyncClient, Client
from kedge_client._async_connections import OwnAsyncConnections
from kedge_client._async_link import AsyncLink
from kedge_client._round_trip import Command
from kedge_client._statements import RING, Statement
from kedge_client._sync_connections import OwnSyncConnections
from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer
from tests import ends
from tests.integration.client.orders import NOTIFY, ORDER, PROCESS, RECEIPT
from tests.twins import ASYNC, SYNC, AnyClient, Twin, connected, opened


@asynccontextmanager
async def pooled(twin: Twin, url: str, **options: Any) -> AsyncGenerator[Any]:
    """A pool as an application has one."""
    pool: Any
    if twin is SYNC:
        pool = psycopg_pool.ConnectionPool(url, min_size=1, max_size=3, open=False, **options)
    else:
        pool = psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=3, open=False, **options)
    await twin.do(pool.open, wait=True)
    try:
        yield pool
    finally:
        await twin.do(pool.close)


# ---- a pool of the application's


async def test_a_client_works_on_the_applications_pool(twin: Twin, database_url: str, conn: psycopg.Connection) -> None:
    async with pooled(twin, database_url) as pool:
        client = twin.around(pool)
        run = await twin.do(client.start, PROCESS(ORDER, key="k"))
        many = await twin.do(client.start_many, [NOTIFY("a"), NOTIFY("b")])
        ends.complete(conn, run.id, RECEIPT)

        assert await twin.do(run.result, timeout=30) == RECEIPT
        assert await twin.do(client.count_runs) == 3
        assert (await twin.do(many[0].view)).input == "a"
        await twin.close(client)

        assert not pool.closed
        with pytest.raises(ClosedClientError):
            await twin.do(client.start, PROCESS(ORDER))


async def test_results_are_pushed_to_a_client_on_the_applications_pool(
    twin: Twin, database_url: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge_client._waiting_room.BACKSTOP_S", 3600.0)
    async with pooled(twin, database_url) as pool:
        client = twin.around(pool)
        run = await twin.do(client.start, PROCESS(ORDER))
        task = asyncio.create_task(twin.do(run.result, timeout=30))
        async with asyncio.timeout(30):
            while conn.execute("select 1 from kedge.watchers").fetchone() is None:
                await asyncio.sleep(0)
        ends.complete(conn, run.id, RECEIPT)

        assert await task == RECEIPT
        await twin.close(client)


async def test_a_lent_connection_is_left_as_it_was(twin: Twin, database_url: str) -> None:
    cursors = psycopg.ClientCursor if twin is SYNC else psycopg.AsyncClientCursor
    async with pooled(twin, database_url, kwargs={"row_factory": dict_row, "cursor_factory": cursors}) as pool:
        client = twin.around(pool)

        run = await twin.do(client.start, PROCESS(ORDER, key="k"))
        view = await twin.do(run.view)

        assert view.key == "k"
        lent = await twin.do(pool.getconn)
        assert lent.autocommit is False
        assert lent.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert await twin.do((await twin.do(lent.execute, "select 1 as one")).fetchone) == {"one": 1}
        await twin.do(lent.rollback)
        await twin.do(pool.putconn, lent)


async def test_adapters_of_the_application_change_nothing(twin: Twin, database_url: str) -> None:
    from psycopg.types.string import TextLoader

    def configure(lent: Any) -> None:
        lent.adapters.register_loader("uuid", TextLoader)
        lent.adapters.register_loader("timestamptz", TextLoader)

    async def configure_async(lent: Any) -> None:
        configure(lent)

    async with pooled(twin, database_url, configure=configure if twin is SYNC else configure_async) as pool:
        client = twin.around(pool)
        run = await twin.do(client.start, PROCESS(ORDER))
        async with connected(twin, database_url) as mine:
            configure(mine)
            other = await twin.do(client.start, PROCESS(ORDER), conn=mine)
            await twin.do(mine.commit)

        assert (await twin.do(client.get, run)).id == run.id
        assert (await twin.do(client.get, other)).created_at.tzinfo is not None


def lending(twin: Twin, conn: Any) -> Any:
    """A function that lends this connection."""

    @contextmanager
    def lend() -> Generator[Any]:
        yield conn

    @asynccontextmanager
    async def lend_async() -> AsyncGenerator[Any]:
        yield conn

    return lend if twin is SYNC else lend_async


async def test_an_owner_who_listens_on_a_lent_connection_hears_what_comes_during_a_call(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    heard: list[str] = []
    async with connected(twin, database_url, autocommit=True) as mine:
        mine.add_notify_handler(lambda notify: heard.append(notify.payload))
        await twin.do(mine.execute, "listen orders")
        client = twin.around(lending(twin, mine))
        conn.execute("notify orders, 'new'")

        async with asyncio.timeout(30):
            while not heard:
                await twin.do(client.count_runs)

    assert heard == ["new"]


async def test_a_pool_full_of_dead_connections_starts_runs_all_the_same(
    twin: Twin, breakable_postgres: PostgresServer
) -> None:
    async with pooled(twin, breakable_postgres.url) as pool:
        client = twin.around(pool)
        await asyncio.gather(*(twin.do(client.start, PROCESS(ORDER, key=str(i))) for i in range(6)))

        breakable_postgres.restart()

        assert (await twin.do(client.start, PROCESS(ORDER))).created


async def test_an_empty_pool_is_told_as_unavailable(twin: Twin, database_url: str) -> None:
    async with pooled(twin, database_url, timeout=0.05) as pool:
        client = twin.around(pool, timeout="100ms")
        taken = [await twin.do(pool.getconn) for _ in range(3)]

        with pytest.raises(UnavailableError):
            await twin.do(client.start, PROCESS(ORDER))

        for lent in taken:
            await twin.do(pool.putconn, lent)
        assert (await twin.do(client.start, PROCESS(ORDER))).created


async def test_a_function_that_lends_connections_will_do(twin: Twin, database_url: str) -> None:
    async with connected(twin, database_url) as mine:
        client = twin.around(lending(twin, mine))

        assert (await twin.do(client.start, PROCESS(ORDER))).created
        assert mine.autocommit is False


async def test_a_connection_with_an_open_transaction_is_not_borrowed(twin: Twin, database_url: str) -> None:
    async with connected(twin, database_url) as mine:
        client = twin.around(lending(twin, mine))
        await twin.do(mine.execute, "select 1")

        with pytest.raises(TransactionStateError, match="conn="):
            await twin.do(client.start, PROCESS(ORDER))

        assert mine.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


async def test_the_other_clients_pool_is_refused(twin: Twin, database_url: str) -> None:
    other = ASYNC if twin is SYNC else SYNC
    async with pooled(other, database_url) as pool:
        client = twin.around(pool)

        with pytest.raises(InvalidOptionError, match=f"use {'Async' if twin is SYNC else ''}Client"):
            await twin.do(client.start, PROCESS(ORDER))


@pytest.mark.parametrize("pool", ["postgresql://localhost/x", None, 3], ids=["dsn", "none", "number"])
def test_what_is_no_pool_is_refused(twin: Twin, pool: object) -> None:
    with pytest.raises(InvalidOptionError, match=r"Client\.connect\(\)"):
        twin.around(pool)


async def test_a_pool_that_lends_something_else_is_refused(twin: Twin) -> None:
    client = twin.around(lending(twin, object()))

    with pytest.raises(InvalidOptionError, match="the pool lends a object"):
        await twin.do(client.start, PROCESS(ORDER))


# ---- the client's own connections


async def test_a_client_opens_nothing_before_it_is_used(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(twin, database_url) as client:
        before = backends(conn)
        await twin.do(client.count_runs)

        assert (before, backends(conn)) == (0, 1)


async def test_a_client_opens_no_more_than_it_may_and_closes_all(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(twin, database_url, max_connections=2) as client:
        await asyncio.gather(*(twin.do(client.start, NOTIFY("x", key=str(i))) for i in range(30)))

        assert 1 <= backends(conn) <= 2

    async with asyncio.timeout(30):
        while backends(conn):
            await asyncio.sleep(0)


def backends(conn: psycopg.Connection) -> int:
    """How many connections clients have to this database."""
    row = conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'kedge-client'"
    ).fetchone()
    assert row is not None
    count: int = row[0]
    return count


async def test_own_connections_have_limits_of_time(twin: Twin, database_url: str, conn: psycopg.Connection) -> None:
    count_instead(conn, "select setting from pg_settings where name = 'statement_timeout'")
    async with opened(twin, database_url, timeout="3s") as client:
        assert await twin.do(client.count_runs) == 3000
    async with opened(twin, make_conninfo(database_url, options="-c statement_timeout=777")) as client:
        assert await twin.do(client.count_runs) == 777
    async with opened(twin, database_url, listen=False) as client:
        assert await twin.do(client.count_runs) == 0


async def test_a_client_that_does_not_listen_prepares_nothing(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    count_instead(conn, "select count(*) from pg_prepared_statements")
    counts: list[int] = []
    for listen in (False, True):
        async with opened(twin, database_url, listen=listen, max_connections=1) as client:
            await twin.do(client.start, PROCESS(ORDER))
            await twin.do(client.count_runs)
            counts.append(await twin.do(client.count_runs))

    assert counts == [0, 3]


async def test_what_is_prepared_survives_a_discard(twin: Twin, database_url: str, conn: psycopg.Connection) -> None:
    conn.execute(
        "create or replace function kedge.count_runs_v1(p_workflow text, p_statuses text[], p_resource text,"
        " p_tag text, p_since timestamptz, p_until timestamptz) returns bigint language plpgsql"
        " as $$ begin deallocate all; return 1; end $$"
    )
    async with opened(twin, database_url, max_connections=1) as client:
        await twin.do(client.start, PROCESS(ORDER))
        await twin.do(client.count_runs)

        assert (await twin.do(client.start, PROCESS(ORDER))).created


def test_a_sync_client_that_is_all_busy_says_so(database_url: str) -> None:
    connections = OwnSyncConnections(database_url, "kedge", maximum=1, prepares=True)
    link = connections.take(monotonic() + 30)

    with pytest.raises(UnavailableError, match="all 1 connections"):
        connections.take(monotonic() + 0.01)

    connections.put(link)
    assert connections.take(monotonic() + 30) is link
    connections.close()
    connections.put(link)
    assert link.conn.closed


async def test_an_async_client_that_is_all_busy_says_so(database_url: str) -> None:
    connections = OwnAsyncConnections(database_url, "kedge", maximum=1, prepares=True)
    link = await connections.take(monotonic() + 30)

    with pytest.raises(UnavailableError, match="all 1 connections"):
        await connections.take(monotonic() + 0.01)

    await connections.put(link)
    assert await connections.take(monotonic() + 30) is link
    await connections.close()
    await connections.put(link)
    assert link.conn.closed


async def test_a_client_closes_with_its_block(database_url: str) -> None:
    with Client.connect(database_url) as client:
        assert client.count_runs() == 0
    async with AsyncClient.connect(database_url) as other:
        assert await other.count_runs() == 0

    with pytest.raises(ClosedClientError):
        client.count_runs()
    with pytest.raises(ClosedClientError):
        await other.count_runs()


async def test_closing_twice_is_closing_once(twin: Twin, database_url: str) -> None:
    client = twin.connect(database_url)
    await twin.do(client.count_runs)

    await twin.close(client)
    await twin.close(client)


# ---- loops, threads, forks


def test_an_async_client_belongs_to_the_loop_of_its_first_use(database_url: str) -> None:
    client = AsyncClient.connect(database_url)

    async def use() -> int:
        return await client.count_runs()

    async def close() -> None:
        await client._core._connections.close()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(use()) == 0

        with pytest.raises(ClosedClientError, match="another event loop"):
            second.run(use())

        assert first.run(use()) == 0
        first.run(close())


def is_attached(link: AsyncLink) -> bool:
    return link._loop is not None


async def used_once(connections: OwnAsyncConnections, *, silence_s: float) -> AsyncLink:
    """Make one round trip, in which the server may be silent for so long."""
    link = await connections.take(monotonic() + 30)
    await link.exchange([[Command(Statement("one", "select 1", {}, ("int4",)), ())]], [], monotonic() + silence_s)
    await connections.put(link)
    return link


async def test_a_connection_that_nobody_uses_leaves_its_loop_alone(database_url: str) -> None:
    connections = OwnAsyncConnections(database_url, "kedge", maximum=1, prepares=True)
    link = await used_once(connections, silence_s=2)
    assert is_attached(link)

    async with asyncio.timeout(30):
        while is_attached(link):
            await asyncio.sleep(0)

    assert await used_once(connections, silence_s=30) is link
    await connections.close()


async def test_a_closed_client_leaves_nothing_with_its_loop(database_url: str) -> None:
    connections = OwnAsyncConnections(database_url, "kedge", maximum=1, prepares=True)
    link = await used_once(connections, silence_s=30)

    await connections.close()

    # Else the loop would take the next socket of this number for it.
    assert not asyncio.get_running_loop().remove_reader(link.fileno)


def test_threads_share_a_client(database_url: str, conn: psycopg.Connection) -> None:
    errors: list[BaseException] = []

    def work(client: AnyClient) -> None:
        try:
            for number in range(20):
                run = client.start(NOTIFY(str(number)))
                assert client.get(run).input == str(number)
        except BaseException as error:  # noqa: BLE001  # a thread's failure is the test's
            errors.append(error)

    with Client.connect(database_url, max_connections=3) as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert errors == []
        assert client.count_runs() == 160
        assert backends(conn) <= 3


FORKING = """
import os, sys
import psycopg
from kedge import WorkflowRef
from kedge_client import Client
from tests import ends

url = sys.argv[1]
ref = WorkflowRef("w", str, str)
client = Client.connect(url, max_connections=1)
conn = psycopg.connect(url, autocommit=True)

def works(word):
    run = client.start(ref(word))
    ends.complete(conn, run.id, word)
    assert run.result(timeout=30) == word
    # The test has made this the pid of the backend.
    return client.count_runs()

before = works("before")
child = os.fork()
if child == 0:
    conn = psycopg.connect(url, autocommit=True)
    try:
        assert works("child") != before
        client.close()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
_, status = os.waitpid(child, 0)
assert works("after") == before
client.close()
conn.close()
print("child", os.waitstatus_to_exitcode(status), "parent", 0)
"""


def test_a_forked_child_opens_connections_of_its_own(database_url: str, conn: psycopg.Connection) -> None:
    count_instead(conn, "pg_backend_pid()")

    done = subprocess.run(
        [sys.executable, "-c", FORKING, database_url], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout, done.stderr) == ("child 0 parent 0\n", "")
    assert conn.execute("select count(*) from kedge.finished").fetchone() == (3,)


def count_instead(conn: psycopg.Connection, expression: str) -> None:
    """Let count_runs answer what one wants to know of the client's own session."""
    conn.execute(
        "create or replace function kedge.count_runs_v1(p_workflow text, p_statuses text[], p_resource text,"
        " p_tag text, p_since timestamptz, p_until timestamptz) returns bigint language sql"
        f" as $$ select ({expression})::bigint $$".encode()
    )


@pytest.mark.owners_client("it migrates a second schema, in which no roles are installed")
async def test_a_client_that_was_refused_for_want_of_a_schema_works_once_it_is_there(
    twin: Twin, database_url: str
) -> None:
    async with opened(twin, database_url, schema="late", max_connections=1) as client:
        with pytest.raises(SchemaError):
            await twin.do(client.start, PROCESS(ORDER))

        migrate(database_url, schema="late")

        assert (await twin.do(client.start, PROCESS(ORDER))).created


async def test_a_link_leaves_the_loop_in_the_turn_in_which_its_connection_breaks(
    database_url: str, conn: psycopg.Connection
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as mine:
        link = AsyncLink(mine, "kedge", prepares=False)
        conn.execute("select pg_terminate_backend(%s, 10000)", (mine.info.backend_pid,))

        with pytest.raises(psycopg.OperationalError):
            await link.exchange([[Command(RING, ("default", "order"))]], [], monotonic() + 10)

        assert not asyncio.get_running_loop().remove_reader(link.fileno)
