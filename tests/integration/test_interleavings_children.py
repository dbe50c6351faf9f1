"""Children are started with what their parents keep of it, once, whatever happens to the flush and to the parent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any
from uuid import UUID

import pytest

from kedge.ids import new_run_id
from tests import moves
from tests.moves import Child, Claimed
from tests.sessions import Session, Sessions


def parent(db: Session, worker: UUID, **options: Any) -> Claimed:
    """A run in the hand of its worker."""
    moves.start(db, **options)
    (claimed,) = moves.claim_alone(db, worker)
    return claimed


def flush(db: Session, worker: UUID, run: Claimed, children: list[Child]) -> int:
    """The journal rows, then the children, in one transaction."""
    db.begin()
    moves.hold(db, worker)
    for child in children:
        moves.keep(db, worker, run, child.seq)
    standing = moves.start_children(db, worker, children)
    db.commit()
    return standing


def watchers(db: Session) -> list[tuple[UUID, UUID, str]]:
    return db.rows("select run_id, watcher_id, key from kedge.run_watchers order by key")


def tags(db: Session, run: UUID) -> list[str]:
    return [tag for (tag,) in db.rows("select tag from kedge.run_tags where run_id = $1 order by tag", (run,))]


def test_a_child_is_a_run_that_knows_its_parent(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    child = Child(run, 1, new_run_id(), workflow="invoice@2", queue="mail", priority=3, resource="customer-7")

    standing = flush(db, worker, run, [child])

    row = moves.run_row(db, child.id)
    assert (standing, row["state"], row["parent_id"]) == (1, "p", run.id)
    assert (row["workflow"], row["queue"], row["rank"], row["resource"]) == ("invoice@2", "mail", -3, "customer-7")
    assert (row["epoch"], row["next_seq"], row["timeout_s"], row["deadline_at"]) == (0, 1, None, None)
    assert db.rows("select seq, epoch, kind::text, value from kedge.journal where run_id = $1", (child.id,)) == [
        (0, 0, "i", b"\x01null")
    ]


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("dependent", [True, False])
def test_who_waits_for_a_child_and_who_takes_it_along_is_noted(db: Session, watched: bool, dependent: bool) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    child = Child(run, 1, new_run_id(), key="invoice#2", watched=watched, dependent=dependent)

    flush(db, worker, run, [child])

    assert watchers(db) == ([(child.id, run.id, "invoice#2")] if watched else [])
    row = moves.run_row(db, child.id)
    assert (row["has_watchers"], row["is_dependent"]) == (watched, dependent)
    assert moves.run_row(db, run.id)["has_dependents"] is dependent


def test_tags_that_are_not_said_are_the_parents(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker, tags=["a", "b"])
    silent = Child(run, 1, new_run_id(), key="1")
    own = Child(run, 2, new_run_id(), key="2", tags=["c", "d", "c"])
    none = Child(run, 3, new_run_id(), key="3", tags=[])

    flush(db, worker, run, [silent, own, none])

    assert [tags(db, child.id) for child in (silent, own, none)] == [["a", "b"], ["c", "d"], []]


def test_a_child_may_begin_later_and_its_timeout_counts_from_then(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    later = datetime.now(UTC) + timedelta(days=1)
    delayed = Child(run, 1, new_run_id(), key="1", delay_s=60.0, timeout_s=10.0)
    dated = Child(run, 2, new_run_id(), key="2", due=later, timeout_s=inf)
    past = Child(run, 3, new_run_id(), key="3", due=datetime(2020, 1, 1, tzinfo=UTC), timeout_s=10.0)

    flush(db, worker, run, [delayed, dated, past])

    first, second, third = (moves.run_row(db, child.id) for child in (delayed, dated, past))
    assert (first["state"], first["due_at"] - first["since"]) == ("w", timedelta(seconds=60))
    assert first["deadline_at"] - first["due_at"] == timedelta(seconds=10)
    assert (second["state"], second["due_at"], second["timeout_s"], second["deadline_at"]) == ("w", later, inf, None)
    assert (third["state"], third["due_at"]) == ("p", None)
    assert third["deadline_at"] - third["since"] == timedelta(seconds=10)


def test_the_id_of_a_child_may_be_old(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    old = UUID("016f5e66-e800-7000-8000-000000000000")

    assert flush(db, worker, run, [Child(run, 1, old)]) == 1
    assert moves.start(db, UUID(int=old.int + 1), key="k", parent=run.id, dependent=True).created
    row = moves.run_row(db, UUID(int=old.int + 1))
    assert (row["parent_id"], row["is_dependent"]) == (run.id, True)


def test_a_child_with_a_start_of_its_own_has_its_parents_tags_too(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker, tags=["a", "b"])
    silent, own = new_run_id(), new_run_id()

    moves.start(db, silent, key="1", parent=run.id)
    moves.start(db, own, singleton="raise", parent=run.id, tags=[])

    assert (tags(db, silent), tags(db, own)) == (["a", "b"], [])


# ---- once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_repeated_flush_starts_what_is_missing_and_nothing_twice(db: Session, before: int) -> None:
    worker = moves.register(db)
    run = parent(db, worker, tags=["a"])
    children = [
        Child(run, seq, new_run_id(), key=str(seq), tags=["b"] if seq == 2 else None, dependent=True)
        for seq in range(1, 4)
    ]
    if before:
        flush(db, worker, run, children[:before])

    standing = flush(db, worker, run, children)

    assert standing == 3
    assert len(moves.statuses(db, [child.id for child in children])) == 3
    assert watchers(db) == [(child.id, run.id, child.key) for child in children]
    assert [tags(db, child.id) for child in children] == [["a"], ["b"], ["a"]]


def test_a_child_that_has_ended_is_not_started_again_by_a_repeated_flush(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    child = Child(run, 1, new_run_id(), watched=False)
    flush(db, worker, run, [child])
    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)

    standing = flush(db, worker, run, [child])

    assert standing == 1
    assert moves.statuses(db) == {run.id: "running", child.id: "completed"}


# ---- whose it is --------------------------------------------------------------------------------------------------


def test_a_parent_that_was_taken_back_starts_no_child(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    moves.keep(db, worker, run, 1)
    moves.lapse(db, worker)
    moves.take_back(db)

    assert moves.start_children(db, worker, [Child(run, 1, new_run_id())]) == 0
    assert list(moves.statuses(db)) == [run.id]


def test_a_parent_that_was_taken_back_and_claimed_again_starts_no_child(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    moves.keep(db, worker, run, 1)
    moves.release(db, worker, run, last=1)
    (again,) = moves.claim_alone(db, worker)

    assert again.id == run.id
    assert moves.start_children(db, worker, [Child(run, 1, new_run_id())]) == 0
    assert list(moves.statuses(db)) == [run.id]


def test_a_worker_starts_no_children_for_another_ones_run(db: Session) -> None:
    worker, other = moves.register(db), moves.register(db)
    run = parent(db, worker)
    moves.keep(db, worker, run, 1)

    assert moves.start_children(db, other, [Child(run, 1, new_run_id())]) == 0
    assert list(moves.statuses(db)) == [run.id]


def test_a_child_without_its_parents_row_is_not_started(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    moves.keep(db, worker, run, 1)
    with_row, without = Child(run, 1, new_run_id(), key="1"), Child(run, 2, new_run_id(), key="2", dependent=True)

    assert moves.start_children(db, worker, [without, with_row]) == 1

    assert set(moves.statuses(db)) == {run.id, with_row.id}
    assert watchers(db) == [(with_row.id, run.id, "1")]
    assert moves.run_row(db, run.id)["has_dependents"] is False


def test_a_row_of_another_epoch_starts_no_child(db: Session) -> None:
    worker = moves.register(db)
    run = parent(db, worker)
    moves.keep(db, worker, run, 1)
    moves.release(db, worker, run, last=1)
    (again,) = moves.claim_alone(db, worker)

    assert again.epoch > run.epoch
    assert moves.start_children(db, worker, [Child(again, 1, new_run_id())]) == 0
    assert list(moves.statuses(db)) == [run.id]


def test_hundreds_of_children_of_several_parents_start_in_one_call(db: Session) -> None:
    worker = moves.register(db)
    moves.start_many(db, [new_run_id() for _ in range(2)], tags=["a"])
    first, second = moves.claim_alone(db, worker)
    ids = [new_run_id() for _ in range(500)]
    children = [
        Child(first if n % 2 else second, n // 2 + 1, run, key=f"m[{n}]/", dependent=True) for n, run in enumerate(ids)
    ]
    for run in (first, second):
        for seq in range(1, 251):
            moves.keep(db, worker, run, seq)

    standing = moves.start_children(db, worker, children)

    assert standing == 500
    assert db.value("select count(*) from kedge.runs where state = 'p' and is_dependent and has_watchers") == 500
    assert db.value("select count(*) from kedge.run_tags where tag = 'a'") == 502
    in_order = [run for (run,) in db.rows("select id from kedge.runs where parent_id is not null order by seq")]
    assert in_order == ids


def test_a_start_of_children_waits_for_nobody_elses_run(sessions: Sessions) -> None:
    db, caller = sessions.open(), sessions.open()
    journal = sessions.open(lock_timeout="50ms")
    worker = moves.register(db)
    run = parent(db, worker)
    caller.begin()
    moves.start(caller, tags=["a"])

    standing = flush(journal, worker, run, [Child(run, 1, new_run_id(), dependent=True)])
    caller.rollback()

    assert standing == 1
