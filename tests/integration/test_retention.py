"""Ended runs are deleted when their time is over, with all that belongs to them, and never while needed."""

from __future__ import annotations

from typing import Final

import pytest

from kedge.ids import new_run_id
from kedge_worker.testing import Clock
from tests import letters, moves
from tests.retention import DAY_S, FIRST, delete, deleted, ended, is_known, keep, rows_of
from tests.sessions import Session

STATUSES: Final = ("c", "f", "x")


@pytest.fixture
def clock(db: Session) -> Clock:
    return Clock(db.url)


# ---- what is old ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_is_deleted_when_the_time_of_its_status_is_over_and_not_before(
    db: Session, clock: Clock, status: str
) -> None:
    keep(db, completed_s=DAY_S, failed_s=2 * DAY_S, cancelled_s=3 * DAY_S)
    run = ended(db, status)
    days = STATUSES.index(status) + 1

    clock.advance(f"{24 * days - 1} hours")
    early = deleted(db)
    clock.advance("2 hours")
    late = deleted(db)

    assert (early, late) == (0, 1)
    assert not is_known(db, run)


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_that_is_kept_for_ever_is_kept_beside_others_that_are_not(
    db: Session, clock: Clock, status: str
) -> None:
    completed_s, failed_s, cancelled_s = (None if one == status else DAY_S for one in STATUSES)
    keep(db, completed_s=completed_s, failed_s=failed_s, cancelled_s=cancelled_s)
    runs = {one: ended(db, one) for one in STATUSES}
    clock.advance("3650 days")

    assert deleted(db) == 2
    assert [one for one in STATUSES if is_known(db, runs[one])] == [status]


def test_the_age_counts_from_the_end_and_not_from_the_start(db: Session, clock: Clock) -> None:
    keep(db)
    worker = moves.register(db)
    moves.started(db)
    (run,) = moves.claim_alone(db, worker)
    clock.advance("30 days")
    moves.end(db, worker, run)

    at_once = deleted(db)
    clock.advance("25 hours")

    assert (at_once, deleted(db)) == (0, 1)


def test_two_hours_are_kept_whatever_the_table_says(db: Session, clock: Clock) -> None:
    keep(db, completed_s=0)
    run = ended(db)

    clock.advance("119 minutes")
    early = deleted(db)
    clock.advance("2 minutes")

    assert (early, deleted(db)) == (0, 1)
    assert not is_known(db, run)


def test_workflows_and_their_versions_have_times_of_their_own_and_one_that_says_nothing_is_kept(
    db: Session, clock: Clock
) -> None:
    keep(db, "order")
    keep(db, "order@2", completed_s=10 * DAY_S)
    keep(db, "report", completed_s=None, failed_s=None, cancelled_s=None)
    runs = {name: ended(db, workflow=name) for name in ("order", "order@2", "order@3", "report")}
    clock.advance("5 days")

    first = delete(db, *runs)
    clock.advance("6 days")
    delete(db, *runs)

    assert [(name, count) for name, _, count, _ in first] == [
        ("order", 1),
        ("order@2", 0),
        ("order@3", 0),
        ("report", 0),
    ]
    assert [name for name in runs if is_known(db, runs[name])] == ["order@3", "report"]


# ---- what goes along -----------------------------------------------------------------------------------------------


def test_all_that_belongs_to_a_run_goes_with_it_and_nothing_of_others(db: Session, clock: Clock) -> None:
    keep(db)
    runs = [ended(db, "f", key=key, tags=["a", "b"], steps=3) for key in ("old", "kept")]
    for run in runs:
        db.rows(
            "insert into kedge.events (run_id, id, seq, at, slot, payload)"
            " values ($1, gen_random_uuid(), 1, now(), 'e:a', '')",
            (run,),
        )
        db.rows(
            "insert into kedge.failures (run_id, at, epoch, attempt, took_ms, kind, key, error)"
            " values ($1, now(), 1, 1, 0, 's', 'a', '')",
            (run,),
        )
        db.rows(
            "insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)"
            " values ($1, now(), 1, 20, 'l', 'a line', '')",
            (run,),
        )
        db.rows("insert into kedge.progress (run_id, at, done) values ($1, now(), 1)", (run,))
        db.rows("insert into kedge.run_metadata (run_id, metadata) values ($1, '')", (run,))
    old, kept = runs
    db.rows("update kedge.finished set ended_at = ended_at + interval '2 days' where id = $1", (kept,))
    before = rows_of(db, kept)
    clock.advance("25 hours")

    assert deleted(db) == 1
    assert rows_of(db, old) == {}
    assert rows_of(db, kept) == before
    assert len(before) == 9


