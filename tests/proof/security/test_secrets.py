"""
No secret outside payload columns: canaries go in everywhere, everything goes wrong, and then everything is searched.

Searched are log lines at DEBUG, what clients' errors say and print, the server's own log, notifications, what
pg_stat_activity shows, command lines of processes, and every column of every table that holds no payload.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kedge.errors import DomainError, KedgeError
from kedge.event_refs import EventRef
from kedge.refs import WorkflowRef
from kedge.retry import NonRetryable, Retry
from kedge_client import Client
from kedge_worker import Context, SyncContext, Worker, workflow
from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer, postgres_server
from tests.proof.security.canaries import CANARY, Lines, found_in

PASSWORD: Final = f"{CANARY}-password-51c9"
INPUT: Final = f"{CANARY}-input-1a2b"
OUTPUT: Final = f"{CANARY}-output-3c4d"
STEP: Final = f"{CANARY}-step-5e6f"
EVENT: Final = f"{CANARY}-event-7a8b"
ERROR: Final = f"{CANARY}-error-9c0d"
CAUSE: Final = f"{CANARY}-cause-1e2f"
METADATA: Final = f"{CANARY}-metadata-3a4b"
ENVIRONMENT: Final = f"{CANARY}-environment-5c6d"
ROW: Final = f"{CANARY}-row-7e8f"

PAYLOADS: Final = frozenset(
    {
        ("journal", "value"),
        ("journal", "meta"),
        ("finished", "output"),
        ("finished", "error"),
        ("failures", "error"),
        ("inbox", "payload"),
        ("inbox_failed", "payload"),
        ("events", "payload"),
        ("waits", "state"),
        ("run_log", "fields"),
        ("run_metadata", "metadata"),
        ("definitions", "options"),
    }
)


class Given(msgspec.Struct):
    secret: str


class Other(msgspec.Struct):
    kind: Literal["one", "two"]


class Declined(DomainError):
    card: str


work_ref = WorkflowRef("work", Given, Given, raises=(Declined,))
sync_ref = WorkflowRef("sync", Given, Given)
waits_ref = WorkflowRef("waits", Given, str)
breaks_ref = WorkflowRef[Given, str]("breaks", Given, str)
changed_ref = WorkflowRef("changed", Given, str)
go = EventRef("go", Given)


async def step_value(_: str) -> str:
    return STEP


async def failing(secret: str) -> None:
    try:
        raise ConnectionError(f"postgresql://app:{CAUSE}@db/app does not answer")
    except ConnectionError as error:
        raise ValueError(f"Authorization: Bearer {ERROR}; password={secret}", {"token": ERROR}) from error


async def breaking_row(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("create table if not exists effects (secret text unique)")
    for _ in range(2):
        await conn.execute("insert into effects values (%s)", (ROW,))


@workflow(work_ref)
async def work(ctx: Context, given: Given) -> Given:
    ctx.set_metadata(secret=METADATA)
    await ctx.step("value", step_value, given.secret)
    with contextlib.suppress(KedgeError):
        await ctx.step("failing", failing, given.secret, retry=Retry(3, initial=0))
    with contextlib.suppress(KedgeError):
        await ctx.transaction("row", breaking_row)
    with contextlib.suppress(KedgeError):
        await ctx.step("unkeepable", bytes, 3)
    return Given(OUTPUT)


@workflow(sync_ref)
def sync_work(ctx: SyncContext, given: Given) -> Given:
    ctx.step("value", str, given.secret)
    raise Declined(card=f"password={given.secret}")


@workflow(waits_ref)
async def waits(ctx: Context, given: Given) -> str:
    await ctx.step("value", step_value, given.secret)
    got = await ctx.wait_for("go", go)
    raise NonRetryable(f"client_secret={got.secret}")


@workflow(breaks_ref)
async def breaks(ctx: Context, given: Given) -> Any:
    return [given.secret, STEP]


@workflow(changed_ref)
async def changed(ctx: Context, given: Given) -> str:
    await ctx.step("value", step_value, given.secret)
    await ctx.sleep("long", "1 day")
    return OUTPUT


@workflow(changed_ref)
async def changed_since(ctx: Context, given: Given) -> str:
    await ctx.step("value", step_value, given.secret, output=cast("Any", Literal["one", "two"]))
    return given.secret


HANDLERS: Final = [work, sync_work, waits, breaks, changed]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture(scope="module")
def talkative() -> Generator[PostgresServer]:
    """A server that logs every statement, as an operator's may; the values of parameters are left out, as we advise."""
    settings = {
        "log_statement": "all",
        "log_min_duration_statement": "0",
        "log_min_messages": "debug1",
        "log_error_verbosity": "verbose",
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
        "log_connections": "on",
        "track_activity_query_size": "100kB",
    }
    with postgres_server(fast=True, tcp=True, settings=settings, sources=("embedded", "local")) as server:
        migrate(server.url)
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute(f"create role app login superuser password '{PASSWORD}'".encode())
        yield server


