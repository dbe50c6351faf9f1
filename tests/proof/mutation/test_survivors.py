"""What mutants of the SQL had survived before these tests were there."""

from __future__ import annotations

from typing import Final

import psycopg
import pytest

from tests import letters, moves
from tests.integration.test_guards import Guard
from tests.sessions import Sessions


def test_however_many_letters_wait_for_a_locked_run_the_next_of_another_is_sorted(sessions: Sessions) -> None:
    db, holder = sessions.open(), sessions.open()
    locked, free = moves.started(db, 2)
    for _ in range(20):
        letters.send(db, locked)
    letters.send(db, free)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked,))

    moves.sort_inbox(db, 1)

    assert len(letters.mail(db, free)) == 1
    assert moves.letters(db) == [locked] * 20
    holder.rollback()


def test_a_session_of_a_worker_of_a_newer_protocol_is_ended_by_its_like_only(sessions: Sessions) -> None:
    db, theirs = sessions.open(), sessions.open()
    newer = moves.register(db, protocol=moves.PROTOCOL + 1)
    theirs.rows("select kedge.take_over_journal($1::uuid, 0, null)", (newer,))
    theirs.begin()
    moves.hold(theirs, newer)
    moves.lapse(db, newer)

    assert moves.take_back(db, moves.PROTOCOL) is None
    assert theirs.value("select 1") == 1
    assert moves.take_back(db, moves.PROTOCOL + 1) is None

    with pytest.raises(psycopg.OperationalError):
        theirs.value("select 1")


GUARDS: Final = [
    Guard(
        "a held run's letters are not read again",
        "engine/pick_letters.sql",
        "and i.run_id <> all (v_held)",
        "",
        test_however_many_letters_wait_for_a_locked_run_the_next_of_another_is_sorted,
    ),
    Guard(
        "hung sessions of a newer protocol",
        "engine/take_back.sql",
        "w.lease_until + w.lease / 3 < clock_timestamp() and w.protocol <= p_protocol",
        "w.lease_until + w.lease / 3 < clock_timestamp()",
        test_a_session_of_a_worker_of_a_newer_protocol_is_ended_by_its_like_only,
    ),
]


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_without_the_guard_the_test_of_its_promise_fails(
    sessions: Sessions, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sessions.open() as db:
        guard.remove(db, monkeypatch)

    with pytest.raises((AssertionError, psycopg.Error)):
        guard.promise(sessions)
