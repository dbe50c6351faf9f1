"""Events that a client sends: what is stored, whom it finds, what a repeat does, and in whose transaction it stands."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge import (
    InvalidNameError,
    InvalidOptionError,
    RunNotActiveError,
    RunNotFoundError,
    TooLargeError,
    TransactionStateError,
)
from kedge.event_refs import event_slot, keyed_letter_id
from kedge_client import Delivery
from tests import api_letters, ends, moves
from tests.api_letters import for_event, for_topic
from tests.integration.client.letters import ANSWERED, APPROVED, PAYMENT, SETTLED, inbox, mail, sort
from tests.integration.client.orders import ORDER, PROCESS
from tests.integration.client.test_client_faults import MISSING
from tests.integration.client.test_client_start import is_rung, sleep_as_worker, was_rung
from tests.integration.client.test_client_transactions import LEVELS, set_level
from tests.proxy import Proxy
from tests.sessions import Session
from tests.twins import AnyClient, Twin, connected, opened

# ---- what is stored


async def test_an_event_is_stored_with_its_payload_and_kept_for_the_run(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    first = await twin.do(client.send, SETTLED(PAYMENT), run=run)
    second = await twin.do(run.send, ANSWERED(None))
    stored = inbox(conn)
    sort(conn)

    assert isinstance(first, Delivery)
    assert (first.delivered, second.delivered) == (False, False)
    assert stored == [
        ("e", event_slot("payment-settled"), b'\x01{"order_id":"o-1","cents":100}'),
        ("e", event_slot("answered"), b"\x01null"),
    ]
    assert mail(conn) == [(slot, payload) for _, slot, payload in stored]
    ids = [row[0] for row in conn.execute("select id from kedge.events order by seq")]
    assert ids == [first.event_id, second.event_id]


async def test_an_event_that_is_awaited_is_delivered_and_wakes_the_run(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    run = api_letters.parked(db, for_event(event="payment-settled"), api_letters.for_time("nap"))

    other = await twin.do(client.send, APPROVED(), run=run)
    awaited = await twin.do(client.send, SETTLED(PAYMENT), run=run)
    one_more = await twin.do(client.send, SETTLED(PAYMENT), run=run)
    sort(conn)

    assert [delivery.delivered for delivery in (other, awaited, one_more)] == [False, True, False]
    assert (await twin.do(client.get, run)).status == "pending"


async def test_a_payload_of_the_greatest_size_is_sent_as_it_is(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    message = SETTLED({"order_id": "x" * (1024 * 1024 - 28)})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a dict may stand for a Struct
    assert len(message.payload) == 1024 * 1024

    await twin.do(run.send, message)

    assert inbox(conn)[0][2] == message.payload


async def test_every_way_to_name_a_run_will_do(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    view = await twin.do(run.view)

    for name in (run, view, run.id, str(run.id), str(run.id).upper()):
        await twin.do(client.send, APPROVED(), run=name)

    assert len(inbox(conn)) == 5


# ---- topics


async def test_an_event_to_a_topic_says_whether_anybody_waits(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    runs = [api_letters.parked(db, for_topic("orders", event="approved")) for _ in range(2)]
    sleeper = api_letters.parked(db, api_letters.for_time())

    heard = await twin.do(client.send, APPROVED(), topic="orders")
    unheard = await twin.do(client.send, APPROVED(), topic="bills")
    sort(conn)

    assert (heard.delivered, unheard.delivered) == (True, False)
    assert mail(conn) == [("t:orders\x1fapproved", b"\x01null")] * 2
    assert [(await twin.do(client.get, run)).status for run in (*runs, sleeper)] == ["pending", "pending", "waiting"]


async def test_a_scoped_client_cannot_send_to_a_topic_and_is_told_why(twin: Twin, client: AnyClient) -> None:
    with pytest.raises(InvalidOptionError, match="reaches runs of every resource"):
        await twin.do(client.scoped("alice").send, APPROVED(), topic="orders")


# ---- what is refused before anything is sent


@pytest.mark.parametrize("where", [{}, {"run": MISSING, "topic": "orders"}], ids=["to nobody", "to both"])
async def test_an_event_goes_to_a_run_or_to_a_topic(twin: Twin, client: AnyClient, where: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="run= or topic=, exactly one"):
        await twin.do(client.send, APPROVED(), **where)


@pytest.mark.parametrize("message", [None, "approved", {"a": 1}, PROCESS(ORDER), PAYMENT], ids=repr)
async def test_what_is_no_message_is_refused(twin: Twin, client: AnyClient, message: Any) -> None:
    handle = client.handle(PROCESS, MISSING)
    for call in (twin.do(client.send, message, run=MISSING), twin.do(handle.send, message)):
        with pytest.raises(InvalidOptionError, match=r"send takes a message, event\(payload\), not a"):
            await call


async def test_who_forgets_to_call_the_ref_is_told_so(twin: Twin, client: AnyClient) -> None:
    forgotten: Any = APPROVED
    with pytest.raises(InvalidOptionError, match="an EventRef: call it"):
        await twin.do(client.send, forgotten, run=MISSING)


@pytest.mark.parametrize("topic", ["", " a", "a\x1fb", "x" * 201, 3])
async def test_a_topic_has_a_name_like_others(twin: Twin, client: AnyClient, topic: Any) -> None:
    with pytest.raises(InvalidNameError, match="topic"):
        await twin.do(client.send, APPROVED(), topic=topic)


# ---- what the run is


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_a_run_that_has_ended_takes_no_events(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, status: str
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    match status:
        case "completed":
            ends.complete(conn, run.id)
        case "failed":
            ends.fail(conn, run.id, ValueError("no"))
        case _:
            ends.cancel(conn, run.id)

    for call in (twin.do(client.send, APPROVED(), run=run), twin.do(run.send, APPROVED())):
        with pytest.raises(RunNotActiveError, match=f"it is {status}") as caught:
            await call
        assert (caught.value.run_id, caught.value.status, caught.value.action) == (run.id, status, "send to")
    assert inbox(conn) == []


async def test_a_failed_run_that_is_being_retried_takes_events(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.fail(conn, run.id, ValueError("no"))

    await twin.do(run.retry)
    delivery = await twin.do(run.send, APPROVED())
    sort(conn)

    assert not delivery.delivered
    assert await twin.do(run.status) == "pending"
    assert mail(conn) == [("e:approved", b"\x01null")]


async def test_what_does_not_exist_or_is_of_another_resource_is_not_found(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    of_alice = await twin.do(client.start, PROCESS(ORDER, resource="alice"))
    bob = client.scoped("bob")

    texts: set[str] = set()
    for run_id in (MISSING, of_alice.id):
        for call in (twin.do(bob.send, APPROVED(), run=run_id), twin.do(bob.handle(PROCESS, run_id).send, APPROVED())):
            with pytest.raises(RunNotFoundError) as caught:
                await call
            texts.add(str(caught.value).replace(str(run_id), "<id>"))

    assert len(texts) == 1
    assert inbox(conn) == []
    assert await twin.do(client.scoped("alice").send, APPROVED(), run=of_alice)


async def test_an_event_over_the_limit_is_refused_and_nothing_is_stored(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    conn.execute(
        "insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload)"
        " select %s, gen_random_uuid(), now(), 'e', 'e:approved', '' from generate_series(1, 999)",
        (run.id,),
    )
    await twin.do(run.send, APPROVED())

    async with connected(twin, database_url) as mine:
        for options in ({}, {"conn": mine}):
            with pytest.raises(TooLargeError, match="send again when the run has read some") as caught:
                await twin.do(run.send, APPROVED(), **options)
            assert (caught.value.size, caught.value.limit, caught.value.unit) == (1001, 1000, "unread events")
        # A refusal is an answer: the transaction lives.
        assert await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(mine.commit)

    assert len(inbox(conn)) == 1000
    sort(conn)
    with pytest.raises(TooLargeError):
        await twin.do(run.send, APPROVED())


# ---- repeats


async def test_messages_without_a_key_are_two_events(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    message = APPROVED()

    first, second = [await twin.do(run.send, message) for _ in range(2)]

    assert first.event_id != second.event_id
    assert len(inbox(conn)) == 2


async def test_a_message_with_a_key_is_sent_once_for_the_life_of_the_run(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, db: Session
) -> None:
    worker, run = api_letters.running(db)
    expected = keyed_letter_id(run.id, "payment-settled", "stripe-evt-1")

    async def again() -> Delivery:
        return await twin.do(client.send, SETTLED(PAYMENT, key="stripe-evt-1"), run=run.id)

    unsorted = [await again() for _ in range(2)]
    sort(conn)
    unread = await again()
    sort(conn)
    moves.keep(db, worker, run)
    assert api_letters.consume(db, worker, run, expected, 1) == 1
    read = await again()
    moves.end(db, worker, run, rows=(1, 1))
    after_the_end = await again()

    assert [one.event_id for one in (*unsorted, unread, read, after_the_end)] == [expected] * 5
    assert inbox(conn) == []
    assert conn.execute("select count(*), max(consumed_seq) from kedge.events").fetchone() == (1, 1)


async def test_a_key_belongs_to_a_run_an_event_and_a_topic(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    one, other = await twin.do(client.start_many, [PROCESS(ORDER), PROCESS(ORDER)])

    for run in (one, other):
        await twin.do(run.send, APPROVED(key="k"))
        await twin.do(run.send, ANSWERED(3, key="k"))
    for topic in ("a", "b", "a"):
        await twin.do(client.send, APPROVED(key="k"), topic=topic)

    assert len(inbox(conn)) == 6


async def test_a_send_whose_answer_is_lost_is_settled_by_repeating_it(
    twin: Twin,
    wire: Proxy,
    conn: psycopg.Connection,
) -> None:
    async with opened(twin, wire.url) as client:
        run = await twin.do(client.start, PROCESS(ORDER))
        wire.lose_answers(b"send_v1")

        delivery = await twin.do(run.send, APPROVED())

        assert wire.cuts_made == 1
        assert conn.execute("select array_agg(id) from kedge.inbox").fetchone() == ([delivery.event_id],)


# ---- transactions and doorbells


@pytest.mark.parametrize("level", LEVELS, ids=[level.name for level in LEVELS])
async def test_an_event_is_sent_when_its_transaction_commits(
    twin: Twin,
    client: AnyClient,
    database_url: str,
    conn: psycopg.Connection,
    db: Session,
    level: psycopg.IsolationLevel,
) -> None:
    run = api_letters.parked(db, for_event(event="approved"))
    async with connected(twin, database_url) as mine:
        await set_level(twin, mine, level)

        to_run = await twin.do(client.send, APPROVED(), run=run, conn=mine)
        by_handle = await twin.do(client.handle(PROCESS, run).send, APPROVED(), conn=mine)
        to_topic = await twin.do(client.send, APPROVED(), topic="orders", conn=mine)
        before = inbox(conn)
        await twin.do(mine.commit)

    assert [one.delivered for one in (to_run, by_handle, to_topic)] == [True, False, False]
    assert before == []
    assert [kind for kind, *_ in inbox(conn)] == ["e", "e", "t"]


async def test_a_run_and_an_event_for_it_may_stand_in_one_transaction(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    async with connected(twin, database_url) as mine:
        run = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(run.send, APPROVED(), conn=mine)
        await twin.do(mine.rollback)
        assert inbox(conn) == []

        again = await twin.do(client.start, PROCESS(ORDER), conn=mine)
        await twin.do(again.send, APPROVED(), conn=mine)
        await twin.do(mine.commit)

    sort(conn)
    assert mail(conn) == [("e:approved", b"\x01null")]


async def test_a_lost_race_for_a_key_is_the_callers_to_repeat(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    async with connected(twin, database_url) as mine:
        await set_level(twin, mine, psycopg.IsolationLevel.REPEATABLE_READ)
        await twin.do(mine.execute, "select 1")
        await twin.do(run.send, APPROVED(key="k"))

        with pytest.raises(TransactionStateError, match="repeat it"):
            await twin.do(run.send, APPROVED(key="k"), conn=mine)

        await twin.do(mine.rollback)
        assert await twin.do(run.send, APPROVED(key="k"), conn=mine)
        await twin.do(mine.commit)
    assert len(inbox(conn)) == 1


@pytest.mark.parametrize("to", ["run", "topic"])
async def test_an_event_wakes_any_worker_that_sleeps(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, to: str
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    sleep_as_worker(conn, "another", "workflow")

    await twin.do(client.send, APPROVED(), **({"run": run} if to == "run" else {"topic": "orders"}))

    assert is_rung(conn)


async def test_the_doorbell_rings_when_the_caller_commits(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    sleep_as_worker(conn, "another", "workflow")
    async with connected(twin, database_url) as mine:
        await twin.do(run.send, APPROVED(), conn=mine)
        before = was_rung(conn)
        await twin.do(mine.commit)

    assert not before
    assert is_rung(conn)


async def test_a_client_that_shall_wake_nobody_does_not(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    sleep_as_worker(conn, "another", "workflow")
    async with opened(twin, database_url, wake=False) as client, connected(twin, database_url) as mine:
        run = await twin.do(client.start, PROCESS(ORDER))
        await twin.do(run.send, APPROVED())
        await twin.do(run.send, APPROVED(), conn=mine)
        await twin.do(mine.commit)

    assert not was_rung(conn)


async def test_many_senders_at_once_lose_nothing(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    sent = await asyncio.gather(*(twin.do(run.send, ANSWERED(number)) for number in range(50)))
    sort(conn)

    ids: set[UUID] = {row[0] for row in conn.execute("select id from kedge.events")}
    assert ids == {delivery.event_id for delivery in sent}
    assert len(ids) == 50
