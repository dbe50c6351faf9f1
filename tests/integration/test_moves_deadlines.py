"""A run whose time is up fails wherever it is, with a reason of its own; a running one by its owner."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kedge.errors import RunDeadlineError
from kedge.failures import decode_error, kind_of
from kedge_worker.testing import Clock
from tests import letters, moves
from tests.sessions import Session, Sessions

HOUR = timedelta(hours=1)


def overdue(db: Session, clock: Clock, state: str) -> moves.Claimed:
    """A run in that state whose time is up."""
    if state == "waiting":
        run = letters.parked(db)
    else:
        worker, run = letters.running(db)
        if state != "running":
            moves.release(db, worker, run)
    if state == "paused":
        letters.put(db, run.id, "s")
        moves.sort_inbox(db)
    letters.set_deadline(db, run.id, HOUR)
    clock.advance(HOUR)
    return run


@pytest.mark.parametrize("state", ["pending", "waiting", "paused"])
def test_a_run_at_rest_fails_with_the_deadlines_error(db: Session, clock: Clock, state: str) -> None:
    run = overdue(db, clock, state)

    ended, owners = letters.expire(db)

    assert (ended, owners) == ([run.id], [])
    assert moves.status(db, run.id) == "failed"
    error = decode_error(db.value("select error from kedge.finished"))
    assert error.kind == kind_of(RunDeadlineError)
    assert letters.waits(db, run.id) == []


def test_the_owner_of_a_running_run_is_asked_to_end_it_and_rung_once(db: Session, clock: Clock) -> None:
    run = overdue(db, clock, "running")
    owner = moves.run_row(db, run.id)["worker_id"]

    seen = [letters.expire(db) for _ in range(2)]

    assert seen == [([], [owner]), ([], [])]
    assert (moves.status(db, run.id), moves.run_row(db, run.id)["request"]) == ("running", "d")


def test_nothing_expires_early_and_what_has_no_deadline_never(db: Session, clock: Clock) -> None:
    run = letters.parked(db)
    letters.parked(db, delay_s=60)
    db.rows("update kedge.runs set deadline_at = 'infinity' where due_at is not null")
    letters.set_deadline(db, run.id, HOUR)

    clock.advance(HOUR - timedelta(minutes=1))
    early = letters.expire(db)
    clock.advance(timedelta(days=9))
    late = letters.expire(db)

    assert (early, late) == (([], []), ([run.id], []))


@pytest.mark.parametrize(("status", "expected"), [("c", "completed"), ("f", "failed")])
def test_completed_wins_over_a_deadline_and_a_failure_fails_by_the_deadline(
    db: Session, clock: Clock, status: str, expected: str
) -> None:
    run = overdue(db, clock, "running")
    letters.expire(db)

    moves.end(db, moves.run_row(db, run.id)["worker_id"], run, status)

    assert moves.status(db, run.id) == expected
    if expected == "failed":
        assert decode_error(db.value("select error from kedge.finished")).kind == kind_of(RunDeadlineError)


def test_a_deadline_replaces_a_pause(db: Session, clock: Clock) -> None:
    run = overdue(db, clock, "running")
    letters.put(db, run.id, "s")
    moves.sort_inbox(db)

    letters.expire(db)

    assert moves.run_row(db, run.id)["request"] == "d"


# ---- expire and cancel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "request_"), [("cancel", "x"), ("expire", "x")])
def test_of_a_deadline_and_a_cancel_of_a_running_run_the_cancel_wins_in_any_order(
    db: Session, clock: Clock, first: str, request_: str
) -> None:
    run = overdue(db, clock, "running")
    letters.put(db, run.id, "x")

    if first == "cancel":
        moves.sort_inbox(db)
        letters.expire(db)
    else:
        letters.expire(db)
        moves.sort_inbox(db)

    assert moves.run_row(db, run.id)["request"] == request_


@pytest.mark.parametrize(("first", "expected"), [("cancel", "cancelled"), ("expire", "failed")])
def test_of_a_deadline_and_a_cancel_of_a_run_at_rest_the_first_ends_it_and_the_other_does_nothing(
    sessions: Sessions, first: str, expected: str
) -> None:
    db, other = sessions.open(), sessions.open(lock_timeout="50ms")
    run = overdue(db, Clock(db.url), "waiting")
    letters.put(db, run.id, "x")
    moves_ = (moves.sort_inbox, letters.expire) if first == "cancel" else (letters.expire, moves.sort_inbox)

    db.begin()
    moves_[0](db)
    moves_[1](other)
    db.commit()
    moves_[1](other)

    assert moves.statuses(db) == {run.id: expected}
    assert moves.letters(db) == []


def test_an_expiry_skips_a_locked_run_and_finds_it_in_a_later_round(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    clock = Clock(db.url)
    locked, free = overdue(db, clock, "waiting"), overdue(db, clock, "waiting")
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.id,))

    first = letters.expire(db)
    holder.rollback()
    second = letters.expire(db)

    assert (first, second) == (([free.id], []), ([locked.id], []))


def test_the_expiry_decides_for_the_state_that_a_run_has_behind_the_lock(sessions: Sessions) -> None:
    db, sweeper = sessions.open(), sessions.open()
    run = overdue(db, Clock(db.url), "pending")
    db.begin()
    db.rows("lock table kedge.runs in access exclusive mode")
    late = sweeper.later(letters.expire)
    sessions.wait_until_blocked(sweeper, db)
    worker = moves.register(db)
    moves.claim(db, worker)
    db.commit()

    assert late.result() == ([], [worker])
    assert moves.run_row(db, run.id)["request"] == "d"


def test_runs_that_were_asked_already_do_not_fill_the_batch(db: Session, clock: Clock) -> None:
    worker = moves.register(db)
    for _ in range(3):
        _, run = letters.running(db, worker)
        letters.set_deadline(db, run.id, HOUR)
    clock.advance(HOUR)
    assert letters.expire(db, 3) == ([], [worker])
    resting = overdue(db, clock, "waiting")

    assert letters.expire(db, 1) == ([resting.id], [])


def test_the_end_by_a_deadline_is_told_to_whoever_watches(db: Session, clock: Clock) -> None:
    child = letters.parked(db)
    parent = letters.parked(db, "child", kind="c")
    letters.watch(db, child.id, parent.id)
    moves.sort_inbox(db)
    letters.set_deadline(db, child.id, HOUR)
    clock.advance(HOUR)

    letters.expire(db)
    moves.sort_inbox(db)

    ((slot, payload),) = letters.mail(db, parent.id)
    assert (slot, payload[:1]) == ("k:child", b"f")
    assert decode_error(payload[1:]).kind == kind_of(RunDeadlineError)
