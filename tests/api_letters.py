"""What api functions make of clients' letters, as the single statements that they are, and runs that wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from tests import moves
from tests.sessions import Session

EVENT: Final = "settled"
DATA: Final = b"\x01null"


@dataclass(frozen=True, slots=True)
class Sent:
    """What send_v1 answers."""

    accepted: bool
    status: str | None
    delivered: bool
    unread: int | None


@dataclass(frozen=True, slots=True)
class Wait:
    """An open wait: e event, d sleep, p poll, r a step's next attempt, c child, u pause."""

    key: str
    kind: str = "e"
    slot: str | None = None
    delay_s: float | None = None


def for_event(key: str = "wait", event: str = EVENT) -> Wait:
    return Wait(key, "e", f"e:{event}")


def for_topic(topic: str, key: str = "wait", event: str = EVENT) -> Wait:
    return Wait(key, "e", f"t:{topic}\x1f{event}")


def for_time(key: str = "wait", delay_s: float = 86_400) -> Wait:
    return Wait(key, "d", None, delay_s)


def for_resume(key: str = "wait") -> Wait:
    return Wait(key, "u")


# ---- clients ------------------------------------------------------------------------------------------------------


def send(
    session: Session,
    run: UUID | None = None,
    *,
    topic: str | None = None,
    event: str | None = EVENT,
    resource: str | None = None,
    payload: bytes = DATA,
    letter: UUID | None = None,
) -> Sent | None:
    """`send_v1`; None: there is no such run."""
    rows = session.rows(
        "select accepted, status, delivered, unread from kedge.send_v1($1, $2::uuid, $3::text, $4::text, $5::text, $6)",
        (letter or uuid4(), run, topic, event, resource, payload),
    )
    return Sent(*rows[0]) if rows else None


def control(
    session: Session, verb: str, run: UUID, *, resource: str | None = None, letter: UUID | None = None
) -> tuple[bool, str] | None:
    """`cancel`, `pause`, `resume`, `retry` or `fast_forward` a run: whether it is accepted, and the run's status."""
    function, more = {
        "cancel": ("cancel_run_v1", ", null::text, false"),
        "cascade": ("cancel_run_v1", ", null::text, true"),
        "pause": ("pause_run_v1", ", null::text"),
        "resume": ("resume_run_v1", ""),
        "retry": ("retry_run_v1", ""),
        "fast_forward": ("fast_forward_v1", ", null::text, '\\x016e756c6c'::bytea"),
    }[verb]
    rows = session.rows(
        f"select accepted, status from kedge.{function}($1, $2, $3::text{more})",
        (letter or uuid4(), run, resource),
    )
    return rows[0] if rows else None


def fast_forward(
    session: Session, run: UUID, wait: str | None = None, *, letter: UUID | None = None
) -> tuple[bool, str, bool]:
    """`fast_forward_v1`: whether it is accepted, the run's status, whether the run has ended for good."""
    ((accepted, status, has_ended),) = session.rows(
        "select accepted, status, has_ended from kedge.fast_forward_v1($1, $2, null, $3::text, $4)",
        (letter or uuid4(), run, wait, DATA),
    )
    return accepted, status, has_ended


def inbox(session: Session) -> list[tuple[Any, ...]]:
    """(run, kind, slot, payload) of the unsorted letters, in order of arrival."""
    return session.rows("select run_id, kind::text, slot, payload from kedge.inbox order by seq")


def mail(session: Session, run: UUID) -> list[tuple[str, bool]]:
    """(slot, whether it has been read) of what was sent to a run, in order of arrival."""
    return session.rows(
        "select slot, consumed_seq is not null from kedge.events where run_id = $1 order by seq", (run,)
    )


# ---- workers ------------------------------------------------------------------------------------------------------


def running(session: Session, **options: Any) -> tuple[UUID, moves.Claimed]:
    """A worker and the run that it executes."""
    worker = moves.register(session)
    moves.started(session, **options)
    (run,) = moves.claim_alone(session, worker)
    return worker, run


def open_waits(session: Session, worker: UUID, run: moves.Claimed, waits: Sequence[Wait]) -> None:
    """OPEN_WAITS."""
    count = len(waits)
    session.rows(
        moves.statement("OPEN_WAITS"),
        (
            worker,
            [run.id] * count,
            [run.epoch] * count,
            [wait.key for wait in waits],
            [wait.kind for wait in waits],
            [wait.slot for wait in waits],
            [wait.delay_s for wait in waits],
            [None] * count,
            [None] * count,
            [0] * count,
            [0] * count,
            [None] * count,
            [b""] * count,
        ),
    )


def park(session: Session, worker: UUID, run: moves.Claimed) -> None:
    """PARK."""
    assert session.value(moves.statement("PARK"), (worker, [run.id], [run.epoch], [run.next_seq - 1], [], [])) == 1


def parked(session: Session, *waits: Wait, **options: Any) -> UUID:
    """A run that waits for these, in nobody's memory."""
    worker, run = running(session, **options)
    open_waits(session, worker, run, waits)
    park(session, worker, run)
    return run.id


def ended(session: Session, status: str, **options: Any) -> UUID:
    """A run that has ended: c completed, f failed, x cancelled."""
    worker, run = running(session, **options)
    assert moves.end(session, worker, run, status) == 1
    return run.id


def consume(session: Session, worker: UUID, run: moves.Claimed, letter: UUID, seq: int) -> int:
    """CONSUME_MAIL."""
    return session.count(moves.statement("CONSUME_MAIL"), (worker, [run.id], [run.epoch], [seq], [letter]))
