"""What a client sees of a run's steps and waits: frozen values, put together from the journal, waits and failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias, cast
from uuid import UUID

import msgspec

from kedge.errors import ErrorInfo, PayloadError
from kedge.failures import decode_error
from kedge.wire import decoder
from kedge_client._plain import plain, plain_id

StepKind: TypeAlias = Literal[
    "step", "transaction", "event", "sleep", "poll", "pause", "child", "child started", "sent", "first", "patched"
]
StepStatus: TypeAlias = Literal["completed", "failed", "interrupted", "open"]
WaitKind: TypeAlias = Literal["event", "sleep", "poll", "retry", "child", "pause", "child start", "singleton"]

_STEP_KINDS: Final[dict[str, StepKind]] = {
    "s": "step",
    "t": "transaction",
    "e": "event",
    "d": "sleep",
    "p": "poll",
    "u": "pause",
    "c": "child",
    "n": "child started",
    "m": "sent",
    "o": "first",
    "k": "patched",
}
_WAIT_KINDS: Final[dict[str, WaitKind]] = {
    "e": "event",
    "d": "sleep",
    "p": "poll",
    "r": "retry",
    "c": "child",
    "u": "pause",
    "n": "child start",
    "g": "singleton",
}
# A keyed start has a key of its own, behind that of the call.
_START: Final = "/start"
# Its next attempt is what a step waits for.
_STEP_OF_WAIT: Final = {"r": "s"}
# Not the handler's: a run waits for the one before it.
_GATE: Final = "g"
_PATCHED: Final = "k"


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that failed."""

    attempt: int
    """From 1; a new attempt of the run counts its steps' from 1 again."""
    error: ErrorInfo
    at: datetime
    """When it failed."""
    took: timedelta


class WaitView(msgspec.Struct, frozen=True, kw_only=True):
    """What a run waits for."""

    key: str
    """Branch, id and number."""
    kind: WaitKind
    """`retry`: a step's next attempt. `child start`: of a child with a key. `singleton`: the run before this one."""
    event: str | None
    """The event's name."""
    topic: str | None
    opened_at: datetime
    due_at: datetime | None
    """When it ends, or its next check or attempt begins, by itself. None: never."""
    attempt: int
    """Of a poll: checks made. Of a retry: attempts failed."""
    child_id: UUID | None


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """A step, wait, child or anything else that a handler asked for, and what became of it."""

    seq: int | None
    """The order in which outcomes reached the handler, not dense; None while it is open."""
    key: str
    """Branch, id and number."""
    id: str
    """As the handler wrote it."""
    kind: StepKind
    status: StepStatus
    """
    `failed`: handed to the handler as an error. `interrupted`: by the handler's own code, a timeout for example.
    `open`: it waits; a step that is just being executed has not been kept, and is not shown.
    """
    value: object = None
    """In plain values."""
    error: ErrorInfo | None = None
    attempts: tuple[AttemptView, ...] = ()
    """Those that failed, the last one too if the step has failed; the newest thousand of the whole run."""
    started_at: datetime
    """Of the first attempt that is known."""
    finished_at: datetime | None = None
    took: timedelta | None = None
    """The attempt that counted."""
    epoch: int | None = None
    """Which claim of the run kept it."""
    child_id: UUID | None = None

    def __repr__(self) -> str:
        # Without payloads: a repr ends up in logs.
        return f"<StepView {self.key} {self.kind} {self.status}>"


class StepRow(NamedTuple):
    """A row of steps_v1."""

    seq: int
    key: str
    kind: str
    at: datetime
    took_ms: int
    epoch: int
    value: bytes
    meta: bytes


class WaitRow(NamedTuple):
    """A row of waits_v1."""

    kind: str
    key: str
    slot: str | None
    opened_at: datetime
    due_at: datetime | None
    attempt: int
    state: bytes


class FailureRow(NamedTuple):
    """A row of failures_v1."""

    kind: str
    key: str
    attempt: int
    at: datetime
    took_ms: int
    error: bytes


class _RowMeta(msgspec.Struct, frozen=True):
    """What this client reads of the column `meta` of an outcome."""

    operation: str = "s"


_decode_meta: Final = decoder(_RowMeta)


