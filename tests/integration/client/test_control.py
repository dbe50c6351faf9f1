"""Cancel, pause, resume, retry, fast-forward: what each asks for, what it answers, and what is refused for certain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg
import pytest

from kedge import (
    InvalidOptionError,
    InvalidRunStateError,
    NotEncodableError,
    RunNotFoundError,
    RunStatus,
    TooLargeError,
    TransactionStateError,
)
from tests import api_letters, ends, moves
from tests.api_letters import for_event, for_resume, for_time
from tests.integration.client.letters import VERBS, acceptable, call, call_handle, inbox, mail, sort
from tests.integration.client.orders import ORDER, PROCESS
from tests.integration.client.test_client_faults import MISSING
from tests.integration.client.test_client_start import is_rung, sleep_as_worker, was_rung
from tests.integration.client.test_client_transactions import LEVELS, set_level
from tests.proxy import Proxy
from tests.sessions import Session
from tests.twins import ASYNC, SYNC, AnyClient, AnyHandle, Twin, connected, opened

LIVE: Final = ("pending", "running", "waiting", "paused")
KINDS: Final = {"send": "e", "cancel": "x", "pause": "s", "resume": "u", "retry": "r", "fast_forward": "g"}


async def started(twin: Twin, client: AnyClient, conn: psycopg.Connection, verb: str) -> AnyHandle:
    """A run that takes this verb."""
    run: AnyHandle = await twin.do(client.start, PROCESS(ORDER, resource="alice"))
    if verb == "retry":
        ends.fail(conn, run.id, ValueError("no"))
    else:
        acceptable(conn, verb, run.id)
    return run


async def end(twin: Twin, client: AnyClient, conn: psycopg.Connection, status: RunStatus) -> AnyHandle:
    """A run that has ended."""
    run: AnyHandle = await twin.do(client.start, PROCESS(ORDER))
    match status:
        case "completed":
            ends.complete(conn, run.id)
        case "failed":
            ends.fail(conn, run.id, ValueError("no"))
        case _:
            ends.cancel(conn, run.id)
    return run


# ---- what each does


async def test_a_run_is_paused_and_resumed(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    answers = [str(await twin.do(run.pause, reason="a look"))]
    asked = (await twin.do(run.view)).request
    sort(conn)
    paused = await twin.do(run.view)
    answers += [await twin.do(client.pause, run), await twin.do(run.resume)]
    sort(conn)

    assert answers == ["pending", "paused", "paused"]
    assert asked == "paused"
    assert (paused.status, paused.reason, paused.request) == ("paused", "a look", None)
    assert await twin.do(run.status) == "pending"


async def test_a_paused_run_is_not_woken_by_an_event(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    run = api_letters.parked(db, for_event(event="approved"), for_time("nap"))
    await twin.do(client.pause, run)
    await twin.do(call(client, "send", run))
    sort(conn)
    held = (await twin.do(client.get, run)).status

    await twin.do(client.resume, run)
    sort(conn)

    assert held == "paused"
    assert (await twin.do(client.get, run)).status == "pending"


async def test_a_failed_run_is_retried(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await end(twin, client, conn, "failed")

    assert await twin.do(run.retry) == "failed"
    assert (await twin.do(run.view)).request == "retried"
    assert await twin.do(client.retry, run) == "failed"
    sort(conn)

    assert await twin.do(run.status) == "pending"


async def test_a_run_that_waits_in_a_pause_of_its_own_is_resumed(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    run = api_letters.parked(db, for_resume("review"), for_time("nap"))

    assert await twin.do(client.resume, run) == "waiting"
    sort(conn)

    assert (await twin.do(client.get, run)).status == "pending"
    assert [slot for slot, _ in mail(conn)] == ["k:review"]


async def test_a_wait_is_ended_with_what_it_shall_return(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    oldest = api_letters.parked(db, for_time("nap"), api_letters.Wait("child", "c"))
    named = api_letters.parked(db, for_time("nap"), for_event("answer"))

    assert await twin.do(client.fast_forward, oldest) is True
    assert await twin.do(client.handle(PROCESS, named).fast_forward, {"a": 1}, wait="answer") is True
    sort(conn)

    assert mail(conn) == [("k:nap", b"\x01null"), ("k:answer", b'\x01{"a":1}')]
    assert [(await twin.do(client.get, run)).status for run in (oldest, named)] == ["pending"] * 2


async def test_without_such_a_wait_nothing_is_sent(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    pending = await twin.do(client.start, PROCESS(ORDER))
    child = api_letters.parked(db, api_letters.Wait("child", "c"), api_letters.Wait("step", "r", delay_s=60))
    waiting = api_letters.parked(db, for_time("nap"))

    for run, wait in ((pending, None), (child, None), (child, "child"), (waiting, "other")):
        assert await twin.do(client.fast_forward, run, wait=wait) is False

    assert inbox(conn) == []


async def test_a_cancel_reaches_the_children_if_it_shall(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    alone, parent, child, grandchild = [await twin.do(client.start, PROCESS(ORDER)) for _ in range(4)]
    for of, run in ((parent, child), (child, grandchild)):
        conn.execute("update kedge.runs set parent_id = %s where id = %s", (of.id, run.id))

    await twin.do(alone.cancel)
    await twin.do(client.cancel, parent, reason="no stock", cascade=True)
    sort(conn)

    views = [await twin.do(run.view) for run in (alone, parent, child, grandchild)]
    assert [view.status for view in views] == ["cancelled"] * 4


async def test_a_cancel_leaves_the_children_alone_else(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    parent, child = [await twin.do(client.start, PROCESS(ORDER)) for _ in range(2)]
    conn.execute("update kedge.runs set parent_id = %s where id = %s", (parent.id, child.id))

    await twin.do(parent.cancel)
    sort(conn)

    assert await twin.do(child.status) == "pending"


# ---- what all of them have in common


@pytest.mark.parametrize("verb", VERBS)
async def test_each_verb_puts_one_letter_into_the_inbox_and_wakes_any_worker(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, verb: str
) -> None:
    run = await started(twin, client, conn, verb)
    sleep_as_worker(conn, "another", "workflow")

    await twin.do(call(client, verb, run))
    rung = is_rung(conn)
    await twin.do(call_handle(run, verb))

    assert rung
    assert [kind for kind, *_ in inbox(conn)] == [KINDS[verb]] * 2


@pytest.mark.parametrize("verb", VERBS)
async def test_every_way_to_name_a_run_will_do(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, verb: str
) -> None:
    run = await started(twin, client, conn, verb)
    view = await twin.do(run.view)

    for name in (run, view, run.id, str(run.id), str(run.id).upper()):
        await twin.do(call(client, verb, name))

    assert len(inbox(conn)) == 5


@pytest.mark.parametrize("verb", VERBS)
async def test_what_does_not_exist_and_what_is_of_another_resource_look_alike(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, verb: str
) -> None:
    run = await started(twin, client, conn, verb)
    bob = client.scoped("bob")

    texts: set[str] = set()
    for run_id in (MISSING, run.id):
        for made in (call(bob, verb, run_id), call_handle(bob.handle(PROCESS, run_id), verb)):
            with pytest.raises(RunNotFoundError) as caught:
                await twin.do(made)
            texts.add(str(caught.value).replace(str(run_id), "<id>"))

    assert len(texts) == 1
    assert inbox(conn) == []
    alice = client.scoped("alice")
    await twin.do(call(alice, verb, run))
    await twin.do(call_handle(alice.handle(PROCESS, run.id), verb))
    assert len(inbox(conn)) == 2


@pytest.mark.parametrize("level", LEVELS, ids=[level.name for level in LEVELS])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_letter_is_sent_if_and_when_its_transaction_commits(
    twin: Twin,
    client: AnyClient,
    database_url: str,
    conn: psycopg.Connection,
    verb: str,
    level: psycopg.IsolationLevel,
) -> None:
    run = await started(twin, client, conn, verb)
    sleep_as_worker(conn, "another", "workflow")
    async with connected(twin, database_url) as mine:
        await set_level(twin, mine, level)
        await twin.do(call(client, verb, run), conn=mine)
        await twin.do(mine.rollback)
        rolled_back = inbox(conn)

        await twin.do(call(client, verb, run), conn=mine)
        await twin.do(call_handle(run, verb), conn=mine)
        before = (inbox(conn), was_rung(conn))
        await twin.do(mine.commit)

    assert rolled_back == []
    assert before == ([], False)
    assert [kind for kind, *_ in inbox(conn)] == [KINDS[verb]] * 2
    assert is_rung(conn)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_refusal_leaves_the_callers_transaction_alive(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection, verb: str
) -> None:
    run = await end(twin, client, conn, "completed")
    async with connected(twin, database_url) as mine:
        with pytest.raises(InvalidRunStateError):
            await twin.do(call(client, verb, run), conn=mine)
        with pytest.raises(RunNotFoundError):
            await twin.do(call(client, verb, MISSING), conn=mine)

        again = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(mine.commit)

    assert await twin.do(again.status) == "pending"
    assert inbox(conn) == []


@pytest.mark.parametrize("verb", VERBS)
async def test_a_letter_whose_answer_is_lost_is_one_letter(
    twin: Twin, wire: Proxy, conn: psycopg.Connection, verb: str
) -> None:
    async with opened(twin, wire.url) as client:
        run = await started(twin, client, conn, verb)
        wire.lose_answers(verb.encode())

        await twin.do(call(client, verb, run))

        assert wire.cuts_made == 1
        assert [kind for kind, *_ in inbox(conn)] == [KINDS[verb]]


@pytest.mark.parametrize("verb", VERBS)
async def test_a_connection_that_cannot_be_used_is_refused(
    twin: Twin, client: AnyClient, database_url: str, verb: str
) -> None:
    other = ASYNC if twin is SYNC else SYNC
    async with connected(other, database_url) as foreign:
        with pytest.raises(InvalidOptionError, match="that is for"):
            await twin.do(call(client, verb, MISSING), conn=foreign)
    async with connected(twin, database_url) as mine:
        await twin.do(mine.close)
        with pytest.raises(TransactionStateError, match="closed"):
            await twin.do(call(client, verb, MISSING), conn=mine)


# ---- wrong states


@pytest.mark.parametrize(
    ("verb", "state", "wanted"),
    [
        *((verb, state, LIVE) for verb in ("pause", "fast_forward") for state in ("completed", "failed", "cancelled")),
        *(("cancel", state, LIVE) for state in ("completed", "failed")),
        *(("resume", state, ("paused",)) for state in ("completed", "failed", "cancelled")),
        *(("retry", state, ("failed",)) for state in ("completed", "cancelled")),
    ],
)
async def test_what_has_ended_is_refused_with_its_status(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, verb: str, state: RunStatus, wanted: tuple[str, ...]
) -> None:
    run = await end(twin, client, conn, state)

    for made in (call(client, verb, run), call_handle(run, verb)):
        with pytest.raises(InvalidRunStateError, match=f"it is {state}") as caught:
            await twin.do(made)
        error = caught.value
        assert (error.run_id, error.status, error.wanted) == (run.id, state, wanted)
        assert error.action == verb.replace("_", "-")
    assert inbox(conn) == []


@pytest.mark.parametrize("state", ["pending", "running", "waiting"])
async def test_what_nothing_holds_cannot_be_resumed_and_what_lives_cannot_be_retried(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session, state: RunStatus
) -> None:
    match state:
        case "pending":
            (run,) = moves.started(db)
        case "running":
            run = api_letters.running(db)[1].id
        case _:
            run = api_letters.parked(db, for_time())

    with pytest.raises(InvalidRunStateError, match=r"must be paused or wait in ctx\.pause") as resumed:
        await twin.do(client.resume, run)
    with pytest.raises(InvalidRunStateError, match="must be failed") as retried:
        await twin.do(client.retry, run)

    assert (resumed.value.status, retried.value.status) == (state, state)
    assert inbox(conn) == []


async def test_a_cancel_of_a_cancelled_run_is_harmless(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await end(twin, client, conn, "cancelled")

    assert await twin.do(client.cancel, run, cascade=True) == "cancelled"
    assert inbox(conn) == []


async def test_resume_right_behind_pause_is_accepted_and_the_run_goes_on(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    run = api_letters.running(db)[1].id

    assert await twin.do(client.pause, run) == "running"
    assert await twin.do(client.resume, run) == "running"
    sort(conn)

    view = await twin.do(client.get, run)
    assert (view.status, view.request) == ("running", None)


async def test_what_became_of_letters_is_shown(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    for verb in (run.pause, run.pause, run.resume, run.retry, run.cancel):
        await twin.do(verb)

    sort(conn)

    notes = [letter.message for letter in (await twin.do(run.view)).letters]
    assert sorted(notes) == [
        "cancel: done",
        "pause: already",
        "pause: done",
        "resume: done",
        "retry: already",
    ]


# ---- bad input


@pytest.fixture
def offline(twin: Twin) -> AnyClient:
    """A client without a database: whatever it refuses, it refuses before anything is sent."""
    return twin.connect("host=127.0.0.1 port=1 connect_timeout=2")


@pytest.mark.parametrize(
    "run", [None, 3, "x", "00000000-0000-4000-8000-000000000000", object()], ids=lambda run: type(run).__name__
)
@pytest.mark.parametrize("verb", VERBS)
async def test_what_names_no_run_is_refused(twin: Twin, offline: AnyClient, verb: str, run: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"no id of a run|exactly one"):
        await twin.do(call(offline, verb, run))


@pytest.mark.parametrize("verb", ["cancel", "pause"])
@pytest.mark.parametrize("reason", ["a\0b", "a\ud800", "x" * 4001, 3, b"why", ["x"]], ids=lambda text: ascii(text)[:20])
async def test_a_reason_that_cannot_be_kept_is_refused(twin: Twin, offline: AnyClient, verb: str, reason: Any) -> None:
    for made in (call(offline, verb, MISSING), call_handle(offline.handle(PROCESS, MISSING), verb)):
        with pytest.raises(InvalidOptionError, match="reason="):
            await twin.do(made, reason=reason)


@pytest.mark.parametrize("wait", ["a\0b", "a\ud800", "x" * 10_001, 3, b"key", ["x"]], ids=lambda text: ascii(text)[:20])
async def test_a_wait_that_can_have_no_such_key_is_refused(twin: Twin, offline: AnyClient, wait: Any) -> None:
    with pytest.raises(InvalidOptionError, match="wait="):
        await twin.do(offline.fast_forward, MISSING, wait=wait)


@pytest.mark.parametrize(
    ("data", "error"),
    [(float("nan"), NotEncodableError), (object(), NotEncodableError), ("x" * 1024 * 1024, TooLargeError)],
    ids=["NaN", "object", "large"],
)
async def test_data_that_cannot_be_kept_is_refused(
    twin: Twin, offline: AnyClient, data: object, error: type[Exception]
) -> None:
    calls: list[Callable[..., Any]] = [
        lambda: offline.fast_forward(MISSING, data),
        lambda: offline.handle(PROCESS, MISSING).fast_forward(data),
    ]
    for made in calls:
        with pytest.raises(error, match="data of fast_forward"):
            await twin.do(made)
