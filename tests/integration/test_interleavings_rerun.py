"""A rerun meets its own repeat, and what else may happen to the run that it comes from."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge.ids import new_run_id
from tests import moves
from tests.moves import Claimed
from tests.sessions import Session, Sessions
from tests.singletons import active, holders

LEVELS = ("read committed", "repeatable read", "serializable")


def rerun(db: Session, new: UUID, old: UUID, step: str = "step2") -> tuple[Any, ...]:
    """`rerun_run_v1`: created, the old run's status, the active run of its singleton."""
    ((created, status, holder),) = db.rows(
        "select created, status, holder from kedge.rerun_run_v1($1, $2, null, $3)", (new, old, step)
    )
    return created, status, holder


def ended(db: Session, status: str = "c", **options: Any) -> Claimed:
    """A run of three steps."""
    worker = moves.register(db)
    moves.start(db, **options)
    (claimed,) = moves.claim_alone(db, worker)
    for seq in (1, 2, 3):
        moves.keep(db, worker, claimed, seq)
    moves.end(db, worker, claimed, status, rows=(1, 3))
    return claimed


def test_a_rerun_repeated_after_the_new_run_has_ended_executes_nothing_again(db: Session) -> None:
    old = ended(db)
    worker, new = moves.register(db), new_run_id()
    rerun(db, new, old.id)
    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)

    assert rerun(db, new, old.id) == (True, "completed", None)
    assert moves.claim_alone(db, worker) == []
    assert moves.journal(db, new) == [(1, 0)]


@pytest.mark.parametrize("singleton", [None, "raise"])
def test_a_rerun_and_its_repeat_at_the_same_time_make_one_run(sessions: Sessions, singleton: str | None) -> None:
    first, second = sessions.open(), sessions.open()
    old = ended(first, singleton=singleton)
    new = new_run_id()
    first.begin()
    rerun(first, new, old.id)

    repeat = second.later(rerun, new, old.id)
    sessions.wait_until_blocked(second, first)
    first.commit()

    assert repeat.result() == (True, "completed", None)
    assert moves.statuses(second) == {old.id: "completed", new: "pending"}
    assert moves.journal(second, new) == [(1, 0)]


@pytest.mark.parametrize("state", ["pending", "running"])
def test_only_a_run_that_has_ended_is_rerun(db: Session, state: str) -> None:
    (run,) = moves.started(db)
    worker = moves.register(db)
    if state == "running":
        (claimed,) = moves.claim_alone(db, worker)
        moves.keep(db, worker, claimed, 1)

    assert rerun(db, new_run_id(), run, "step1") == (False, state, None)
    assert list(moves.statuses(db)) == [run]


def test_a_new_runs_next_row_comes_behind_those_that_it_has_taken_over(db: Session) -> None:
    old = ended(db, "f")
    worker, new = moves.register(db), new_run_id()
    rerun(db, new, old.id, "step3")

    (claimed,) = moves.claim_alone(db, worker)
    kept = moves.keep(db, worker, claimed)

    assert (claimed.id, claimed.next_seq, kept) == (new, 3, 1)
    assert moves.journal(db, new) == [(1, 0), (2, 0), (3, claimed.epoch)]


@pytest.mark.parametrize("level", LEVELS)
def test_a_callers_open_rerun_blocks_no_worker(sessions: Sessions, level: str) -> None:
    db, caller = sessions.open(), sessions.open(lock_timeout="1s")
    old = ended(db)
    worker = moves.register(db)
    moves.start(db)
    caller.begin(level)
    new = new_run_id()
    assert rerun(caller, new, old.id)[0]

    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)
    caller.commit()

    assert moves.status(db, new) == "pending"


def test_of_a_singletons_start_and_a_rerun_at_the_same_time_one_is_active(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    old = ended(first, key="k", singleton="raise")
    first.begin()
    started = moves.start(first, key="k", singleton="raise").run

    new = new_run_id()
    later = second.later(rerun, new, old.id)
    sessions.wait_until_blocked(second, first)
    first.commit()

    assert later.result() == (False, "completed", started)
    assert active(second) == [started]
    assert holders(second) == [("order", "k", started)]


def test_the_id_of_a_rerun_is_one_of_today(db: Session) -> None:
    old = ended(db)

    with pytest.raises(psycopg.Error) as refused:
        rerun(db, UUID("016f5e66-e800-7000-8000-000000000000"), old.id)

    assert refused.value.sqlstate == "KE004"
    assert list(moves.statuses(db)) == [old.id]
