"""A claim meets other claims, letters, take backs, the worker's own leave; and what it takes, in which order."""

from concurrent.futures import Future

import psycopg
import pytest

from kedge_worker.testing import Clock
from tests import moves
from tests.sessions import Session, Sessions

# Stands in for clock() and stops a claim between its snapshot and its locks: where it asks whether a run is due.
# Volatile, since the planner itself calls what is stable, and that is before the snapshot.
GATE = """
    create or replace function kedge.clock() returns timestamptz language plpgsql volatile as $$
    begin
        perform pg_advisory_xact_lock_shared(4711);
        return now();
    end $$
"""


def claim_behind_the_gate(
    sessions: Sessions, gatekeeper: Session, claimer: Session, limit: int = 100
) -> Future[list[moves.Claimed]]:
    """A whole claim that has its snapshot but no lock yet; it goes on when the gatekeeper unlocks 4711."""
    worker = moves.register(gatekeeper)
    moves.started(gatekeeper, delay_s=3600)
    gatekeeper.rows(GATE)
    gatekeeper.rows("select pg_advisory_lock(4711)")
    claimer.begin()
    moves.hold(claimer, worker)
    claimed = claimer.later(moves.claim, worker, limit)
    sessions.wait_until_blocked(claimer, gatekeeper)
    return claimed


# ---- claim and claim ----------------------------------------------------------------------------------------------


def test_two_claims_at_once_take_no_run_twice_and_do_not_wait(sessions: Sessions) -> None:
    one, other = sessions.open(), sessions.open(lock_timeout="50ms")
    first, second = moves.register(one), moves.register(one)
    runs = moves.started(one, 10)
    one.begin()
    moves.hold(one, first)
    taken = moves.claim(one, first, 4)

    others = moves.claim_alone(other, second, 10)
    one.commit()

    assert [run.id for run in taken] == runs[:4]
    assert [run.id for run in others] == runs[4:]
    assert {run.epoch for run in taken + others} == {1}


def test_a_run_that_was_claimed_after_this_claims_snapshot_is_not_taken_again(sessions: Sessions) -> None:
    slow, quick = sessions.open(), sessions.open()
    worker = moves.register(quick)
    (run,) = moves.started(quick)
    late = claim_behind_the_gate(sessions, quick, slow)

    quick.rows("update kedge.runs set state = 'r', worker_id = $1, epoch = epoch + 1 where id = $2", (worker, run))
    quick.rows("select pg_advisory_unlock(4711)")

    assert late.result() == []
    slow.commit()
    assert moves.run_row(quick, run)["epoch"] == 1


def test_a_run_that_ended_after_this_claims_snapshot_is_not_taken(sessions: Sessions) -> None:
    slow, quick = sessions.open(), sessions.open()
    ended, left = moves.started(quick, 2)
    late = claim_behind_the_gate(sessions, quick, slow)

    moves.cancel(quick, ended)
    moves.sort_inbox(quick)
    quick.rows("select pg_advisory_unlock(4711)")

    assert [run.id for run in late.result()] == [left]
    slow.commit()
    assert moves.statuses(quick, [ended, left]) == {ended: "cancelled", left: "running"}


