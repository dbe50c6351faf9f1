"""Children and whoever watches them: every end is told once, whenever the watching began; gates; ends that go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

import pytest

from kedge.errors import RunNotFoundError
from kedge.failures import decode_error, kind_of
from kedge.ids import new_run_id
from tests import letters, moves
from tests.sessions import Session, Sessions

LANES: Final = [moves.LANE]

Begin = Callable[[Session, UUID, moves.Claimed], UUID]
"""Makes a run and lets the parent watch its end."""


def by_start(db: Session, worker: UUID, parent: moves.Claimed) -> UUID:
    """A child of one's own: its start notes who watches."""
    child = new_run_id()
    moves.keep(db, worker, parent)
    moves.start_children(db, worker, [moves.Child(parent, parent.next_seq, child)])
    return child


def by_letter(db: Session, worker: UUID, parent: moves.Claimed) -> UUID:  # as Begin wants it
    """Somebody else's run: a letter asks to be told."""
    (child,) = moves.started(db)
    letters.watch(db, child, parent.id)
    moves.sort_inbox(db)
    return child


def family(db: Session, begin: Begin = by_start) -> tuple[UUID, moves.Claimed, moves.Claimed]:
    """A worker, a parent that is parked for its child, and the child, which is executed."""
    worker, parent = letters.running(db)
    child = begin(db, worker, parent)
    letters.open_wait(db, worker, parent, "child", "c")
    letters.park(db, worker, parent, last=1)
    (claimed,) = moves.claim_alone(db, worker)
    assert claimed.id == child
    return worker, parent, claimed


def sort_all(db: Session) -> moves.Sorted:
    """Sort until nothing moves; answers what moved, without how often."""
    total = moves.Sorted(0, remaining=False, owners=[], ended=[])
    while (sorted_ := moves.sort_inbox(db)).letters:
        total.owners.extend(sorted_.owners)
        total.ended.extend(sorted_.ended)
        total.lanes.extend(sorted_.lanes)
    return total


# ---- a child's end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [by_start, by_letter])
@pytest.mark.parametrize(("status", "payload"), [("c", b"c\x01null"), ("f", b"f\x01{}"), ("x", b"x")])
def test_a_childs_end_is_mail_for_its_parent_and_wakes_it(
    db: Session, begin: Begin, status: str, payload: bytes
) -> None:
    worker, parent, child = family(db, begin)

    moves.end(db, worker, child, status)
    sorted_ = moves.sort_inbox(db)

    assert letters.mail(db, parent.id) == [("k:child", payload)]
    assert (moves.status(db, parent.id), sorted_.lanes) == ("pending", LANES)
    assert db.value("select count(*) from kedge.run_watchers") == 0


def test_a_childs_end_by_the_courier_is_told_with_its_reason(db: Session) -> None:
    worker, parent = letters.running(db)
    (child,) = moves.started(db)
    letters.watch(db, child, parent.id)
    moves.cancel(db, child, reason="enough")

    sorted_ = sort_all(db)

    assert sorted_.ended == [child]
    assert sorted_.owners == [worker]
    assert letters.mail(db, parent.id) == [("k:child", b"xenough")]


def test_all_that_watch_a_run_are_told_and_nobody_twice(db: Session) -> None:
    worker, child = letters.running(db)
    parents = [letters.parked(db, "child", kind="c", worker=worker) for _ in range(3)]
    for parent in (*parents, *parents):
        letters.watch(db, child.id, parent.id)
    sort_all(db)

    moves.end(db, worker, child)
    sort_all(db)

    assert {tuple(letters.mail(db, parent.id)) for parent in parents} == {(("k:child", b"c\x01null"),)}


def test_watching_a_run_that_has_ended_is_answered_at_once(db: Session) -> None:
    worker, child = letters.running(db)
    moves.end(db, worker, child)
    parent = letters.parked(db, "child", kind="c")
    letters.watch(db, child.id, parent.id)

    sort_all(db)

    assert letters.mail(db, parent.id) == [("k:child", b"c\x01null")]
    assert moves.status(db, parent.id) == "pending"


