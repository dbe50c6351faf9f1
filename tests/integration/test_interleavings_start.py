"""A start meets its own repeat, its equals, its caller's transaction, and the workers."""

import base64
import random
from datetime import timedelta
from math import inf, nan
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from kedge.ids import new_run_id
from tests import moves
from tests.sessions import Session, Sessions

LEVELS = ("read committed", "repeatable read", "serializable")


# ---- repeats ------------------------------------------------------------------------------------------------------


def test_a_start_repeated_after_the_run_has_ended_executes_nothing_again(db: Session) -> None:
    worker = moves.register(db)
    run = new_run_id()
    moves.start(db, run)
    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)

    again = moves.start(db, run)

    assert again == moves.Started(run, created=True, status="completed", conflict=None)
    assert moves.claim_alone(db, worker) == []
    assert db.value("select count(*) from kedge.runs") == 0


def test_a_keyed_start_repeated_after_the_run_has_ended_executes_nothing_again(db: Session) -> None:
    worker = moves.register(db)
    run = new_run_id()
    moves.start(db, run, key="k", tags=["a"])
    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)

    again = moves.start(db, run, key="k", tags=["a"])

    assert again == moves.Started(run, created=True, status="completed", conflict=None)
    assert moves.claim_alone(db, worker) == []


@pytest.mark.parametrize("tags", [None, ["a", "b"]])
@pytest.mark.parametrize("step", ["pending", "running", "waiting"])
def test_a_repeated_start_answers_as_the_first_did_with_the_present_status(
    db: Session, step: str, tags: list[str] | None
) -> None:
    run = new_run_id()
    moves.start(db, run, delay_s=60 if step == "waiting" else None, tags=tags)
    if step == "running":
        moves.claim_alone(db, moves.register(db))

    again = moves.start(db, run, tags=tags)

    assert again == moves.Started(run, created=True, status=step, conflict=None)
    assert db.value("select count(*) from kedge.journal where run_id = $1", (run,)) == 1