def test_a_deleted_runs_key_starts_a_new_run(db: Session, clock: Clock) -> None:
    keep(db)
    old = ended(db, key="k")
    clock.advance("25 hours")

    deleted(db)
    answer = moves.start(db, key="k")

    assert answer.created
    assert answer.run != old


def test_a_key_that_names_another_run_stays(db: Session, clock: Clock) -> None:
    keep(db)
    ended(db, key="k")
    clock.advance("25 hours")
    other = ended(db)
    db.rows("update kedge.run_keys set run_id = $1", (other,))

    assert deleted(db) == 1
    assert db.rows("select run_id from kedge.run_keys") == [(other,)]


def test_what_is_left_of_a_singleton_goes_with_its_run_and_a_newer_runs_stays(db: Session, clock: Clock) -> None:
    keep(db)
    old = ended(db, singleton="raise", key="left")
    ended(db, singleton="raise", key="taken")
    live = moves.start(db, singleton="raise", key="taken").run
    db.rows(
        "insert into kedge.singletons (workflow, resource, key, run_id) values ($1, '', 'left', $2)",
        (moves.WORKFLOW, old),
    )
    clock.advance("25 hours")

    deleted(db)

    assert db.rows("select key, run_id from kedge.singletons") == [("taken", live)]


# ---- what is needed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["live", "failed"])
def test_a_child_is_kept_while_its_parent_lives_or_may_be_retried(db: Session, clock: Clock, parent: str) -> None:
    keep(db, failed_s=None)
    worker = moves.register(db)
    moves.started(db)
    (mother,) = moves.claim_alone(db, worker)
    child = moves.start(db, parent=mother.id).run
    (claimed,) = moves.claim_alone(db, worker)
    moves.end(db, worker, claimed)
    if parent == "failed":
        moves.end(db, worker, mother, "f")
    clock.advance("30 days")

    beside = deleted(db)
    if parent == "failed":
        db.rows("update kedge.finished set status = 'x' where id = $1", (mother.id,))
    else:
        moves.end(db, worker, mother)
    delete(db)
    clock.advance("30 days")
    delete(db)

    assert beside == 0
    assert child is not None
    assert not is_known(db, child)
    assert not is_known(db, mother.id)


@pytest.mark.breaks_invariants
def test_a_run_that_somebody_watches_is_kept(db: Session, clock: Clock) -> None:
    keep(db)
    run = ended(db)
    db.rows("insert into kedge.run_watchers (run_id, watcher_id, key) values ($1, $2, 'a')", (run, new_run_id()))
    clock.advance("25 hours")

    assert deleted(db) == 0


@pytest.mark.parametrize("kind", ["r", "e", "x", "w", "o"])
def test_a_run_with_an_unsorted_letter_is_kept_until_that_is_sorted(db: Session, clock: Clock, kind: str) -> None:
    keep(db)
    run = ended(db)  # completed: no letter changes it
    clock.advance("25 hours")
    letters.put(db, run, kind, slot="e:a" if kind == "e" else "k:a", sender=new_run_id(), payload=b"")

    before = deleted(db)
    while moves.sort_inbox(db).letters:
        pass

    assert (before, deleted(db)) == (0, 1)