def wait_view(row: WaitRow) -> WaitView:
    """Make a view of an open wait."""
    topic, event = _names(row.slot)
    return WaitView(
        key=row.key,
        kind=_WAIT_KINDS.get(row.kind, cast("WaitKind", row.kind)),
        event=event,
        topic=topic,
        opened_at=row.opened_at,
        due_at=row.due_at,
        attempt=row.attempt,
        child_id=plain_id(row.state, "a child's id") if row.kind == "c" else None,
    )


def event_name(slot: str) -> str:
    """Return the event's name of a slot, of a run's own event or of a topic's."""
    return _names(slot)[1] or slot


def step_views(
    rows: Sequence[StepRow], waits: Iterable[WaitRow] = (), failures: Iterable[FailureRow] = ()
) -> list[StepView]:
    """Put together what is kept, in the order in which it reached the handler, and what is open, as it began."""
    attempts: defaultdict[str, list[AttemptView]] = defaultdict(list)
    for failure in failures:
        if failure.kind != "x":
            attempts[failure.key].append(attempt_view(failure.attempt, failure.at, failure.took_ms, failure.error))
    children = {
        row.key.removesuffix(_START): child
        for row in rows
        if row.kind == "n" and (child := plain_id(row.value, "a child's id"))
    }
    # What was read as open has ended meanwhile if it is kept. A patch is no operation: any of them may have its name.
    kept = {row.key for row in rows if row.kind != _PATCHED}
    views = [_kept(row, attempts, children) for row in rows]
    return views + [_open(row, attempts, children) for row in waits if row.kind != _GATE and row.key not in kept]


def attempt_view(attempt: int, at: datetime, took_ms: int, error: bytes) -> AttemptView:
    """Make a view of a failed attempt."""
    return AttemptView(attempt=attempt, error=decode_error(error), at=at, took=timedelta(milliseconds=took_ms))


def _kept(row: StepRow, attempts: Mapping[str, list[AttemptView]], children: Mapping[str, UUID]) -> StepView:
    status: StepStatus = "failed" if row.kind == "f" else "interrupted" if row.kind == "x" else "completed"
    kind = row.kind if status == "completed" else _operation(row.meta)
    took = timedelta(milliseconds=row.took_ms)
    tries = tuple(attempts.get(row.key, ()) if row.kind != _PATCHED else ())
    error = None
    if status == "failed":
        error = decode_error(row.value)
        number = error.attempt or len(tries) + 1
        tries = (*tries, AttemptView(attempt=number, error=error, at=row.at, took=took))
    first = tries[0] if tries else None
    return StepView(
        seq=row.seq,
        key=row.key,
        id=_id(row.key, kind),
        kind=_STEP_KINDS.get(kind, cast("StepKind", kind)),
        status=status,
        value=plain(row.value, f"step {row.key!r}") if status == "completed" else None,
        error=error,
        attempts=tries,
        started_at=row.at - took if first is None else first.at - first.took,
        finished_at=row.at,
        took=took,
        epoch=row.epoch,
        child_id=children.get(row.key.removesuffix(_START)) if kind in {"n", "c"} else None,
    )


def _open(row: WaitRow, attempts: Mapping[str, list[AttemptView]], children: Mapping[str, UUID]) -> StepView:
    kind = _STEP_OF_WAIT.get(row.kind, row.kind)
    tries = tuple(attempts.get(row.key, ()))
    child = plain_id(row.state, "a child's id") if kind == "c" else None
    return StepView(
        seq=None,
        key=row.key,
        id=_id(row.key, kind),
        kind=_STEP_KINDS.get(kind, cast("StepKind", kind)),
        status="open",
        attempts=tries,
        started_at=tries[0].at - tries[0].took if tries else row.opened_at,
        child_id=child or (children.get(row.key.removesuffix(_START)) if kind in {"n", "c"} else None),
    )


def _operation(meta: bytes) -> str:
    try:
        return _decode_meta(meta, where="meta of an outcome").operation if meta else "s"
    except PayloadError:
        return "s"


def _id(key: str, kind: str) -> str:
    """Take the branch and the number off a key."""
    if kind == _PATCHED:
        return key
    if kind == "n":
        key = key.removesuffix(_START)
    return key.rpartition("/")[2].partition("#")[0]


def _names(slot: str | None) -> tuple[str | None, str | None]:
    """Return topic and event."""
    if slot is None or slot[:2] not in {"e:", "t:"}:
        return None, None
    topic, _, event = slot[2:].rpartition("\x1f")
    return (topic or None, event)
