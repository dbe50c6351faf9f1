"""Parking, mail, waking: what a run waits for and what is sent to it, whoever of courier and owner comes first."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final
from uuid import uuid4

import pytest

from kedge_worker.testing import Clock
from tests import letters, moves
from tests.sessions import Session, Sessions

LANES: Final = [moves.LANE]


# ---- parking ------------------------------------------------------------------------------------------------------


def test_a_parked_run_waits_until_the_least_due_time_of_its_waits(db: Session, clock: Clock) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "late", "d", delay_s=3600)
    letters.open_wait(db, worker, run, "soon", "d", delay_s=60)
    letters.open_wait(db, worker, run, "paid")

    parked = letters.park(db, worker, run, last=4)

    row = moves.run_row(db, run.id)
    assert parked == 1
    assert (row["state"], row["worker_id"], row["has_waits"], row["next_seq"]) == ("w", None, True, 5)
    assert row["due_at"] == db.value("select due_at from kedge.waits where key = 'soon'")
    assert moves.claim_alone(db, worker) == []
    clock.advance(61)
    assert [claimed.id for claimed in moves.claim_alone(db, worker)] == [run.id]


def test_a_run_that_waits_for_an_event_only_has_no_due_time(db: Session) -> None:
    run = letters.parked(db)

    assert moves.status(db, run.id) == "waiting"
    assert letters.due_at(db, run.id) is None


def test_a_wait_for_ever_is_no_due_time(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    db.rows("update kedge.waits set due_at = 'infinity'")

    letters.park(db, worker, run)

    assert letters.due_at(db, run.id) is None


def test_a_run_that_is_parked_with_nothing_to_wait_for_goes_on_at_once(db: Session) -> None:
    worker, run = letters.running(db)

    letters.park(db, worker, run)

    assert moves.status(db, run.id) == "pending"


def test_a_run_whose_mail_is_there_already_is_not_parked_but_goes_on(db: Session) -> None:
    worker, run = letters.running(db)
    before = moves.run_row(db, run.id)["seq"]
    letters.send(db, run.id)
    moves.sort_inbox(db)
    letters.open_wait(db, worker, run, "paid")

    letters.park(db, worker, run)

    row = moves.run_row(db, run.id)
    assert (row["state"], row["has_waits"], row["due_at"]) == ("p", True, None)
    assert row["seq"] > before


def test_mail_that_no_wait_takes_lets_the_run_wait(db: Session) -> None:
    worker, run = letters.running(db)
    letters.send(db, run.id, "delivered")
    moves.sort_inbox(db)
    letters.open_wait(db, worker, run, "paid")

    letters.park(db, worker, run)

    assert moves.status(db, run.id) == "waiting"


def test_a_wait_that_this_epochs_code_does_not_ask_for_goes_with_the_park_and_wakes_nobody(db: Session) -> None:
    worker, run = letters.running(db)
    for key in ("old", "paid"):
        letters.open_wait(db, worker, run, key, delay_s=60 if key == "old" else None)
    letters.send(db, run.id, "old")
    moves.sort_inbox(db)

    letters.park(db, worker, run, stale=["old"])

    assert letters.waits(db, run.id) == ["paid"]
    assert (moves.status(db, run.id), letters.due_at(db, run.id)) == ("waiting", None)


def test_a_park_takes_no_waits_of_runs_that_somebody_else_owns(db: Session) -> None:
    worker, mine = letters.running(db)
    _, other = letters.running(db)
    letters.open_wait(db, moves.run_row(db, other.id)["worker_id"], other, "paid")
    letters.open_wait(db, worker, mine, "paid")

    db.rows(moves.statement("PARK"), (worker, [mine.id], [mine.epoch], [0], [other.id], ["paid"]))

    assert letters.waits(db, other.id) == ["paid"]


def test_a_park_resets_the_count_of_crashes(db: Session) -> None:
    worker, run = letters.running(db)
    db.rows("update kedge.runs set crashes = 1")
    letters.open_wait(db, worker, run, "paid")

    letters.park(db, worker, run)

    assert moves.run_row(db, run.id)["crashes"] == 0


@pytest.mark.parametrize("move", [letters.park, letters.retry_later])
def test_only_the_holder_of_the_lease_lets_a_run_go(db: Session, move: letters.Move) -> None:
    worker, run = letters.running(db)
    stranger = moves.register(db)
    letters.open_wait(db, worker, run, "paid")
    before = moves.run_row(db, run.id)
    old = replace(run, epoch=run.epoch - 1)

    counts = [move(db, stranger, run), move(db, worker, old)]

    assert counts == [0, 0]
    assert moves.run_row(db, run.id) == before
    assert letters.waits(db, run.id) == ["paid"]
    assert letters.failures(db, run.id) == []


def test_a_run_whose_owner_gives_it_back_with_open_waits_is_claimed_with_them(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")

    moves.release(db, worker, run)

    row = moves.run_row(db, run.id)
    assert (row["state"], row["has_waits"]) == ("p", True)


# ---- events -------------------------------------------------------------------------------------------------------


def test_an_event_wakes_the_run_that_waits_for_it(db: Session) -> None:
    run = letters.parked(db)
    before = moves.run_row(db, run.id)
    letters.send(db, run.id, payload=b"\x01paid")

    sorted_ = moves.sort_inbox(db)

    row = moves.run_row(db, run.id)
    assert sorted_ == moves.Sorted(1, remaining=False, owners=[], ended=[], lanes=LANES)
    assert (row["state"], row["due_at"], row["has_waits"]) == ("p", None, True)
    assert row["seq"] > before["seq"]
    assert letters.mail(db, run.id) == [("e:paid", b"\x01paid")]


def test_an_event_that_comes_early_is_kept_until_the_run_asks_for_it(db: Session) -> None:
    (run,) = moves.started(db)
    letters.send(db, run)

    sorted_ = moves.sort_inbox(db)

    assert (sorted_.letters, sorted_.lanes) == (1, [])
    assert moves.run_row(db, run)["has_waits"], "its claim reads the mail"
    assert letters.mail(db, run) == [("e:paid", b"\x011")]


def test_an_event_does_not_begin_a_delayed_run(db: Session) -> None:
    (run,) = moves.started(db, delay_s=60)
    before = letters.due_at(db, run)
    letters.send(db, run)

    moves.sort_inbox(db)

    assert (moves.status(db, run), letters.due_at(db, run)) == ("waiting", before)
    assert moves.run_row(db, run)["has_waits"]


def test_another_event_wakes_nobody(db: Session) -> None:
    run = letters.parked(db, delay_s=60)
    before = letters.due_at(db, run.id)
    letters.send(db, run.id, "delivered")

    sorted_ = moves.sort_inbox(db)

    assert sorted_.lanes == []
    assert (moves.status(db, run.id), letters.due_at(db, run.id)) == ("waiting", before)


def test_the_owner_of_a_running_run_is_rung_for_its_mail(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    letters.send(db, run.id)

    sorted_ = moves.sort_inbox(db)

    assert sorted_ == moves.Sorted(1, remaining=False, owners=[worker], ended=[])
    assert moves.status(db, run.id) == "running"


def test_events_are_kept_in_order_of_arrival_whatever_their_ids(db: Session) -> None:
    run = letters.parked(db, "other")
    ids = sorted((uuid4() for _ in range(5)), reverse=True)

    for number, letter in enumerate(ids[:3]):
        letters.send(db, run.id, payload=b"%d" % number, letter=letter)
    moves.sort_inbox(db)
    for number, letter in enumerate(ids[3:], 3):
        letters.send(db, run.id, payload=b"%d" % number, letter=letter)
    moves.sort_inbox(db)

    assert [payload for _, payload in letters.mail(db, run.id)] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("is_read", [False, True])
def test_a_repeated_event_is_one_event_also_when_it_was_consumed(db: Session, is_read: bool) -> None:
    worker, run = letters.running(db)
    letter = letters.send(db, run.id)
    moves.sort_inbox(db)
    if is_read:
        assert letters.consume(db, worker, run, letter, 1) == 1
    letters.open_wait(db, worker, run, "paid")
    expected = letters.mail(db, run.id)

    letters.send(db, run.id, letter=letter)
    sorted_ = moves.sort_inbox(db)

    assert (sorted_.letters, sorted_.owners) == (1, [])
    assert letters.mail(db, run.id) == expected


def test_an_event_to_a_run_that_has_ended_is_not_kept_unless_it_may_be_retried(db: Session) -> None:
    worker = moves.register(db)
    runs = {status: letters.running(db, worker)[1] for status in ("c", "x", "f")}
    for status, run in runs.items():
        letters.send(db, run.id)
        moves.end(db, worker, run, status)

    sorted_ = moves.sort_inbox(db)

    assert (sorted_.letters, sorted_.remaining) == (3, False)
    assert {status: len(letters.mail(db, run.id)) for status, run in runs.items()} == {"c": 0, "x": 0, "f": 1}


def test_a_run_that_ends_leaves_no_wait_behind(db: Session) -> None:
    worker, run = letters.running(db)
    for key in ("paid", "delivered"):
        letters.open_wait(db, worker, run, key)

    moves.end(db, worker, run, "f")

    assert letters.waits(db, run.id) == []


# ---- one of a group, many of a group ------------------------------------------------------------------------------


def test_a_group_wakes_its_run_only_when_so_many_of_it_have_mail(db: Session) -> None:
    worker, run = letters.running(db)
    for number in range(4):
        letters.open_wait(db, worker, run, f"m[{number}]", "c", need=3, group="m")
    letters.park(db, worker, run)
    seen: list[str] = []

    for number in range(3):
        letters.put(db, run.id, "c", slot=f"k:m[{number}]", payload=b"c1")
        moves.sort_inbox(db)
        seen.append(moves.status(db, run.id))

    assert seen == ["waiting", "waiting", "pending"]


def test_mail_outside_of_the_group_wakes_the_run_before_the_group_is_complete(db: Session) -> None:
    worker, run = letters.running(db)
    for number in range(4):
        letters.open_wait(db, worker, run, f"m[{number}]", "c", need=3, group="m")
    letters.open_wait(db, worker, run, "paid")
    letters.park(db, worker, run)

    letters.put(db, run.id, "c", slot="k:m[0]", payload=b"c1")
    moves.sort_inbox(db)
    before = moves.status(db, run.id)
    letters.send(db, run.id)
    moves.sort_inbox(db)

    assert (before, moves.status(db, run.id)) == ("waiting", "pending")


def test_two_groups_are_counted_by_themselves(db: Session) -> None:
    worker, run = letters.running(db)
    for group in ("a", "b"):
        for number in range(2):
            letters.open_wait(db, worker, run, f"{group}[{number}]", "c", need=2, group=group)
    letters.park(db, worker, run)

    for key in ("a[0]", "b[0]"):
        letters.put(db, run.id, "c", slot=f"k:{key}", payload=b"c1")
    moves.sort_inbox(db)
    before = moves.status(db, run.id)
    letters.put(db, run.id, "c", slot="k:b[1]", payload=b"c1")
    moves.sort_inbox(db)

    assert (before, moves.status(db, run.id)) == ("waiting", "pending")


def test_a_park_counts_what_a_group_has_already(db: Session) -> None:
    worker, run = letters.running(db)
    for number in range(3):
        letters.open_wait(db, worker, run, f"m[{number}]", "c", need=2, group="m")
    for number in range(2):
        letters.put(db, run.id, "c", slot=f"k:m[{number}]", payload=b"c1")
    moves.sort_inbox(db)

    letters.park(db, worker, run)

    assert moves.status(db, run.id) == "pending"


# ---- another attempt of the run -----------------------------------------------------------------------------------


def test_a_failed_attempt_is_kept_and_the_next_one_waits_for_its_time_and_for_nothing_else(
    db: Session, clock: Clock
) -> None:
    worker, run = letters.running(db)
    moves.keep(db, worker, run)
    letters.open_wait(db, worker, run, "paid")

    left = letters.retry_later(db, worker, run, delay_s=60, error=b"\x01{1}", last=1)
    letters.send(db, run.id)
    sorted_ = moves.sort_inbox(db)

    row = moves.run_row(db, run.id)
    assert (left, sorted_.lanes) == (1, [])
    assert (row["state"], row["attempt"], row["next_seq"], row["has_waits"]) == ("w", 1, 2, True)
    assert letters.failures(db, run.id) == [("r", "", 1, 0)]
    assert db.value("select error from kedge.failures") == b"\x01{1}"
    assert (letters.waits(db, run.id), letters.mail(db, run.id)) == ([], [("e:paid", b"\x011")])
    assert moves.claim_alone(db, worker) == []
    clock.advance(61)
    assert [claimed.attempt for claimed in moves.claim_alone(db, worker)] == [1]


def test_an_attempt_without_delay_is_pending_at_once(db: Session) -> None:
    worker, run = letters.running(db)

    letters.retry_later(db, worker, run, delay_s=0)

    row = moves.run_row(db, run.id)
    assert (row["state"], row["due_at"], row["has_waits"]) == ("p", None, False)


def test_failures_and_interruptions_leave_the_journal_with_their_attempt_and_their_seqs_are_not_used_again(
    db: Session,
) -> None:
    worker, run = letters.running(db)
    for seq in (1, 2, 3, 4):
        moves.keep(db, worker, run, seq)
    db.rows("update kedge.journal set kind = case seq when 2 then 'f' else 'x' end where seq in (2, 4)")

    letters.retry_later(db, worker, run, last=4)

    assert [seq for seq, _ in moves.journal(db, run.id)] == [1, 3]
    assert letters.failures(db, run.id) == [("r", "", 1, 0), ("f", "step2", 1, 2), ("x", "step4", 1, 4)]
    assert moves.run_row(db, run.id)["next_seq"] == 5


def test_what_was_said_of_an_operation_that_failed_may_be_said_again(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "child", "c")
    letter = letters.put(db, run.id, "c", slot="k:child", payload=b"f1")
    moves.sort_inbox(db)
    letters.consume(db, worker, run, letter, 1)
    db.rows("update kedge.journal set kind = 'f' where seq = 1")

    letters.retry_later(db, worker, run, delay_s=0, last=1)
    letters.put(db, run.id, "c", slot="k:child", payload=b"f1", letter=letter)
    moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("k:child", b"f1")]


# ---- park and courier at the same moment --------------------------------------------------------------------------


def test_an_event_between_the_courier_and_a_park_under_way_is_not_slept_through(sessions: Sessions) -> None:
    db, owner = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    letters.send(db, run.id)
    owner.begin()
    moves.hold(owner, worker)
    letters.park(owner, worker, run)

    while_open = moves.sort_inbox(db)
    owner.commit()
    after = moves.sort_inbox(db)

    assert (while_open.letters, while_open.remaining) == (0, True)
    assert (after.letters, after.lanes) == (1, LANES)
    assert moves.status(db, run.id) == "pending"


def test_a_park_behind_an_open_courier_sees_its_mail(sessions: Sessions) -> None:
    db, courier, owner = sessions.open(), sessions.open(), sessions.open()
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    letters.send(db, run.id)
    courier.begin()
    moves.sort_inbox(courier)

    parked = owner.later(letters.park, worker, run)
    sessions.wait_until_blocked(owner, courier)
    courier.commit()

    assert parked.result() == 1
    assert moves.status(db, run.id) == "pending"


def test_a_park_behind_an_open_courier_sees_its_request(sessions: Sessions) -> None:
    db, courier, owner = sessions.open(), sessions.open(), sessions.open()
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    moves.cancel(db, run.id)
    courier.begin()
    moves.sort_inbox(courier)

    parked = owner.later(letters.park, worker, run)
    sessions.wait_until_blocked(owner, courier)
    courier.commit()

    assert parked.result() == 1
    assert moves.status(db, run.id) == "cancelled"


def test_the_courier_decides_for_a_wait_that_was_registered_and_parked_after_its_batch_was_read(
    sessions: Sessions,
) -> None:
    db, courier = sessions.open(), sessions.open()
    worker, run = letters.running(db)
    letters.send(db, run.id)
    # It stops when it has read its batch and goes for the runs.
    db.begin()
    db.rows("lock table kedge.runs in access exclusive mode")
    late = courier.later(moves.sort_inbox)
    sessions.wait_until_blocked(courier, db)
    letters.open_wait(db, worker, run, "paid")
    letters.park(db, worker, run)
    db.commit()

    assert late.result().lanes == LANES
    assert moves.status(db, run.id) == "pending"


def test_later_events_of_a_locked_run_stay_behind_the_first_and_others_are_read_past_them(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    locked, free = letters.parked(db), letters.parked(db)
    for number in range(5):
        letters.send(db, locked.id, payload=b"%d" % number)
    letters.send(db, free.id)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.id,))

    first = moves.sort_inbox(db, 2)
    holder.rollback()
    rest = [moves.sort_inbox(db, 2).letters for _ in range(3)]

    assert (first.letters, first.remaining) == (1, True)
    assert moves.statuses(db) == {free.id: "pending", locked.id: "pending"}
    assert rest == [2, 2, 1]
    assert [payload for _, payload in letters.mail(db, locked.id)] == [b"%d" % number for number in range(5)]


def test_a_letter_of_an_unknown_kind_stays_with_the_later_ones_of_its_run(db: Session) -> None:
    newer, other = moves.started(db, 2)
    letters.send(db, newer, payload=b"before")
    letters.put(db, newer, "?")
    letters.send(db, newer, payload=b"behind")
    letters.send(db, other)

    sorted_ = moves.sort_inbox(db)
    again = moves.sort_inbox(db)

    assert (sorted_.letters, sorted_.remaining) == (2, True)
    assert (again.letters, again.remaining) == (0, True)
    assert [payload for _, payload in letters.mail(db, newer)] == [b"before"]
    assert moves.letters(db) == [newer, newer]
    db.rows("delete from kedge.inbox")


def test_a_letter_that_says_nothing_moves_aside_and_the_next_of_its_run_is_sorted(db: Session) -> None:
    run = letters.parked(db)
    letters.put(db, run.id, "e", slot=None)
    letters.send(db, run.id)
    with pytest.raises(Exception, match="null value"):
        moves.sort_inbox(db, 1)

    db.rows(moves.statement("FAIL_LETTER"), {"error": "it names no event"})

    assert db.rows("select run_id, kind, slot, error from kedge.inbox_failed") == [
        (run.id, "e", None, "it names no event")
    ]
    assert moves.sort_inbox(db).lanes == LANES


def test_of_one_topics_letters_only_the_one_that_says_nothing_moves_aside(db: Session) -> None:
    poisoned, innocent = letters.parked(db), letters.parked(db)
    letters.put(db, poisoned.id, "e", slot=None)
    letters.send(db, innocent.id)
    db.rows("update kedge.inbox set seq = 1")  # as those have that are one event to a topic
    with pytest.raises(Exception, match="null value"):
        moves.sort_inbox(db, 1)

    db.rows(moves.statement("FAIL_LETTER"), {"error": "it names no event"})

    assert db.rows("select run_id from kedge.inbox_failed") == [(poisoned.id,)]
    assert moves.letters(db) == [innocent.id]
    assert moves.sort_inbox(db).lanes == LANES


def test_of_a_locked_letter_and_a_poisoned_one_behind_it_the_poisoned_one_moves_aside(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    locked, poisoned = letters.parked(db), letters.parked(db)
    letters.send(db, locked.id)
    letters.put(db, poisoned.id, "e", slot=None)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.id,))
    with pytest.raises(Exception, match="null value"):
        moves.sort_inbox(db, 1)

    db.rows(moves.statement("FAIL_LETTER"), {"error": "it names no event"})
    holder.rollback()

    assert db.rows("select run_id from kedge.inbox_failed") == [(poisoned.id,)]
    assert moves.sort_inbox(db).lanes == LANES


def test_what_is_due_after_three_days_is_due_after_three_days(db: Session, clock: Clock) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "sleep", "d", delay_s=timedelta(days=3).total_seconds())
    letters.park(db, worker, run)

    clock.advance(timedelta(days=3) - timedelta(minutes=1))
    early = moves.claim_alone(db, worker)
    clock.advance(timedelta(minutes=1))

    assert early == []
    assert [claimed.id for claimed in moves.claim_alone(db, worker)] == [run.id]