def test_a_start_and_its_repeat_at_the_same_time_make_one_run(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    run = new_run_id()
    first.begin()
    moves.start(first, run)

    repeat = second.later(moves.start, run)
    sessions.wait_until_blocked(second, first)
    first.commit()

    assert repeat.result() == moves.Started(run, created=True, status="pending", conflict=None)
    assert list(moves.statuses(second)) == [run]


def test_the_repeat_of_a_start_that_was_rolled_back_creates_the_run(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    run = new_run_id()
    first.begin()
    moves.start(first, run, key="k", tags=["a"])

    repeat = second.later(moves.start, run, key="k", tags=["a"])
    sessions.wait_until_blocked(second, first)
    first.rollback()

    assert repeat.result().created
    assert moves.statuses(second) == {run: "pending"}


@pytest.mark.parametrize("tags", [None, ["a", "b"]])
@pytest.mark.parametrize("stored", [0, 1, 3])
def test_a_repeated_bulk_start_stores_what_is_missing_and_nothing_twice(
    db: Session, tags: list[str] | None, stored: int
) -> None:
    runs = [new_run_id() for _ in range(3)]
    if stored:
        moves.start_many(db, runs[:stored], tags=tags)

    answer = moves.start_many(db, runs, tags=tags)

    assert answer == [
        (place, moves.Started(run, created=True, status="pending", conflict=None))
        for place, run in enumerate(runs[:stored], 1)
    ]
    assert moves.statuses(db) == dict.fromkeys(runs, "pending")
    assert db.value("select count(*) from kedge.run_tags") == 3 * len(tags or ())


def test_a_repeated_bulk_start_leaves_runs_that_have_ended_alone(db: Session) -> None:
    worker = moves.register(db)
    runs = [new_run_id() for _ in range(3)]
    moves.start_many(db, runs)
    for claimed in moves.claim_alone(db, worker, 2):
        moves.end(db, worker, claimed)

    answer = moves.start_many(db, runs)

    assert [(place, one.status) for place, one in answer] == [(1, "completed"), (2, "completed"), (3, "pending")]
    assert [claimed.id for claimed in moves.claim_alone(db, worker)] == [runs[2]]


@pytest.mark.parametrize("before", [False, True])
def test_an_id_that_is_there_twice_in_a_bulk_start_is_a_repeat(db: Session, before: bool) -> None:
    first, twice, last = (new_run_id() for _ in range(3))
    if before:
        moves.start_many(db, [last], tags=["a"])

    moves.start_many(db, [first, twice, twice, last], tags=["a"])

    assert moves.statuses(db) == dict.fromkeys([first, twice, last], "pending")
    assert db.value("select count(*) from kedge.run_tags") == 3
    assert db.value("select count(*) from kedge.journal") == 3


@pytest.mark.parametrize("options", [{"keys": ["a", "b", "a"]}, {"keys": ["a", "b", "a"], "singleton": "cancel_old"}])
def test_an_id_that_is_there_twice_with_its_key_is_a_repeat(db: Session, options: Any) -> None:
    twice, other = new_run_id(), new_run_id()

    answer = moves.start_many(db, [twice, other, twice], **options)

    assert answer == [] or [(place, one.run, one.created) for place, one in answer] == [(3, twice, True)]
    assert moves.statuses(db) == dict.fromkeys([twice, other], "pending")
    assert moves.letters(db) == []


def test_a_start_that_is_rolled_back_leaves_nothing(db: Session) -> None:
    db.begin()
    moves.start(db, key="k", tags=["a"])
    db.rollback()

    for table in ("runs", "journal", "run_keys", "run_tags"):
        assert db.value(f"select count(*) from kedge.{table}") == 0


# ---- equal keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_of_two_racing_starts_with_one_key_the_later_gets_the_earlier_ones_run(sessions: Sessions, level: str) -> None:
    winner, loser = sessions.open(), sessions.open()
    winner.begin(level)
    first = moves.start(winner, key="k")
    loser.begin(level)
    loser.rows("select 1 from kedge.run_keys")  # its snapshot stands before the winner's commit

    second = loser.later(moves.start, key="k")
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
        answer = moves.start(loser, key="k")
        loser.commit()
    assert answer == moves.Started(first.run, created=False, status="pending", conflict=None)
    assert list(moves.statuses(loser)) == [first.run]


@pytest.mark.parametrize("level", LEVELS)
def test_of_two_racing_starts_with_one_key_the_later_creates_the_run_when_the_earlier_rolls_back(
    sessions: Sessions, level: str
) -> None:
    winner, loser = sessions.open(), sessions.open()
    winner.begin(level)
    moves.start(winner, key="k")
    loser.begin(level)
    loser.rows("select 1 from kedge.run_keys")

    second = loser.later(moves.start, key="k")
    sessions.wait_until_blocked(loser, winner)
    winner.rollback()

    answer = second.result()
    loser.commit()
    assert (answer.created, answer.status) == (True, "pending")
    assert list(moves.statuses(loser)) == [answer.run]


def test_the_winner_of_a_key_may_have_ended_before_the_loser_reads_it(sessions: Sessions) -> None:
    winner, loser = sessions.open(), sessions.open()
    worker = moves.register(winner)
    winner.begin()
    first = moves.start(winner, key="k")
    (claimed,) = moves.claim(winner, worker)  # all in one transaction: the loser sees nothing between
    moves.end(winner, worker, claimed)

    second = loser.later(moves.start, key="k")
    sessions.wait_until_blocked(loser, winner)
    winner.commit()

    assert second.result() == moves.Started(first.run, created=False, status="completed", conflict=None)


def test_a_batch_takes_its_keys_in_their_order_so_that_batches_in_any_order_do_not_deadlock(
    sessions: Sessions,
) -> None:
    one, other = sessions.open(), sessions.open()
    one.begin()
    moves.start_many(one, [new_run_id()], keys=["a"])
    other.begin()

    second = other.later(moves.start_many, [new_run_id() for _ in range(3)], keys=["c", "b", "a"])
    sessions.wait_until_blocked(other, one)
    moves.start_many(one, [new_run_id() for _ in range(2)], keys=["b", "c"])
    one.commit()

    answer = second.result()
    other.commit()
    assert sorted((place, started.created) for place, started in answer) == [(1, False), (2, False), (3, False)]
    assert len(moves.statuses(other)) == 3


def test_two_batches_with_the_same_key_of_the_same_resources_do_not_deadlock(sessions: Sessions) -> None:
    one, other = sessions.open(), sessions.open()
    one.begin()
    moves.start(one, key="k", resource="a")

    second = other.later(moves.start_many, [new_run_id() for _ in range(3)], keys=["k"] * 3, resources=["c", "b", "a"])
    sessions.wait_until_blocked(other, one)
    moves.start_many(one, [new_run_id() for _ in range(2)], keys=["k"] * 2, resources=["b", "c"])
    one.commit()

    assert [started.created for _, started in second.result()] == [False] * 3
    assert len(moves.statuses(other)) == 3


def test_a_key_is_one_for_each_resource_and_one_for_those_without(sessions: Sessions) -> None:
    theirs, mine = sessions.open(), sessions.open(lock_timeout="50ms")
    theirs.begin()
    alice = moves.start(theirs, key="k", resource="alice")

    answers = [moves.start(mine, key="k", resource=resource) for resource in ("bob", None, "bob", None)]
    theirs.commit()

    assert [answer.created for answer in answers] == [True, True, False, False]
    assert len({alice.run, *(answer.run for answer in answers)}) == 3
    assert moves.start(mine, key="k", resource="alice").run == alice.run


@pytest.mark.parametrize("singleton", [None, "raise"])
def test_the_longest_names_that_are_taken_fit_into_the_index_of_keys(db: Session, singleton: str | None) -> None:
    # Nothing that an index could compress.
    key, resource = (base64.b85encode(random.Random(seed).randbytes(800)).decode() for seed in range(2))

    first = moves.start(db, workflow="w" * 200 + "@" + "v" * 200, key=key, resource=resource, singleton=singleton)

    assert (len(key), len(resource), first.created) == (1000, 1000, True)


def test_a_bulk_start_with_one_key_twice_answers_the_second_with_the_first(db: Session) -> None:
    runs = [new_run_id() for _ in range(3)]

    answer = moves.start_many(db, runs, keys=["k", None, "k"])

    ((place, taken),) = answer
    first = runs[0] if place == 3 else runs[2]
    assert (taken.run, taken.created) == (first, False)
    assert len(moves.statuses(db)) == 2


# ---- a caller's open transaction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_callers_open_start_blocks_no_claim_and_no_flush(sessions: Sessions, level: str) -> None:
    db, caller = sessions.open(), sessions.open()
    journal = sessions.open(lock_timeout="50ms")
    worker = moves.register(db)
    (earlier,) = moves.started(db)
    caller.begin(level)
    hidden = moves.start(caller, key="k", tags=["a"]).run
    assert hidden is not None

    (claimed,) = moves.claim_alone(journal, worker)
    journal.begin()
    moves.hold(journal, worker)
    kept = moves.keep(journal, worker, claimed)
    ended = moves.end(journal, worker, claimed, rows=(1, 1))
    journal.commit()

    assert (claimed.id, kept, ended) == (earlier, 1, 1)
    assert moves.claim_alone(journal, worker) == []
    caller.commit()
    assert [claimed.id for claimed in moves.claim_alone(journal, worker)] == [hidden]


def test_a_start_and_its_cancel_in_one_transaction_end_the_run_before_anybody_executes_it(sessions: Sessions) -> None:
    db, caller = sessions.open(), sessions.open()
    worker = moves.register(db)
    caller.begin("repeatable read")
    run = moves.start(caller).run
    assert run is not None
    accepted = moves.cancel(caller, run)
    assert moves.sort_inbox(db).letters == 0
    caller.commit()

    claimed = moves.claim_alone(db, worker)
    sorted_ = moves.sort_inbox(db)

    assert accepted == (True, "pending")
    assert claimed == []
    assert sorted_.ended == [run]
    assert moves.status(db, run) == "cancelled"


def test_a_start_that_commits_late_is_claimed_though_its_place_is_below_the_floor(sessions: Sessions) -> None:
    db, caller = sessions.open(), sessions.open()
    worker = moves.register(db)
    caller.begin()
    late = moves.start(caller).run
    moves.started(db, 2)
    (_, second) = moves.claim_alone(db, worker)
    caller.commit()

    above = moves.claim(db, worker, floors={moves.LANE: (second.rank, second.seq)})
    anew = moves.claim(db, worker)  # the floor is thrown away once a second, and after a claim that was not full

    assert above == []
    assert [claimed.id for claimed in anew] == [late]


# ---- timeouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("delay_s", [None, 3600.0])
def test_a_timeout_counts_from_when_the_run_is_due(db: Session, delay_s: float | None, many: bool) -> None:
    run = new_run_id()
    if many:
        moves.start_many(db, [run], timeout_s=90, delay_s=delay_s)
    else:
        moves.start(db, run, timeout_s=90, delay_s=delay_s)

    row = moves.run_row(db, run)
    assert row["timeout_s"] == 90
    assert row["deadline_at"] - (row["due_at"] or row["since"]) == timedelta(seconds=90)
    assert (row["due_at"] is None) == (delay_s is None)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("timeout_s", [None, inf])
def test_no_timeout_is_another_thing_than_one_that_is_not_known_yet(
    db: Session, timeout_s: float | None, many: bool
) -> None:
    run = new_run_id()
    if many:
        moves.start_many(db, [run], timeout_s=timeout_s)
    else:
        moves.start(db, run, timeout_s=timeout_s)

    row = moves.run_row(db, run)
    assert (row["timeout_s"], row["deadline_at"]) == (timeout_s, None)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, nan, -inf, 1e10])
