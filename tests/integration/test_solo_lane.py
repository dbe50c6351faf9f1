"""What a take back charges: two crashes lead into the solo lane, three more there to the end; and who is charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

import psycopg
import pytest

from kedge.failures import decode_error
from kedge.names import SOLO_LANE
from kedge_client import Client
from tests import moves
from tests.sessions import Session, Sessions

SOLO: Final = SOLO_LANE + moves.QUEUE


def claim(session: Session, worker: UUID, queue: str) -> list[moves.Claimed]:
    """A whole claim of one lane."""
    session.begin()
    moves.hold(session, worker)
    claimed = moves.claim(session, worker, floors={(queue, moves.WORKFLOW): moves.LOWEST})
    session.commit()
    return claimed


def crash(session: Session, queue: str = moves.QUEUE, *, rows: int = 0) -> moves.TakenBack | None:
    """A worker claims a lane, keeps some rows of each run, and dies."""
    worker = moves.register(session)
    for run in claim(session, worker, queue):
        for seq in range(run.next_seq, run.next_seq + rows):
            moves.keep(session, worker, run, seq)
    moves.lapse(session, worker)
    return moves.take_back(session)


def standing(session: Session, run: UUID) -> tuple[int, str]:
    """The run's crashes and its lane."""
    row = moves.run_row(session, run)
    return row["crashes"], row["queue"]


def in_the_solo_lane(session: Session, count: int = 1) -> list[UUID]:
    """New runs that have crashed twice."""
    runs = moves.started(session, count)
    crash(session)
    crash(session)
    return runs


def test_two_crashes_in_a_row_lead_into_the_solo_lane(db: Session) -> None:
    (run,) = moves.started(db)

    crash(db)
    once = standing(db, run)
    crash(db)
    twice = standing(db, run)

    assert (once, twice) == ((1, moves.QUEUE), (2, SOLO))
    assert moves.claim_alone(db, moves.register(db)) == []


def test_the_lanes_in_which_somebody_must_be_rung_are_those_that_the_runs_stand_in_now(db: Session) -> None:
    (crashed,) = moves.started(db)
    crash(db)
    moves.started(db)
    worker = moves.register(db)
    moves.claim_alone(db, worker)
    moves.lapse(db, worker)

    ((queues, workflows),) = db.rows(
        "select queues, workflows from kedge.take_back($1::smallint, '{}')", (moves.PROTOCOL,)
    )

    assert sorted(zip(queues, workflows, strict=True)) == [(SOLO, moves.WORKFLOW), (moves.QUEUE, moves.WORKFLOW)]
    assert standing(db, crashed) == (2, SOLO)


def test_the_third_crash_in_the_solo_lane_fails_the_run_and_says_why(db: Session) -> None:
    (run,) = in_the_solo_lane(db)

    taken = [crash(db, SOLO) for _ in range(3)]

    assert [one is not None and one.ended for one in taken] == [[], [], [run]]
    ((crashes, status, data),) = db.rows("select crashes, status, error from kedge.finished")
    assert (crashes, status) == (5, "f")
    error = decode_error(data)
    assert error.kind == "kedge.errors.RunCrashedError"
    assert error.message.startswith("5 workers in a row died while they executed this run")
    assert "the last 3 executed nothing else" in error.message


@pytest.mark.parametrize("solo_crashes", [0, 1, 2])
def test_a_run_that_gets_on_returns_to_its_queue_however_near_its_end_it_was(db: Session, solo_crashes: int) -> None:
    (run,) = in_the_solo_lane(db)
    for _ in range(solo_crashes):
        crash(db, SOLO)

    crash(db, SOLO, rows=1)

    assert standing(db, run) == (0, moves.QUEUE)