def test_a_run_that_somebody_locks_is_passed_by_and_claimed_later(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    worker = moves.register(db)
    locked, free = moves.started(db, 2)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for update", (locked,))

    first = moves.claim_alone(db, worker)
    holder.rollback()
    second = moves.claim_alone(db, worker)

    assert [run.id for run in first] == [free]
    assert [run.id for run in second] == [locked]


def test_a_claim_passes_by_what_another_one_is_taking_as_far_as_it_looks_and_in_the_same_order(
    sessions: Sessions,
) -> None:
    one, other = sessions.open(), sessions.open(lock_timeout="50ms")
    first, second = moves.register(one), moves.register(one)
    runs = moves.started(one, 12)
    one.begin()
    moves.hold(one, first)
    moves.claim(one, first, 4)

    assert moves.claim(other, second, 4) == []
    assert [run.id for run in moves.claim(other, second, 4, spread=2)] == runs[4:8]
    one.rollback()


# ---- how much -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("spread", [1, 5])
def test_a_claim_never_takes_more_than_it_asked_for(
    db: Session, clock: Clock, limit: int, lanes: int, spread: int
) -> None:
    worker = moves.register(db)
    names = [f"w{lane}" for lane in range(lanes)]
    for name in names:
        moves.started(db, 5, workflow=name)
        moves.started(db, 5, workflow=name, delay_s=1)
    clock.advance(2)

    lowest = {(moves.QUEUE, name): moves.LOWEST for name in names}
    claimed = moves.claim(db, worker, limit, floors=lowest, spread=spread)

    assert len(claimed) == min(limit, 10 * lanes)
    assert len({run.id for run in claimed}) == len(claimed)


@pytest.mark.parametrize(("ready", "due", "limit", "expected_due"), [
    (8, 8, 8, (2, 6)),
    (100, 100, 100, (25, 75)),
    (8, 8, 1, (0, 1)),
    (8, 8, 2, (1, 1)),
    (8, 8, 3, (1, 2)),
    (8, 1, 8, (1, 1)),
    (1, 8, 8, (7, 7)),
    (0, 8, 8, (8, 8)),
    (8, 0, 8, (0, 0)),
])  # fmt: skip
@pytest.mark.parametrize("spread", [1, 5])
def test_of_ready_and_due_runs_neither_kind_gets_more_than_three_quarters_while_both_have_some(
    db: Session, clock: Clock, ready: int, due: int, limit: int, expected_due: tuple[int, int], spread: int
) -> None:
    worker = moves.register(db)
    delayed = set(moves.started(db, due, delay_s=1))
    moves.started(db, ready)
    clock.advance(2)

    claimed = moves.claim(db, worker, limit, spread=spread)

    low, high = expected_due
    assert len(claimed) == min(limit, ready + due)
    assert low <= sum(run.id in delayed for run in claimed) <= high


# ---- which --------------------------------------------------------------------------------------------------------


def test_higher_priorities_come_first_and_equal_ones_in_the_order_of_their_start(db: Session) -> None:
    worker = moves.register(db)
    low = moves.started(db, 2, priority=-5)
    normal = moves.started(db, 2)
    high = moves.started(db, 2, priority=9)

    claimed = [run.id for size in (1, 2, 3) for run in moves.claim(db, worker, size)]

    assert claimed == high + normal + low


def test_priority_counts_across_lanes_and_across_ready_and_due(db: Session, clock: Clock) -> None:
    worker = moves.register(db)
    moves.started(db, 3)
    (urgent,) = moves.started(db, workflow="other", priority=3)
    (due,) = moves.started(db, priority=5, delay_s=1)
    clock.advance(2)

    claimed = moves.claim(db, worker, 2, floors={moves.LANE: moves.LOWEST, (moves.QUEUE, "other"): moves.LOWEST})

    assert {run.id for run in claimed} == {urgent, due}


def test_other_workflows_and_queues_are_left_untouched(db: Session) -> None:
    worker = moves.register(db)
    foreign = moves.started(db, 2, workflow="foreign", priority=9) + moves.started(db, 2, queue="slow", priority=9)
    foreign += moves.started(db, 1, workflow="order@2", priority=9)
    (own,) = moves.started(db)
    before = db.rows("select xmin, * from kedge.runs where id = any ($1) order by id", (foreign,))

    claimed = moves.claim_alone(db, worker)

    assert [run.id for run in claimed] == [own]
    # The very same row versions: not even locked.
    assert db.rows("select xmin, * from kedge.runs where id = any ($1) order by id", (foreign,)) == before
    assert db.value("select count(*) from kedge.runs where id = any ($1) and xmax <> 0", (foreign,)) == 0


@pytest.mark.parametrize("spread", [1, 3])
def test_more_candidates_than_slots_are_not_locked(db: Session, spread: int) -> None:
    worker = moves.register(db)
    for lane in range(20):
        moves.started(db, 5, workflow=f"w{lane}")
    lanes = {(moves.QUEUE, f"w{lane}"): moves.LOWEST for lane in range(20)}
    db.begin()

    moves.claim(db, worker, 5, floors=lanes, spread=spread)

    assert db.value("select count(*) from kedge.runs where xmax <> 0 and state = 'p'") == 0
    db.rollback()


def test_a_delayed_run_is_claimed_when_its_time_has_come_and_not_before(db: Session, clock: Clock) -> None:
    worker = moves.register(db)
    (run,) = moves.started(db, delay_s=60)

    early = moves.claim_alone(db, worker)
    clock.advance(61)
    (claimed,) = moves.claim_alone(db, worker)

    assert early == []
    assert claimed.id == run
    assert moves.run_row(db, run)["due_at"] is None


def test_the_floor_includes_its_own_place_and_leaves_out_what_is_below(db: Session) -> None:
    worker = moves.register(db)
    runs = moves.started(db, 3)
    places = [moves.run_row(db, run)["seq"] for run in runs]

    claimed = moves.claim(db, worker, floors={moves.LANE: (0, places[1])})

    assert [run.id for run in claimed] == runs[1:]


@pytest.mark.parametrize("entry", ["given back", "taken back"])
def test_every_entry_into_pending_takes_a_new_place_above_every_floor(db: Session, entry: str) -> None:
    worker = moves.register(db)
    moves.started(db, 3)
    first, _, third = moves.claim_alone(db, worker)
    floor = {moves.LANE: (third.rank, third.seq)}

    if entry == "given back":
        moves.release(db, worker, first)
    else:
        moves.lapse(db, worker)
        moves.take_back(db)
    again = moves.claim(db, moves.register(db), 1, floors=floor)

    assert [run.id for run in again] == [first.id]


def test_a_claim_is_no_attempt_and_no_crash_and_moves_the_epoch_by_one(db: Session) -> None:
    worker = moves.register(db)
    (run,) = moves.started(db)

    for _ in range(3):
        (claimed,) = moves.claim_alone(db, worker)
        moves.release(db, worker, claimed)

    row = moves.run_row(db, run)
    assert (row["epoch"], row["attempt"], row["crashes"]) == (3, 0, 0)


# ---- claim and cancel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [None, 1])
def test_a_run_with_an_unsorted_cancel_is_left_to_the_courier(db: Session, clock: Clock, delay_s: float | None) -> None:
    worker = moves.register(db)
    cancelled, other = moves.started(db, 2, delay_s=delay_s)
    moves.cancel(db, cancelled)
    clock.advance(2)

    claimed = moves.claim_alone(db, worker)
    moves.sort_inbox(db)

    assert [run.id for run in claimed] == [other]
    assert moves.statuses(db) == {cancelled: "cancelled", other: "running"}


def test_a_claim_does_not_wait_for_the_courier_nor_the_courier_for_a_claim(sessions: Sessions) -> None:
    claimer, courier = sessions.open(lock_timeout="50ms"), sessions.open(lock_timeout="50ms")
    worker = moves.register(claimer)
    cancelled, other = moves.started(claimer, 2)
    moves.cancel(claimer, cancelled)
    courier.begin()
    moves.sort_inbox(courier)

    claimed = moves.claim_alone(claimer, worker)
    courier.commit()
    claimer.begin()
    moves.hold(claimer, worker)
    (third,) = moves.started(courier)
    taken = moves.claim(claimer, worker)
    moves.cancel(courier, third)
    while_open = moves.sort_inbox(courier)
    claimer.commit()
    after = moves.sort_inbox(courier)

    assert [run.id for run in claimed] == [other]
    assert [run.id for run in taken] == [third]
    assert (while_open.letters, while_open.remaining) == (0, True)
    assert (after.letters, after.owners) == (1, [worker])


# ---- claim and the end of its worker ------------------------------------------------------------------------------


def test_a_claim_before_the_take_back_is_taken_back_with_the_rest(sessions: Sessions) -> None:
    claimer, taker = sessions.open(), sessions.open()
    worker = moves.register(taker)
    moves.started(taker, 2)
    moves.claim_alone(taker, worker, 1)
    moves.lapse(taker, worker)
    claimer.begin()
    moves.hold(claimer, worker)
    moves.claim(claimer, worker)

    while_open = moves.take_back(taker)
    claimer.commit()
    after = moves.take_back(taker)

    assert while_open is None
    assert after == moves.TakenBack(worker, freed=2, ended=[], remaining=False)
    assert set(moves.statuses(taker).values()) == {"pending"}


def test_a_claim_behind_the_take_back_takes_nothing(sessions: Sessions) -> None:
    claimer, taker = sessions.open(), sessions.open()
    worker = moves.register(taker)
    moves.started(taker, 2)
    moves.claim_alone(taker, worker, 1)
    moves.lapse(taker, worker)
    taker.begin()
    moves.take_back(taker)

    claimed = claimer.later(moves.claim_alone, worker)
    sessions.wait_until_blocked(claimer, taker)
    taker.commit()

    with pytest.raises(psycopg.Error) as lost:
        claimed.result()
    assert lost.value.sqlstate == "KE001"
    claimer.rollback()
    assert set(moves.statuses(taker).values()) == {"pending"}


def test_a_claim_behind_a_take_back_that_rolled_back_goes_on(sessions: Sessions) -> None:
    claimer, taker = sessions.open(), sessions.open()
    worker = moves.register(taker)
    moves.started(taker, 2)
    moves.claim_alone(taker, worker, 1)
    moves.lapse(taker, worker)
    taker.begin()
    moves.take_back(taker)

    claimed = claimer.later(moves.claim_alone, worker)
    sessions.wait_until_blocked(claimer, taker)
    taker.rollback()

    assert len(claimed.result()) == 1
    assert set(moves.statuses(taker).values()) == {"running"}


def test_a_worker_that_leaves_during_its_own_claim_leaves_no_orphan(sessions: Sessions) -> None:
    claimer, leaver = sessions.open(), sessions.open()
    worker = moves.register(leaver)
    moves.started(leaver, 2)
    claimer.begin()
    moves.hold(claimer, worker)
    moves.claim(claimer, worker)

    left = leaver.later(moves.leave, worker)
    sessions.wait_until_blocked(leaver, claimer)
    claimer.commit()
    left.result()

    assert leaver.rows("select leaving from kedge.workers where id = $1", (worker,)) == [(True,)]
    moves.lapse(leaver, worker)
    taken = moves.take_back(leaver)
    assert taken == moves.TakenBack(worker, freed=2, ended=[], remaining=False)


def test_a_claim_that_took_nothing_waits_for_no_disk_unless_a_flush_is_before_it(db: Session) -> None:
    worker = moves.register(db)

    def durability(*, is_alone: bool) -> tuple[int, str, str]:
        db.begin()
        moves.hold(db, worker)
        claimed = moves.claim(db, worker, is_alone=is_alone)
        inside = db.value("show synchronous_commit")
        db.commit()
        return len(claimed), inside, db.value("show synchronous_commit")

    nothing = durability(is_alone=True)
    behind_a_flush = durability(is_alone=False)
    moves.started(db)
    something = durability(is_alone=True)

    assert nothing == (0, "off", "on")
    assert behind_a_flush == (0, "on", "on")
    assert something == (1, "on", "on")
