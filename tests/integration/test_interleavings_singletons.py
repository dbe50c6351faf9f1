"""At most one run of a singleton is active, whoever starts how many of them at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from kedge.ids import new_run_id
from tests import moves
from tests.sessions import Session, Sessions

LEVELS = ("read committed", "repeatable read", "serializable")
POLICIES = ("raise", "return", "cancel_old")


def letters(session: Session, kind: str) -> list[tuple[Any, ...]]:
    """Letters of a kind, in order of arrival: to which run, from whom, about what."""
    return session.rows("select run_id, sender, slot, reason from kedge.inbox where kind = $1 order by seq", (kind,))


def gates(session: Session) -> list[UUID]:
    """The runs behind a gate."""
    return [run for (run,) in session.rows("select run_id from kedge.waits where kind = 'g' and key = '' order by 1")]


def holders(session: Session) -> list[tuple[str, str, UUID]]:
    return session.rows("select workflow, key, run_id from kedge.singletons order by 1, 2")


def active(session: Session) -> list[UUID]:
    """The live runs that are singletons and behind no gate."""
    return [
        run
        for (run,) in session.rows(
            "select r.id from kedge.runs r where r.is_singleton"
            " and not exists (select 1 from kedge.waits w where w.run_id = r.id and w.kind = 'g') order by 1"
        )
    ]


def of(answer: moves.Started) -> UUID:
    assert answer.run is not None
    return answer.run


# ---- policies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_first_run_of_a_singleton_begins_at_once(db: Session, policy: str) -> None:
    answer = moves.start(db, singleton=policy)

    row = moves.run_row(db, of(answer))
    assert (answer.created, answer.status, answer.conflict) == (True, "pending", None)
    assert (row["is_singleton"], row["key"], row["has_waits"]) == (True, "", False)
    assert holders(db) == [("order", "", of(answer))]
    assert db.value("select count(*) from kedge.run_keys") == 0


def test_raise_names_the_run_that_is_active(db: Session) -> None:
    first = of(moves.start(db, key="k", singleton="raise"))

    second = moves.start(db, key="k", singleton="raise")
    with pytest.raises(psycopg.Error) as strict:
        moves.start(db, key="k", singleton="raise", strict=True)

    assert second == moves.Started(first, created=False, status="pending", conflict="active")
    assert strict.value.sqlstate == "KE010"
    assert str(strict.value.diag.message_detail).endswith(str(first))
    assert list(moves.statuses(db)) == [first]


def test_return_answers_with_the_run_that_is_active_whatever_its_input(db: Session) -> None:
    first = of(moves.start(db, key="k", singleton="raise"))
    moves.claim_alone(db, moves.register(db))

    second = moves.start(db, key="k", singleton="return", data=b"\x01[1]")

    assert second == moves.Started(first, created=False, status="running", conflict=None)
    assert list(moves.statuses(db)) == [first]


@pytest.mark.parametrize("old", ["pending", "running", "waiting"])
def test_cancel_old_asks_for_the_old_runs_end_and_waits_for_it_behind_a_gate(db: Session, old: str) -> None:
    first = of(moves.start(db, key="k", singleton="raise", delay_s=60 if old == "waiting" else None))
    if old == "running":
        moves.claim_alone(db, moves.register(db))

    second = moves.start(db, key="k", singleton="cancel_old")

    row = moves.run_row(db, of(second))
    assert (second.created, second.status, second.conflict) == (True, "waiting", None)
    assert (row["state"], row["due_at"], row["has_waits"]) == ("w", None, True)
    assert gates(db) == [second.run]
    assert letters(db, "x") == [(first, None, None, f"replaced by run {second.run}")]
    assert letters(db, "w") == [(first, second.run, "k:", None)]
    assert holders(db) == [("order", "k", second.run)]
    assert moves.status(db, first) == old


def test_a_delay_behind_a_gate_is_kept_for_later(db: Session) -> None:
    moves.start(db, singleton="raise")

    second = of(moves.start(db, singleton="cancel_old", delay_s=3600))

    assert moves.run_row(db, second)["due_at"] is None
    assert db.value(
        "select w.due_at = j.at + interval '1 hour' from kedge.waits w join kedge.journal j using (run_id)"
        " where w.run_id = $1",
        (second,),
    )


def test_each_of_a_chain_of_replacements_waits_for_all_that_still_live(db: Session) -> None:
    chain = [of(moves.start(db, key="k", singleton="cancel_old")) for _ in range(4)]

    watched = {run: {watch[0] for watch in letters(db, "w") if watch[1] == run} for run in chain}
    cancelled = [run for run, *_ in letters(db, "x")]
    assert watched == {run: set(chain[:place]) for place, run in enumerate(chain)}
    assert cancelled == chain[:-1]
    assert gates(db) == chain[1:]
    assert holders(db) == [("order", "k", chain[-1])]


def test_a_replacement_that_was_cancelled_itself_leaves_the_singleton_to_the_run_that_still_lives(db: Session) -> None:
    worker = moves.register(db)
    first = of(moves.start(db, key="k", singleton="raise"))
    moves.claim_alone(db, worker)
    second = of(moves.start(db, key="k", singleton="cancel_old"))
    end_at_rest(db, second)

    third = moves.start(db, key="k", singleton="raise")
    fourth = moves.start(db, key="k", singleton="cancel_old")

    assert third == moves.Started(first, created=False, status="running", conflict="active")
    assert (fourth.created, gates(db)) == (True, [fourth.run])


def end_at_rest(db: Session, run: UUID) -> None:
    """What the exit door does with a cancelled run at rest, without the letter."""
    db.rows(
        "select kedge.end_runs(null, array[$1::uuid], array[0], array['x'], array[null::bytea], array[null::bytea],"
        " array[null::text], array[0], array[0], array[0])",
        (run,),
    )
    db.rows("delete from kedge.waits where run_id = $1", (run,))
    db.rows("delete from kedge.singletons where run_id = $1", (run,))


# ---- what a singleton is -------------------------------------------------------------------------------------------


def test_a_singleton_is_a_workflow_without_version_and_a_key(db: Session) -> None:
    first = of(moves.start(db, workflow="order@1", key="k", singleton="return"))

    assert moves.start(db, workflow="order@2", key="k", singleton="return").run == first
    assert moves.start(db, workflow="order", key="other", singleton="return").created
    assert moves.start(db, workflow="orders", key="k", singleton="return").created
    assert moves.start(db, workflow="order", singleton="return").created
    assert moves.start(db, workflow="order").created


def test_a_singletons_key_and_an_idempotency_key_do_not_know_each_other(db: Session) -> None:
    keyed = moves.start(db, key="k")
    single = moves.start(db, key="k", singleton="raise")

    assert (keyed.created, single.created) == (True, True)
    assert moves.start(db, key="k").run == keyed.run


@pytest.mark.parametrize("policy", POLICIES)
def test_a_singletons_key_is_free_again_when_its_run_has_ended(db: Session, policy: str) -> None:
    worker = moves.register(db)
    moves.start(db, key="k", singleton="raise")
    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)

    again = moves.start(db, key="k", singleton=policy)

    assert (again.created, again.status, letters(db, "x")) == (True, "pending", [])
    assert holders(db) == [("order", "k", again.run)]


def test_a_row_that_has_outlived_its_run_keeps_nobody_out(db: Session) -> None:
    worker = moves.register(db)
    moves.start(db, key="k", singleton="raise")
    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)
    db.rows(
        "insert into kedge.singletons values ('order', 'k', $1) on conflict (workflow, key) do update set run_id = $1",
        (claimed.id,),
    )

    assert moves.start(db, key="k", singleton="raise").status == "pending"


@pytest.mark.parametrize("policy", POLICIES)
def test_an_active_run_of_another_resource_is_neither_named_nor_touched(db: Session, policy: str) -> None:
    moves.start(db, key="k", singleton="raise", resource="alice")

    answer = moves.start(db, key="k", singleton=policy, resource="bob")
    with pytest.raises(psycopg.Error) as strict:
        moves.start(db, key="k", singleton=policy, resource="bob", strict=True)

    assert answer == moves.Started(None, created=False, status=None, conflict="active")
    assert strict.value.sqlstate == "KE010"
    assert " " not in str(strict.value.diag.message_detail)
    assert moves.letters(db) == []


@pytest.mark.parametrize("policy", ["", "replace"])
def test_an_unknown_policy_is_refused(db: Session, policy: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        moves.start(db, singleton=policy)

    assert refused.value.sqlstate == "KE005"
    assert moves.statuses(db) == {}


# ---- repeats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_repeated_start_of_a_singleton_answers_as_the_first_did_and_asks_for_nothing_again(
    db: Session, policy: str
) -> None:
    moves.start(db, key="k", singleton="return") if policy == "cancel_old" else None
    run = new_run_id()
    first = moves.start(db, run, key="k", singleton=policy)
    before = moves.letters(db)

    again = moves.start(db, run, key="k", singleton=policy)

    assert again == first
    assert moves.letters(db) == before


def test_a_start_that_was_replaced_meanwhile_is_repeated_without_coming_back(db: Session) -> None:
    first = new_run_id()
    moves.start(db, first, key="k", singleton="cancel_old")
    second = of(moves.start(db, key="k", singleton="cancel_old"))
    before = moves.letters(db)

    again = moves.start(db, first, key="k", singleton="cancel_old")

    assert again == moves.Started(first, created=True, status="pending", conflict=None)
    assert holders(db) == [("order", "k", second)]
    assert moves.letters(db) == before


def test_a_start_of_a_singleton_that_is_rolled_back_leaves_nothing(db: Session) -> None:
    first = of(moves.start(db, key="k", singleton="raise"))
    db.begin()
    moves.start(db, key="k", singleton="cancel_old")
    db.rollback()

    assert (moves.statuses(db), moves.letters(db), gates(db)) == ({first: "pending"}, [], [])
    assert holders(db) == [("order", "k", first)]


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


def test_a_lock_of_another_schema_or_key_is_another_lock(db: Session) -> None:
    def lock(workflow: str, key: str) -> int:
        number: int = db.value("select kedge.singleton_lock($1, $2)", (workflow, key))
        return number

    assert lock("order@1", "k") == lock("order@2", "k") == lock("order", "k")
    assert len({lock("order", "k"), lock("order", ""), lock("orderk", ""), lock("orde", "rk")}) == 4


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