def test_watching_a_run_that_is_forgotten_is_answered_too(db: Session) -> None:
    parent = letters.parked(db, "child", kind="c")
    letters.watch(db, new_run_id(), parent.id)

    sort_all(db)

    ((slot, payload),) = letters.mail(db, parent.id)
    assert (slot, payload[:1]) == ("k:child", b"f")
    assert decode_error(payload[1:]).kind == kind_of(RunNotFoundError)


def test_an_end_and_the_answer_to_a_later_watch_are_one_letter(db: Session) -> None:
    worker, parent, child = family(db)
    moves.end(db, worker, child)
    letters.watch(db, child.id, parent.id)

    sort_all(db)

    assert letters.mail(db, parent.id) == [("k:child", b"c\x01null")]


@pytest.mark.parametrize("end_commits", [True, False])
def test_a_watch_meets_an_end_under_way_and_is_answered_whatever_becomes_of_that(
    sessions: Sessions, end_commits: bool
) -> None:
    db, owner = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, child = letters.running(db)
    parent = letters.parked(db, "child", kind="c")
    letters.watch(db, child.id, parent.id)
    owner.begin()
    moves.hold(owner, worker)
    moves.end(owner, worker, child)

    while_open = moves.sort_inbox(db)
    if end_commits:
        owner.commit()
        sort_all(db)
    else:
        owner.rollback()
        sort_all(db)
        moves.end(db, worker, child)
        sort_all(db)

    assert (while_open.letters, while_open.remaining) == (0, True)
    assert letters.mail(db, parent.id) == [("k:child", b"c\x01null")]


def test_an_end_behind_an_open_courier_tells_whom_that_has_noted(sessions: Sessions) -> None:
    db, courier, owner = sessions.open(), sessions.open(), sessions.open()
    worker, child = letters.running(db)
    parent = letters.parked(db, "child", kind="c")
    letters.watch(db, child.id, parent.id)
    courier.begin()
    moves.sort_inbox(courier)

    ended = owner.later(moves.end, worker, child)
    sessions.wait_until_blocked(owner, courier)
    courier.commit()
    ended.result()
    sort_all(db)

    assert letters.mail(db, parent.id) == [("k:child", b"c\x01null")]


@pytest.mark.parametrize("ends_first", ["the child", "the retry"])
def test_a_child_that_ends_while_its_parent_has_failed_is_known_to_the_retry(db: Session, ends_first: str) -> None:
    worker, parent = letters.running(db)
    child = by_start(db, worker, parent)
    moves.end(db, worker, parent, "f", rows=(1, 1))
    (claimed,) = moves.claim_alone(db, worker)
    assert claimed.id == child

    if ends_first == "the child":
        moves.end(db, worker, claimed)
        sort_all(db)
    letters.put(db, parent.id, "r")
    sort_all(db)
    (again,) = moves.claim_alone(db, worker)
    letters.open_wait(db, worker, again, "child", "c")
    letters.watch(db, child, parent.id)
    letters.park(db, worker, again)
    if ends_first == "the retry":
        sort_all(db)
        moves.end(db, worker, claimed)
    sort_all(db)

    assert letters.mail(db, parent.id) == [("k:child", b"c\x01null")]
    assert moves.status(db, parent.id) == "pending"


def test_a_parent_that_is_retried_hears_of_a_failed_child_again_and_then_of_its_retry(db: Session) -> None:
    worker, parent, child = family(db)
    moves.end(db, worker, child, "f")
    sort_all(db)
    (woken,) = moves.claim_alone(db, worker)
    letters.consume(db, worker, woken, db.value("select id from kedge.events"), 2)
    db.rows("update kedge.journal set kind = 'f', key = 'child' where seq = 2")
    db.rows(moves.statement("CLOSE_WAITS"), (worker, [woken.id], [woken.epoch], ["child"]))
    moves.end(db, worker, woken, "f", rows=(2, 2))

    letters.put(db, parent.id, "r")
    sort_all(db)
    letters.watch(db, child.id, parent.id)
    sort_all(db)
    again = letters.mail(db, parent.id)

    assert again == [("k:child", b"f\x01{}")]


# ---- gates --------------------------------------------------------------------------------------------------------


