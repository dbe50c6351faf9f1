"""Cancel, pause, resume, fast-forward, retry: in whatever order, each has its answer, and repeats do nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID, uuid4

import pytest

from kedge_worker.testing import Clock
from tests import letters, moves
from tests.sessions import Session, Sessions

LANES: Final = [moves.LANE]

LEAVE: Final[dict[str, letters.Move]] = {
    "park": letters.park,
    "give back": moves.release,
    "give back with a delay": partial(moves.release, delay_s=60),
    "retry later": letters.retry_later,
    "retry at once": partial(letters.retry_later, delay_s=0),
}
"""Every move out of running that is no end."""


def failed(db: Session, singleton: str | None = None, resource: str | None = None) -> moves.Claimed:
    """A new run that has failed."""
    worker = moves.register(db)
    moves.start(db, singleton=singleton, resource=resource)
    (run,) = moves.claim_alone(db, worker)
    moves.end(db, worker, run, "f")
    return run


# ---- pause and resume at rest -------------------------------------------------------------------------------------


def test_a_pending_run_is_paused_and_claimed_by_nobody_until_it_is_resumed(db: Session) -> None:
    (run,) = moves.started(db)
    before = moves.run_row(db, run)["seq"]
    letters.put(db, run, "s", reason="lunch")

    paused = moves.sort_inbox(db)
    row = moves.run_row(db, run)
    claimed = moves.claim_alone(db, moves.register(db))
    letters.put(db, run, "u")
    resumed = moves.sort_inbox(db)

    assert (paused.letters, paused.lanes, claimed) == (1, [], [])
    assert (row["state"], row["reason"]) == ("s", "lunch")
    assert (resumed.letters, resumed.lanes) == (1, LANES)
    row = moves.run_row(db, run)
    assert (row["state"], row["reason"], row["due_at"]) == ("p", None, None)
    assert row["seq"] > before
    assert letters.notes(db, run) == ["pause: done", "resume: done"]


def test_a_waiting_run_keeps_its_time_and_its_waits_over_a_pause(db: Session) -> None:
    run = letters.parked(db, "paid", delay_s=60)
    due = letters.due_at(db, run.id)

    for kind, status in (("s", "paused"), ("u", "waiting")):
        letters.put(db, run.id, kind)
        assert moves.sort_inbox(db).lanes == []
        assert (moves.status(db, run.id), letters.due_at(db, run.id)) == (status, due)
    assert letters.waits(db, run.id) == ["paid"]


def test_a_run_whose_time_came_while_it_was_paused_is_pending_when_it_is_resumed(db: Session, clock: Clock) -> None:
    run = letters.parked(db, "paid", delay_s=60)
    worker = moves.register(db)
    letters.put(db, run.id, "s")
    moves.sort_inbox(db)
    clock.advance(61)

    while_paused = moves.claim_alone(db, worker)
    letters.put(db, run.id, "u")
    resumed = moves.sort_inbox(db)

    assert while_paused == []
    assert (moves.status(db, run.id), resumed.lanes) == ("pending", LANES)


def test_a_paused_run_goes_on_collecting_mail_and_meets_it_when_it_is_resumed(db: Session) -> None:
    run = letters.parked(db)
    letters.put(db, run.id, "s")
    letters.send(db, run.id)

    collecting = moves.sort_inbox(db)
    status = moves.status(db, run.id)
    letters.put(db, run.id, "u")
    resumed = moves.sort_inbox(db)

    assert (collecting.lanes, status) == ([], "paused")
    assert letters.mail(db, run.id) == [("e:paid", b"\x011")]
    assert (moves.status(db, run.id), resumed.lanes) == ("pending", LANES)


def test_a_delayed_run_that_is_paused_and_resumed_still_begins_at_its_time(db: Session) -> None:
    (run,) = moves.started(db, delay_s=60)
    due = letters.due_at(db, run)
    for kind in "su":
        letters.put(db, run, kind)

    moves.sort_inbox(db)

    assert (moves.status(db, run), letters.due_at(db, run)) == ("waiting", due)


def test_paused_runs_whose_time_has_come_take_no_place_in_a_claim(db: Session, clock: Clock) -> None:
    paused = moves.started(db, 3, delay_s=10)
    for run in paused:
        letters.put(db, run, "s")
    moves.sort_inbox(db)
    (due,) = moves.started(db, delay_s=20)
    clock.advance(timedelta(seconds=30))

    claimed = moves.claim_alone(db, moves.register(db), 1)

    assert [run.id for run in claimed] == [due]


def test_pause_and_resume_back_to_back_leave_the_run_as_it_was(db: Session) -> None:
    (run,) = moves.started(db)
    for kind in "susu":
        letters.put(db, run, kind)

    sorted_ = moves.sort_inbox(db)

    assert (sorted_.letters, moves.status(db, run)) == (4, "pending")


def test_resume_and_pause_back_to_back_leave_a_paused_run_paused(db: Session) -> None:
    (run,) = moves.started(db)
    for kind in "sus":
        letters.put(db, run, kind)

    moves.sort_inbox(db)

    assert moves.status(db, run) == "paused"
    assert letters.notes(db, run) == ["pause: done", "resume: done", "pause: done"]


def test_repeats_answer_that_it_is_so_already(db: Session) -> None:
    (run,) = moves.started(db)
    for kind in "ussuu":
        letters.put(db, run, kind)

    moves.sort_inbox(db)

    assert letters.notes(db, run) == [
        "resume: already",
        "pause: done",
        "pause: already",
        "resume: done",
        "resume: already",
    ]


# ---- pause and resume of a running run ----------------------------------------------------------------------------


def test_the_owner_of_a_running_run_is_asked_to_pause_it_and_told_when_it_need_not(db: Session) -> None:
    worker, run = letters.running(db)

    letters.put(db, run.id, "s", reason="lunch")
    asked = moves.sort_inbox(db)
    row = moves.run_row(db, run.id)
    letters.put(db, run.id, "u")
    taken_back = moves.sort_inbox(db)

    assert (asked.owners, row["state"], row["request"], row["reason"]) == ([worker], "r", "s", "lunch")
    assert taken_back.owners == [worker]
    assert moves.run_row(db, run.id)["request"] is None
    assert letters.notes(db, run.id) == ["pause: asked", "resume: done"]


@pytest.mark.parametrize("move", LEAVE)
@pytest.mark.parametrize(("request_", "expected"), [("s", "paused"), ("d", "failed"), ("x", "cancelled")])
def test_a_request_is_applied_by_every_move_out_of_running(
    db: Session, move: str, request_: str, expected: str
) -> None:
    worker, run = letters.running(db)
    moves.keep(db, worker, run)
    letters.open_wait(db, worker, run, "paid", delay_s=60)
    db.rows("update kedge.runs set request = $1, reason = 'because'", (request_,))

    left = LEAVE[move](db, worker, replace(run, next_seq=2))

    assert left == 1
    assert moves.statuses(db) == {run.id: expected}
    assert db.value("select count(*) from kedge.runs where request is not null or worker_id is not null") == 0
    if expected == "failed":
        assert b"RunDeadlineError" in db.value("select error from kedge.finished")
    assert db.value("select reason from kedge.all_runs") == "because"


@pytest.mark.parametrize("move", ["give back", "retry at once"])
def test_a_run_that_was_paused_in_the_middle_of_something_is_pending_when_it_is_resumed(db: Session, move: str) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    letters.put(db, run.id, "s")
    moves.sort_inbox(db)

    LEAVE[move](db, worker, run)
    letters.put(db, run.id, "u")
    moves.sort_inbox(db)

    assert moves.status(db, run.id) == "pending"


def test_a_run_that_a_dead_worker_left_with_a_pause_is_pending_when_it_is_resumed(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    letters.put(db, run.id, "s")
    moves.sort_inbox(db)
    moves.lapse(db, worker)

    moves.take_back(db)
    paused = moves.status(db, run.id)
    letters.put(db, run.id, "u")
    moves.sort_inbox(db)

    assert (paused, moves.status(db, run.id)) == ("paused", "pending")


def test_a_run_that_was_taken_back_paused_and_resumed_goes_on_with_what_it_has_to_do(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid")
    moves.release(db, worker, run)
    for kind in "su":
        letters.put(db, run.id, kind)

    moves.sort_inbox(db)

    assert moves.status(db, run.id) == "pending"


def test_a_run_that_only_waits_and_parks_with_a_pause_goes_on_waiting_when_it_is_resumed(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "paid", delay_s=60)
    letters.put(db, run.id, "s")
    moves.sort_inbox(db)
    letters.park(db, worker, run)
    due = letters.due_at(db, run.id)
    letters.put(db, run.id, "u")

    moves.sort_inbox(db)

    assert due is not None
    assert (moves.status(db, run.id), letters.due_at(db, run.id)) == ("waiting", due)


# ---- the lattice: cancel beats the deadline beats pause -----------------------------------------------------------


@pytest.mark.parametrize("order", ["xs", "sx", "xu", "sux", "xsu"])
def test_a_cancel_wins_whatever_comes_before_or_behind_it(db: Session, order: str) -> None:
    _, running = letters.running(db)
    resting = letters.parked(db)
    for run in (running, resting):
        for kind in order:
            letters.put(db, run.id, kind)

    sorted_ = moves.sort_inbox(db)

    assert sorted_.ended == [resting.id]
    assert moves.run_row(db, running.id)["request"] == "x"


def test_a_pause_does_not_replace_a_cancel_or_a_deadline(db: Session) -> None:
    worker = moves.register(db)
    runs = {request: letters.running(db, worker)[1] for request in ("x", "d")}
    for request, run in runs.items():
        db.rows("update kedge.runs set request = $2 where id = $1", (run.id, request))
        letters.put(db, run.id, "s")
        letters.put(db, run.id, "u")

    moves.sort_inbox(db)

    assert {request: moves.run_row(db, run.id)["request"] for request, run in runs.items()} == {"x": "x", "d": "d"}
    assert letters.notes(db, runs["x"].id) == ["pause: refused, the run is being cancelled", "resume: already"]
    assert letters.notes(db, runs["d"].id) == ["pause: refused, the time of the run is up", "resume: already"]


def test_a_cancel_replaces_a_deadline_and_a_pause(db: Session) -> None:
    worker = moves.register(db)
    runs = [letters.running(db, worker)[1] for _ in "ds"]
    for request, run in zip("ds", runs, strict=True):
        db.rows("update kedge.runs set request = $2 where id = $1", (run.id, request))
        moves.cancel(db, run.id, reason="enough")

    sorted_ = moves.sort_inbox(db)

    assert sorted_.owners == [worker]
    assert db.rows("select request, reason from kedge.runs") == [("x", "enough")] * 2


def test_a_cancel_says_what_became_of_it(db: Session) -> None:
    worker = moves.register(db)
    running, ended = letters.running(db, worker)[1], letters.running(db, worker)[1]
    (resting,) = moves.started(db)
    for run in (resting, running.id, ended.id):
        letters.put(db, run, "x")
        letters.put(db, run, "x")
    moves.end(db, worker, ended)

    moves.sort_inbox(db)

    assert letters.notes(db, resting) == ["cancel: done", "cancel: already"]
    assert letters.notes(db, running.id) == ["cancel: asked", "cancel: already"]
    assert letters.notes(db, ended.id)[0] == "cancel: refused, the run is completed"


@pytest.mark.parametrize("kind", "sugrx")
def test_a_letter_to_a_run_that_has_completed_changes_nothing_and_says_so(db: Session, kind: str) -> None:
    worker, run = letters.running(db)
    letters.put(db, run.id, kind)
    moves.end(db, worker, run)

    sorted_ = moves.sort_inbox(db)

    assert sorted_ == moves.Sorted(1, remaining=False, owners=[], ended=[])
    assert moves.statuses(db) == {run.id: "completed"}
    (note,) = letters.notes(db, run.id)
    assert note.endswith(": refused, the run is completed")


@pytest.mark.parametrize("kind", "sugrxecwo")
def test_a_letter_to_a_run_that_does_not_exist_leaves(db: Session, kind: str) -> None:
    letters.put(db, uuid4(), kind, slot="k:a", payload=b"", sender=uuid4())

    sorted_ = moves.sort_inbox(db)

    assert sorted_.letters == 1
    assert db.value("select count(*) from kedge.run_log") == 0
    db.rows("delete from kedge.inbox")  # the answer to a watch


# ---- a run's own pause --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_parked", [True, False])
def test_resume_answers_the_oldest_pause_that_a_run_has_asked_for(db: Session, is_parked: bool) -> None:
    worker, run = letters.running(db)
    for key in ("review", "again"):
        letters.open_wait(db, worker, run, key, "u")
    if is_parked:
        letters.park(db, worker, run)
    letters.put(db, run.id, "u")

    sorted_ = moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("k:review", b"")]
    assert (sorted_.lanes, sorted_.owners) == ((LANES, []) if is_parked else ([], [worker]))
    assert letters.notes(db, run.id) == ["resume: done"]


def test_two_resumes_answer_two_pauses_and_a_third_none(db: Session) -> None:
    run = letters.parked(db, "review", "again", kind="u")
    for _ in range(3):
        letters.put(db, run.id, "u")

    moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("k:review", b""), ("k:again", b"")]
    assert letters.notes(db, run.id) == ["resume: done", "resume: done", "resume: already"]


def test_of_an_operators_pause_and_a_runs_own_a_resume_ends_the_operators_first(db: Session) -> None:
    run = letters.parked(db, "review", kind="u")
    for kind in "su":
        letters.put(db, run.id, kind)

    moves.sort_inbox(db)

    assert (moves.status(db, run.id), letters.mail(db, run.id)) == ("waiting", [])


def test_a_runs_own_pause_stops_no_timers_of_its_other_branches(db: Session, clock: Clock) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "review", "u")
    letters.open_wait(db, worker, run, "tick", "d", delay_s=60)
    letters.park(db, worker, run)

    clock.advance(61)

    assert [claimed.id for claimed in moves.claim_alone(db, worker)] == [run.id]


# ---- fast-forward -------------------------------------------------------------------------------------------------


def test_a_fast_forward_answers_the_oldest_wait_that_can_be_skipped(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "child", "c")
    letters.open_wait(db, worker, run, "retry", "r", delay_s=60)
    letters.open_wait(db, worker, run, "sleep", "d", delay_s=60)
    letters.open_wait(db, worker, run, "paid")
    letters.park(db, worker, run)
    letters.put(db, run.id, "g", payload=b"\x012")

    sorted_ = moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("k:sleep", b"\x012")]
    assert (moves.status(db, run.id), sorted_.lanes) == ("pending", LANES)
    assert letters.notes(db, run.id) == ["fast-forward: done"]


def test_a_fast_forward_may_name_its_wait(db: Session) -> None:
    run = letters.parked(db, "paid", "delivered")
    letters.put(db, run.id, "g", slot="k:delivered", payload=b"\x012")

    moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("k:delivered", b"\x012")]


def test_a_fast_forward_of_a_wait_that_is_not_open_is_refused(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "child", "c")
    for slot in ("k:paid", "k:child", None):
        letters.put(db, run.id, "g", slot=slot, payload=b"\x012")

    sorted_ = moves.sort_inbox(db)

    assert (sorted_.owners, letters.mail(db, run.id)) == ([], [])
    assert letters.notes(db, run.id) == [
        "fast-forward: refused, the run does not wait for paid",
        "fast-forward: refused, the run does not wait for child",
        "fast-forward: refused, the run waits for nothing that can be skipped",
    ]


def test_a_repeated_fast_forward_acts_once(db: Session) -> None:
    run = letters.parked(db, "paid", "delivered")
    letter = letters.put(db, run.id, "g", payload=b"\x012")
    moves.sort_inbox(db)

    letters.put(db, run.id, "g", payload=b"\x012", letter=letter)
    moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("k:paid", b"\x012")]
    assert letters.notes(db, run.id) == ["fast-forward: done", "fast-forward: already"]


def test_a_paused_run_keeps_its_fast_forward(db: Session) -> None:
    run = letters.parked(db)
    for kind in "sgu":
        letters.put(db, run.id, kind, payload=b"\x012")

    moves.sort_inbox(db)

    assert letters.mail(db, run.id) == [("k:paid", b"\x012")]
    assert moves.status(db, run.id) == "pending"


# ---- retry --------------------------------------------------------------------------------------------------------


def test_a_failed_run_goes_on_with_what_it_has_kept(db: Session) -> None:
    worker, run = letters.running(db)
    for seq in (1, 2, 3):
        moves.keep(db, worker, run, seq)
    db.rows("update kedge.journal set kind = case seq when 1 then 's' when 2 then 'x' else 'f' end where seq > 0")
    letters.send(db, run.id, "early")
    moves.sort_inbox(db)
    moves.end(db, worker, run, "f", rows=(1, 3))
    letters.put(db, run.id, "r")

    sorted_ = moves.sort_inbox(db)

    row = moves.run_row(db, run.id)
    assert (sorted_.letters, sorted_.lanes) == (1, LANES)
    assert moves.statuses(db) == {run.id: "pending"}
    assert (row["epoch"], row["attempt"], row["next_seq"], row["request"]) == (run.epoch + 1, 0, 4, None)
    assert row["has_waits"], "there is unread mail"
    assert [seq for seq, _ in moves.journal(db, run.id)] == [1]
    assert letters.failures(db, run.id) == [("r", "", 1, 0), ("x", "step2", 1, 2), ("f", "step3", 1, 3)]
    assert letters.mail(db, run.id) == [("e:early", b"\x011")]
    assert letters.notes(db, run.id) == ["retry: done"]


def test_a_retry_begins_a_new_time_limit(db: Session, clock: Clock) -> None:
    worker, run = letters.running(db)
    letters.set_deadline(db, run.id, timedelta(hours=1))
    moves.end(db, worker, run, "f")
    clock.advance(timedelta(days=1))
    letters.put(db, run.id, "r")

    moves.sort_inbox(db)

    assert letters.expire(db) == ([], [])
    assert db.value(
        "select deadline_at between now() + interval '24 hours' and now() + interval '26 hours' from kedge.runs"
    )


@pytest.mark.parametrize("status", ["c", "x"])
def test_only_a_failed_run_is_retried(db: Session, status: str) -> None:
    worker, run = letters.running(db)
    moves.end(db, worker, run, status)
    letters.put(db, run.id, "r")

    moves.sort_inbox(db)

    expected = {"c": "completed", "x": "cancelled"}[status]
    assert moves.statuses(db) == {run.id: expected}
    assert letters.notes(db, run.id) == [f"retry: refused, the run is {expected}"]


def test_a_repeated_retry_is_answered_that_it_is_so_already(db: Session) -> None:
    run = failed(db)
    for _ in range(2):
        letters.put(db, run.id, "r")

    while moves.sort_inbox(db).letters:
        pass

    assert moves.run_row(db, run.id)["epoch"] == run.epoch + 1
    assert letters.notes(db, run.id) == ["retry: done", "retry: already"]


def test_what_is_sent_behind_a_retry_is_sorted_for_the_run_that_lives_again(db: Session) -> None:
    run = failed(db)
    letters.put(db, run.id, "r")
    letters.send(db, run.id)
    letters.put(db, run.id, "s")

    first = moves.sort_inbox(db)
    moves.sort_inbox(db)

    assert (first.letters, first.remaining) == (1, True)
    assert (moves.status(db, run.id), letters.mail(db, run.id)) == ("paused", [("e:paid", b"\x011")])


@pytest.mark.parametrize(("order", "expected"), [("rx", "cancelled"), ("xr", "pending")])
def test_a_retry_and_a_cancel_are_done_in_their_order(db: Session, order: str, expected: str) -> None:
    worker, run = letters.running(db)
    for kind in order:
        letters.put(db, run.id, kind)
    moves.end(db, worker, run, "f")

    while moves.sort_inbox(db).letters:
        pass

    assert moves.status(db, run.id) == expected


def test_a_retried_singleton_is_the_one_again(db: Session) -> None:
    run = failed(db, singleton="raise")
    letters.put(db, run.id, "r")

    moves.sort_inbox(db)

    assert moves.start(db, singleton="raise").conflict == "active"


def test_a_retry_is_refused_while_another_run_of_its_singleton_is_active(db: Session) -> None:
    run = failed(db, singleton="raise")
    (other,) = moves.started(db, singleton="raise")
    letters.put(db, run.id, "r")

    moves.sort_inbox(db)

    assert moves.statuses(db) == {run.id: "failed", other: "pending"}
    assert letters.notes(db, run.id) == ["retry: refused, another run with its key is active"]


def test_a_retry_minds_no_active_singleton_of_another_resource(db: Session) -> None:
    run = failed(db, singleton="raise", resource="alice")
    (other,) = moves.started(db, singleton="raise", resource="bob")
    letters.put(db, run.id, "r")

    moves.sort_inbox(db)

    assert moves.statuses(db) == {run.id: "pending", other: "pending"}
    assert db.value("select count(*) from kedge.singletons") == 2


def test_a_retry_whose_singleton_a_caller_is_just_starting_stays_and_stops_nobody(sessions: Sessions) -> None:
    db, caller = sessions.open(lock_timeout="50ms"), sessions.open()
    run, waiting = failed(db, singleton="raise"), letters.parked(db)
    letters.put(db, run.id, "r")
    letters.send(db, waiting.id)
    caller.begin()
    moves.start(caller, singleton="raise")

    while_open = moves.sort_inbox(db)
    caller.commit()
    after = moves.sort_inbox(db)

    assert (while_open.letters, while_open.remaining, while_open.lanes) == (1, True, LANES)
    assert (after.letters, after.remaining) == (1, False)
    assert letters.notes(db, run.id) == ["retry: refused, another run with its key is active"]


def test_an_ended_singleton_leaves_its_place(db: Session) -> None:
    run = failed(db, singleton="raise")

    assert db.value("select count(*) from kedge.singletons") == 0
    assert moves.start(db, singleton="raise").run != run.id


def test_an_end_waits_for_no_caller_that_takes_over_its_singleton(sessions: Sessions) -> None:
    db, caller = sessions.open(lock_timeout="50ms"), sessions.open()
    worker = moves.register(db)
    moves.started(db, singleton="cancel_old")
    (run,) = moves.claim_alone(db, worker)
    caller.begin()
    (new,) = moves.started(caller, singleton="cancel_old")

    ended = moves.end(db, worker, run)
    caller.commit()
    for _ in range(2):
        moves.sort_inbox(db)

    assert ended == 1
    assert moves.statuses(db) == {run.id: "completed", new: "pending"}
    assert db.rows("select run_id from kedge.singletons") == [(new,)]


# ---- observers ----------------------------------------------------------------------------------------------------


def test_a_run_that_somebody_watches_says_so_to_its_owner_once(db: Session) -> None:
    worker, run = letters.running(db)
    seen: list[list[UUID]] = []

    for _ in range(2):
        letters.put(db, run.id, "o")
        seen.append(moves.sort_inbox(db).owners)

    assert seen == [[worker], []]
    assert moves.run_row(db, run.id)["is_observed"]
