"""
Every statement by which a worker writes for a run has the whole fence, by itself: epoch and owner. With it nothing is
written by who has lost the run; without either half something is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID, uuid4

import pytest

from kedge_worker import _statements
from tests import letters, moves
from tests.sessions import Session

Write = Callable[[Session, UUID, moves.Claimed], object]

EPOCH: Final = ("and r.epoch = x.epoch", "and epoch = %(epoch)s", "and r.epoch = %(epoch)s")
OWNER: Final = (
    "and r.worker_id is not distinct from $1::uuid",
    "and worker_id is not distinct from %(worker)s",
    "and r.worker_id is not distinct from %(worker)s",
)


@dataclass(frozen=True)
class Fenced:
    """A statement, what is sent with it, and what of the database shows that it has written."""

    name: str
    write: Write
    shows: str

    def __str__(self) -> str:
        return self.name


def send(name: str, *columns: object) -> Write:
    """Binary arrays of one entry: the worker, runs, epochs, then the columns."""
    return lambda db, worker, run: db.rows(
        moves.statement(name), (worker, [run.id], [run.epoch], *([value] for value in columns))
    )


def named(name: str, **values: object) -> Write:
    return lambda db, worker, run: db.rows(
        moves.statement(name),
        {"worker": worker, "run": run.id, "parent": run.id, "epoch": run.epoch, "seq": 9, "took_ms": 1, **values},
    )


def start_alone(db: Session, worker: UUID, run: moves.Claimed) -> None:
    options: dict[str, object] = {
        "meta": None, "resource": None, "delay_s": None, "start_at": None, "tags": None, "timeout_s": None,
        "singleton": None,
        "id": uuid4(), "workflow": "child", "queue": moves.QUEUE, "priority": 0, "input": b"\x01null", "key": "k",
        "key_hash": b"x" * 24, "on_conflict": "return", "is_dependent": False,
        "timeline": "",
    }  # fmt: skip
    named("START_ALONE", **options)(db, worker, run)


# A child that starts alone has a second guard, which looks once more when all is done.
NOT_HELD: Final = """
    create or replace function kedge.hold_parent(p_parent uuid, p_epoch int, p_worker uuid) returns void
    language sql as 'select'
"""

LETTER: Final = UUID(int=7)

FENCED: Final = [
    Fenced("KEEP", moves.keep, "select count(*) from kedge.journal"),
    Fenced(
        "KEEP_TRANSACTION",
        named("KEEP_TRANSACTION", key="t", value=b"1", meta=b"", timeline=""),
        "select count(*) from kedge.journal",
    ),
    Fenced(
        "OPEN_WAITS",
        lambda db, worker, run: letters.open_wait(db, worker, run, "new"),
        "select count(*) from kedge.waits",
    ),
    Fenced("CLOSE_WAITS", send("CLOSE_WAITS", "old"), "select count(*) from kedge.waits"),
    Fenced(
        "CONSUME_MAIL",
        send("CONSUME_MAIL", 0, LETTER),
        "select count(*) from kedge.events where consumed_seq is not null",
    ),
    Fenced(
        "SEND_LETTERS",
        send("SEND_LETTERS", "e", UUID(int=1), UUID(int=2), "e:x", b"", None, None),
        "select count(*) from kedge.inbox",
    ),
    Fenced("KEEP_FAILURES", send("KEEP_FAILURES", 1, 1, 1, "s", "a", b""), "select count(*) from kedge.failures"),
    Fenced("SET_PROGRESS", send("SET_PROGRESS", 1, 2, 50.0, "half"), "select count(*) from kedge.progress"),
    Fenced("SET_METADATA", send("SET_METADATA", b"{}"), "select count(*) from kedge.run_metadata"),
    Fenced("WRITE_LOG", send("WRITE_LOG", 1, 20, "said", b""), "select count(*) from kedge.run_log"),
    Fenced("MIND_DEPENDENT", named("MIND_DEPENDENT"), "select count(*) from kedge.runs where has_dependents"),
    Fenced("START_ALONE", start_alone, "select count(*) from kedge.runs"),
]


def prepared(db: Session) -> tuple[UUID, moves.Claimed]:
    """A run that its worker has claimed for the second time, with a wait and unread mail."""
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "old")
    letters.send(db, run.id, "old", letter=LETTER)
    moves.sort_inbox(db)
    moves.release(db, worker, run)
    (again,) = moves.claim_alone(db, worker)
    return worker, again


def written(db: Session, fenced: Fenced, worker: UUID, run: moves.Claimed) -> bool:
    before = db.value(fenced.shows)
    fenced.write(db, worker, run)
    return bool(db.value(fenced.shows) != before)


@pytest.mark.breaks_invariants  # rows that nothing follows, as these tests write them
@pytest.mark.parametrize("fenced", FENCED, ids=str)
def test_only_the_owner_with_his_epoch_writes(db: Session, fenced: Fenced) -> None:
    worker, run = prepared(db)
    stranger = moves.register(db)

    assert not written(db, fenced, worker, replace(run, epoch=run.epoch - 1))
    assert not written(db, fenced, stranger, run)
    assert written(db, fenced, worker, run)


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("half", [EPOCH, OWNER], ids=["epoch", "owner"])
@pytest.mark.parametrize("fenced", FENCED, ids=str)
def test_without_half_of_the_fence_somebody_else_writes(
    db: Session, fenced: Fenced, half: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = str(getattr(_statements, fenced.name))
    (found,) = [words for words in half if words in text]
    monkeypatch.setattr(_statements, fenced.name, text.replace(found, ""))
    if fenced.name == "START_ALONE":
        db.rows(NOT_HELD)
    worker, run = prepared(db)

    if half is EPOCH:
        assert written(db, fenced, worker, replace(run, epoch=run.epoch - 1))
    else:
        assert written(db, fenced, moves.register(db), run)
