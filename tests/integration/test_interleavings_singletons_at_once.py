"""Starts of one singleton at the same time, whatever their callers' isolation, one by one and in bulk."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from psycopg import errors

from kedge.ids import new_run_id
from tests import moves
from tests.sessions import Session, Sessions
from tests.singletons import POLICIES, active, gates, holders, of

LEVELS = ("read committed", "repeatable read", "serializable")


# ---- many at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_of_two_racing_starts_of_a_singleton_exactly_one_is_active(sessions: Sessions, level: str, policy: str) -> None:
    winner, loser = sessions.open(), sessions.open()
    winner.begin(level)
    first = of(moves.start(winner, key="k", singleton=policy))
    loser.begin(level)
    loser.rows("select 1 from kedge.singletons")  # its snapshot stands before the winner's commit

    second = loser.later(moves.start, key="k", singleton=policy)
    sessions.wait_until_blocked(loser, winner)
    winner.commit()

    if level == "read committed":
        answer = second.result()
        loser.commit()
    else:
        with pytest.raises(errors.SerializationFailure):  # passed up: the caller repeats its transaction
            second.result()
        loser.rollback()
        loser.begin(level)
        answer = moves.start(loser, key="k", singleton=policy)
        loser.commit()
    assert active(loser) == [first]
    if policy == "cancel_old":
        assert (answer.created, answer.status, gates(loser)) == (True, "waiting", [answer.run])
    else:
        assert answer == moves.Started(
            first, created=False, status="pending", conflict="active" if policy == "raise" else None
        )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_start_of_a_singleton_that_is_rolled_back_lets_the_next_one_begin(
    sessions: Sessions, level: str, policy: str
) -> None:
    winner, loser = sessions.open(), sessions.open()
    winner.begin(level)
    moves.start(winner, key="k", singleton=policy)
    loser.begin(level)
    loser.rows("select 1 from kedge.singletons")

    second = loser.later(moves.start, key="k", singleton=policy)
    sessions.wait_until_blocked(loser, winner)
    winner.rollback()

    answer = second.result()
    loser.commit()
    assert (answer.created, answer.status) == (True, "pending")
    assert active(loser) == [answer.run]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_caller_with_an_old_snapshot_fails_instead_of_missing_the_active_run(
    sessions: Sessions, level: str, policy: str
) -> None:
    caller, other = sessions.open(), sessions.open()
    caller.begin(level)
    caller.rows("select 1 from kedge.singletons")
    moves.start(other, key="k", singleton="raise")

    with pytest.raises(errors.SerializationFailure):
        moves.start(caller, key="k", singleton=policy)
    caller.rollback()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_caller_with_an_old_snapshot_replaces_no_run_that_is_not_the_newest(sessions: Sessions, level: str) -> None:
    caller, other = sessions.open(), sessions.open()
    moves.start(other, key="k", singleton="raise")
    caller.begin(level)
    caller.rows("select 1 from kedge.singletons")
    newest = of(moves.start(other, key="k", singleton="cancel_old"))

    with pytest.raises(errors.SerializationFailure):
        moves.start(caller, key="k", singleton="cancel_old")
    caller.rollback()

    assert holders(other) == [("order", "k", newest)]


def test_a_start_and_its_repeat_at_the_same_time_make_one_run(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    run = new_run_id()
    first.begin()
    moves.start(first, run, key="k", singleton="cancel_old")

    repeat = second.later(moves.start, run, key="k", singleton="cancel_old")
    sessions.wait_until_blocked(second, first)
    first.commit()

    assert repeat.result() == moves.Started(run, created=True, status="pending", conflict=None)
    assert (list(moves.statuses(second)), moves.letters(second)) == ([run], [])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_callers_open_start_of_a_singleton_blocks_no_claim_and_no_flush(sessions: Sessions, policy: str) -> None:
    db, caller = sessions.open(), sessions.open()
    journal = sessions.open(lock_timeout="50ms")
    worker = moves.register(db)
    old = of(moves.start(db, key="k", singleton="raise"))
    (claimed,) = moves.claim_alone(journal, worker)
    caller.begin()
    moves.start(caller, key="k", singleton=policy)

    journal.begin()
    moves.hold(journal, worker)
    kept = moves.keep(journal, worker, claimed)
    ended = moves.end(journal, worker, claimed, rows=(1, 1))
    journal.commit()
    caller.commit()

    assert (kept, ended) == (1, 1)
    assert moves.status(db, old) == "completed"


def test_a_lock_of_another_schema_resource_or_key_is_another_lock(db: Session) -> None:
    def lock(workflow: str, key: str, resource: str | None = None) -> int:
        number: int = db.value("select kedge.singleton_lock($1, $2, $3)", (workflow, resource, key))
        return number

    assert lock("order@1", "k") == lock("order@2", "k") == lock("order", "k") == lock("order", "k", "")
    assert len({lock("order", "k"), lock("order", ""), lock("orderk", ""), lock("orde", "rk")}) == 4
    assert len({lock("order", "kr"), lock("order", "k", "r"), lock("order", "r", "k"), lock("order", "", "rk")}) == 4


@pytest.mark.parametrize("policy", POLICIES)
def test_a_start_does_not_wait_for_the_singleton_of_another_resource(sessions: Sessions, policy: str) -> None:
    theirs, mine = sessions.open(), sessions.open(lock_timeout="50ms")
    theirs.begin()
    moves.start(theirs, key="k", singleton="cancel_old", resource="alice")

    answer = moves.start(mine, key="k", singleton=policy, resource="bob")
    theirs.commit()

    assert answer.created


def test_two_batches_with_the_same_singleton_of_the_same_resources_do_not_deadlock(sessions: Sessions) -> None:
    one, other = sessions.open(), sessions.open()
    one.begin()
    moves.start(one, key="k", resource="a", singleton="return")

    second = other.later(
        moves.start_many,
        [new_run_id() for _ in range(3)],
        keys=["k"] * 3,
        resources=["c", "b", "a"],
        singleton="return",
    )
    sessions.wait_until_blocked(other, one)
    moves.start_many(one, [new_run_id() for _ in range(2)], keys=["k"] * 2, resources=["b", "c"], singleton="return")
    one.commit()

    assert sorted((place, started.created) for place, started in second.result()) == [
        (1, False),
        (2, False),
        (3, False),
    ]
    assert len(active(other)) == 3


# ---- in bulk ------------------------------------------------------------------------------------------------------


def by_place(answer: Sequence[tuple[int, moves.Started]]) -> dict[int, moves.Started]:
    return dict(answer)


def test_a_bulk_start_applies_the_policy_row_by_row(db: Session) -> None:
    taken = of(moves.start(db, key="b", singleton="raise"))
    runs = [new_run_id() for _ in range(3)]

    answer = by_place(moves.start_many(db, runs, keys=["c", "b", "a"], singleton="return"))

    assert answer == {2: moves.Started(taken, created=False, status="pending", conflict=None)}
    assert active(db) == sorted([taken, runs[0], runs[2]])


def test_of_equal_singletons_in_one_bulk_start_the_first_is_active(db: Session) -> None:
    runs = [new_run_id() for _ in range(3)]

    answer = by_place(moves.start_many(db, runs, keys=["k", "k", "k"], singleton="return"))

    assert active(db) == [runs[0]]
    assert {place: (one.run, one.created) for place, one in answer.items()} == {
        2: (runs[0], False),
        3: (runs[0], False),
    }


def test_a_strict_bulk_start_of_an_active_singleton_starts_nothing(db: Session) -> None:
    taken = of(moves.start(db, key="b", singleton="raise"))

    with pytest.raises(psycopg.Error) as refused:
        moves.start_many(db, [new_run_id() for _ in range(2)], keys=["a", "b"], singleton="raise", strict=True)

    assert refused.value.sqlstate == "KE010"
    assert list(moves.statuses(db)) == [taken]


def test_a_batch_takes_its_singletons_in_the_order_of_their_keys_so_that_batches_do_not_deadlock(
    sessions: Sessions,
) -> None:
    one, other = sessions.open(), sessions.open()
    one.begin()
    moves.start_many(one, [new_run_id()], keys=["a"], singleton="return")
    other.begin()

    second = other.later(moves.start_many, [new_run_id() for _ in range(3)], keys=["c", "b", "a"], singleton="return")
    sessions.wait_until_blocked(other, one)
    moves.start_many(one, [new_run_id() for _ in range(2)], keys=["b", "c"], singleton="return")
    one.commit()

    answer = second.result()
    other.commit()
    assert sorted((place, started.created) for place, started in answer) == [(1, False), (2, False), (3, False)]
    assert len(active(other)) == 3
