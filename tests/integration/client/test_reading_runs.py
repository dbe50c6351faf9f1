"""What `get` shows beyond the run's row: waits, unread events, options with origin, metadata, letters, attempts."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from kedge import Retry, RunCrashedError, RunDeadlineError, RunFailedError, WorkflowRef, new_run_id
from kedge.definitions import DefinitionTerms
from kedge.errors import ErrorInfo
from kedge.run_meta import RetryTerms
from kedge.wire import encode
from kedge_client import RunOption
from kedge_worker.testing import Clock
from tests import ends
from tests.integration.client import tables
from tests.integration.client.orders import ORDER, PROCESS
from tests.twins import AnyClient, Twin

HOUR = timedelta(hours=1)


async def started(twin: Twin, client: AnyClient) -> UUID:
    run_id: UUID = (await twin.do(client.start, PROCESS(ORDER))).id
    return run_id


# ---- waits and mail


async def test_a_view_says_what_the_run_waits_for(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    child = new_run_id()
    tables.wait(conn, run, "answer", "e", slot="e:approved", due_in=HOUR)
    tables.wait(conn, run, "news", "e", slot="t:prices\x1fchanged", due_in=2 * HOUR)
    tables.wait(conn, run, "~1/charge", "r", attempt=2, due_in=HOUR)
    tables.wait(conn, run, "invoice", "c", state=str(child))
    tables.wait(conn, run, "review", "u")

    waits = (await twin.do(client.get, run)).waits

    assert [(wait.key, wait.kind, wait.topic, wait.event) for wait in waits] == [
        ("answer", "event", None, "approved"),
        ("news", "event", "prices", "changed"),
        ("~1/charge", "retry", None, None),
        ("invoice", "child", None, None),
        ("review", "pause", None, None),
    ]
    assert [wait.attempt for wait in waits] == [0, 0, 2, 0, 0]
    assert [wait.child_id for wait in waits] == [None, None, None, child, None]
    assert waits[0].due_at == waits[0].opened_at + HOUR
    assert waits[4].due_at is None


async def test_events_are_unread_from_their_sending_until_they_are_consumed(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    seq = tables.keep(conn, run, "paid", kind="e")
    tables.mail(conn, run, "e:approved")
    tables.mail(conn, run, "e:approved")
    tables.mail(conn, run, "e:paid", consumed_seq=seq)
    tables.mail(conn, run, "t:prices\x1fchanged")
    tables.mail(conn, run, "k:some wait's")
    tables.letter(conn, run, "e", slot="e:approved")

    view = await twin.do(client.get, run)

    assert view.unread_events == {"approved": 3, "changed": 1}


async def test_a_run_that_waits_for_nothing_shows_nothing(twin: Twin, client: AnyClient) -> None:
    view = await twin.do(client.get, await started(twin, client))

    assert (view.waits, view.unread_events, view.letters, view.attempts) == ((), {}, (), ())


# ---- options


async def test_options_name_who_has_said_them(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    ref = WorkflowRef("a", int, queue="slow", timeout="1h")
    tables.define(conn, "a", DefinitionTerms(timeout_s=60.0, retry=RetryTerms.of(Retry(3))))

    by_ref = await twin.do(client.start, ref(1))
    by_request = await twin.do(client.start, ref(1, queue="fast", timeout=None, retry=Retry(7), priority=2))

    assert (await twin.do(client.get, by_ref)).options == {
        "queue": RunOption("slow", "ref"),
        "priority": RunOption(0, "engine"),
        "timeout": RunOption(HOUR, "ref"),
        "retry": RunOption(Retry(3), "definition"),
    }
    assert (await twin.do(client.get, by_request)).options == {
        "queue": RunOption("fast", "request"),
        "priority": RunOption(2, "request"),
        "timeout": RunOption(None, "request"),
        "retry": RunOption(Retry(7), "request"),
    }


async def test_what_nobody_has_said_is_the_definitions_and_then_the_engines(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)

    unknown = (await twin.do(client.get, run)).options
    tables.define(conn, PROCESS.name)
    silent = (await twin.do(client.get, run)).options
    tables.define(conn, PROCESS.name, DefinitionTerms(timeout_s=90.0))
    defined = (await twin.do(client.get, run)).options

    assert unknown.keys() == {"queue", "priority"}
    assert silent["timeout"] == RunOption(None, "engine")
    assert silent["retry"] == RunOption(Retry.NEVER, "engine")
    assert defined["timeout"] == RunOption(timedelta(seconds=90), "definition")


async def test_a_claimed_run_keeps_the_timeout_that_its_definition_had_then(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    conn.execute("update kedge.runs set timeout_s = 60, deadline_at = since + interval '60 s' where id = %s", (run,))
    tables.define(conn, PROCESS.name, DefinitionTerms(timeout_s=90.0))

    view = await twin.do(client.get, run)

    assert view.options["timeout"] == RunOption(timedelta(seconds=60), "definition")
    assert view.deadline_at == view.since + timedelta(seconds=60)


async def test_a_deadline_that_never_comes_is_none(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    conn.execute("update kedge.runs set timeout_s = 'infinity', deadline_at = 'infinity' where id = %s", (run,))

    view = await twin.do(client.get, run)
    (listed,) = (await twin.do(client.list_runs)).items

    assert view.deadline_at is None
    assert listed.deadline_at is None


async def test_definitions_are_written_only_when_they_have_changed(conn: psycopg.Connection, clock: Clock) -> None:
    def written() -> list[tuple[object, ...]]:
        return conn.execute("select workflow, total_steps, options, at, xmin::text from kedge.definitions").fetchall()

    tables.define(conn, "a", DefinitionTerms(timeout_s=1.0), total_steps=3)
    first = written()
    clock.advance(HOUR)
    tables.define(conn, "a", DefinitionTerms(timeout_s=1.0), total_steps=3)
    same = written()
    tables.define(conn, "a", DefinitionTerms(timeout_s=1.0))
    other = written()

    assert same == first
    assert other[0][:3] == ("a", None, DefinitionTerms(timeout_s=1.0).encode())
    assert other[0][3] != first[0][3]


# ---- metadata, requests, letters, attempts


async def test_what_the_handler_sets_stands_over_the_metadata_of_the_start(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = (await twin.do(client.start, PROCESS(ORDER, metadata={"origin": "web", "stage": 1}))).id
    before = await twin.do(client.get, run)
    conn.execute(
        "insert into kedge.run_metadata (run_id, metadata) values (%s, %s)", (run, encode({"stage": 2}, where=""))
    )

    view = await twin.do(client.get, run)
    (listed,) = (await twin.do(client.list_runs)).items

    assert before.metadata == {"origin": "web", "stage": 1}
    assert view.metadata == listed.metadata == {"stage": 2}


@pytest.mark.parametrize(
    ("letters", "request_"),
    [
        ("s", "paused"),
        ("u", "resumed"),
        ("g", "fast-forwarded"),
        ("su", "resumed"),
        ("xu", "cancelled"),
        ("o", None),
        ("e", None),
    ],
)
async def test_what_is_asked_for_is_shown_before_anybody_has_sorted_it(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, letters: str, request_: str | None
) -> None:
    run = await started(twin, client)
    for kind in letters:
        tables.letter(conn, run, kind, slot="e:x" if kind == "e" else None)

    assert (await twin.do(client.get, run)).request == request_


@pytest.mark.parametrize(("request_", "shown"), [("x", "cancelled"), ("d", "failed"), ("s", "paused")])
async def test_what_a_worker_is_asked_for_is_shown(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, request_: str, shown: str
) -> None:
    run = await started(twin, client)
    ends.own(conn, run)
    conn.execute("update kedge.runs set request = %s where id = %s", (request_, run))

    assert (await twin.do(client.get, run)).request == shown


async def test_what_became_of_the_last_ten_letters_is_shown(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    for number in range(12):
        tables.note(conn, run, f"pause: done {number}")
    tables.line(conn, run, "of the handler's log")

    letters = (await twin.do(client.get, run)).letters

    assert [letter.message for letter in letters] == [f"pause: done {number}" for number in range(11, 1, -1)]
    assert letters[0].at >= letters[-1].at


async def test_the_runs_own_failed_attempts_are_shown(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    tables.fail_attempt(conn, run, "", ValueError("no"), 1, kind="r", took_ms=250)
    tables.fail_attempt(conn, run, "", KeyError("x"), 2, kind="r")
    tables.fail_attempt(conn, run, "charge", ValueError("a step's"), 1)

    attempts = (await twin.do(client.get, run)).attempts

    assert [(attempt.attempt, attempt.error.kind) for attempt in attempts] == [
        (2, "builtins.KeyError"),
        (1, "builtins.ValueError"),
    ]
    assert attempts[1].took == timedelta(milliseconds=250)


async def test_lists_leave_out_what_takes_further_looks(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    tables.wait(conn, run, "nap", "d", due_in=HOUR)
    tables.mail(conn, run, "e:approved")
    tables.note(conn, run, "pause: done")

    (listed,) = (await twin.do(client.list_runs)).items
    last = await twin.do(client.last, PROCESS)

    assert (listed.waits, listed.unread_events, listed.letters) == ((), {}, ())
    assert listed.status == "waiting"
    assert last is not None
    assert last == await twin.do(client.get, run)
    assert len(last.waits) == 1


async def test_a_view_says_which_run_has_started_it(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    parent, child = await started(twin, client), await started(twin, client)
    conn.execute("update kedge.runs set parent_id = %s where id = %s", (parent, child))

    assert (await twin.do(client.get, child)).parent_id == parent


# ---- ends that are the engine's


@pytest.mark.parametrize("cls", [RunDeadlineError, RunCrashedError])
async def test_a_run_that_the_engine_has_failed_says_so_by_type(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, cls: type[RunFailedError]
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    stored = ErrorInfo(f"kedge.errors.{cls.__name__}", "the run's time was up")
    ends.fail(conn, run.id, stored)

    with pytest.raises(RunFailedError) as caught:
        await twin.do(run.result)

    assert type(caught.value) is cls
    assert (caught.value.run_id, caught.value.error) == (run.id, stored)