def replaced(db: Session, *, delay_s: float | None = None) -> tuple[UUID, moves.Claimed, UUID]:
    """A worker, the run of a singleton that it executes, and the one that replaces it."""
    worker = moves.register(db)
    moves.started(db, singleton="cancel_old")
    (old,) = moves.claim_alone(db, worker)
    (new,) = moves.started(db, singleton="cancel_old", delay_s=delay_s)
    sort_all(db)
    return worker, old, new


def test_the_run_behind_a_gate_begins_when_its_predecessor_has_ended(db: Session) -> None:
    worker, old, new = replaced(db)
    before = (moves.status(db, new), moves.run_row(db, old.id)["request"], moves.claim_alone(db, worker))

    moves.end(db, worker, old, "x")
    sorted_ = moves.sort_inbox(db)

    row = moves.run_row(db, new)
    assert before == ("waiting", "x", [])
    assert (row["state"], row["has_waits"], sorted_.lanes) == ("p", False, LANES)
    assert (letters.waits(db, new), letters.mail(db, new)) == ([], [])


def test_a_predecessor_at_rest_goes_at_once(db: Session) -> None:
    (old,) = moves.started(db, singleton="cancel_old")
    (new,) = moves.started(db, singleton="cancel_old")

    sort_all(db)

    assert moves.statuses(db) == {old: "cancelled", new: "pending"}


def test_a_delayed_run_behind_a_gate_waits_for_its_time_when_the_gate_opens(db: Session) -> None:
    worker, old, new = replaced(db, delay_s=60)
    moves.end(db, worker, old, "x")

    sorted_ = moves.sort_inbox(db)

    assert (moves.status(db, new), sorted_.lanes) == ("waiting", [])
    assert letters.due_at(db, new) is not None


def test_a_paused_run_behind_a_gate_stays_paused_when_it_opens(db: Session) -> None:
    worker, old, new = replaced(db)
    letters.put(db, new, "s")
    sort_all(db)
    moves.end(db, worker, old, "x")
    sort_all(db)
    paused = moves.status(db, new)

    letters.put(db, new, "u")
    sort_all(db)

    assert (paused, moves.status(db, new)) == ("paused", "pending")


def test_a_gate_stays_closed_while_any_predecessor_is_active(db: Session) -> None:
    worker, old, between = replaced(db)
    (new,) = moves.started(db, singleton="cancel_old")
    sort_all(db)
    before = moves.statuses(db)

    moves.end(db, worker, old, "x")
    sort_all(db)

    assert before == {old.id: "running", between: "cancelled", new: "waiting"}
    assert moves.status(db, new) == "pending"


def test_a_gate_does_not_open_beside_a_predecessor_that_is_locked_and_not_noted_yet(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, first, second = replaced(db)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (second,))
    (new,) = moves.started(db, singleton="cancel_old")
    sort_all(db)
    moves.end(db, worker, first, "x")
    sort_all(db)
    while_locked = moves.status(db, new)

    holder.rollback()
    sort_all(db)

    assert while_locked == "waiting"
    assert moves.statuses(db) == {first.id: "cancelled", second: "cancelled", new: "pending"}


# ---- ends that go on to children ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["c", "f", "x"])
def test_children_that_depend_on_their_parent_are_cancelled_with_its_end_and_others_go_on(
    db: Session, status: str
) -> None:
    worker, parent = letters.running(db)
    moves.keep(db, worker, parent)
    dependent, free = new_run_id(), new_run_id()
    moves.start_children(
        db, worker, [moves.Child(parent, 1, dependent, dependent=True), moves.Child(parent, 1, free, key="free")]
    )

    moves.end(db, worker, parent, status, rows=(1, 1))
    sorted_ = sort_all(db)

    assert sorted_.ended == [dependent]
    assert moves.statuses(db, [dependent, free]) == {dependent: "cancelled", free: "pending"}


