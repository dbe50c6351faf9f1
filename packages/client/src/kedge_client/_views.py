"""What a client sees of a run and of its steps: frozen values, made from rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET

from kedge.errors import ErrorInfo, PayloadError
from kedge.failures import decode_error
from kedge.names import VERSION_SIGN
from kedge.run_meta import RunMeta
from kedge.run_state import RunStatus
from kedge.wire import decoder
from kedge_client._round_trip import Row

T = TypeVar("T")

Origin: TypeAlias = Literal["request", "ref", "engine"]
StepKind: TypeAlias = Literal["step", "transaction", "failed", "interrupted"]

_ENGINE: Final[dict[str, object]] = {"queue": "default", "priority": 0}


class RunOption(msgspec.Struct, frozen=True):
    """An option of a run, with where it comes from."""

    value: object
    origin: Origin


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
    """The idempotency key."""
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]
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
    ended_at: datetime | None
    request: str | None
    """What somebody asked for and nobody has done yet: `cancelled` or `paused`."""
    reason: str | None
    """Why it waits, was cancelled or cannot go on, in words."""
    options: Mapping[str, RunOption]
    """What was said about it, each with its origin; what is missing is up to the worker."""
    input: object = None
    """In plain values. None in lists, since payloads are large."""
    output: object = None
    """In plain values; a handle's `result` gives the ref's type. None in lists."""
    error: ErrorInfo | None = None
    """Of a failed run."""

    def __repr__(self) -> str:
        # Without payloads: a repr ends up in logs.
        version = f"@{self.version}" if self.version else ""
        return f"<RunView {self.workflow}{version} {self.id} {self.status}>"


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a step, in the order in which outcomes reached the handler."""

    seq: int
    key: str
    """Branch, id and number."""
    kind: StepKind
    """`failed`: handed to the handler as an error. `interrupted`: by the handler's own code, a timeout for example."""
    at: datetime
    """When it was kept."""
    took: timedelta
    epoch: int
    """Which claim of the run kept it."""
    value: object = None
    """In plain values."""
    error: ErrorInfo | None = None

    def __repr__(self) -> str:
        return f"<StepView {self.seq} {self.key} {self.kind}>"


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list, newest first."""

    items: list[T]
    next_cursor: str | None = None
    """For the page of older ones; None on the last page."""
    prev_cursor: str | None = None
    """For the page of newer ones; None on the first page."""


def run_view(row: Row) -> RunView:
    """Make a view of a row of get_runs_v1."""
    (
        run_id,
        workflow,
        status,
        queue,
        priority,
        resource,
        key,
        parent_id,
        attempt,
        crashes,
        epoch,
        created_at,
        started_at,
        since,
        due_at,
        deadline_at,
        ended_at,
        request,
        reason,
        meta,
        tags,
        input_,
        output,
        error,
    ) = row
    name, _, version = workflow.partition(VERSION_SIGN)
    said = RunMeta.decode(meta)
    return RunView(
        id=run_id,
        workflow=name,
        version=version or None,
        status=status,
        queue=queue,
        priority=priority,
        resource=resource,
        key=key,
        tags=tuple(tags),
        metadata=said.metadata,
        parent_id=parent_id,
        attempt=attempt,
        crashes=crashes,
        epoch=epoch,
        created_at=created_at,
        started_at=started_at,
        since=since,
        due_at=due_at,
        deadline_at=deadline_at,
        ended_at=ended_at,
        request=request,
        reason=reason,
        options=_options(queue, priority, said),
        input=_plain(input_, "the run's input"),
        output=_plain(output, "the run's output"),
        error=decode_error(error) if error else None,
    )


def step_view(row: Row) -> StepView:
    """Make a view of a row of steps_v1."""
    seq, key, kind, at, took_ms, epoch, value, _ = row
    failed = kind == "failed"
    return StepView(
        seq=seq,
        key=key,
        kind=kind,
        at=at,
        took=timedelta(milliseconds=took_ms),
        epoch=epoch,
        value=None if failed else _plain(value, f"step {key!r}"),
        error=decode_error(value) if failed else None,
    )


def _options(queue: str, priority: int, said: RunMeta) -> dict[str, RunOption]:
    found: dict[str, object] = {"queue": queue, "priority": priority}
    if said.timeout_s is not UNSET:
        found["timeout"] = None if said.timeout_s is None else timedelta(seconds=said.timeout_s)
    if said.retry is not None:
        found["retry"] = said.retry.retry()
    return {name: RunOption(value, _origin(name, value, said)) for name, value in found.items()}


def _origin(name: str, value: object, said: RunMeta) -> Origin:
    if name in said.asked:
        return "request"
    return "engine" if name in _ENGINE and _ENGINE[name] == value else "ref"


_decode_plain: Final = decoder(Any)


def _plain(payload: bytes | None, where: str) -> object:
    if not payload:
        return None
    try:
        return _decode_plain(payload, where=where)
    except PayloadError:
        # A list or a view must not fail for one damaged row; whoever decodes by type is told.
        return payload
