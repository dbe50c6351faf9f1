"""From requests to the values of a start, and from its answers to what became of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias, cast
from uuid import UUID

import psycopg
from msgspec import UNSET

from kedge.errors import InputConflictError, InvalidOptionError, KedgeError, RunExistsError
from kedge.ids import new_run_id
from kedge.options import StartOptions
from kedge.refs import RunRequest
from kedge_client._round_trip import Command, Row
from kedge_client._statements import START_MANY

AnyRequest: TypeAlias = RunRequest[Any]
BATCH: Final = 1000
"""Runs in one statement of a bulk start."""

MAX_REASON_CHARACTERS: Final = 4000


class Start(NamedTuple):
    """A request with the id that its run will have, made before the first try."""

    request: AnyRequest
    run_id: UUID


class Started(NamedTuple):
    """What became of a start: the run that it made, or the one that holds its key."""

    run_id: UUID
    created: bool


def check_reason(reason: object) -> str | None:
    """
    Return a reason that can be kept.

    Raises:
        InvalidOptionError: No text, longer than 4,000 characters, or with NUL or lone surrogates in it.
    """
    if reason is None:
        return None
    if not isinstance(reason, str):
        raise InvalidOptionError(f"reason= is text, not a {type(reason).__name__}")
    if len(reason) > MAX_REASON_CHARACTERS:
        raise InvalidOptionError(f"reason= has {len(reason):,} characters, the limit is {MAX_REASON_CHARACTERS:,}")
    try:
        encoded = reason.encode()
    except UnicodeEncodeError:
        raise InvalidOptionError("reason= contains a lone surrogate, which no database can keep") from None
    if b"\0" in encoded:
        raise InvalidOptionError("reason= contains NUL, which PostgreSQL cannot keep")
    # A StrEnum's member is a str, but drivers know it as an Enum.
    return str.__str__(reason)


def new_start(request: AnyRequest, resource: str | None) -> Start:
    """
    Give a request its id, and a scoped client's resource.

    Raises:
        InvalidOptionError: No request, one with options that this release cannot keep, or of another resource.
    """
    if not isinstance(request, RunRequest):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
        raise InvalidOptionError(f"start takes a request, ref(input, ...), not a {type(request).__name__}")
    options = request.options
    if options.timeout is not UNSET or options.retry is not None or options.singleton is not None:
        raise InvalidOptionError("timeout=, retry= and singleton= of a run are not available in this release")
    if resource is not None and options.resource != resource:
        if options.resource is not None:
            raise InvalidOptionError("the request is of another resource than the scoped client")
        request = request.with_options(resource=resource)
    return Start(request, new_run_id())


def start_values(start: Start, *, strict: bool = False) -> tuple[Any, ...]:
    """Return the values of start_run_v1, in the order of its parameters."""
    request, run_id = start
    options = request.options
    return (
        run_id,
        request.ref.qualified_name,
        options.queue,
        options.priority,
        request.payload,
        options.meta,
        request.key,
        None if request.key is None else request.key_hash,
        options.on_conflict,
        options.resource,
        _delay_s(options),
        options.start_at,
        list(options.tags) or None,
        strict,
    )


def started(start: Start, row: Row) -> Started:
    """
    Read what start_run_v1 answered.

    Raises:
        InputConflictError: The key is taken by a run with another input, or of another resource.
        RunExistsError: The key is taken, and on_conflict says "raise".
    """
    run_id, created, _, conflict = row[:4]
    if conflict is not None:
        raise _taken(start, run_id, other_input=conflict == "input")
    return Started(run_id, created)


def conflict_of(starts: Iterable[Start], error: psycopg.Error) -> KedgeError | None:
    """Return the typed error when a strict start was refused for its key."""
    if error.sqlstate not in {"KE002", "KE003"}:
        return None
    refused, _, holder = (error.diag.message_detail or "").partition(" ")
    for start in starts:
        if str(start.run_id) == refused:
            return _taken(start, UUID(holder) if holder else None, other_input=error.sqlstate == "KE002")
    return None


def _taken(start: Start, holder: UUID | None, *, other_input: bool) -> RunExistsError:
    kind = InputConflictError if other_input else RunExistsError
    return kind(start.run_id, holder, start.request.ref.qualified_name, cast("str", start.request.key))


def _delay_s(options: StartOptions) -> float | None:
    return None if options.delay is None else options.delay.total_seconds()


class Batch(NamedTuple):
    """Starts of one shape, with their places in the caller's list."""

    places: list[int]
    starts: list[Start]


