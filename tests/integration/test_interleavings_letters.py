"""What clients' letters meet: runs in every state, other letters, callers' transactions, and what has been sorted."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

import psycopg
import pytest

from kedge.ids import new_run_id
from tests import api_letters as letters
from tests import moves
from tests.api_letters import Sent, for_event, for_resume, for_time, for_topic
from tests.sessions import Session, Sessions

VERBS: Final = ("cancel", "pause", "resume", "retry", "fast_forward")
LEVELS: Final = ("read committed", "repeatable read")


def posted(db: Session) -> list[str]:
    """The kinds of the unsorted letters."""
    return [kind for _, kind, *_ in letters.inbox(db)]


# ---- what an event meets


def test_an_event_that_comes_early_is_kept_and_one_that_is_awaited_is_delivered(db: Session) -> None:
    worker, early = letters.running(db)
    awaited = letters.parked(db, for_event())

    assert letters.send(db, early.id) == Sent(accepted=True, status="running", delivered=False, unread=0)
    assert letters.send(db, awaited) == Sent(accepted=True, status="waiting", delivered=True, unread=0)
    assert letters.inbox(db) == [(run, "e", "e:settled", letters.DATA) for run in (early.id, awaited)]
    assert moves.end(db, worker, early) == 1


def test_a_wait_takes_one_event_and_the_next_is_kept(db: Session) -> None:
    run = letters.parked(db, for_event("a"), for_event("b"), for_event("other", "refunded"))

    said = [letters.send(db, run) for _ in range(3)]

    assert [one.delivered for one in said if one] == [True, True, False]
    assert [one.unread for one in said if one] == [0, 1, 2]


def test_a_wait_for_another_event_takes_nothing(db: Session) -> None:
    run = letters.parked(db, for_event(event="refunded"), for_topic("orders", "b"), for_time("c"))

    said = letters.send(db, run)

    assert said == Sent(accepted=True, status="waiting", delivered=False, unread=0)


@pytest.mark.parametrize("status", ["c", "f", "x"])
def test_a_run_that_has_ended_takes_no_event(db: Session, status: str) -> None:
    run = letters.ended(db, status)

    said = letters.send(db, run)

    assert said is not None
    assert (said.accepted, said.status) == (False, {"c": "completed", "f": "failed", "x": "cancelled"}[status])
    assert letters.inbox(db) == []


def test_an_event_behind_a_retry_is_accepted(db: Session) -> None:
    run = letters.ended(db, "f")

    letters.control(db, "retry", run)
    said = letters.send(db, run)

    assert said == Sent(accepted=True, status="failed", delivered=False, unread=0)
    assert posted(db) == ["r", "e"]


@pytest.mark.parametrize("status", ["c", "x"])
def test_no_letter_brings_a_run_back_that_did_not_fail(db: Session, status: str) -> None:
    worker, run = letters.running(db)
    letters.control(db, "pause", run.id)
    letters.control(db, "retry", run.id)
    letters.send(db, run.id)
    moves.end(db, worker, run, status)

    said = letters.send(db, run.id)

    assert said is not None
    assert not said.accepted
    assert posted(db) == ["s", "r", "e"]


def test_a_thousand_unread_events_are_enough(db: Session) -> None:
    run = letters.parked(db, for_time())
    db.rows(
        "insert into kedge.events (run_id, id, seq, at, slot, payload) select $1, gen_random_uuid(), n, now(),"
        " case when n % 2 = 0 then 'e:settled' else 't:orders' || chr(31) || 'settled' end, ''"
        " from generate_series(-600, -1) as n",
        (run,),
    )
    known = uuid4()
    for letter in (known, *(uuid4() for _ in range(399))):
        said = letters.send(db, run, letter=letter)
        assert said is not None
        assert said.accepted

    refused = letters.send(db, run)
    repeated = letters.send(db, run, letter=known)

    assert refused == Sent(accepted=False, status="waiting", delivered=False, unread=1000)
    assert repeated is not None
    assert repeated.accepted
    assert len(letters.inbox(db)) == 400


def test_only_unread_events_count(db: Session) -> None:
    run = letters.parked(db, for_time())
    db.rows(
        "insert into kedge.events (run_id, id, seq, at, slot, payload, consumed_seq) select $1, gen_random_uuid(), n,"
        " now(), case when n % 2 = 0 then 'k:child#' || n else 'e:settled' end, '', nullif(abs(n % 2), 0) - 1"
        " from generate_series(-3000, -1) as n",
        (run,),
    )

    said = letters.send(db, run)

    assert said == Sent(accepted=True, status="waiting", delivered=False, unread=0)


# ---- topics


def test_an_event_to_a_topic_is_one_letter_to_nobody_in_particular(db: Session) -> None:
    letters.parked(db, for_topic("orders"))

    assert letters.send(db, topic="orders") == Sent(accepted=True, status=None, delivered=True, unread=None)
    assert letters.send(db, topic="bills") == Sent(accepted=True, status=None, delivered=False, unread=None)
    assert letters.send(db, topic="orders", event="refunded") == Sent(
        accepted=True, status=None, delivered=False, unread=None
    )
    assert letters.inbox(db) == [
        (UUID(int=0), "t", f"t:{topic}\x1f{event}", letters.DATA)
        for topic, event in (("orders", "settled"), ("bills", "settled"), ("orders", "refunded"))
    ]


@pytest.mark.parametrize(
    ("run", "topic", "event", "resource", "payload"),
    [
        (None, None, "e", None, b""),
        (new_run_id(), "t", "e", None, b""),
        (None, "t", "e", "alice", b""),
        (None, "t\x1fe", "e", None, b""),
        (None, "t", "e\x1ft", None, b""),
        (new_run_id(), None, "", None, b""),
        (new_run_id(), None, None, None, b""),
        (None, "t" * 201, "e", None, b""),
        (new_run_id(), None, "e" * 201, None, b""),
        (new_run_id(), None, "e", None, bytes(64 * 1024 * 1024 + 1)),
    ],
    ids=[
        "to nobody",
        "to both",
        "a topic of a resource",
        "a sign in the topic",
        "a sign in the event",
        "no name",
        "null for a name",
        "long topic",
        "long event",
        "large",
    ],
)
def test_what_no_event_can_be_is_refused_by_the_database_too(
    db: Session, run: UUID | None, topic: str | None, event: str | None, resource: str | None, payload: bytes
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        letters.send(db, run, topic=topic, event=event, resource=resource, payload=payload)

    assert caught.value.sqlstate == "KE005"


# ---- what control meets


def test_nothing_finds_what_does_not_exist_or_is_of_another_resource(db: Session) -> None:
    (owned,) = moves.started(db, resource="alice")

    for run, resource in ((new_run_id(), None), (owned, "bob")):
        assert letters.send(db, run, resource=resource) is None
        for verb in VERBS:
            assert letters.control(db, verb, run, resource=resource) is None
    assert letters.inbox(db) == []
    assert letters.control(db, "pause", owned, resource="alice") == (True, "pending")


ACCEPTED: Final = {
    "pending": {"cancel", "pause"},
    "running": {"cancel", "pause"},
    "waiting for a time": {"cancel", "pause", "fast_forward"},
    "waiting to be resumed": {"cancel", "pause", "resume", "fast_forward"},
    "waiting for a child": {"cancel", "pause"},
    "asked to pause": {"cancel", "pause", "resume"},
    "paused": {"cancel", "pause", "resume"},
    "paused in a wait": {"cancel", "pause", "resume", "fast_forward"},
    "completed": set[str](),
    "failed": {"retry"},
    "cancelled": set[str](),
}


def in_state(db: Session, state: str) -> UUID:
    match state:
        case "pending":
            return moves.started(db)[0]
        case "running":
            return letters.running(db)[1].id
        case "waiting for a time":
            return letters.parked(db, for_time())
        case "waiting to be resumed":
            return letters.parked(db, for_resume())
        case "waiting for a child":
            return letters.parked(db, letters.Wait("child", "c"), letters.Wait("step", "r", delay_s=60))
        case "asked to pause":
            _, run = letters.running(db)
            db.rows("update kedge.runs set request = 's' where id = $1", (run.id,))
            return run.id
        case "paused":
            worker, run = letters.running(db)
            db.rows("update kedge.runs set request = 's' where id = $1", (run.id,))
            moves.release(db, worker, run)
            return run.id
        case "paused in a wait":
            worker, run = letters.running(db)
            letters.open_waits(db, worker, run, [for_time()])
            db.rows("update kedge.runs set request = 's' where id = $1", (run.id,))
            letters.park(db, worker, run)
            return run.id
        case _:
            return letters.ended(db, {"completed": "c", "failed": "f", "cancelled": "x"}[state])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", ACCEPTED)
def test_a_letter_is_refused_only_for_what_is_certain(db: Session, state: str, verb: str) -> None:
    run = in_state(db, state)

    answer = letters.control(db, verb, run)

    accepted = verb in ACCEPTED[state]
    status = moves.status(db, run)
    assert answer == (accepted, status)
    assert status in state.replace("asked to pause", "running")
    assert len(letters.inbox(db)) == accepted


@pytest.mark.parametrize("first", ["pause", "cancel", "send"])
@pytest.mark.parametrize("second", ["resume", "retry"])
def test_with_a_letter_on_the_way_nothing_is_certain_of_a_live_run(db: Session, first: str, second: str) -> None:
    _, run = letters.running(db)
    if first == "send":
        letters.send(db, run.id)
    else:
        letters.control(db, first, run.id)

    assert letters.control(db, second, run.id) == (True, "running")


def test_who_only_wants_to_know_something_makes_nothing_uncertain(db: Session) -> None:
    _, run = letters.running(db)
    for kind in ("o", "w"):
        db.rows(
            "insert into kedge.inbox (run_id, id, sent_at, kind) values ($1, $2, now(), $3)", (run.id, uuid4(), kind)
        )

    assert letters.control(db, "resume", run.id) == (False, "running")
    assert letters.control(db, "retry", run.id) == (False, "running")


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_behind_a_retry_everything_is_accepted(db: Session, verb: str) -> None:
    run = letters.ended(db, "f")
    letters.control(db, "retry", run)

    assert letters.control(db, verb, run) == (True, "failed")
    assert letters.control(db, "retry", run) == (True, "failed")
    assert letters.fast_forward(db, run) == (False, "failed", False)


def test_resume_right_behind_pause_is_accepted_and_sorted_behind_it(db: Session) -> None:
    _, run = letters.running(db)

    assert letters.control(db, "pause", run.id) == (True, "running")
    assert letters.control(db, "resume", run.id) == (True, "running")
    assert posted(db) == ["s", "u"]


@pytest.mark.parametrize(
    ("wait", "expected"), [(None, True), ("a", True), ("b", False), ("child", False), ("a#2", False), ("", False)]
)
def test_a_wait_that_is_named_must_be_one_that_can_be_ended(db: Session, wait: str | None, expected: bool) -> None:
    run = letters.parked(db, for_time("a"), letters.Wait("child", "c"))

    answer = letters.fast_forward(db, run, wait)

    assert answer == (expected, "waiting", False)
    slot = None if wait is None else f"k:{wait}"
    assert letters.inbox(db) == ([(run, "g", slot, letters.DATA)] if expected else [])


@pytest.mark.parametrize("status", ["c", "f", "x"])
def test_a_run_that_has_ended_for_good_has_nothing_to_be_fast_forwarded(db: Session, status: str) -> None:
    run = letters.ended(db, status)

    assert letters.fast_forward(db, run)[::2] == (False, True)


def test_a_cascade_is_said_in_the_letter(db: Session) -> None:
    plain, cascading = moves.started(db, 2)

    letters.control(db, "cancel", plain)
    letters.control(db, "cascade", cascading)

    assert letters.inbox(db) == [(plain, "x", None, None), (cascading, "x", "cascade", None)]


# ---- repeats and callers' transactions


def test_a_repeated_letter_is_one_letter(db: Session) -> None:
    run = letters.parked(db, for_event(), for_resume("p"))

    for verb in ("cancel", "pause", "resume", "fast_forward"):
        letter = uuid4()
        answers = [letters.control(db, verb, run, letter=letter) for _ in range(3)]
        assert answers == [(True, "waiting")] * 3
    event = uuid4()
    said = [letters.send(db, run, letter=event) for _ in range(3)]

    assert posted(db) == ["x", "s", "u", "g", "e"]
    assert [one and one.delivered for one in said] == [True] * 3


def test_a_send_repeated_after_its_consumption_is_accepted_and_sent_once(db: Session) -> None:
    worker, run = letters.running(db)
    letter = uuid4()
    letters.send(db, run.id, letter=letter)
    moves.sort_inbox(db)
    moves.keep(db, worker, run)
    assert letters.consume(db, worker, run, letter, run.next_seq) == 1

    while_live = letters.send(db, run.id, letter=letter)
    moves.end(db, worker, run, rows=(1, 1))
    afterwards = letters.send(db, run.id, letter=letter)
    another = letters.send(db, run.id)

    assert while_live == Sent(accepted=True, status="running", delivered=True, unread=0)
    assert afterwards == Sent(accepted=True, status="completed", delivered=True, unread=0)
    assert another is not None
    assert not another.accepted
    assert letters.inbox(db) == []


def test_a_send_that_reaches_the_inbox_again_after_its_consumption_is_not_read_again(sessions: Sessions) -> None:
    db, caller = sessions.open(), sessions.open()
    worker, run = letters.running(db)
    letter = uuid4()
    # What the caller sees is older than the mail.
    caller.begin("repeatable read")
    caller.rows("select count(*) from kedge.runs")
    letters.send(db, run.id, letter=letter)
    moves.sort_inbox(db)
    moves.keep(db, worker, run)
    letters.consume(db, worker, run, letter, run.next_seq)

    letters.send(caller, run.id, letter=letter)
    caller.commit()
    moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("e:settled", True)]
    assert posted(db) == []


def test_a_fast_forward_repeated_after_it_was_sorted_is_accepted_and_not_put_in_again(db: Session) -> None:
    run = letters.parked(db, for_time())
    letter = uuid4()
    letters.fast_forward(db, run, letter=letter)
    moves.sort_inbox(db)

    assert letters.fast_forward(db, run, letter=letter)[0]
    assert letters.inbox(db) == []
    assert letters.mail(db, run) == [("k:wait", False)]
    assert moves.status(db, run) == "pending"


def test_a_resume_repeated_after_it_was_sorted_does_not_end_the_next_pause(db: Session) -> None:
    (run,) = moves.started(db)
    letter = uuid4()
    letters.control(db, "pause", run)
    letters.control(db, "resume", run, letter=letter)
    letters.control(db, "pause", run)
    moves.sort_inbox(db)

    assert letters.control(db, "resume", run, letter=letter) == (True, "paused")
    moves.sort_inbox(db)

    assert moves.status(db, run) == "paused"


def test_a_retry_repeated_after_it_was_sorted_does_not_retry_again(db: Session) -> None:
    run = letters.ended(db, "f")
    letter = uuid4()
    letters.control(db, "retry", run, letter=letter)
    moves.sort_inbox(db)

    assert letters.control(db, "retry", run, letter=letter) == (True, "pending")
    worker = moves.register(db)
    (again,) = moves.claim_alone(db, worker)
    moves.end(db, worker, again, "f")
    assert letters.control(db, "retry", run, letter=letter) == (True, "failed")

    assert letters.inbox(db) == []
    assert moves.status(db, run) == "failed"


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_a_request_repeated_after_it_was_sorted_is_known_by_its_note(db: Session, verb: str) -> None:
    worker, run = letters.running(db)
    letter = uuid4()
    letters.control(db, verb, run.id, letter=letter)
    moves.sort_inbox(db)

    assert letters.control(db, verb, run.id, letter=letter) == (True, "running")
    moves.end(db, worker, run)
    assert letters.control(db, verb, run.id, letter=letter) == (True, "completed")
    assert letters.inbox(db) == []


def test_a_pause_and_a_resume_right_behind_it_leave_the_run_going(db: Session) -> None:
    worker, run = letters.running(db)
    letters.control(db, "pause", run.id)
    letters.control(db, "resume", run.id)

    moves.sort_inbox(db)

    assert moves.run_row(db, run.id)["request"] is None
    assert moves.release(db, worker, run) == 1
    assert moves.status(db, run.id) == "pending"


def test_a_send_behind_a_retry_finds_the_run_alive(db: Session) -> None:
    run = letters.ended(db, "f")
    letters.control(db, "retry", run)
    letters.send(db, run)

    while moves.sort_inbox(db).remaining:
        pass

    assert moves.status(db, run) == "pending"
    assert letters.mail(db, run) == [("e:settled", False)]


@pytest.mark.parametrize("level", LEVELS)
def test_letters_are_there_when_their_callers_transaction_commits(sessions: Sessions, level: str) -> None:
    db, caller = sessions.open(), sessions.open(lock_timeout="50ms")
    run = letters.parked(db, for_event(), for_resume("p"))
    failed = letters.ended(db, "f")
    caller.begin(level)

    letters.send(caller, run)
    letters.send(caller, topic="orders")
    for verb in ("pause", "resume", "fast_forward", "cancel"):
        letters.control(caller, verb, run)
    letters.control(caller, "retry", failed)
    before = posted(db)
    caller.commit()

    assert before == []
    assert posted(db) == ["e", "t", "s", "u", "g", "x", "r"]


@pytest.mark.parametrize("level", LEVELS)
def test_letters_never_were_when_their_callers_transaction_is_rolled_back(sessions: Sessions, level: str) -> None:
    db, caller = sessions.open(), sessions.open()
    run = letters.parked(db, for_event())
    caller.begin(level)

    letters.send(caller, run)
    letters.control(caller, "cancel", run)
    caller.rollback()

    assert posted(db) == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_callers_open_letters_stop_neither_courier_nor_owner_nor_other_senders(
    sessions: Sessions, level: str
) -> None:
    db, caller = sessions.open(lock_timeout="50ms", statement_timeout="5s"), sessions.open()
    worker, run = letters.running(db)
    caller.begin(level)
    letters.send(caller, run.id)
    letters.control(caller, "pause", run.id)

    letters.send(db, run.id)
    moves.sort_inbox(db)
    moves.keep(db, worker, run)
    ended = moves.end(db, worker, run, rows=(1, 1))
    caller.commit()

    assert ended == 1
    # They were accepted for a run that was live for the caller; the courier finds it ended.
    moves.sort_inbox(db)
    assert posted(db) == []
    assert moves.status(db, run.id) == "completed"


def test_a_caller_with_an_old_snapshot_is_told_what_it_can_see(sessions: Sessions) -> None:
    db, caller = sessions.open(), sessions.open()
    worker, run = letters.running(db)
    caller.begin("repeatable read")
    caller.rows("select count(*) from kedge.runs")
    moves.end(db, worker, run)
    (later,) = moves.started(db)

    assert letters.send(caller, run.id) == Sent(accepted=True, status="running", delivered=False, unread=0)
    assert letters.control(caller, "pause", run.id) == (True, "running")
    assert letters.send(caller, later) is None
    caller.commit()


def test_two_senders_of_one_key_wait_for_each_other_and_send_once(sessions: Sessions) -> None:
    db, first, second = sessions.open(), sessions.open(), sessions.open()
    run = letters.parked(db, for_event())
    letter = uuid4()
    first.begin()
    letters.send(first, run, letter=letter)

    late = second.later(letters.send, run, letter=letter)
    sessions.wait_until_blocked(second, first)
    first.commit()

    assert late.result() == Sent(accepted=True, status="waiting", delivered=True, unread=0)
    assert posted(db) == ["e"]


def test_a_run_and_its_first_letters_may_stand_in_one_transaction(sessions: Sessions) -> None:
    db, caller = sessions.open(), sessions.open()
    caller.begin("repeatable read")
    (run,) = moves.started(caller)

    assert letters.send(caller, run) == Sent(accepted=True, status="pending", delivered=False, unread=0)
    assert letters.control(caller, "pause", run) == (True, "pending")
    caller.commit()

    assert posted(db) == ["e", "s"]
