"""What a client sees of a run: frozen values, made from rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET

from kedge.definitions import DefinitionTerms
from kedge.errors import ErrorInfo, PayloadError
from kedge.failures import decode_error
from kedge.names import VERSION_SIGN
from kedge.options import DEFAULT_QUEUE
from kedge.retry import Retry
from kedge.run_meta import RunMeta
from kedge.run_state import RunStatus
from kedge_client._plain import plain, plain_mapping
from kedge_client._round_trip import Row
from kedge_client._step_views import AttemptView, WaitRow, WaitView, attempt_view, event_name, wait_view

T = TypeVar("T")

Origin: TypeAlias = Literal["request", "ref", "definition", "engine"]

_ENGINE: Final[dict[str, object]] = {"queue": DEFAULT_QUEUE, "priority": 0}


class RunOption(msgspec.Struct, frozen=True):
    """An option of a run, with where it comes from."""

    value: object
    origin: Origin


class LetterView(msgspec.Struct, frozen=True):
    """A letter that wanted something of a run: a pause, a resume, a retry."""

    at: datetime
    message: str
    """What became of it, such as `pause: done`, or `retry: refused, the run is completed`."""


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it was when it was read."""

    id: UUID
    workflow: str
    """Its name, without the version."""
    version: str | None
    status: RunStatus
    queue: str
    priority: int
    resource: str | None
    key: str | None
    """The idempotency key, or the singleton's."""
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]
    """What the handler has set, as a whole over what the start said."""
    parent_id: UUID | None
    attempt: int
    """How often it failed and was tried again."""
    crashes: int
    """How often in a row its worker died, with nothing kept in between."""
    epoch: int
    """How often it was claimed or taken back."""
    created_at: datetime
    started_at: datetime | None
    """Its first claim."""
    since: datetime
    """When it entered its status."""
    due_at: datetime | None
    """When a waiting run goes on by itself."""
    deadline_at: datetime | None
    """When it fails by itself."""
    ended_at: datetime | None
    request: str | None
    """
    What is asked for and not done yet: `cancelled`, `paused`, `resumed`, `fast-forwarded`, `retried`; or `failed`, when
    its deadline has passed and its worker has not let go of it.
    """
    reason: str | None
    """Why it waits, was cancelled or cannot go on, in words."""
    options: Mapping[str, RunOption]
    """
    `queue`, `priority`, `timeout` (a timedelta, or None) and `retry`, each with its origin. While no worker has ever
    had a handler for the workflow, those of which neither request nor ref say anything are missing.
    """
    waits: tuple[WaitView, ...] = ()
    """What it waits for, as it began; a thousand at most. Empty in lists."""
    unread_events: Mapping[str, int] = {}
    """How many have been sent and not been read, by the event's name. Empty in lists."""
    letters: tuple[LetterView, ...] = ()
    """What became of letters to it, the ten that were sorted last, newest first. Empty in lists."""
    attempts: tuple[AttemptView, ...] = ()
    """Attempts of the run that failed and were followed by another, the newest ten, newest first. Empty in lists."""
    input: object = None
    """In plain values. None in lists, since payloads are large."""
    output: object = None
    """In plain values; a handle's `result` gives the ref's type. None in lists."""
    error: ErrorInfo | None = None
    """Of a failed run."""
    origin: UUID | None = None
    """The run that it was started from by `rerun_from`, and whose steps it has taken over."""

    def __repr__(self) -> str:
        # Without payloads: a repr ends up in logs.
        version = f"@{self.version}" if self.version else ""
        return f"<RunView {self.workflow}{version} {self.id} {self.status}>"


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list, newest first."""

    items: list[T]
    next_cursor: str | None = None
    """For the page of older ones; None on the last page."""
    prev_cursor: str | None = None
    """For the page of newer ones; None on the first page."""


class RunRow(NamedTuple):
    """A row of get_runs_v1; what comes as several arrays is null where there is nothing."""

    id: UUID
    workflow: str
    status: RunStatus
    queue: str
    priority: int
    resource: str | None
    key: str | None
    parent_id: UUID | None
    attempt: int
    crashes: int
    epoch: int
    created_at: datetime
    started_at: datetime | None
    since: datetime
    due_at: datetime | None
    deadline_at: datetime | None
    ended_at: datetime | None
    timeout_s: float | None
    request: str | None
    reason: str | None
    meta: bytes
    metadata: bytes | None
    definition: bytes | None
    tags: list[str]
    input: bytes | None
    output: bytes | None
    error: bytes | None
    wait_kinds: list[str] | None
    wait_keys: list[str] | None
    wait_slots: list[str | None] | None
    wait_opened_ats: list[datetime] | None
    wait_due_ats: list[datetime | None] | None
    wait_attempts: list[int] | None
    wait_states: list[bytes] | None
    unread_slots: list[str] | None
    unread_counts: list[int] | None
    note_ats: list[datetime] | None
    notes: list[str] | None
    failure_attempts: list[int] | None
    failure_ats: list[datetime] | None
    failure_took_ms: list[int] | None
    failure_errors: list[bytes] | None


def run_view(values: Row) -> RunView:
    """Make a view of a row of get_runs_v1."""
    row = RunRow._make(values)
    name, _, version = row.workflow.partition(VERSION_SIGN)
    said = RunMeta.readable(row.meta)
    return RunView(
        id=row.id,
        workflow=name,
        version=version or None,
        status=row.status,
        queue=row.queue,
        priority=row.priority,
        resource=row.resource,
        key=row.key or None,
        tags=tuple(row.tags),
        metadata=said.metadata if row.metadata is None else plain_mapping(row.metadata, "the run's metadata"),
        parent_id=row.parent_id,
        attempt=row.attempt,
        crashes=row.crashes,
        epoch=row.epoch,
        created_at=row.created_at,
        started_at=row.started_at,
        since=row.since,
        due_at=row.due_at,
        deadline_at=row.deadline_at,
        ended_at=row.ended_at,
        request=row.request,
        reason=row.reason,
        options=_options(row, said),
        waits=_waits(row),
        unread_events=_unread(row),
        letters=tuple(map(LetterView, row.note_ats or (), row.notes or ())),
        attempts=tuple(
            map(
                attempt_view,
                row.failure_attempts or (),
                row.failure_ats or (),
                row.failure_took_ms or (),
                row.failure_errors or (),
            )
        ),
        input=plain(row.input, "the run's input"),
        output=plain(row.output, "the run's output"),
        error=decode_error(row.error) if row.error else None,
        origin=None if said.origin is None else UUID(said.origin),
    )


def _waits(row: RunRow) -> tuple[WaitView, ...]:
    columns = (
        row.wait_kinds or (),
        row.wait_keys or (),
        row.wait_slots or (),
        row.wait_opened_ats or (),
        row.wait_due_ats or (),
        row.wait_attempts or (),
        row.wait_states or (),
    )
    return tuple(wait_view(WaitRow._make(wait)) for wait in zip(*columns, strict=True))


def _unread(row: RunRow) -> dict[str, int]:
    unread: dict[str, int] = {}
    for slot, count in zip(row.unread_slots or (), row.unread_counts or (), strict=True):
        name = event_name(slot)
        unread[name] = unread.get(name, 0) + count
    return dict(sorted(unread.items()))


def _options(row: RunRow, said: RunMeta) -> dict[str, RunOption]:
    options = {
        name: RunOption(value, "request" if name in said.asked else "engine" if _ENGINE[name] == value else "ref")
        for name, value in (("queue", row.queue), ("priority", row.priority))
    }
    defined = _definition(row.definition)
    if said.timeout_s is not UNSET:
        options["timeout"] = RunOption(_duration(said.timeout_s), _said("timeout", said))
    elif row.timeout_s is not None:
        # What the definition said when the run was claimed first.
        options["timeout"] = RunOption(_duration(row.timeout_s), "definition")
    elif defined is not None and defined.timeout_s is not UNSET:
        options["timeout"] = RunOption(_duration(defined.timeout_s), "definition")
    elif defined is not None:
        options["timeout"] = RunOption(None, "engine")
    if said.retry is not None:
        options["retry"] = RunOption(said.retry.retry(), _said("retry", said))
    elif defined is not None and defined.retry is not None:
        options["retry"] = RunOption(defined.retry.retry(), "definition")
    elif defined is not None:
        options["retry"] = RunOption(Retry.NEVER, "engine")
    return options


def _said(name: str, said: RunMeta) -> Origin:
    return "request" if name in said.asked else "ref"


def _definition(payload: bytes | None) -> DefinitionTerms | None:
    try:
        return None if payload is None else DefinitionTerms.decode(payload)
    except PayloadError:
        return None


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None or math.isinf(seconds) else timedelta(seconds=seconds)