def batches(starts: Sequence[Start]) -> list[Batch]:
    """
    Group starts by what one statement says once: workflow, queue, priority, time, tags.

    Those with a key go in the order of their keys, over all shapes, so that two bulk starts with equal keys wait for
    each other and never in a circle.
    """
    grouped: dict[object, list[int]] = {}
    keyed: list[int] = []
    shapes: dict[tuple[int, int], object] = {}
    for place, (request, _) in enumerate(starts):
        if request.key is not None:
            keyed.append(place)
            continue
        # Requests of a bulk share their ref, and mostly their options.
        seen = (id(request.ref), id(request.options))
        shape = shapes.get(seen)
        if shape is None:
            shape = shapes[seen] = _shape(request)
            grouped.setdefault(shape, [])
        grouped[shape].append(place)
    cut = [places[at : at + BATCH] for places in grouped.values() for at in range(0, len(places), BATCH)]
    keyed.sort(key=lambda place: (starts[place].request.ref.name, starts[place].request.key))
    last: object = None
    for place in keyed:
        request = starts[place].request
        shape = (_shape(request), request.options.on_conflict)
        if shape != last or len(cut[-1]) == BATCH:
            cut.append([])
            last = shape
        cut[-1].append(place)
    return [Batch(places, [starts[place] for place in places]) for places in cut]


def _shape(request: AnyRequest) -> tuple[object, ...]:
    options = request.options
    return (
        request.ref.qualified_name,
        options.queue,
        options.priority,
        options.delay,
        options.start_at,
        options.tags,
    )


def batch_values(batch: Batch, *, strict: bool) -> tuple[Any, ...]:
    """Return the values of start_runs_v1, in the order of its parameters."""
    requests = [start.request for start in batch.starts]
    first = requests[0]
    options = first.options
    metas = [request.options.meta for request in requests]
    resources = [request.options.resource for request in requests]
    has_keys = first.key is not None
    return (
        [start.run_id for start in batch.starts],
        first.ref.qualified_name,
        options.queue,
        options.priority,
        [request.payload for request in requests],
        metas if any(metas) else None,
        [request.key for request in requests] if has_keys else None,
        [request.key_hash for request in requests] if has_keys else None,
        options.on_conflict,
        resources if any(resources) else None,
        _delay_s(options),
        options.start_at,
        list(options.tags) or None,
        strict,
    )


def batch_commands(cut: Iterable[Batch]) -> Iterator[Command]:
    """Make the commands of a bulk start, one after the other: encoding goes on while the server inserts."""
    for batch in cut:
        yield Command(START_MANY, batch_values(batch, strict=True))


def started_in(batch: Batch, rows: Sequence[Row]) -> Iterator[tuple[int, Started]]:
    """Read what start_runs_v1 answered: place in the caller's list, and what became of that start."""
    special = {row[0]: row[1:] for row in rows}
    for number, (place, start) in enumerate(zip(batch.places, batch.starts, strict=True), 1):
        row = special.get(number)
        yield place, started(start, row) if row else Started(start.run_id, created=True)


def doorbells(starts: Iterable[Start]) -> list[tuple[str, str]]:
    """Return whom to ring for: (queue, workflow), once each, of the runs that are due at once."""
    now = datetime.now(UTC)
    bells: dict[tuple[str, str], None] = {}
    for request, _ in starts:
        options = request.options
        # A clock that is a little off costs no more than a ring in vain, or a run that is found by a poll.
        if not options.delay and (options.start_at is None or options.start_at <= now):
            bells[options.queue, request.ref.qualified_name] = None
    return list(bells)
