"""The courier meets the moves of the runs it sorts for, other couriers, and letters that cannot be sorted."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

import pytest

from kedge_worker._courier import Courier
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Store
from tests import letters, moves
from tests.sessions import Session, Sessions

Asked = list[tuple[UUID, str, str | None]]

# Refuses one run's way through the exit door, as somebody's own trigger might.
POISON: Final = """
    create function poison() returns trigger language plpgsql as $$
    begin
        if new.workflow = 'poisoned' then
            raise check_violation using message = 'the archive does not take this one';
        end if;
        return new;
    end $$;
    create trigger poison before insert on kedge.finished for each row execute function poison();
"""


def running(db: Session) -> tuple[UUID, moves.Claimed]:
    """A worker and the run that it executes."""
    worker = moves.register(db)
    moves.started(db)
    (run,) = moves.claim_alone(db, worker)
    return worker, run


# ---- what a cancel does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [None, 60])
def test_a_run_at_rest_is_cancelled_at_once(db: Session, delay_s: float | None) -> None:
    (run,) = moves.started(db, delay_s=delay_s)

    accepted = moves.cancel(db, run, reason="enough")
    sorted_ = moves.sort_inbox(db)

    assert accepted == (True, "pending" if delay_s is None else "waiting")
    assert sorted_ == moves.Sorted(1, remaining=False, owners=[], ended=[run])
    assert db.rows("select status, reason from kedge.all_runs where id = $1", (run,)) == [("cancelled", "enough")]


def test_a_paused_run_is_cancelled_at_once(db: Session) -> None:
    (run,) = moves.started(db)
    letters.put(db, run, "s")
    moves.sort_inbox(db)

    moves.cancel(db, run)
    sorted_ = moves.sort_inbox(db)

    assert sorted_.ended == [run]
    assert moves.status(db, run) == "cancelled"


def test_a_running_runs_owner_is_asked_and_rung(db: Session) -> None:
    worker, run = running(db)

    moves.cancel(db, run.id, reason="enough")
    sorted_ = moves.sort_inbox(db)

    assert sorted_ == moves.Sorted(1, remaining=False, owners=[worker], ended=[])
    assert moves.status(db, run.id) == "running"
    assert moves.beat(db, worker) == [(worker, run.id, run.epoch, "x", "enough")]


def test_a_second_cancel_of_a_running_run_rings_nobody_again_and_keeps_the_first_reason(db: Session) -> None:
    _, run = running(db)
    moves.cancel(db, run.id, reason="first")
    moves.sort_inbox(db)
    moves.cancel(db, run.id, reason="second")

    sorted_ = moves.sort_inbox(db)

    assert sorted_ == moves.Sorted(1, remaining=False, owners=[], ended=[])
    assert moves.run_row(db, run.id)["reason"] == "first"


def test_a_repeated_letter_is_one_letter(db: Session) -> None:
    (run,) = moves.started(db)
    letter = uuid4()

    answers = [moves.cancel(db, run, letter=letter) for _ in range(2)]

    assert answers == [(True, "pending")] * 2
    assert moves.letters(db) == [run]


def test_a_cancel_of_an_ended_run_is_not_accepted_and_writes_no_letter(db: Session) -> None:
    worker, run = running(db)
    moves.end(db, worker, run)

    assert moves.cancel(db, run.id) == (False, "completed")
    assert moves.letters(db) == []


def test_letters_of_a_run_that_ended_meanwhile_leave(db: Session) -> None:
    worker, run = running(db)
    for _ in range(3):
        moves.cancel(db, run.id)
    moves.end(db, worker, run)

    sorted_ = moves.sort_inbox(db)

    assert sorted_ == moves.Sorted(3, remaining=False, owners=[], ended=[])
    assert moves.status(db, run.id) == "completed"
    assert moves.letters(db) == []


def test_no_more_letters_are_sorted_than_asked_for_and_the_oldest_first(db: Session) -> None:
    runs = moves.started(db, 5)
    for run in runs:
        moves.cancel(db, run)

    sorted_ = moves.sort_inbox(db, 3)

    assert (sorted_.letters, sorted_.remaining, set(sorted_.ended)) == (3, True, set(runs[:3]))
    assert moves.letters(db) == runs[3:]


# ---- skipped is not gone ------------------------------------------------------------------------------------------


def test_the_letter_of_a_locked_run_stays_and_of_a_free_and_of_an_absent_run_leaves(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    locked, free = moves.started(db, 2)
    for run in (locked, free):
        moves.cancel(db, run)
    db.rows("insert into kedge.inbox (run_id, id, sent_at, kind) values ($1, $2, now(), 'x')", (uuid4(), uuid4()))
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked,))

    first = moves.sort_inbox(db)
    letters = moves.letters(db)
    holder.rollback()
    second = moves.sort_inbox(db)

    assert first == moves.Sorted(2, remaining=True, owners=[], ended=[free])
    assert letters == [locked]
    assert second == moves.Sorted(1, remaining=False, owners=[], ended=[locked])


def test_later_letters_of_a_locked_run_wait_with_the_first(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    (locked,) = moves.started(db)
    for _ in range(3):
        moves.cancel(db, locked)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked,))

    assert moves.sort_inbox(db).letters == 0

    holder.rollback()
    assert moves.sort_inbox(db).letters == 3


def test_a_letter_to_a_run_that_is_just_ending_stays_until_the_end_is_certain(sessions: Sessions) -> None:
    db, owner = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, run = running(db)
    moves.cancel(db, run.id)
    owner.begin()
    moves.hold(owner, worker)
    moves.end(owner, worker, run)

    while_open = moves.sort_inbox(db)
    owner.rollback()
    after_rollback = moves.sort_inbox(db)

    assert (while_open.letters, while_open.remaining) == (0, True)
    assert (after_rollback.letters, after_rollback.owners) == (1, [worker])
    assert moves.end(db, worker, run, "f") == 1
    assert moves.status(db, run.id) == "cancelled"


# ---- the courier decides after the lock ---------------------------------------------------------------------------


def test_a_letter_to_a_run_that_is_just_given_back_cancels_it(sessions: Sessions) -> None:
    db, owner = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, run = running(db)
    moves.cancel(db, run.id)
    owner.begin()
    moves.hold(owner, worker)
    moves.release(owner, worker, run)

    while_open = moves.sort_inbox(db)
    owner.commit()
    after = moves.sort_inbox(db)

    assert while_open.letters == 0
    assert after.ended == [run.id]
    assert moves.status(db, run.id) == "cancelled"


def test_the_courier_sees_the_state_that_a_run_has_when_it_gets_the_lock(sessions: Sessions) -> None:
    db, courier = sessions.open(), sessions.open()
    worker, run = running(db)
    moves.cancel(db, run.id)
    # It stops when it has read its batch and goes for the runs.
    db.begin()
    db.rows("lock table kedge.runs in access exclusive mode")
    late = courier.later(moves.sort_inbox)
    sessions.wait_until_blocked(courier, db)
    moves.release(db, worker, run)
    db.commit()

    assert late.result().ended == [run.id]
    assert moves.status(db, run.id) == "cancelled"


# ---- request and the moves out of running -------------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [0, 60])
def test_giving_back_a_run_with_a_request_ends_it_cancelled_in_the_same_transaction(
    db: Session, delay_s: float
) -> None:
    worker, run = running(db)
    moves.keep(db, worker, run)
    moves.cancel(db, run.id, reason="enough")
    moves.sort_inbox(db)

    released = moves.release(db, worker, run, delay_s=delay_s, last=1)

    assert released == 1
    assert db.rows("select status, reason, next_seq from kedge.finished") == [("x", "enough", 2)]


@pytest.mark.parametrize("delay_s", [0, 60])
def test_a_request_that_is_being_sorted_just_now_is_not_lost_by_a_give_back(sessions: Sessions, delay_s: float) -> None:
    db, courier, owner = sessions.open(), sessions.open(), sessions.open()
    worker, run = running(db)
    moves.cancel(db, run.id)
    courier.begin()
    moves.sort_inbox(courier)

    released = owner.later(moves.release, worker, run, delay_s=delay_s)
    sessions.wait_until_blocked(owner, courier)
    courier.commit()

    assert released.result() == 1
    assert moves.status(db, run.id) == "cancelled"


@pytest.mark.parametrize(("status", "expected"), [("c", "completed"), ("f", "cancelled"), ("x", "cancelled")])
def test_completed_wins_over_a_cancel_and_a_failure_does_not(db: Session, status: str, expected: str) -> None:
    worker, run = running(db)
    moves.cancel(db, run.id)
    moves.sort_inbox(db)

    moves.end(db, worker, run, status)

    assert moves.status(db, run.id) == expected


@pytest.mark.parametrize(("status", "expected"), [("c", "completed"), ("f", "cancelled"), ("x", "cancelled")])
def test_an_end_that_waits_for_the_courier_sees_the_request_and_ends_the_run_once(
    sessions: Sessions, status: str, expected: str
) -> None:
    db, courier, owner = sessions.open(), sessions.open(), sessions.open()
    worker, run = running(db)
    moves.cancel(db, run.id)
    courier.begin()
    moves.sort_inbox(courier)

    ended = owner.later(moves.end, worker, run, status)
    sessions.wait_until_blocked(owner, courier)
    courier.commit()

    assert ended.result() == 1
    assert moves.statuses(db) == {run.id: expected}
    assert db.value("select count(*) from kedge.runs") == 0


def test_a_pause_request_pauses_at_the_give_back_and_a_cancel_beats_it(db: Session) -> None:
    worker = moves.register(db)
    moves.started(db, 2)
    paused, cancelled = moves.claim_alone(db, worker)
    for run in (paused, cancelled):
        letters.put(db, run.id, "s")
    moves.cancel(db, cancelled.id)
    moves.sort_inbox(db)

    for run in (paused, cancelled):
        moves.release(db, worker, run)

    assert moves.statuses(db) == {paused.id: "paused", cancelled.id: "cancelled"}


# ---- couriers -----------------------------------------------------------------------------------------------------


def test_of_two_couriers_one_sorts_and_the_other_goes_on(sessions: Sessions) -> None:
    one, other = sessions.open(), sessions.open(lock_timeout="50ms")
    (run,) = moves.started(one)
    moves.cancel(one, run)
    one.begin()
    first = moves.sort_inbox(one)

    second = moves.sort_inbox(other)
    one.commit()

    assert first.ended == [run]
    assert second == moves.Sorted(0, remaining=True, owners=[], ended=[])
    assert moves.sort_inbox(other) == moves.Sorted(0, remaining=False, owners=[], ended=[])


def test_a_courier_that_died_in_the_middle_leaves_everything_to_the_next(sessions: Sessions) -> None:
    db, courier = sessions.open(), sessions.open()
    (run,) = moves.started(db)
    moves.cancel(db, run)
    courier.begin()
    moves.sort_inbox(courier)

    courier.close()

    sessions.wait_until(
        "select not exists (select 1 from pg_stat_activity where pid = %(pid)s)",
        {"pid": courier.pid},
        what="the courier's session to end",
    )
    assert moves.sort_inbox(db).ended == [run]


async def test_a_letter_that_cannot_be_sorted_leaves_with_its_reason_and_the_rest_is_sorted(
    database_url: str, db: Session
) -> None:
    db.rows(POISON)
    before = moves.started(db, 3)
    (poisoned,) = moves.started(db, workflow="poisoned")
    behind = moves.started(db, 3)
    for run in (*before, poisoned, *behind):
        moves.cancel(db, run, reason="enough")

    sorted_ = await sort_all(database_url)

    assert sorted_ == 6
    assert moves.statuses(db, before + behind) == dict.fromkeys(before + behind, "cancelled")
    assert moves.status(db, poisoned) == "pending"
    assert db.rows("select run_id, kind, reason, error from kedge.inbox_failed") == [
        (poisoned, "x", "enough", "23514: the archive does not take this one")
    ]
    assert moves.letters(db) == []


def test_a_second_courier_that_met_the_same_poison_fails_no_other_letter(sessions: Sessions) -> None:
    one, other = sessions.open(), sessions.open()
    one.rows(POISON)
    (poisoned,) = moves.started(one, workflow="poisoned")
    (innocent,) = moves.started(one)
    for run in (poisoned, innocent):
        moves.cancel(one, run)
    # Both have been refused the letter at the head.
    for courier in (one, other):
        with pytest.raises(Exception, match="does not take"):
            moves.sort_inbox(courier, 1)

    for courier in (one, other):
        courier.rows(moves.statement("FAIL_LETTER"), {"error": "refused"})

    assert one.rows("select run_id from kedge.inbox_failed") == [(poisoned,)]
    assert moves.sort_inbox(one).ended == [innocent]


def test_a_letter_that_can_be_sorted_is_not_failed(db: Session) -> None:
    (run,) = moves.started(db)
    moves.cancel(db, run)

    db.rows(moves.statement("FAIL_LETTER"), {"error": "refused"})

    assert db.value("select count(*) from kedge.inbox_failed") == 0
    assert moves.sort_inbox(db).ended == [run]


async def test_a_cancel_that_was_accepted_while_no_worker_lived_is_never_overtaken_by_a_claim(
    database_url: str, db: Session
) -> None:
    (run,) = moves.started(db)
    moves.cancel(db, run)
    worker = moves.register(db)

    claimed = moves.claim_alone(db, worker)
    await sort_all(database_url)

    assert claimed == []
    assert moves.status(db, run) == "cancelled"


async def test_the_courier_hands_requests_for_its_own_runs_over(database_url: str, db: Session) -> None:
    worker, run = running(db)
    moves.cancel(db, run.id, reason="enough")
    asked: Asked = []

    await sort_all(database_url, worker, asked)

    assert asked == [(run.id, "x", "enough")]


@pytest.mark.parametrize("also", ["", "another letter", "a run that waits", "a run that is not claimed"])
async def test_only_behind_mail_for_runs_in_memory_is_there_nothing_to_claim(
    database_url: str, db: Session, also: str
) -> None:
    worker, run = running(db)
    letters.send(db, run.id)
    if also == "another letter":  # it might be another run's, for all that the courier hears
        letters.send(db, run.id)
    elif also == "a run that waits":
        letters.send(db, letters.parked(db, worker=worker).id)
    elif also == "a run that is not claimed":
        moves.cancel(db, *moves.started(db))
    looks: list[str] = []

    await sort_all(database_url, worker, looks=looks)

    assert looks == (["some"] if also else ["own"])


async def sort_all(
    url: str, worker: UUID | None = None, asked: Asked | None = None, looks: list[str] | None = None
) -> int:
    worker_id = worker or uuid4()
    settings = WorkerSettings(database_url=url)
    store = Store(settings.control_conninfo(), worker_id=worker_id, schema="kedge", timeout_s=5)
    heard = [] if asked is None else asked
    looked = [] if looks is None else looks
    courier = Courier(
        store,
        worker_id=worker_id,
        ask=lambda run, kind, reason: heard.append((run, kind, reason)),
        sorted_some=lambda: looked.append("some"),
        sorted_own=lambda: looked.append("own"),
        has_mail=lambda: None,
        takes=_everything,
    )
    try:
        count = await courier.sort_all()
    finally:
        await store.aclose()
    # Whoever passed over runs with unsorted letters must look again, and nobody else.
    assert bool(looked) == bool(count)
    return count


def _everything(queue: str, workflow: str) -> bool:
    return True