def test_crashes_of_neighbours_fail_nobody(db: Session) -> None:
    runs = moves.started(db, 20)

    for _ in range(2):
        crash(db)
    for _ in range(20):
        worker = moves.register(db)
        done = claim(db, worker, SOLO)[0]
        moves.end(db, worker, done)
        db.rows("update kedge.workers set leaving = true where id = $1", (worker,))
        moves.lapse(db, worker)
        moves.take_back(db)

    assert moves.statuses(db) == dict.fromkeys(runs, "completed")
    assert db.value("select count(*) from kedge.finished where crashes <> 2") == 0


def test_many_crashes_before_there_was_a_solo_lane_count_as_the_first_two(db: Session) -> None:
    (run,) = moves.started(db)
    db.rows("update kedge.runs set crashes = 9, epoch = 9 where id = $1", (run,))

    crash(db)
    first = standing(db, run)
    crash(db, SOLO)
    second = standing(db, run)

    assert (first, second) == ((2, SOLO), (3, SOLO))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_solo_worker_that_left_charges_nobody(db: Session, rows: int) -> None:
    (run,) = in_the_solo_lane(db)
    worker = moves.register(db)
    (claimed,) = claim(db, worker, SOLO)
    for seq in range(1, rows + 1):
        moves.keep(db, worker, claimed, seq)

    db.rows(moves.statement("ABANDON"), {"worker": worker})
    moves.lapse(db, worker)
    moves.take_back(db)

    assert standing(db, run) == ((0, moves.QUEUE) if rows else (2, SOLO))


@pytest.mark.parametrize(("request_", "ends"), [("x", "cancelled"), ("d", "failed"), ("s", None)])
def test_a_request_is_applied_with_the_take_back(db: Session, request_: str, ends: str | None) -> None:
    (run,) = moves.started(db)
    worker = moves.register(db)
    moves.claim_alone(db, worker)
    db.rows('update kedge.runs set request = $2::text::"char" where id = $1', (run, request_))
    moves.lapse(db, worker)

    taken = moves.take_back(db)

    assert taken == moves.TakenBack(worker, freed=1, ended=[run] if ends else [], remaining=False)
    assert moves.status(db, run) == (ends or "paused")
    if ends == "failed":
        data = db.value("select error from kedge.finished")
        assert decode_error(data).kind == "kedge.errors.RunDeadlineError"


def test_the_last_crash_of_a_cancelled_run_ends_it_cancelled(db: Session) -> None:
    (run,) = in_the_solo_lane(db)
    crash(db, SOLO)
    crash(db, SOLO)
    worker = moves.register(db)
    claim(db, worker, SOLO)
    db.rows("update kedge.runs set request = 'x', reason = 'enough' where id = $1", (run,))
    moves.lapse(db, worker)

    moves.take_back(db)

    assert db.rows("select status, reason, error from kedge.finished") == [("x", "enough", None)]


