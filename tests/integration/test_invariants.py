"""check_invariants() sees what breaks a promise about waits, mail and ends, and nothing in a life as it should be."""

from __future__ import annotations

from typing import Final

import pytest

from kedge.ids import new_run_id
from tests import letters, moves
from tests.sessions import Session

WAITING: Final = "(select id from kedge.runs where state = 'w' limit 1)"
FAILED: Final = "(select id from kedge.finished where status = 'f' limit 1)"
NOBODY: Final = f"'{new_run_id()}'"

BREAKS: Final[dict[str, tuple[str, str, bool]]] = {
    "waiting for nothing": ("I10", "delete from kedge.waits", False),
    "beside unread mail that wakes it": (
        "I10",
        (
            f"insert into kedge.events (run_id, id, seq, at, slot, payload)"
            f" values ({WAITING}, gen_random_uuid(), 99, now(), 'e:paid', '')"
        ),
        False,
    ),
    "its claim does not read": ("I10", "update kedge.runs set has_waits = false", False),
    "which does not know it or has ended": (
        "I10",
        f"insert into kedge.run_watchers (run_id, watcher_id, key) values ({FAILED}, {WAITING}, 'a')",
        False,
    ),
    "was read for row 7": ("I8", "update kedge.events set consumed_seq = 7 where consumed_seq is not null", False),
    "is open and has its outcome": (
        "I9",
        (
            f"insert into kedge.journal values ({WAITING}, now(), 1, 1, 0, 'e', 'paid', '', '');"
            " update kedge.runs set next_seq = 2"
        ),
        False,
    ),
    "has 2 outcomes": (
        "I9",
        (
            f"insert into kedge.journal select {WAITING}, now(), s, 1, 0, 'd', 'nap', '', ''"
            " from generate_series(1, 2) s;"
            " update kedge.runs set next_seq = 3"
        ),
        False,
    ),
    "of a run that is not live": (
        "I9",
        f"insert into kedge.waits (run_id, opened_at, kind, key) values ({FAILED}, now(), 'd', 'nap')",
        False,
    ),
    "active runs of a singleton": ("I2", "update kedge.runs set is_singleton = true, key = 'a'", False),
    "more attempts than failures": ("I13", "update kedge.runs set attempt = 1", False),
    "beyond its deadline": (
        "I10",
        (
            "update kedge.runs set deadline_at = now() - interval '1 hour' where state = 'w';"
            " insert into kedge.idle select id, queues, '{other}' from kedge.workers"
        ),
        False,
    ),
    "mail .* of a run that does not exist": (
        "I8",
        (
            f"insert into kedge.events (run_id, id, seq, at, slot, payload)"
            f" values ({NOBODY}, gen_random_uuid(), 99, now(), 'e:paid', '')"
        ),
        True,
    ),
    "rows of journal belong to a run that is not there": (
        "I15",
        f"insert into kedge.journal values ({NOBODY}, now(), 1, 1, 0, 's', 'a', '', '')",
        True,
    ),
    "rows of run_log belong to a run that is not there": (
        "I15",
        (
            "insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)"
            f" values ({NOBODY}, now(), 1, 20, 'n', '', '')"
        ),
        True,
    ),
    "rows of run_tags belong to a run that is not there": (
        "I15",
        f"insert into kedge.run_tags (tag, run_id) values ('a', {NOBODY})",
        True,
    ),
    "deleted, but there is a run of that id": ("I15", f"insert into kedge.removals values ({FAILED})", False),
    "failure .* of a run that does not exist": (
        "I13",
        (
            "insert into kedge.failures (run_id, at, epoch, attempt, took_ms, kind, key, error)"
            f" values ({NOBODY}, now(), 1, 1, 0, 'r', '', '')"
        ),
        True,
    ),
}


def life(db: Session) -> None:
    """Some runs in the middle of it: parked for an event and a child, read mail, a failed attempt, a failed run."""
    worker, reader = letters.running(db)
    letters.open_wait(db, worker, reader, "paid")
    letter = letters.send(db, reader.id)
    moves.sort_inbox(db)
    letters.consume(db, worker, reader, letter, 1)
    db.rows(moves.statement("CLOSE_WAITS"), (worker, [reader.id], [reader.epoch], ["paid"]))
    parked = letters.parked(db)
    letters.send(db, parked.id, "early")
    letters.watch(db, reader.id, parked.id)
    moves.sort_inbox(db)
    _, failing = letters.running(db, worker)
    letters.retry_later(db, worker, failing, delay_s=0)
    (again,) = moves.claim_alone(db, worker)
    letters.open_wait(db, worker, again, "nap", "d", delay_s=60)
    moves.end(db, worker, again, "f")


def broken(db: Session, *, history: bool) -> list[tuple[str, str]]:
    return db.rows("select distinct promise, what from kedge.check_invariants($1)", (history,))


@pytest.mark.parametrize("history", [False, True])
def test_a_life_as_it_should_be_breaks_nothing(db: Session, history: bool) -> None:
    life(db)

    assert broken(db, history=history) == []


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("what", BREAKS)
def test_what_breaks_a_promise_is_seen(db: Session, what: str) -> None:
    promise, change, needs_history = BREAKS[what]
    life(db)

    for statement in change.split(";"):
        db.rows(statement)

    seen = db.rows("select promise from kedge.check_invariants(true) where what ~ $1 group by promise", (what,))
    assert seen == [(promise,)]
    if needs_history:
        assert broken(db, history=False) == []
