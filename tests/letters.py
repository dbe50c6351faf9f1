"""Waits and letters as the single statements that they are, and what became of them, for tests that interleave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from tests import moves
from tests.sessions import Session

NOBODY: Final = UUID(int=0)
"""To whom letters to topics go."""

Move = Callable[[Session, UUID, moves.Claimed], int]
"""A move out of running, with everything else as it usually is."""


# ---- clients, by hand: what their functions insert -----------------------------------------------------------------


def put(
    session: Session,
    run: UUID,
    kind: str,
    *,
    slot: str | None = None,
    payload: bytes | None = None,
    reason: str | None = None,
    sender: UUID | None = None,
    letter: UUID | None = None,
) -> UUID:
    """One letter; its id."""
    id_ = letter or uuid4()
    session.rows(
        "insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload, reason, sender)"
        " values ($1, $2, kedge.instant(), $3, $4, $5, $6, $7) on conflict do nothing",
        (run, id_, kind, slot, payload, reason, sender),
    )
    return id_


def send(
    session: Session, run: UUID, event: str = "paid", payload: bytes = b"\x011", *, letter: UUID | None = None
) -> UUID:
    """An event."""
    return put(session, run, "e", slot=f"e:{event}", payload=payload, letter=letter)


def broadcast(session: Session, topic: str = "rates", event: str = "changed", payload: bytes = b"\x011") -> UUID:
    """An event to a topic."""
    return put(session, NOBODY, "t", slot=topic_slot(topic, event), payload=payload)


def topic_slot(topic: str = "rates", event: str = "changed") -> str:
    return f"t:{topic}\x1f{event}"


def watch(session: Session, run: UUID, watcher: UUID, key: str = "child") -> UUID:
    return put(session, run, "w", slot=f"k:{key}", sender=watcher)


# ---- the lease holder ----------------------------------------------------------------------------------------------


def open_wait(
    session: Session,
    worker: UUID,
    run: moves.Claimed,
    key: str,
    kind: str = "e",
    *,
    slot: str | None = None,
    delay_s: float | None = None,
    need: int = 0,
    group: str | None = None,
) -> int:
    """OPEN_WAITS one; an event is called as its wait unless `slot` says so. Answers how many the fence let through."""
    return session.count(
        moves.statement("OPEN_WAITS"),
        (
            worker,
            [run.id],
            [run.epoch],
            [key],
            [kind],
            [slot or (f"e:{key}" if kind == "e" else None)],
            [delay_s],
            [None],
            [None],
            [0],
            [need],
            [group],
            [b""],
        ),
    )


def consume(session: Session, worker: UUID, run: moves.Claimed, letter: UUID, seq: int) -> int:
    """CONSUME_MAIL one, with the journal row that holds it."""
    moves.keep(session, worker, run, seq)
    return session.count(moves.statement("CONSUME_MAIL"), (worker, [run.id], [run.epoch], [seq], [letter]))


def park(session: Session, worker: UUID, run: moves.Claimed, *, last: int = 0, stale: Sequence[str] = ()) -> int:
    """PARK one run; `last` is its last seq."""
    number: int = session.value(
        moves.statement("PARK"),
        (worker, [run.id], [run.epoch], [last or run.next_seq - 1], [run.id] * len(stale), list(stale)),
    )
    return number


def retry_later(
    session: Session, worker: UUID, run: moves.Claimed, *, delay_s: float = 60, error: bytes = b"\x01{}", last: int = 0
) -> int:
    """RETRY_LATER one run."""
    number: int = session.value(
        moves.statement("RETRY_LATER"),
        (worker, [run.id], [run.epoch], [delay_s], [error], [None], [last or run.next_seq - 1]),
    )
    return number


def parked(
    session: Session,
    *keys: str,
    worker: UUID | None = None,
    kind: str = "e",
    slot: str | None = None,
    delay_s: float | None = None,
) -> moves.Claimed:
    """A new run that waits for the events of these names."""
    owner, run = running(session, worker)
    for key in keys or ("paid",):
        open_wait(session, owner, run, key, kind, slot=slot, delay_s=delay_s)
    park(session, owner, run)
    return run


def running(session: Session, worker: UUID | None = None) -> tuple[UUID, moves.Claimed]:
    """A worker, and a new run that it executes."""
    owner = worker or moves.register(session)
    (id_,) = moves.started(session)
    claimed = {run.id: run for run in moves.claim_alone(session, owner)}
    return owner, claimed[id_]


# ---- the sweeper ---------------------------------------------------------------------------------------------------


def set_deadline(session: Session, run: UUID, timeout: timedelta = timedelta(hours=1)) -> None:
    session.rows(
        "update kedge.runs set timeout_s = $2, deadline_at = kedge.instant() + make_interval(secs => $2) where id = $1",
        (run, timeout.total_seconds()),
    )


def expire(session: Session, limit: int = 500) -> tuple[list[UUID], list[UUID]]:
    """Who ended, and the owners to be rung."""
    ((ended, owners),) = session.rows("select ended, owners from kedge.expire_runs($1)", (limit,))
    return ended, owners


# ---- what stands in the tables --------------------------------------------------------------------------------------


def mail(session: Session, run: UUID) -> list[tuple[str, bytes]]:
    """(slot, payload) of what is unread, in order of arrival."""
    return session.rows(
        "select slot, payload from kedge.events where run_id = $1 and consumed_seq is null order by seq", (run,)
    )


def waits(session: Session, run: UUID) -> list[str]:
    """The keys of what is open."""
    return [key for (key,) in session.rows("select key from kedge.waits where run_id = $1 order by key", (run,))]


def notes(session: Session, run: UUID) -> list[str]:
    """What became of the letters that wanted something of the run."""
    rows = session.rows("select message from kedge.run_log where run_id = $1 and kind = 'n' order by id", (run,))
    return [message for (message,) in rows]


def failures(session: Session, run: UUID) -> list[tuple[str, str, int, int]]:
    """(kind, key, attempt, journal_seq) of what was set aside."""
    return session.rows(
        "select kind, key, attempt, journal_seq from kedge.failures where run_id = $1 order by id", (run,)
    )


def due_at(session: Session, run: UUID) -> datetime | None:
    due: datetime | None = moves.run_row(session, run)["due_at"]
    return due