def log_of(server: PostgresServer) -> bytes:
    """What the server itself has logged."""
    process: Any = server._process
    path: Path = process.log
    return path.read_bytes()


@pytest.fixture
def url(talkative: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SOME_TOKEN", ENVIRONMENT)
    return make_conninfo(talkative.url, user="app", password=PASSWORD)


class Ear:
    """Hears every notification of the database that it can know of."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        conn.execute("listen kedge_ear")
        self.heard: list[str] = []
        conn.add_notify_handler(lambda notify: self.heard.append(f"{notify.channel} {notify.payload}"))

    def listen(self) -> None:
        query = (
            "select channel from kedge.watchers union select channel from kedge.observers"
            " union select kedge.worker_channel(id) from kedge.workers"
        )
        for (channel,) in self.conn.execute(query.encode()).fetchall():
            self.conn.execute(f'listen "{channel}"'.encode())


def said_by(call: Callable[..., object], *given: object) -> str:
    """What an error says to a caller who prints all of it."""
    try:
        call(*given)
    except Exception as error:  # noqa: BLE001  # that is what is looked at
        frames = traceback.TracebackException.from_exception(error)
        # Lines of this file, which hold the canaries' names and not the canaries, are no part of it.
        return f"{error!r} {error} {''.join(frames.format())}"
    return ""


async def rich_workload(url: str, said: list[str], activity: Callable[[], None]) -> None:
    with Client.connect(url, timeout="5s") as client:
        given = Given(INPUT)
        runs = [client.start(ref(given, metadata={"m": METADATA})) for ref in (work_ref, sync_ref, breaks_ref)]
        runs += [client.start(changed_ref(given)), client.start(waits_ref(given, key="k"))]
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("select kedge.watch_v1(%s, 'kedge_ear')", ([run.id for run in runs],))
            conn.execute("select kedge.observe_v1(%s, 'kedge_ear')", ([run.id for run in runs],))
        said.append(said_by(lambda: client.start(waits_ref(Given(OUTPUT), key="k"))))
        said.append(said_by(lambda: client.start_many([waits_ref(Given(STEP), key="k"), work_ref(given)])))
        client.send(go(Given(EVENT)), run=runs[-1])
        activity()
        await Worker(url, workflows=HANDLERS).run_until_idle()
        activity()
        said.extend(said_by(run.result, "0s") for run in runs)
        undecodable = client.start(WorkflowRef("work", dict[str, int], Any)({"secret": 5}))
        fitting = WorkflowRef[Any, Other]("work", Any, Other)
        said.append(said_by(lambda: client.result(fitting, runs[0].id, timeout="0s")))
        said.append(said_by(lambda: cast("Any", WorkflowRef("x", Other))({"kind": INPUT})))
        client.retry(runs[1])
        client.retry(runs[4])
        with psycopg.connect(url, autocommit=True) as conn:
            # As a deploy after which the handler asks for another type, before its sleep is over.
            conn.execute("update kedge.runs set due_at = kedge.instant() where workflow = 'changed'")
            conn.execute("update kedge.waits set due_at = kedge.instant() where run_id = %s", (runs[3].id,))
        await Worker(url, workflows=[work, sync_work, waits, breaks, changed_since]).run_until_idle()
        assert client.get(runs[3]).status == "waiting"
        assert client.get(undecodable).status == "failed"
        said.append(said_by(lambda: client.fast_forward(runs[0], INPUT)))
        said.append(said_by(lambda: client.rerun_from(runs[0], "no such step")))
        client.cancel(runs[3])
        await Worker(url, workflows=HANDLERS).run_until_idle()
        said += [repr(client), repr(client.get(runs[0]).options), repr(runs), repr(work_ref(given)), repr(go(given))]


async def with_a_lost_database(url: str, said: list[str], activity: Callable[[], None]) -> None:
    """Kill the worker's and the client's connections, and refuse some."""
    with Client.connect(url, timeout="1s") as client, psycopg.connect(url, autocommit=True) as conn:
        run = client.start(waits_ref(Given(INPUT)))
        async with Worker(url, workflows=HANDLERS, lease="1s", poll="100ms") as worker:
            said += [repr(worker), repr(worker.settings)]
            activity()
            for _ in range(3):
                conn.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
                    " and application_name like 'kedge%'"
                )
                said.append(await asyncio.to_thread(said_by, lambda: client.send(go(Given(EVENT)), run=run)))
            activity()
        said.append(said_by(lambda: run.result("5s")))


def with_wrong_urls(url: str, said: list[str]) -> None:
    """Be refused, or not understood."""
    for wrong in (
        make_conninfo(url, password=f"{PASSWORD}x"),
        make_conninfo(url, dbname="nowhere"),
        make_conninfo(url, port="1"),
        f"postgresql://app:{PASSWORD}@127.0.0.1:notaport/x",
        f"postgresql://app:{PASSWORD}%zz@127.0.0.1/x",
        f"postgresql://app:{PASSWORD}@127.0.0.1/x?unknown=1",
        f"host=127.0.0.1 {PASSWORD}",
        f"password='{PASSWORD}",
    ):
        said.append(said_by(_start, wrong))
        said.append(said_by(_worker, wrong))
        said.append(said_by(Client.connect, wrong))


def _start(dsn: str) -> None:
    with Client.connect(dsn, timeout="1s") as client:
        client.start(work_ref(Given(INPUT)))


def _worker(dsn: str) -> None:
    worker = Worker(dsn, workflows=HANDLERS)
    with asyncio.Runner() as runner:
        runner.run(asyncio.wait_for(worker.run_once(), 5))


def other_columns(conn: psycopg.Connection[Any]) -> Iterator[tuple[str, bytes]]:
    """Every column that holds no payload, with all that stands in it."""
    columns = conn.execute(
        "select table_name, column_name from information_schema.columns c join information_schema.tables t"
        " using (table_schema, table_name) where table_schema = 'kedge' and t.table_type = 'BASE TABLE'"
    ).fetchall()
    assert {table for table, _ in columns} >= {table for table, _ in PAYLOADS}
    for table, column in columns:
        if (table, column) not in PAYLOADS:
            text = f"select string_agg(x.{column}::text, ' ') from kedge.{table} x"
            ((value,),) = conn.execute(text.encode()).fetchall()
            yield f"{table}.{column}", (value or "").encode()


async def test_no_secret_leaves_the_payload_columns(
    url: str, talkative: PostgresServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    shown: list[str] = []
    with psycopg.connect(talkative.url, autocommit=True) as conn:
        ear = Ear(conn)

        def activity() -> None:
            ear.listen()
            rows = conn.execute("select application_name, query from pg_stat_activity where pid <> pg_backend_pid()")
            shown.extend(map(str, rows.fetchall()))
            shown.extend(str(process.info["cmdline"]) for process in psutil.process_iter(["cmdline"]))

        await rich_workload(url, said, activity)
        await with_a_lost_database(url, said, activity)
        await asyncio.to_thread(with_wrong_urls, url, said)
        activity()
        conn.execute("select 1")

        # An exception's text stands in its payload, without what looks like a secret.
        kept = b" ".join(bytes(row[0]) for row in conn.execute("select error from kedge.failures").fetchall())
        kept += b" ".join(
            bytes(row[0]) for row in conn.execute("select value from kedge.journal where kind = 'f'").fetchall()
        )
        assert b"Authorization: ***" in kept
        assert found_in(kept, (ERROR, CAUSE, PASSWORD)) == []
        leaks = {column: places for column, value in other_columns(conn) if (places := found_in(value))}
        assert leaks == {}
        assert any(found_in(bytes(row[0])) for row in conn.execute("select value from kedge.journal").fetchall())

    assert len(lines.lines) > 30
    assert [line for line in lines.lines if found_in(line.encode())] == []
    assert ear.heard
    assert found_in(" ".join(ear.heard).encode()) == []
    assert found_in(" ".join(shown).encode()) == []
    assert len(said) > 30
    assert [text for text in said if found_in(text.encode())] == []
    log = log_of(talkative)
    assert b"sort_inbox" in log
    # What the application itself writes into its SQL is the application's.
    assert found_in(log.replace(ROW.encode(), b"").replace(PASSWORD.encode(), b"", 1)) == []


def test_a_server_that_logs_parameters_logs_payloads_so_the_search_finds_them(talkative: PostgresServer) -> None:
    url = make_conninfo(talkative.url, options="-c log_parameter_max_length=-1")
    before = len(log_of(talkative))

    with Client.connect(url) as client:
        client.cancel(client.start(work_ref(Given(f"{INPUT}-logged"))))

    assert found_in(log_of(talkative)[before:])


def test_the_search_finds_each_form() -> None:
    for form in (CANARY.encode(), CANARY.encode().hex().encode(), base64.b64encode(f"abc{CANARY}-input".encode())):
        assert found_in(b"before " + form + b" after")
    assert not found_in(b"a canary")


def test_the_command_line_says_nothing_of_the_url_that_it_cannot_use(tmp_path: Path) -> None:
    for dsn in (f"postgresql://app:{PASSWORD}@127.0.0.1:1/x", f"postgresql://app:{PASSWORD}%zz@h/x"):
        ended = subprocess.run(
            [sys.executable, "-m", "kedge_worker", "migrate"],
            env={**os.environ, "KEDGE_DATABASE_URL": dsn, "LOG_LEVEL": "DEBUG"},
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert ended.returncode != 0
        assert found_in(ended.stdout + ended.stderr) == []
