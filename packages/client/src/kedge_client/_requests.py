"""From requests to the values of a start, and from its answers to what became of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

import psycopg

from kedge.codecs import PayloadCodec
from kedge.errors import InputConflictError, InvalidOptionError, KedgeError, RunActiveError, RunExistsError
from kedge.ids import new_run_id
from kedge.refs import RunRequest
from kedge.sealing import seal_request
from kedge.start_terms import start_terms, starts_alone
from kedge_client._round_trip import Command, Row
from kedge_client._statements import START_MANY

AnyRequest: TypeAlias = RunRequest[Any]
Request = TypeVar("Request")
BATCH: Final = 1000
"""Runs in one statement of a bulk start."""


class Start(NamedTuple):
    """A request with the id that its run will have, made before the first try."""

    request: AnyRequest
    run_id: UUID


class Started(NamedTuple):
    """What became of a start: the run that it made, or the one that holds its key."""

    run_id: UUID
    created: bool


def scoped_request(request: AnyRequest, resource: str | None) -> AnyRequest:
    """
    Give a request a scoped client's resource.

    Raises:
        InvalidOptionError: No request, or one of another resource.
    """
    if not isinstance(request, RunRequest):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
        raise InvalidOptionError(f"start takes a request, ref(input, ...), not a {type(request).__name__}")
    options = request.options
    if resource is not None and options.resource != resource:
        if options.resource is not None:
            raise InvalidOptionError("the request is of another resource than the scoped client")
        request = request.with_options(resource=resource)
    return request


def new_start(request: AnyRequest, resource: str | None, codec: PayloadCodec | None = None) -> Start:
    """
    Give a request its id, a scoped client's resource, and encrypt its input if there is a codec.

    Raises:
        InvalidOptionError: No request, or one of another resource.
    """
    request = scoped_request(request, resource)
    run_id = new_run_id()
    return Start(request if codec is None else seal_request(codec, request, run_id), run_id)


def new_starts(requests: Iterable[AnyRequest], resource: str | None, codec: PayloadCodec | None = None) -> list[Start]:
    """
    Do the same for each of many requests.

    Raises:
        InvalidOptionError: As `new_start`; or it is nothing that holds requests.
    """
    return [new_start(request, resource, codec) for request in each_of(requests, method="start_many")]


def each_of(requests: Iterable[Request], *, method: str) -> Iterator[Request]:
    """
    Begin to walk requests.

    Raises:
        InvalidOptionError: It is nothing that holds requests.
    """
    if not isinstance(requests, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  # as above
        raise InvalidOptionError(f"{method} takes an iterable of requests, not a {type(requests).__name__}")
    return iter(requests)


def start_values(start: Start, *, strict: bool = False) -> tuple[Any, ...]:
    """Return the values of start_run_v1, in the order of its parameters."""
    # The terms stand in the order of the parameters; this is done for every start.
    *terms, tags, timeout_s, singleton = start_terms(start.request)
    return (start.run_id, *terms, None if tags is None else list(tags), strict, timeout_s, singleton)


_TAKEN: Final[dict[str, type[RunExistsError]]] = {
    "input": InputConflictError,
    "exists": RunExistsError,
    "active": RunActiveError,
}
_TAKEN_STATES: Final = {"KE002": "input", "KE003": "exists", "KE010": "active"}


def started(start: Start, row: Row) -> Started:
    """
    Read what start_run_v1 answered.

    Raises:
        InputConflictError: The key is taken by a run with another input.
        RunActiveError: Another run of the singleton is active.
        RunExistsError: The key is taken, and on_conflict says "raise".
    """
    run_id, created, _, conflict = row[:4]
    if conflict is not None:
        raise _taken(start, run_id, conflict)
    return Started(run_id, created)


def conflict_of(starts: Iterable[Start], error: psycopg.Error) -> KedgeError | None:
    """Return the typed error when a strict start was refused for its key, or for its singleton."""
    conflict = _TAKEN_STATES.get(error.sqlstate or "")
    if conflict is None:
        return None
    refused, _, holder = (error.diag.message_detail or "").partition(" ")
    for start in starts:
        if str(start.run_id) == refused:
            return _taken(start, UUID(holder), conflict)
    return None


def _taken(start: Start, holder: UUID, conflict: str) -> RunExistsError:
    request = start.request
    return _TAKEN[conflict](start.run_id, holder, request.ref.qualified_name, request.key or "")


class Batch(NamedTuple):
    """Starts of one shape, with their places in the caller's list."""

    places: list[int]
    starts: list[Start]


def batches(starts: Sequence[Start]) -> list[Batch]:
    """
    Group starts by what one statement says once: workflow, queue, priority, times, tags, singleton.

    Those with a key or singleton go in the order of their keys and resources, over all shapes, so that two bulk starts
    with equal keys wait for each other and never in a circle.
    """
    grouped: dict[object, list[int]] = {}
    keyed: list[int] = []
    shapes: dict[tuple[int, int], object] = {}
    for place, (request, _) in enumerate(starts):
        if starts_alone(request):
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
    keyed.sort(key=lambda place: _order(starts[place].request))
    last: object = None
    for place in keyed:
        request = starts[place].request
        shape = (_shape(request), request.options.on_conflict)
        if shape != last or len(cut[-1]) == BATCH:
            cut.append([])
            last = shape
        cut[-1].append(place)
    return [Batch(places, [starts[place] for place in places]) for places in cut]


def _order(request: AnyRequest) -> tuple[str, str, bool, str]:
    # An idempotency key and a singleton's are locked apart from each other, and both for each resource.
    options = request.options
    return request.ref.name, request.key or "", options.singleton is not None, options.resource or ""


def _shape(request: AnyRequest) -> tuple[object, ...]:
    options = request.options
    return (
        request.ref.qualified_name,
        options.queue,
        options.priority,
        options.delay,
        options.start_at,
        options.tags,
        options.timeout,
        options.singleton,
    )


def batch_values(batch: Batch, *, strict: bool) -> tuple[Any, ...]:
    """Return the values of start_runs_v1, in the order of its parameters."""
    requests = [start.request for start in batch.starts]
    # What is not an array is the same for all of them.
    first = start_terms(requests[0])
    metas = [request.options.meta for request in requests]
    resources = [request.options.resource for request in requests]
    keys: list[str | None] | None = None
    hashes: list[bytes] | None = None
    if first.singleton is not None:
        keys = [request.key or "" for request in requests]
    elif first.key is not None:
        keys = [request.key for request in requests]
        hashes = [request.key_hash for request in requests]
    return (
        [start.run_id for start in batch.starts],
        first.workflow,
        first.queue,
        first.priority,
        [request.payload for request in requests],
        metas if any(metas) else None,
        keys,
        hashes,
        first.on_conflict,
        resources if any(resources) else None,
        first.delay_s,
        first.start_at,
        None if first.tags is None else list(first.tags),
        strict,
        first.timeout_s,
        first.singleton,
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


def doorbells(starts: Iterable[Start]) -> list[tuple[str | None, str | None]]:
    """Return whom to ring for, once each: (queue, workflow) of the runs that are due at once; anybody for letters."""
    bells: dict[tuple[str | None, str | None], None] = {}
    for request, _ in starts:
        options = request.options
        if options.singleton == "cancel_old":
            bells[None, None] = None
        # A clock that is a little off costs no more than a ring in vain, or a run that is found by a poll.
        if not options.delay and (options.start_at is None or options.start_at <= datetime.now(UTC)):
            bells[options.queue, request.ref.qualified_name] = None
    return list(bells)
