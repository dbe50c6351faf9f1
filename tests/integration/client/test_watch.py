"""Watching a run: everything once and in order, pushed or polled, from any place on, until its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge import ClosedClientError, InvalidOptionError, RunNotFoundError, UnavailableError, new_run_id
from kedge_client import RunEvent, _waiting_room, _watching
from kedge_worker.testing import PostgresServer
from tests import ends
from tests.integration.client import tables
from tests.integration.client.orders import ORDER, PROCESS, RECEIPT
from tests.twins import AnyClient, AnyHandle, Twin, opened

PATIENCE_S = 30.0
FOREVER_S = 3600.0


class Watch:
    """A walk along a run's events, one by one, in the sync or the async client."""

    def __init__(self, twin: Twin, iterator: Any) -> None:
        self._twin = twin
        self._iterator = iterator

    async def next(self) -> RunEvent:
        async with asyncio.timeout(PATIENCE_S):
            if self._twin.name == "sync":
                return await self._twin.do(next, self._iterator)
            event: RunEvent = await anext(self._iterator)
            return event

    async def until(self, said: str) -> list[RunEvent]:
        """Walk up to the event that says this."""
        events = [await self.next()]
        while what(events[-1]) != said:
            events.append(await self.next())
        return events

    async def rest(self) -> list[RunEvent]:
        async with asyncio.timeout(PATIENCE_S):
            found: list[RunEvent] = await self._twin.listed(self._iterator)
            return found

    async def close(self) -> None:
        if self._twin.name == "sync":
            await self._twin.do(self._iterator.close)
        else:
            await self._iterator.aclose()


def what(event: RunEvent) -> str:
    """What an event is about, in short."""
    if event.progress is not None:
        return f"{event.progress.percent}%"
    return str(event.status or (event.step and event.step.key) or event.message)


def kept(events: list[RunEvent]) -> list[str]:
    """What must come once, wherever a watcher begins."""
    return [what(event) for event in events if event.kind in {"step", "log", "note"}]


@asynccontextmanager
async def watching(twin: Twin, client: AnyClient, run: UUID, **options: Any) -> AsyncGenerator[Watch]:
    walk = Watch(twin, client.watch(run, **options))
    try:
        yield walk
    finally:
        await walk.close()


async def started(twin: Twin, client: AnyClient, **options: Any) -> UUID:
    run_id: UUID = (await twin.do(client.start, PROCESS(ORDER, **options))).id
    return run_id


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


def observed(conn: psycopg.Connection) -> set[UUID]:
    return {row[0] for row in conn.execute("select run_id from kedge.observers")}


def tell(conn: psycopg.Connection, *runs: UUID) -> None:
    """As a worker does after its flush."""
    conn.execute("select kedge.notify_observers(%s::uuid[])", (list(runs),))


async def heard_of(walk: Watch, conn: psycopg.Connection, run: UUID) -> asyncio.Task[RunEvent]:
    """Wait for the next event in a task, and go on when the database knows that it is waited for."""
    task = asyncio.create_task(walk.next())
    await until(lambda: run in observed(conn) or task.done())
    return task


