"""Everybody at once, in no order: no deadlock, no run lost or executed by two."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from tests import letters, moves
from tests.sessions import Session, Sessions

ROUNDS = 120
RUNS = 8
"""A round and a starter."""

LANES = dict.fromkeys((moves.LANE, (f"!solo {moves.QUEUE}", moves.WORKFLOW)), moves.LOWEST)

# A cycle of locks shows after a millisecond as what it is, instead of as a lock that takes too long.
EAGER = {"deadlock_timeout": "1ms", "lock_timeout": "5s"}


def write(session: Session, chance: random.Random) -> None:
    """One worker: claims, keeps, ends and gives back in any order; now and then it dies."""
    worker = moves.register(session)
    held: list[moves.Claimed] = []
    for _ in range(ROUNDS):
        try:
            session.begin()
            moves.hold(session, worker)
            chance.shuffle(held)
            left: list[moves.Claimed] = []
            for run in held:
                match chance.randrange(6):
                    case 0:
                        moves.end(session, worker, run, chance.choice("cf"), rows=None)
                    case 1:
                        moves.release(session, worker, run)
                    case 2:
                        letters.retry_later(session, worker, run, delay_s=chance.choice([0, 0.01]))
                    case 3:
                        wait(session, worker, run, chance)
                    case _:
                        left.append(run)
            session.commit()
            held = left
            held += moves.claim_alone(session, worker, 10)
            if chance.random() < 0.1:
                moves.lapse(session, worker)
                worker, held = moves.register(session), []
        except psycopg.Error as error:
            if error.sqlstate != "KE001":
                raise
            session.rollback()
            worker, held = moves.register(session), []
    moves.lapse(session, worker)


def wait(session: Session, worker: UUID, run: moves.Claimed, chance: random.Random) -> None:
    """Park a run for an event, an event to a topic, a time, another run's end, or somebody who resumes it."""
    letters.open_wait(session, worker, run, "paid")
    letters.open_wait(session, worker, run, "rate", slot=letters.topic_slot())
    letters.open_wait(session, worker, run, "review", "u")
    letters.open_wait(session, worker, run, "nap", "d", delay_s=chance.choice([0.01, 60]))
    for (other,) in session.rows("select id from kedge.runs where id > $1 order by id limit 1", (run.id,)):
        letters.open_wait(session, worker, run, "child", "c")
        letters.watch(session, other, run.id)
    letters.park(session, worker, run)


def start(session: Session, chance: random.Random) -> None:
    """A client: starts, with keys that others use too; cancels, pauses, resumes, retries, sends."""
    for number in range(ROUNDS):
        session.begin()
        keys = sorted(f"k{chance.randrange(20 * (number + 1))}" for _ in range(RUNS))
        runs = [moves.start(session, key=key).run for key in keys]
        session.commit()
        for run in runs:
            if run is not None and chance.random() < 0.2:
                moves.cancel(session, run)
            if run is not None:
                for kind in chance.sample("suegr", 2):
                    letters.put(session, run, kind, slot="e:paid" if kind == "e" else None, payload=b"\x011")
        letters.broadcast(session)


def sort(session: Session, chance: random.Random) -> None:
    for _ in range(3 * ROUNDS):
        moves.sort_inbox(session, chance.choice([1, 5, 500]))


def sweep(session: Session, chance: random.Random) -> None:
    for _ in range(3 * ROUNDS):
        moves.take_back(session)
        letters.expire(session, 10)
        session.rows(
            "update kedge.runs set deadline_at = now() where id = (select id from kedge.runs"
            " where deadline_at is null order by random() limit 1 for no key update skip locked)"
        )
        if chance.random() < 0.2:
            session.begin()
            session.rows("select 1 from kedge.runs order by random() limit 3 for no key update skip locked")
            session.rollback()


@pytest.mark.parametrize("seed", [1, 2])
def test_nobody_waits_for_somebody_who_waits_for_him(sessions: Sessions, seed: int) -> None:
    roles: list[Callable[[Session, random.Random], None]] = [write, write, write, start, start, sort, sort, sweep]
    with ThreadPoolExecutor(len(roles)) as threads:
        done = [
            threads.submit(role, sessions.open(**EAGER), random.Random(f"{seed} {place}"))
            for place, role in enumerate(roles)
        ]
    for future in done:
        try:
            future.result()
        except errors.DeadlockDetected as deadlock:
            pytest.fail(f"{deadlock}\n{deadlock.diag.message_detail}\n{deadlock.diag.context}")

    db = sessions.open()
    drain(db)
    statuses = moves.statuses(db)
    assert len(statuses) == db.value("select count(*) from kedge.run_keys")
    assert moves.letters(db) == []
    assert set(statuses.values()) == {"completed", "failed", "cancelled"}


def drain(db: Session) -> None:
    """Bring everything to its end."""
    for (worker,) in db.rows("select id from kedge.workers"):
        moves.lapse(db, worker)
    while moves.take_back(db):
        pass
    last = moves.register(db)
    while db.value("select count(*) from kedge.runs") > 0:
        for (run,) in db.rows("select id from kedge.runs where state in ('w', 's')"):
            letters.put(db, run, "u")
            letters.send(db, run)
        while moves.sort_inbox(db).letters:
            pass
        db.rows("update kedge.runs set due_at = now() where state = 'w'")
        while claimed := moves.claim(db, last, floors=LANES):
            moves.end(db, last, claimed)
    while moves.sort_inbox(db).letters:
        pass