def test_a_timeout_that_makes_no_sense_is_refused(db: Session, timeout_s: float) -> None:
    with pytest.raises(psycopg.Error) as refused:
        moves.start(db, timeout_s=timeout_s)
    with pytest.raises(psycopg.Error) as refused_many:
        moves.start_many(db, [new_run_id()], timeout_s=timeout_s)

    assert (refused.value.sqlstate, refused_many.value.sqlstate) == ("KE005", "KE005")
    assert moves.statuses(db) == {}


# ---- what a start refuses -----------------------------------------------------------------------------------------


# A start that wants nothing special goes by a shorter way, which has checks of its own.
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("off_s", [-3700, 3700])
def test_an_id_from_a_wrong_clock_is_refused_and_leaves_nothing(db: Session, off_s: int, key: str | None) -> None:
    right = new_run_id()
    wrong = UUID(int=right.int + (off_s * 1000 << 80))

    with pytest.raises(psycopg.Error) as refused:
        moves.start(db, wrong, key=key)
    with pytest.raises(psycopg.Error) as refused_many:
        moves.start_many(db, [right, wrong])

    assert (refused.value.sqlstate, refused_many.value.sqlstate) == ("KE004", "KE004")
    assert db.value("select count(*) from kedge.run_keys") == 0
    assert db.value("select count(*) from kedge.journal") == 0
    assert moves.statuses(db) == {}


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("wrong", [
    {"queue": "!solo default"},
    {"queue": ""},
    {"queue": "q" * 201},
    {"workflow": ""},
    {"workflow": "w" * 402},
    {"resource": ""},
    {"resource": "r" * 1001},
    {"priority": 32768},
    {"data": b"\x01" + b"0" * 67108864},
], ids=lambda wrong: next(iter(wrong)))  # fmt: skip
def test_a_start_with_a_value_that_cannot_be_is_refused_and_leaves_nothing(
    db: Session, wrong: dict[str, Any], key: str | None
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        moves.start(db, key=key, **wrong)

    assert refused.value.sqlstate == "KE005"
    assert db.value("select count(*) from kedge.run_keys") == 0
    assert db.value("select count(*) from kedge.journal") == 0
    assert moves.statuses(db) == {}