@pytest.fixture
def pushed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but a notification make anybody look."""
    monkeypatch.setattr(_waiting_room, "BACKSTOP_S", FOREVER_S)
    monkeypatch.setattr(_watching, "FIRST_PAUSE_S", FOREVER_S)
    monkeypatch.setattr(_watching, "LAST_PAUSE_S", FOREVER_S)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(_watching, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(_watching, "LAST_PAUSE_S", 0.02)


def fill(conn: psycopg.Connection, run: UUID) -> None:
    """A run with something of everything, completed."""
    tables.line(conn, run, "begun", order="o-1")
    tables.keep(conn, run, "charge", {"id": "ch-1"})
    tables.note(conn, run, "pause: done")
    tables.keep(conn, run, "mail", ValueError("no address"), kind="f")
    tables.line(conn, run, "no mail", level=30)
    tables.keep(conn, run, "receipt", "r-1")
    ends.complete(conn, run)


# ---- what comes, and in which order


async def test_an_ended_run_is_told_from_its_beginning_to_its_end(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    fill(conn, run)

    events: list[RunEvent] = await twin.listed(client.watch(run))

    assert [what(event) for event in events] == [
        *("begun", "charge", "pause: done", "mail", "no mail", "receipt"),
        *("100.0%", "completed"),
    ]
    begun, charge, _, mail, warning, *_ = events
    assert (begun.level, begun.fields) == ("info", {"order": "o-1"})
    assert charge.step is not None
    assert (charge.step.value, charge.step.status, charge.at) == ({"id": "ch-1"}, "completed", charge.step.finished_at)
    assert mail.step is not None
    assert (mail.step.status, mail.step.error and mail.step.error.message) == ("failed", "no address")
    assert warning.level == "warning"
    assert observed(conn) == set()


async def test_a_watcher_goes_on_from_every_event_without_loss_or_repetition(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    fill(conn, run)
    events: list[RunEvent] = await twin.listed(client.watch(run))

    for place, event in enumerate(events):
        rest: list[RunEvent] = await twin.listed(client.watch(run, after=event.seq))

        assert kept(rest) == kept(events[place + 1 :]), event
        assert what(rest[-1]) == "completed"
        assert all(one.seq >= event.seq for one in rest)


async def test_much_is_told_page_by_page(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watching, "MAX_ROWS", 3)
    monkeypatch.setattr(_watching, "MAX_BYTES", 40)
    run = await started(twin, client)
    for number in range(10):
        tables.keep(conn, run, f"step{number}", "x" * (5 * number))
        tables.line(conn, run, f"line{number}")
        tables.note(conn, run, f"note{number}")
    ends.complete(conn, run)

    events: list[RunEvent] = await twin.listed(client.watch(run))

    told = kept(events)
    for kind in ("step", "line", "note"):
        assert [one for one in told if one.startswith(kind)] == [f"{kind}{number}" for number in range(10)]
    assert len(told) == 30
    assert [what(event) for event in events[-2:]] == ["100.0%", "completed"]


@pytest.mark.usefixtures("quick")
async def test_a_live_run_is_told_as_it_goes(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client, delay="1h")

    async with watching(twin, client, run) as walk:
        first = await walk.next()
        tables.keep(conn, run, "charge")
        tables.say(conn, run, 1, 4, 25.0, "charged")
        second = await walk.until("25.0%")
        ends.own(conn, run)
        conn.execute("update kedge.runs set since = kedge.instant()")
        third = await walk.until("running")
        tables.say(conn, run, 2, 4, 50.0)
        fourth = await walk.until("50.0%")
        conn.execute("update kedge.runs set state = 'p', worker_id = null")
        ends.fail(conn, run, ValueError("no"))
        last = await walk.rest()

    assert (first.kind, first.status) == ("status", "waiting")
    assert kept(second) == ["charge"]
    assert third[-1].status == "running"
    assert fourth[-1].progress is not None
    assert (fourth[-1].progress.done, fourth[-1].progress.message) == (2, None)
    assert what(last[-1]) == "failed"
    assert sum(event.status == "failed" for event in last) == 1


@pytest.mark.usefixtures("quick")
async def test_a_note_that_is_committed_behind_a_later_line_is_told_all_the_same(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, database_url: str
) -> None:
    run = await started(twin, client)

    async with watching(twin, client, run) as walk:
        await walk.next()
        with psycopg.connect(database_url) as courier:
            tables.note(courier, run, "pause: done")
            tables.line(conn, run, "later")
            first = await walk.next()
            courier.commit()
        second = await walk.next()
        tables.line(conn, run, "last")
        third = await walk.next()

    assert [what(event) for event in (first, second, third)] == ["later", "pause: done", "last"]
    assert first.seq < second.seq < third.seq


# ---- pushed


@pytest.mark.usefixtures("pushed_only")
async def test_what_happens_is_pushed(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)

    async with watching(twin, client, run) as walk:
        await walk.next()
        task = await heard_of(walk, conn, run)
        tables.keep(conn, run, "charge")
        tell(conn, run)
        first = await task
        tables.line(conn, run, "charged")
        tell(conn, run)
        second = await walk.next()
        ends.complete(conn, run)
        last = await walk.rest()

    assert (what(first), what(second)) == ("charge", "charged")
    # Nobody but the exit door had to tell of the end.
    assert what(last[-1]) == "completed"


@pytest.mark.usefixtures("pushed_only")
async def test_what_happened_before_the_registration_is_told_when_it_stands(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    conn.execute(
        "alter function kedge.observe_v1(uuid[], text) rename to observe_after;"
        "create table kedge.gate ();"
        "create function kedge.observe_v1(p_ids uuid[], p_channel text) returns void"
        " language plpgsql security definer as $$"
        " begin lock table kedge.gate; perform kedge.observe_after(p_ids, p_channel); end $$"
    )

    async with watching(twin, client, run) as walk:
        await walk.next()
        with conn.transaction():
            conn.execute("lock table kedge.gate")
            task = asyncio.create_task(walk.next())
            await until(lambda: conn.execute("select 1 from pg_locks where not granted").fetchone() is not None)
            tables.keep(conn, run, "charge")
            tell(conn, run)

        assert what(await task) == "charge"


@pytest.mark.usefixtures("pushed_only")
async def test_whoever_executes_the_run_is_asked_to_tell_once(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run, known = await started(twin, client), await started(twin, client)
    conn.execute("update kedge.runs set is_observed = true where id = %s", (known,))

    async with (
        watching(twin, client, run) as one,
        watching(twin, client, run) as two,
        watching(twin, client, known) as three,
    ):
        for walk, of in ((one, run), (two, run), (three, known)):
            await walk.next()
            task = await heard_of(walk, conn, of)
            tables.line(conn, of, "heard")
            tell(conn, of)
            await task
        letters = conn.execute("select run_id, kind::text from kedge.inbox").fetchall()

    assert letters == [(run, "o")]


@pytest.mark.usefixtures("pushed_only")
async def test_a_watch_asks_a_sleeping_worker_to_sort_its_letter(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    conn.execute("insert into kedge.idle (worker_id, queues, workflows) values (%s, '{}', '{}')", (new_run_id(),))

    async with watching(twin, client, run) as walk:
        await walk.next()
        task = asyncio.create_task(walk.next())
        await until(lambda: conn.execute("select 1 from kedge.idle").fetchone() is None)
        ends.complete(conn, run)
        await task


@pytest.mark.usefixtures("pushed_only")
async def test_two_who_watch_one_run_hear_of_everything_until_both_stop(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)

    async with watching(twin, client, run) as one:
        async with watching(twin, client, run) as two:
            for walk in (one, two):
                await walk.next()
                task = await heard_of(walk, conn, run)
                tables.line(conn, run, "hello")
                tell(conn, run)
                await task
        tables.keep(conn, run, "charge")
        tell(conn, run)
        heard = await one.until("charge")
        assert observed(conn) == {run}

    assert kept(heard)[-1] == "charge"
    await until(lambda: observed(conn) == set())


@pytest.mark.usefixtures("pushed_only")
async def test_a_listener_that_is_cut_off_registers_again_and_misses_nothing(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)

    async with watching(twin, client, run) as walk:
        await walk.next()
        task = await heard_of(walk, conn, run)
        conn.execute("delete from kedge.observers")
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and application_name = 'kedge-client'"
        )
        tables.keep(conn, run, "charge")
        first = await task
        await until(lambda: run in observed(conn))
        tables.keep(conn, run, "mail")
        tell(conn, run)

        assert (what(first), what(await walk.next())) == ("charge", "mail")


async def test_a_registration_is_renewed(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waiting_room, "BACKSTOP_S", 0.01)
    monkeypatch.setattr(_waiting_room, "RENEW_S", 0.0)
    run = await started(twin, client)

    async with watching(twin, client, run) as walk:
        await walk.next()
        task = await heard_of(walk, conn, run)
        conn.execute("update kedge.observers set at = 'epoch'")
        await until(lambda: conn.execute("select 1 from kedge.observers where at > 'epoch'").fetchone() is not None)
        ends.complete(conn, run)
        await task


async def test_a_watch_and_a_wait_for_the_same_run_do_not_disturb_each_other(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    handle: AnyHandle = await twin.do(client.start, PROCESS(ORDER))
    result = asyncio.create_task(twin.do(handle.result, PATIENCE_S))

    async with watching(twin, client, handle.id) as walk:
        await walk.next()
        task = await heard_of(walk, conn, handle.id)
        tables.keep(conn, handle.id, "charge")
        tell(conn, handle.id)
        assert what(await task) == "charge"
    ends.complete(conn, handle.id, RECEIPT)

    assert await result == RECEIPT


# ---- polled


@pytest.mark.usefixtures("quick")
async def test_a_client_that_does_not_listen_polls_and_registers_nothing(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(twin, database_url, listen=False) as client:
        run = await started(twin, client)
        async with watching(twin, client, run) as walk:
            await walk.next()
            tables.keep(conn, run, "charge")
            assert what(await walk.next()) == "charge"
            assert observed(conn) == set()
            ends.complete(conn, run)

            assert what((await walk.rest())[-1]) == "completed"
    assert conn.execute("select count(*) from kedge.inbox").fetchone() == (0,)


@pytest.mark.usefixtures("quick")
async def test_a_client_polls_where_registering_is_refused(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    conn.execute("drop function kedge.observe_v1(uuid[], text)")
    run = await started(twin, client)

    async with watching(twin, client, run) as walk:
        await walk.next()
        tables.keep(conn, run, "charge")

        assert what(await walk.next()) == "charge"


# ---- what ends or interrupts it


@pytest.mark.usefixtures("quick")
async def test_between_looks_no_pooled_connection_is_held(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(twin, database_url, max_connections=1) as client:
        run = await started(twin, client)
        async with watching(twin, client, run) as walk:
            event = await walk.next()
            # The walk stands still in the middle of a look's events.
            assert (await twin.do(client.get, run)).status == event.status
            task = asyncio.create_task(walk.next())
            for _ in range(20):
                assert (await twin.do(client.get, run)).status == "pending"
            ends.complete(conn, run)
            await task


async def test_closing_the_client_ends_its_watches_and_takes_them_back(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(twin, database_url) as client:
        run = await started(twin, client)
        async with watching(twin, client, run) as walk:
            await walk.next()
            task = await heard_of(walk, conn, run)
            await twin.close(client)

            with pytest.raises(ClosedClientError):
                await task
            assert observed(conn) == set()


async def test_a_run_that_is_not_there_cannot_be_watched(twin: Twin, client: AnyClient) -> None:
    of_alice = await started(twin, client, resource="alice")
    missing = new_run_id()

    for scope, run in ((client, missing), (client.scoped("bob"), of_alice)):
        with pytest.raises(RunNotFoundError) as caught:
            await twin.listed(scope.watch(run))
        assert caught.value.run_id == run
    with pytest.raises(InvalidOptionError, match="after="):
        await twin.listed(client.watch(of_alice, after=-1))


async def test_a_scoped_client_watches_what_is_of_its_resource(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client, resource="alice")
    fill(conn, run)

    events: list[RunEvent] = await twin.listed(client.scoped("alice").watch(run))

    assert kept(events)[-1] == "receipt"
    assert conn.execute("select * from kedge.run_log_v1(%s, 'bob', 0, 0, 10)", (run,)).fetchall() == []


@pytest.mark.usefixtures("quick")
async def test_a_restart_of_the_server_ends_no_watch(twin: Twin, breakable_postgres: PostgresServer) -> None:
    async with opened(twin, breakable_postgres.url, timeout="500ms") as client:
        run = await started(twin, client)
        async with watching(twin, client, run) as walk:
            with psycopg.connect(breakable_postgres.url, autocommit=True) as before:
                await walk.next()
                tables.keep(before, run, "charge")
                await walk.until("charge")
            task = asyncio.create_task(walk.rest())
            breakable_postgres.kill()
            with pytest.raises(UnavailableError):
                await twin.do(client.get, run)
            breakable_postgres.start()
            with psycopg.connect(breakable_postgres.url, autocommit=True) as after:
                tables.keep(after, run, "mail")
                ends.complete(after, run)

            events = await task

    assert kept(events) == ["mail"]
    assert what(events[-1]) == "completed"


# ---- the database's side


def test_observers_that_have_not_renewed_are_not_told_and_forgotten(conn: psycopg.Connection) -> None:
    run, other = new_run_id(), new_run_id()
    conn.execute("select kedge.observe_v1(array[%s]::uuid[], 'gone')", (run,))
    conn.execute("update kedge.observers set at = at - interval '3 minutes'")
    conn.execute("select kedge.observe_v1(array[%s, %s]::uuid[], 'here')", (run, other))
    conn.execute("listen gone; listen here")

    tell(conn, run)
    heard = [(notify.channel, notify.payload) for notify in conn.notifies(timeout=5, stop_after=1)]

    assert heard == [("here", f"observed:{run}")]
    assert conn.execute("select channel, count(*) from kedge.observers group by 1").fetchall() == [("here", 2)]


def test_what_is_told_of_many_runs_fits_into_a_notification(conn: psycopg.Connection) -> None:
    runs = sorted(new_run_id() for _ in range(450))
    conn.execute("select kedge.observe_v1(%s::uuid[], 'here')", (runs,))
    conn.execute("listen here")

    tell(conn, *runs)
    payloads = [notify.payload for notify in conn.notifies(timeout=5, stop_after=3)]

    ids = [text for payload in payloads for text in payload.removeprefix("observed:").split(",")]
    assert sorted(ids) == [str(run) for run in runs]
    assert all(len(payload) < 8000 for payload in payloads)
