"""At most one run of a singleton is active: what each policy does, and when the next one begins."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from kedge.ids import new_run_id
from tests import moves
from tests.sessions import Session, Sessions
from tests.singletons import POLICIES, active, gates, holders, letters, of

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
        "insert into kedge.singletons values ('order', 'k', $1, '') on conflict (workflow, resource, key)"
        " do update set run_id = $1",
        (claimed.id,),
    )

    assert moves.start(db, key="k", singleton="raise").status == "pending"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_singleton_is_one_for_each_resource(db: Session, policy: str) -> None:
    others = [of(moves.start(db, key="k", singleton="raise", resource=resource)) for resource in ("alice", None)]

    mine = moves.start(db, key="k", singleton=policy, resource="bob")
    again = moves.start(db, key="k", singleton="raise", resource="bob")

    assert mine == moves.Started(of(mine), created=True, status="pending", conflict=None)
    assert again == moves.Started(of(mine), created=False, status="pending", conflict="active")
    assert moves.letters(db) == []
    assert active(db) == sorted([*others, of(mine)])
    assert len(holders(db)) == 3


def test_the_row_of_a_resource_goes_with_the_end_and_the_others_stay(db: Session) -> None:
    worker = moves.register(db)
    moves.start(db, key="k", singleton="raise", resource="alice")
    (claimed,) = moves.claim_alone(db, worker)
    others = [of(moves.start(db, key="k", singleton="raise", resource=resource)) for resource in ("bob", None)]

    moves.end(db, worker, claimed)

    assert sorted(run for _, _, run in holders(db)) == sorted(others)


@pytest.mark.parametrize("policy", ["", "replace"])
def test_an_unknown_policy_is_refused(db: Session, policy: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        moves.start(db, singleton=policy)

    assert refused.value.sqlstate == "KE005"
    assert moves.statuses(db) == {}


def test_a_singleton_without_a_key_is_refused(db: Session) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.rows(
            "select kedge.start_run_v1($1::uuid, 'order', 'default', 0, '\\x01', null, null, null, 'return', null,"
            " null, null, null, true, null, 'raise')",
            (new_run_id(),),
        )

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


# ---- the gate -----------------------------------------------------------------------------------------------------


def sort_all(db: Session) -> None:
    while moves.sort_inbox(db).remaining:
        pass


def test_a_replacement_begins_when_the_run_that_it_replaced_has_ended(db: Session) -> None:
    worker = moves.register(db)
    first = of(moves.start(db, key="k", singleton="raise"))
    (claimed,) = moves.claim_alone(db, worker)
    second = of(moves.start(db, key="k", singleton="cancel_old"))
    sort_all(db)

    before = moves.statuses(db)
    moves.release(db, worker, claimed)
    sort_all(db)

    assert before == {first: "running", second: "waiting"}
    assert moves.statuses(db) == {first: "cancelled", second: "pending"}
    assert (gates(db), active(db), holders(db)) == ([], [second], [("order", "k", second)])
    assert db.value("select reason from kedge.finished where id = $1", (first,)) == f"replaced by run {second}"


@pytest.mark.parametrize("status", ["c", "f"])
def test_a_replacement_begins_however_the_old_run_ends(db: Session, status: str) -> None:
    worker = moves.register(db)
    moves.start(db, key="k", singleton="raise")
    (claimed,) = moves.claim_alone(db, worker)
    second = of(moves.start(db, key="k", singleton="cancel_old"))

    moves.end(db, worker, claimed, status)  # before anybody has sorted the letters
    sort_all(db)

    assert (moves.status(db, second), gates(db)) == ("pending", [])


def test_of_a_chain_of_replacements_the_last_one_begins_when_all_others_have_ended(db: Session) -> None:
    worker = moves.register(db)
    first = of(moves.start(db, key="k", singleton="raise"))
    (claimed,) = moves.claim_alone(db, worker)
    chain = [of(moves.start(db, key="k", singleton="cancel_old")) for _ in range(3)]
    sort_all(db)

    before = moves.statuses(db)
    moves.release(db, worker, claimed)
    sort_all(db)

    assert before == {first: "running", chain[0]: "cancelled", chain[1]: "cancelled", chain[2]: "waiting"}
    assert moves.status(db, chain[2]) == "pending"
    assert active(db) == [chain[2]]


def test_a_replacement_with_a_delay_waits_for_its_own_time_behind_the_gate(db: Session) -> None:
    moves.start(db, key="k", singleton="raise")
    second = of(moves.start(db, key="k", singleton="cancel_old", delay_s=3600.0))

    sort_all(db)

    row = moves.run_row(db, second)
    assert (row["state"], gates(db)) == ("w", [])
    assert db.value("select at + interval '1 hour' from kedge.journal where run_id = $1", (second,)) == row["due_at"]


def test_a_gate_stays_closed_while_the_old_run_is_locked_and_its_letter_waits(sessions: Sessions) -> None:
    db, other = sessions.open(), sessions.open()
    first = of(moves.start(db, key="k", singleton="raise"))
    second = of(moves.start(db, key="k", singleton="cancel_old"))
    other.begin()
    other.rows("select 1 from kedge.runs where id = $1 for update", (first,))
    third = of(moves.start(db, key="k", singleton="cancel_old"))

    for _ in range(3):  # the second run's end is a letter of its own
        moves.sort_inbox(db)
    meanwhile = (moves.status(db, second), moves.status(db, third))
    other.rollback()
    sort_all(db)

    assert meanwhile == ("cancelled", "waiting")
    assert moves.statuses(db) == {first: "cancelled", second: "cancelled", third: "pending"}