def test_dependents_of_dependents_go_too(db: Session) -> None:
    worker, parent = letters.running(db)
    moves.keep(db, worker, parent)
    child, grandchild = new_run_id(), new_run_id()
    moves.start_children(db, worker, [moves.Child(parent, 1, child, dependent=True)])
    (claimed,) = moves.claim_alone(db, worker)
    moves.keep(db, worker, claimed)
    moves.start_children(db, worker, [moves.Child(claimed, 1, grandchild, dependent=True)])
    moves.end(db, worker, parent, rows=(1, 1))

    asked = sort_all(db)
    moves.end(db, worker, claimed, "x", rows=(1, 1))
    sort_all(db)

    assert asked.owners == [worker]
    assert moves.statuses(db, [child, grandchild]) == {child: "cancelled", grandchild: "cancelled"}


@pytest.mark.parametrize("slot", ["cascade", None])
def test_a_cancel_reaches_children_only_with_cascade(db: Session, slot: str | None) -> None:
    worker, parent = letters.running(db)
    child = by_start(db, worker, parent)
    (claimed,) = moves.claim_alone(db, worker)
    grandchild = by_start(db, worker, claimed)
    letters.put(db, parent.id, "x", slot=slot, reason="enough")

    sort_all(db)

    asked = {run: moves.run_row(db, run)["request"] for run in (parent.id, child)}
    assert asked == {parent.id: "x", child: "x" if slot else None}
    assert moves.status(db, grandchild) == ("cancelled" if slot else "pending")
    if slot:
        assert db.value("select reason from kedge.finished where id = $1", (grandchild,)) == "enough"


def test_a_cascade_over_many_children_is_done_in_rounds_and_the_parent_comes_last(db: Session) -> None:
    (parent,) = moves.started(db)
    db.rows(
        """
        with made as (
            insert into kedge.runs (id, since, state, queue, workflow, parent_id)
            select gen_random_uuid(), now(), 'p', 'default', 'order', $1 from generate_series(1, 1500) returning id)
        insert into kedge.journal select id, now(), 0, 0, 0, 'i', '', '', '' from made
        """,
        (parent,),
    )
    letters.put(db, parent, "x", slot="cascade")

    first = moves.sort_inbox(db)
    before = moves.status(db, parent)
    sort_all(db)

    assert (first.letters, first.remaining, before) == (1, True, "pending")
    assert set(moves.statuses(db).values()) == {"cancelled"}
    assert len(moves.statuses(db)) == 1501
    assert letters.notes(db, parent) == ["cancel: done"]


def test_a_cascade_that_comes_behind_the_end_leaves_the_children_alone(db: Session) -> None:
    worker, parent = letters.running(db)
    child = by_start(db, worker, parent)
    letters.put(db, parent.id, "x", slot="cascade")
    moves.end(db, worker, parent, rows=(1, 1))

    sort_all(db)

    assert moves.statuses(db) == {parent.id: "completed", child: "pending"}


@pytest.mark.parametrize("how", ["park", "end", "take back"])
def test_a_cascade_reaches_a_child_that_is_started_before_the_parent_has_ended(db: Session, how: str) -> None:
    worker, parent = letters.running(db)
    letters.put(db, parent.id, "x", slot="cascade", reason="enough")
    sort_all(db)

    child = by_start(db, worker, parent)
    match how:
        case "park":
            letters.open_wait(db, worker, parent, "child", "c")
            letters.park(db, worker, parent, last=1)
        case "end":
            moves.end(db, worker, parent, "x", rows=(1, 1))
        case _:
            moves.lapse(db, worker)
            moves.take_back(db)
    sort_all(db)

    assert moves.statuses(db) == {parent.id: "cancelled", child: "cancelled"}
    assert letters.notes(db, parent.id) == ["cancel: asked"]
    assert db.value("select reason from kedge.finished where id = $1", (child,)) == "enough"


def test_a_cascade_is_for_the_children_of_the_children_that_it_finds_late(db: Session) -> None:
    worker, parent = letters.running(db)
    letters.put(db, parent.id, "x", slot="cascade")
    sort_all(db)
    child = by_start(db, worker, parent)
    (claimed,) = moves.claim_alone(db, worker)

    moves.end(db, worker, parent, "x", rows=(1, 1))
    sort_all(db)
    grandchild = by_start(db, worker, claimed)
    moves.end(db, worker, claimed, "x", rows=(1, 1))
    sort_all(db)

    assert moves.statuses(db, [child, grandchild]) == {child: "cancelled", grandchild: "cancelled"}