@pytest.mark.parametrize("kind", ["r", "e", "c", "x", "s", "u", "g", "w", "o"])
def test_a_letter_that_comes_for_a_deleted_run_is_sorted_and_leaves_nothing_behind(
    db: Session, clock: Clock, kind: str
) -> None:
    keep(db)
    run = ended(db, "f")
    clock.advance("25 hours")
    deleted(db)
    letters.put(db, run, kind, slot="e:a" if kind == "e" else "k:a", sender=new_run_id(), payload=b"")

    while moves.sort_inbox(db).letters:
        pass

    assert moves.letters(db) == []
    assert db.value("select count(*) from kedge.inbox_failed") == 0
    assert rows_of(db, run) == {}
    assert not is_known(db, run)


def test_a_run_that_refuses_to_go_keeps_nobody_else(db: Session, clock: Clock) -> None:
    keep(db)
    runs = [ended(db) for _ in range(3)]
    clock.advance("25 hours")
    db.rows("create function refuse() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$")
    db.rows(
        f"create trigger refuse before delete on kedge.journal for each row when (old.run_id = '{runs[1]}')"
        " execute function refuse()"
    )
    before = rows_of(db, runs[1])

    assert deleted(db) == 2
    assert [is_known(db, run) for run in runs] == [False, True, False]
    assert rows_of(db, runs[1]) == before


# ---- bounds --------------------------------------------------------------------------------------------------------


def test_a_batch_takes_so_many_runs_and_says_where_it_stopped(db: Session, clock: Clock) -> None:
    keep(db)
    runs = [ended(db) for _ in range(5)]
    clock.advance("25 hours")

    ((_, first, count, is_done),) = delete(db, limit=2)
    left = [run for run in runs if is_known(db, run)]
    ((_, second, _, _),) = delete(db, limit=2, after=first)
    ((_, _, last, at_end),) = delete(db, limit=2, after=second)

    assert (first, count, is_done, left) == (runs[1], 2, False, runs[2:])
    assert (second, last, at_end) == (runs[3], 1, True)


def test_workflows_that_a_batch_has_no_room_for_are_left_to_the_next_one(db: Session, clock: Clock) -> None:
    keep(db, "order")
    keep(db, "report")
    for name in ("order", "report"):
        ended(db, workflow=name)
    clock.advance("25 hours")

    first = delete(db, "report", "order", limit=1)

    assert [(name, count) for name, _, count, _ in first] == [("report", 1)]
    assert deleted(db, "order", "report") == 1


def test_a_walk_goes_past_what_is_kept_and_comes_to_its_end(db: Session, clock: Clock) -> None:
    keep(db, failed_s=None)
    for _ in range(12):
        ended(db, "f", steps=0)
    ended(db, "c", steps=0)
    clock.advance("25 hours")

    place, counts = FIRST, list[int]()
    for _ in range(10):
        ((_, place, count, is_done),) = delete(db, limit=1, after=place)
        counts.append(count)
        if is_done:
            break

    assert counts == [0, 0, 1]


def test_a_run_with_too_many_rows_is_gone_at_once_and_they_go_piece_by_piece(db: Session, clock: Clock) -> None:
    keep(db)
    run = ended(db, key="k", steps=95)
    clock.advance("25 hours")

    delete(db, rows=40)
    known, left = is_known(db, run), rows_of(db, run)
    anew = moves.start(db, key="k")
    pieces = [db.value("select kedge.finish_removals(40)") for _ in range(3)]

    assert not known
    assert left == {"journal": 56, "removals": 1}
    assert anew.created
    assert pieces == [True, True, False]
    assert rows_of(db, run) == {}


def test_a_worker_of_an_older_release_leaves_what_was_said_of_retention_as_it_is(db: Session) -> None:
    keep(db, completed_s=DAY_S, failed_s=None)

    db.rows("select kedge.register_definitions(array[$1]::text[], '{3}', array[''::bytea])", (moves.WORKFLOW,))

    assert db.rows("select total_steps, keep_completed_s, keep_failed_s from kedge.definitions") == [(3, DAY_S, None)]
    keep(db, completed_s=None)
    assert db.value("select keep_completed_s from kedge.definitions") is None
