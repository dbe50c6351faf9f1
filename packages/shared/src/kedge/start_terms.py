"""What the database is told of a start: a request's options as values of columns. Shared by client and worker."""

from __future__ import annotations

from datetime import datetime, timedelta
from math import inf
from typing import Any, Final, NamedTuple

from msgspec import UNSET, UnsetType

from kedge.options import OnConflict, Singleton, StartOptions
from kedge.refs import RunRequest

TAG_SEPARATOR: Final = "\x1f"
"""Between the tags of one child in start_children; no tag contains it, for it is a control character."""


class StartTerms(NamedTuple):
    """A request as start_run_v1 wants it, besides the id."""

    workflow: str
    """`name` or `name@version`."""
    queue: str
    priority: int
    input: bytes
    meta: bytes
    key: str | None
    """Of the idempotency key, or of the singleton: then it may be empty."""
    key_hash: bytes | None
    """Only with an idempotency key."""
    on_conflict: OnConflict
    resource: str | None
    delay_s: float | None
    start_at: datetime | None
    tags: tuple[str, ...] | None
    """None: none, or, of a child, the parent's."""
    timeout_s: float | None
    """Infinity: explicitly none; None: nothing was said, the worker's definition decides."""
    singleton: Singleton | None


class ChildTerms(NamedTuple):
    """A request as one row of start_children's arrays, in their order, between the ids and the flags."""

    workflow: str
    queue: str
    priority: int
    input: bytes
    meta: bytes
    resource: str | None
    due_at: datetime | None
    delay_s: float | None
    timeout_s: float | None
    tags: str | None
    """Joined by TAG_SEPARATOR; None: the parent's are copied."""


def start_terms(request: RunRequest[Any]) -> StartTerms:
    """Return the terms of a start by nobody's parent: a client's."""
    return _terms(request, request.options)


def child_start_terms(request: RunRequest[Any], *, resource: str | None, priority: int) -> StartTerms:
    """
    Return the terms of a child that has a start of its own, by start_run_v1 with p_parent, since `starts_alone`.

    What neither its request nor its ref says of resource, priority and tags is the parent's; the tags are copied by the
    database.
    """
    return _terms(request, request.options.with_inherited(resource=resource, priority=priority))


def child_terms(request: RunRequest[Any], *, resource: str | None, priority: int) -> ChildTerms:
    """
    Return the terms of a child that is started inside its parent's flush.

    Args:
        request: One that does not start alone.
        resource: The parent's, for a request that says nothing of it.
        priority: The parent's, where neither the request nor its ref says one.
    """
    options = request.options.with_inherited(resource=resource, priority=priority)
    return ChildTerms(
        request.ref.qualified_name,
        options.queue,
        options.priority,
        request.payload,
        options.meta,
        options.resource,
        options.start_at,
        _delay_s(options),
        timeout_s(options.timeout),
        TAG_SEPARATOR.join(options.tags) if "tags" in options.own else None,
    )


def starts_alone(request: RunRequest[Any]) -> bool:
    """Tell whether a start may have to wait for another one: then it goes in a transaction with nothing else in it."""
    return request.key is not None or request.options.singleton is not None


def timeout_s(timeout: timedelta | UnsetType | None) -> float | None:
    """Return a timeout as the column of runs has it: infinity where it is explicitly None, None where it is unset."""
    if timeout is UNSET:
        return None
    return timeout.total_seconds() if isinstance(timeout, timedelta) else inf


def _terms(request: RunRequest[Any], options: StartOptions) -> StartTerms:
    singleton = options.singleton
    return StartTerms(
        request.ref.qualified_name,
        options.queue,
        options.priority,
        request.payload,
        options.meta,
        request.key or "" if singleton else request.key,
        None if singleton or request.key is None else request.key_hash,
        options.on_conflict,
        options.resource,
        _delay_s(options),
        options.start_at,
        options.tags if options.tags or "tags" in options.own else None,
        timeout_s(options.timeout),
        singleton,
    )


def _delay_s(options: StartOptions) -> float | None:
    return None if options.delay is None else options.delay.total_seconds()
