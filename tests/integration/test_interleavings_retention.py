"""A deletion meets other workers' deletions, the courier, a retry, a rerun, and starts with the same key."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from kedge.ids import new_run_id
from kedge_worker.testing import Clock
from tests import letters, moves
from tests.retention import FIRST, delete, deleted, ended, is_known, keep, rows_of
from tests.sessions import Session, Sessions

LEVELS = ("read committed", "repeatable read", "serializable")


def old(db: Session, status: str = "f", **options: Any) -> UUID:
    """A run whose time is over."""
    keep(db)
    run = ended(db, status, **options)
    Clock(db.url).advance("25 hours")
    return run


def test_two_workers_pass_over_each_others_batches(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open(lock_timeout="2s")
    keep(first)
    runs = [ended(first) for _ in range(4)]
    Clock(first.url).advance("25 hours")
    first.begin()
    ((_, place, one, _),) = delete(first, limit=2)

    ((_, _, other, _),) = delete(second)
    first.commit()

    assert (place, one, other) == (runs[1], 2, 2)
    assert moves.statuses(second) == {}


def test_what_a_worker_that_dies_in_its_batch_has_deleted_is_deleted_by_the_next_one(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    run = old(first)
    first.begin()
    deleted(first)
    meanwhile = deleted(second)
    first.rollback()

    assert meanwhile == 0
    assert is_known(second, run)
    assert deleted(second) == 1


def test_a_run_that_is_being_retried_is_not_deleted(sessions: Sessions) -> None:
    courier, remover = sessions.open(), sessions.open()
    run = old(courier)
    letters.put(courier, run, "r")
    courier.begin()
    moves.sort_inbox(courier)

    meanwhile = deleted(remover)
    courier.commit()

    assert (meanwhile, deleted(remover)) == (0, 0)
    assert moves.status(remover, run) == "pending"
    assert letters.notes(remover, run) == ["retry: done"]


def test_a_run_that_was_retried_and_has_failed_again_since_the_look_is_as_young_as_its_new_end(
    sessions: Sessions,
) -> None:
    """The look is before the lock: what it saw must not decide. Its snapshot is held open here by another walk."""
    db, other = sessions.open(), sessions.open()
    run = old(db)
    # Found old by the look; locked by somebody who puts it back with a new end before the lock is tried.
    db.rows(
        "create function kedge_late() returns boolean language plpgsql as $$"
        " begin perform pg_advisory_lock_shared(77); perform pg_advisory_unlock_shared(77); return true; end $$"
    )
    text = db.value("select pg_get_functiondef('kedge.delete_ended'::regproc)")
    lock = 'v_old := array(select f.id from "kedge".finished f where f.id = any (v_old) for update skip locked);'
    assert text.count(lock) == 1
    db.rows(text.replace(lock, f"perform public.kedge_late(); {lock}"))
    other.rows("select pg_advisory_lock(77)")

    removal = db.later(deleted)
    sessions.wait_until_blocked(db, other)
    other.rows("update kedge.finished set ended_at = kedge.instant() where id = $1", (run,))
    other.rows("select pg_advisory_unlock(77)")

    assert removal.result() == 0
    assert moves.status(other, run) == "failed"


@pytest.mark.parametrize("kind", ["r", "e", "x", "w"])
def test_a_letter_for_a_run_that_is_just_being_deleted_waits_for_that_and_leaves_nothing_behind(
    sessions: Sessions, kind: str
) -> None:
    remover, courier = sessions.open(), sessions.open(lock_timeout="2s")
    run = old(remover)
    remover.begin()
    deleted(remover)
    letters.put(courier, run, kind, slot="e:a" if kind == "e" else "k:a", sender=new_run_id(), payload=b"")

    meanwhile = moves.sort_inbox(courier)
    remover.commit()
    while moves.sort_inbox(courier).letters:
        pass

    assert (meanwhile.letters, meanwhile.remaining) == (0, True)
    assert moves.letters(courier) == []
    assert rows_of(courier, run) == {}
    assert not is_known(courier, run)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_start_with_the_key_of_a_run_that_is_just_being_deleted_waits_and_gets_a_run_that_is_there(
    sessions: Sessions, level: str, end: str
) -> None:
    remover, client = sessions.open(), sessions.open(default_transaction_isolation=level.replace(" ", "\\ "))
    run = old(remover, "c", key="k")
    remover.begin()
    deleted(remover)

    start = client.later(moves.start, key="k")
    sessions.wait_until_blocked(client, remover)
    getattr(remover, end)()
    answer = start.result()

    assert answer.created == (end == "commit")
    assert (answer.run == run) == (end == "rollback")
    assert answer.run is not None
    assert is_known(remover, answer.run)
    assert remover.rows("select run_id from kedge.run_keys") == [(answer.run,)]


def test_a_start_with_a_key_whose_run_is_deleted_between_its_two_looks_tries_again(sessions: Sessions) -> None:
    """The insert has found the key taken; by the time that it looks who holds it, nobody does."""
    db, other = sessions.open(), sessions.open()
    old_run = old(db, "c", key="k")
    db.rows(
        "create function kedge_late() returns boolean language plpgsql as $$"
        " begin perform pg_advisory_lock_shared(77); perform pg_advisory_unlock_shared(77); return true; end $$"
    )
    text = db.value("select pg_get_functiondef('kedge.start_run'::regproc)")
    between = "exit when found;"
    assert text.count(between) == 1
    db.rows(text.replace(between, f"{between} perform public.kedge_late();"))
    other.rows("select pg_advisory_lock(77)")

    start = db.later(moves.start, key="k")
    sessions.wait_until_blocked(db, other)
    assert deleted(other) == 1
    other.rows("select pg_advisory_unlock(77)")
    answer = start.result()

    assert answer.created
    assert answer.run != old_run
    assert other.rows("select run_id from kedge.run_keys") == [(answer.run,)]


def test_a_start_that_a_caller_keeps_open_does_not_hold_up_a_deletion(sessions: Sessions) -> None:
    client, remover = sessions.open(), sessions.open()
    run = old(remover, "c", key="k")
    client.begin()
    held = moves.start(client, key="k")

    count = deleted(remover)
    client.commit()

    assert (held.run, held.created) == (run, False)
    assert count == 1


RERUN = "select created from kedge.rerun_run_v1($1, $2, null, 'step2')"


def test_a_rerun_of_a_run_that_is_deleted_meanwhile_takes_all_of_it_or_finds_no_run(sessions: Sessions) -> None:
    db, other = sessions.open(), sessions.open()
    run, new = old(db, steps=2), new_run_id()
    db.rows(
        "create function kedge_late() returns boolean language plpgsql as $$"
        " begin perform pg_advisory_lock_shared(77); perform pg_advisory_unlock_shared(77); return true; end $$"
    )
    text = db.value("select pg_get_functiondef('kedge.rerun_run_v1'::regproc)")
    copy = "with copied as ("
    assert text.count(copy) == 1
    db.rows(text.replace(copy, f"perform public.kedge_late(); {copy}"))
    other.rows("select pg_advisory_lock(77)")

    rerun = db.later(lambda s: s.rows(RERUN, (new, run)))
    sessions.wait_until_blocked(db, other)
    assert deleted(other) == 1
    other.rows("select pg_advisory_unlock(77)")

    assert rerun.result() == []
    assert not is_known(other, new)
    assert rows_of(other, new) == {}


def test_a_rerun_whose_transaction_began_before_the_deletion_has_all_that_it_takes_over(sessions: Sessions) -> None:
    client, remover = sessions.open(), sessions.open()
    run, new = old(remover, steps=2, tags=["a"]), new_run_id()
    client.begin("repeatable read")
    client.rows("select 1 from kedge.finished")
    deleted(remover)

    answer = client.rows(RERUN, (new, run))
    client.commit()

    assert answer == [(True,)]
    assert rows_of(remover, new) == {"journal": 2, "run_tags": 1}
    assert moves.status(remover, new) == "pending"


def test_deletions_starts_retries_and_lists_at_once_wait_for_nobody_in_a_circle(sessions: Sessions) -> None:
    db = sessions.open()
    keep(db)
    runs = [ended(db, "f" if n % 2 else "c", steps=1, key=f"k{n}", tags=["a"]) for n in range(40)]
    Clock(db.url).advance("25 hours")
    for run in runs[1::4]:
        letters.put(db, run, "r")

    def remove(session: Session) -> None:
        for _ in range(20):
            delete(session, limit=3)

    def start(session: Session) -> None:
        for n in (*range(40), *reversed(range(40))):
            moves.start(session, key=f"k{n}")

    def sort(session: Session) -> None:
        for _ in range(20):
            moves.sort_inbox(session, 3)

    def look(session: Session) -> None:
        for _ in range(20):
            session.rows("select * from kedge.runs_view")

    crowd = [sessions.open().later(work) for work in (remove, remove, remove, start, start, sort, look)]
    for one in crowd:
        one.result()
    while moves.sort_inbox(db).letters:
        pass
    delete(db, after=FIRST)

    assert not any(is_known(db, run) for run in runs[::2])
    answers = [moves.start(db, key=f"k{n}") for n in range(40)]
    assert set(moves.statuses(db)) == {answer.run for answer in answers}