@pytest.mark.parametrize(
    ("opens", "sends", "expected"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_run_that_is_taken_back_says_whether_its_next_claim_has_waits_or_mail_to_read(
    db: Session, opens: bool, sends: bool, expected: bool
) -> None:
    (run,) = moves.started(db)
    if opens:
        db.rows(
            "insert into kedge.waits (run_id, opened_at, kind, key, slot) values ($1, now(), 'e', 'w', 'e:news')",
            (run,),
        )
    if sends:
        db.rows(
            "insert into kedge.events (run_id, id, seq, at, slot, payload)"
            " values ($1, gen_random_uuid(), 1, now(), 'e:news', '')",
            (run,),
        )

    crash(db)

    assert moves.run_row(db, run)["has_waits"] is expected


MOVES: Final[dict[str, Callable[[Session, UUID, moves.Claimed], object]]] = {
    "give back": lambda session, worker, run: session.rows(
        moves.statement("RELEASE"), (worker, [run.id], [run.epoch], [0.0], [None], [run.next_seq])
    ),
    "park": lambda session, worker, run: session.rows(
        moves.statement("PARK"), (worker, [run.id], [run.epoch], [run.next_seq], [], [])
    ),
    "retry later": lambda session, worker, run: session.rows(
        moves.statement("RETRY_LATER"), (worker, [run.id], [run.epoch], [0.0], [b"\x01{}"], [None], [run.next_seq])
    ),
}


@pytest.mark.parametrize(
    ("move", "rows", "returns"),
    [("give back", 0, False), ("give back", 1, True), ("park", 0, True), ("park", 1, True), ("retry later", 0, True)],
)
def test_a_solo_run_that_gets_on_returns_to_its_queue_with_its_next_move(
    db: Session, move: str, rows: int, returns: bool
) -> None:
    (run,) = in_the_solo_lane(db)
    worker = moves.register(db)
    (claimed,) = claim(db, worker, SOLO)
    for seq in range(1, rows + 1):
        moves.keep(db, worker, claimed, seq)

    MOVES[move](db, worker, claimed)

    assert standing(db, run) == ((0, moves.QUEUE) if returns else (2, SOLO))
    assert moves.status(db, run) == "pending"


def test_people_see_the_queue_and_not_the_lane(db: Session) -> None:
    live, ended = in_the_solo_lane(db, 2)
    worker = moves.register(db)
    moves.end(db, worker, [run for run in claim(db, worker, SOLO) if run.id == ended])

    with Client.connect(db.url) as client:
        shown = [client.get(run).queue for run in (live, ended)]

    assert shown == [moves.QUEUE, moves.QUEUE]
    assert db.rows("select distinct queue from kedge.runs_view") == [(moves.QUEUE,)]
    assert db.rows("select distinct queue from kedge.finished") == [(SOLO,)]


# ---- what refuses to be freed -------------------------------------------------------------------------------------

REFUSE: Final = """
    create function refuse() returns trigger language plpgsql as
        $$ begin raise 'not this one'; end $$
"""


def test_a_run_that_a_trigger_refuses_stays_and_keeps_nobody_else_from_being_taken_back(db: Session) -> None:
    bad, *good = moves.started(db, 5)
    worker = moves.register(db)
    moves.claim_alone(db, worker)
    moves.lapse(db, worker)
    db.rows(REFUSE)
    db.rows(
        f"create trigger refuse before update on kedge.runs for each row when (new.id = '{bad}')"
        " execute function refuse()"
    )

    taken = [moves.take_back(db) for _ in range(2)]
    stuck = moves.statuses(db)
    db.rows("drop trigger refuse on kedge.runs")
    after = moves.take_back(db)

    assert taken == [moves.TakenBack(worker, freed=n, ended=[], remaining=True) for n in (4, 0)]
    assert stuck == {bad: "running", **dict.fromkeys(good, "pending")}
    assert after == moves.TakenBack(worker, freed=1, ended=[], remaining=False)


def test_a_run_whose_end_is_refused_is_paused_with_the_reason(db: Session) -> None:
    bad, good = in_the_solo_lane(db, 2)
    crash(db, SOLO)
    crash(db, SOLO)
    db.rows(REFUSE)
    db.rows(
        f"create trigger refuse before insert on kedge.finished for each row when (new.id = '{bad}')"
        " execute function refuse()"
    )

    taken = crash(db, SOLO)

    assert taken is not None
    assert (taken.freed, taken.ended, taken.remaining) == (2, [good], False)
    assert moves.statuses(db) == {bad: "paused", good: "failed"}
    assert moves.run_row(db, bad)["reason"] == "its end cannot be stored: not this one"


def test_a_take_back_that_meets_a_lock_gives_up_as_a_whole(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    moves.started(db)
    worker = moves.register(db)
    moves.claim_alone(db, worker)
    moves.lapse(db, worker)
    holder.begin()
    holder.rows("lock table kedge.journal in access exclusive mode")

    with pytest.raises(psycopg.errors.LockNotAvailable):
        moves.take_back(db)
    holder.rollback()

    assert moves.take_back(db) == moves.TakenBack(worker, freed=1, ended=[], remaining=False)
