"""Groups of waits, such as a map's: how many ends wake the run that waits for them."""

from __future__ import annotations

from uuid import UUID

import pytest

from tests import letters, moves
from tests.sessions import Session


def parked(db: Session, size: int, *, need: int) -> tuple[UUID, moves.Claimed]:
    """A run that waits for so many children of one map."""
    worker, run = letters.running(db)
    for number in range(size):
        letters.open_wait(db, worker, run, f"m[{number}]", "c", need=need, group="m")
    letters.park(db, worker, run)
    return worker, run


def end(db: Session, run: UUID, number: int, payload: bytes = b"c1") -> str:
    """A child ends; what its parent is then."""
    letters.put(db, run, "c", slot=f"k:m[{number}]", payload=payload)
    moves.sort_inbox(db)
    return moves.status(db, run)


def test_the_last_of_a_group_wake_their_run_though_they_are_fewer_than_it_wants(db: Session) -> None:
    _, run = parked(db, 2, need=5)

    assert [end(db, run.id, number) for number in range(2)] == ["waiting", "pending"]


@pytest.mark.parametrize("payload", [b"f\x01{}", b"x"], ids=["failed", "cancelled"])
def test_an_end_that_is_not_good_wakes_the_run_at_once(db: Session, payload: bytes) -> None:
    _, run = parked(db, 4, need=4)

    assert [end(db, run.id, 0), end(db, run.id, 1, payload)] == ["waiting", "pending"]


def test_who_watches_a_run_that_is_gone_is_told_so(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "child", "c")
    letters.park(db, worker, run)

    letters.watch(db, UUID("01900000-0000-7000-8000-000000000001"), run.id)
    moves.sort_inbox(db)
    moves.sort_inbox(db)

    payload = db.value("select payload from kedge.events where run_id = $1", (run.id,))
    assert bytes(payload).startswith(b"f\x01{")
    assert b"RunNotFoundError" in payload
    assert moves.status(db, run.id) == "pending"
