"""A start as a statement for other people's connections: SQLAlchemy, Django, asyncpg, and psycopg by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from kedge import RunNotFoundError
from kedge_client import AsyncClient, AsyncRunHandle, Client, RunHandle
from tests import ends
from tests.integration.client.orders import NOTIFY, ORDER, PROCESS, RECEIPT, Order
from tests.integration.client.test_client_start import is_rung, sleep_as_worker, was_rung

LATER = datetime.now(UTC) + timedelta(days=2)

# Every option at once, and none: each type must find its way through each driver.
FULL = PROCESS(
    ORDER, key="k", resource="r", queue="q", priority=2, start_at=LATER, tags=["a", "b"], metadata={"ü": None}
)
BARE = PROCESS(ORDER)
SINGLE = PROCESS(ORDER, singleton="cancel_old", timeout=None)


@pytest.fixture
def client(database_url: str) -> Generator[Client]:
    with Client.connect(database_url) as made:
        yield made


def assert_full(client: Client, run_id: Any) -> None:
    view = client.get(run_id)
    assert (view.key, view.resource, view.queue, view.priority) == ("k", "r", "q", 2)
    assert (view.status, view.due_at) == ("waiting", LATER)
    assert (view.tags, view.metadata) == (("a", "b"), {"ü": None})
    assert view.input == {"order_id": "o-1", "cents": 100}


def sqlalchemy_url(database_url: str, driver: str) -> sqlalchemy.URL:
    """The same database by SQLAlchemy's URL."""
    parts = urlsplit(database_url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return sqlalchemy.URL.create(
        f"postgresql+{driver}",
        username=unquote(parts.username or "") or None,
        password=unquote(parts.password or "") or None,
        host=parts.hostname,
        port=parts.port,
        database=unquote(parts.path.removeprefix("/")),
        query=query,
    )


# ---- SQLAlchemy on psycopg


@pytest.fixture
def engine(database_url: str) -> Generator[sqlalchemy.Engine]:
    made = sqlalchemy.create_engine(sqlalchemy_url(database_url, "psycopg"))
    yield made
    made.dispose()


@pytest.mark.parametrize("asked", [FULL, BARE, SINGLE], ids=["full", "bare", "singleton"])
def test_a_session_of_sqlalchemy_starts_a_run_when_it_commits(
    client: Client, engine: sqlalchemy.Engine, asked: Any
) -> None:
    statement = client.start_statement(asked)
    with Session(engine) as session:
        row = session.execute(statement.sqlalchemy()).one()
        with pytest.raises(RunNotFoundError):
            client.get(statement.run_id)
        session.commit()

    assert (row.run_id, row.created) == (statement.run_id, True)
    if asked is FULL:
        assert_full(client, statement.run_id)
    assert statement.handle(client).status() in {"pending", "waiting"}


def test_a_session_of_sqlalchemy_starts_no_run_when_it_rolls_back(client: Client, engine: sqlalchemy.Engine) -> None:
    statement = client.start_statement(FULL)
    with Session(engine) as session:
        session.execute(statement.sqlalchemy())
        session.rollback()

    with pytest.raises(RunNotFoundError):
        client.get(statement.run_id)


# ---- SQLAlchemy on asyncpg


@pytest.fixture
async def async_engine(database_url: str) -> AsyncGenerator[AsyncEngine]:
    made = create_async_engine(sqlalchemy_url(database_url, "asyncpg"))
    yield made
    await made.dispose()


@pytest.mark.parametrize("asked", [FULL, BARE, SINGLE], ids=["full", "bare", "singleton"])
async def test_sqlalchemy_on_asyncpg_starts_a_run_when_it_commits(
    client: Client, async_engine: AsyncEngine, asked: Any
) -> None:
    statement = client.start_statement(asked)
    async with async_engine.begin() as connection:
        row = (await connection.execute(statement.sqlalchemy())).one()

    assert (row.run_id, row.created) == (statement.run_id, True)
    if asked is FULL:
        assert_full(client, statement.run_id)


async def test_sqlalchemy_on_asyncpg_starts_no_run_when_it_rolls_back(
    client: Client, async_engine: AsyncEngine
) -> None:
    statement = client.start_statement(BARE)
    async with async_engine.connect() as connection:
        await connection.execute(statement.sqlalchemy())
        await connection.rollback()

    with pytest.raises(RunNotFoundError):
        client.get(statement.run_id)


# ---- asyncpg by itself


async def connect_asyncpg(database_url: str) -> Any:
    """Open a connection of asyncpg, which comes without types."""
    untyped: Any = asyncpg
    return await untyped.connect(database_url)


@pytest.mark.parametrize("asked", [FULL, BARE, SINGLE], ids=["full", "bare", "singleton"])
async def test_asyncpg_starts_a_run_when_it_commits(client: Client, database_url: str, asked: Any) -> None:
    statement = client.start_statement(asked)
    sql, values = statement.asyncpg()
    connection = await connect_asyncpg(database_url)
    try:
        async with connection.transaction():
            row = await connection.fetchrow(sql, *values)
    finally:
        await connection.close()

    assert (row["run_id"], row["created"]) == (statement.run_id, True)
    if asked is FULL:
        assert_full(client, statement.run_id)


async def test_asyncpg_starts_no_run_when_it_rolls_back(client: Client, database_url: str) -> None:
    statement = client.start_statement(BARE)
    sql, values = statement.asyncpg()
    connection = await connect_asyncpg(database_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetchrow(sql, *values)
        await transaction.rollback()
    finally:
        await connection.close()

    with pytest.raises(RunNotFoundError):
        client.get(statement.run_id)


# ---- Django


@contextmanager
def django_database(database_url: str) -> Generator[None]:
    """Make the test's database Django's default one."""
    import django
    from django.conf import settings
    from django.db import connections
    from django.db.utils import ConnectionHandler

    if not settings.configured:
        settings.configure(USE_TZ=True, DATABASES={})  # pyright: ignore[reportUnknownMemberType]  # without types
        django.setup()
    url = sqlalchemy_url(database_url, "psycopg")
    query = dict(url.query)
    described = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or query.get("host", ""),
        "PORT": str(url.port or query.get("port", "")),
    }
    handler: Any = ConnectionHandler({"default": described})
    made = connections["default"] = handler["default"]
    try:
        yield
    finally:
        made.close()
        del connections["default"]


@contextmanager
def django_block() -> Generator[Any]:
    """A cursor in a transaction of Django's."""
    from django.db import connection, transaction

    atomic: Any = transaction.atomic  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # without types
    with atomic(), connection.cursor() as cursor:
        yield cursor


@pytest.mark.parametrize("asked", [FULL, BARE, SINGLE], ids=["full", "bare", "singleton"])
def test_django_starts_a_run_when_its_block_ends_well(client: Client, database_url: str, asked: Any) -> None:
    statement = client.start_statement(asked)
    with django_database(database_url), django_block() as cursor:
        cursor.execute(*statement.psycopg())
        run_id, created, *_ = cursor.fetchone()
        with pytest.raises(RunNotFoundError):
            client.get(statement.run_id)

    assert (run_id, created) == (statement.run_id, True)
    if asked is FULL:
        assert_full(client, statement.run_id)


def test_django_starts_no_run_when_its_block_fails(client: Client, database_url: str) -> None:
    statement = client.start_statement(BARE)

    def fail() -> None:
        with django_block() as cursor:
            cursor.execute(*statement.psycopg())
            raise ZeroDivisionError

    with django_database(database_url), pytest.raises(ZeroDivisionError):
        fail()

    with pytest.raises(RunNotFoundError):
        client.get(statement.run_id)


# ---- what holds for all


def test_a_statement_executed_twice_starts_one_run(client: Client, conn: psycopg.Connection) -> None:
    statement = client.start_statement(BARE)
    sql, values = statement.psycopg()

    first = conn.execute(sql.encode(), values).fetchone()
    second = conn.execute(sql.encode(), values).fetchone()

    assert first == second
    assert client.count_runs() == 1


@pytest.mark.parametrize(
    ("on_conflict", "sqlstate"), [("return", "KE002"), ("raise", "KE003")], ids=["other input", "exists"]
)
def test_a_taken_key_fails_the_statement_with_a_state_of_its_own(
    client: Client, conn: psycopg.Connection, on_conflict: Any, sqlstate: str
) -> None:
    client.start(PROCESS(ORDER, key="k"))
    sql, values = client.start_statement(PROCESS(Order("o-2"), key="k", on_conflict=on_conflict)).psycopg()

    with pytest.raises(psycopg.Error) as caught:
        conn.execute(sql.encode(), values)

    assert caught.value.sqlstate == sqlstate


def test_a_singleton_that_is_active_fails_the_statement_with_a_state_of_its_own(
    client: Client, conn: psycopg.Connection
) -> None:
    client.start(PROCESS(ORDER, singleton="raise"))
    sql, values = client.start_statement(PROCESS(ORDER, singleton="raise")).psycopg()

    with pytest.raises(psycopg.Error) as caught:
        conn.execute(sql.encode(), values)

    assert caught.value.sqlstate == "KE010"


def test_the_handle_of_a_statement_waits_for_the_run_that_holds_its_key(
    client: Client, conn: psycopg.Connection
) -> None:
    first = client.start(PROCESS(ORDER, key="k"))
    statement = client.start_statement(PROCESS(ORDER, key="k"))
    sql, values = statement.psycopg()
    row = conn.execute(sql.encode(), values).fetchone()
    assert row is not None

    run = statement.handle(client, row[0])
    ends.complete(conn, first.id, RECEIPT)

    assert row[:2] == (first.id, False)
    assert run.result(timeout=30) == RECEIPT


async def test_the_handle_is_that_of_the_client(database_url: str, client: Client) -> None:
    async with AsyncClient.connect(database_url) as other:
        statement = other.start_statement(BARE)

        assert type(statement.handle(other)) is AsyncRunHandle
        assert type(statement.handle(client)) is RunHandle
        assert statement.handle(other).id == statement.run_id


def test_a_statement_rings_when_its_transaction_commits(
    client: Client, conn: psycopg.Connection, database_url: str
) -> None:
    sleep_as_worker(conn, "mail", "notify")
    sql, values = client.start_statement(NOTIFY("hello")).psycopg()

    with psycopg.connect(database_url) as mine:
        mine.execute(sql.encode(), values)
        before = was_rung(conn)

    assert (before, is_rung(conn)) == (False, True)


def test_a_statement_of_a_client_that_shall_not_wake_rings_nobody(database_url: str, conn: psycopg.Connection) -> None:
    sleep_as_worker(conn, "mail", "notify")
    with Client.connect(database_url, wake=False) as quiet:
        sql, values = quiet.start_statement(NOTIFY("hello")).psycopg()
    conn.execute(sql.encode(), values)

    assert not was_rung(conn)


def test_a_statement_shows_no_payload(client: Client) -> None:
    statement = client.start_statement(NOTIFY("a secret"))

    assert "secret" not in repr(statement)
    assert "secret" not in statement.psycopg()[0]
    assert str(statement.run_id) in repr(statement)
