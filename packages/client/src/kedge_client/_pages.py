"""Lists of runs: filters, and pages of them by key. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, cast, get_args
from uuid import UUID

import msgspec

from kedge.codecs import PayloadCodec
from kedge.errors import InvalidOptionError
from kedge.names import check_key, check_name
from kedge.options import has_zone
from kedge.refs import WorkflowRef
from kedge.run_state import RunStatus
from kedge.shown import shown
from kedge_client._opening import seen
from kedge_client._round_trip import Row
from kedge_client._views import Page, RunView

MAX_LIMIT: Final = 200
_STATUSES: Final[tuple[str, ...]] = get_args(RunStatus)


class Filters(NamedTuple):
    """Which runs; in the order of the parameters of list_run_ids_v1."""

    workflow: str | None = None
    statuses: tuple[str, ...] | None = None
    resource: str | None = None
    parent: UUID | None = None
    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def digest(self) -> bytes:
        """Return what a cursor remembers them by."""
        return hashlib.blake2b(msgspec.json.encode(tuple(self)), digest_size=6).digest()


def filters(
    *,
    workflow: WorkflowRef[Any, Any] | str | None = None,
    status: RunStatus | Sequence[RunStatus] | None = None,
    resource: str | None = None,
    parent: UUID | None = None,
    tag: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Filters:
    """
    Check what a caller filters by.

    Raises:
        InvalidOptionError: An unknown status, or a time without zone.
        InvalidNameError: A name that no workflow, resource or tag can have.
    """
    return Filters(
        workflow=workflow_name(workflow) if workflow is not None else None,
        statuses=_statuses(status),
        resource=check_key("resource", resource) if resource is not None else None,
        parent=parent,
        tag=check_name("tag", tag) if tag is not None else None,
        since=_moment("since", since),
        until=_moment("until", until),
    )


def narrowed(found: Filters, scope: str | None) -> Filters | None:
    """Put a scoped client's resource into the filters. None: they name another resource, so there is nothing to see."""
    if scope is None or found.resource == scope:
        return found
    return found._replace(resource=scope) if found.resource is None else None


def workflow_name(workflow: WorkflowRef[Any, Any] | str) -> str:
    """Return the name under which runs are kept: with the version if there is one, else every version is meant."""
    if isinstance(workflow, WorkflowRef):
        return workflow.qualified_name
    # Twice the limit of a name, and a sign: both halves.
    return check_name("workflow", workflow, limit=401)


class Place(NamedTuple):
    """From where a page is read."""

    limit: int
    after: UUID | None = None
    backward: bool = False
    """Towards the newer ones."""


def place(found: Filters, *, limit: int, cursor: str | None) -> Place:
    """
    Check the limit, and read the cursor.

    Raises:
        InvalidOptionError: A limit outside 1 to 200, or a cursor that is none or belongs to other filters.
    """
    if type(limit) is not int or not 1 <= limit <= MAX_LIMIT:
        raise InvalidOptionError(f"limit={shown(limit)} must be 1 to {MAX_LIMIT}; iter_runs() walks all pages")
    if cursor is None:
        return Place(limit)
    data = _cursor_bytes(cursor)
    if data[1:7] != found.digest():
        raise InvalidOptionError("the cursor belongs to a list with other filters: give the filters that it came from")
    return Place(limit, UUID(bytes=data[7:]), data[:1] == b"p")


def list_values(found: Filters, where: Place) -> tuple[Any, ...]:
    """Return the values of the list's statement; one more than the limit, to know whether there is a further page."""
    statuses = list(found.statuses) if found.statuses is not None else None
    return (*found._replace(statuses=cast("Any", statuses)), where.limit + 1, where.after, where.backward)


def page(found: Filters, where: Place, rows: Sequence[Row], codec: PayloadCodec | None = None) -> Page[RunView]:
    """Make the page of the rows, which are newest first."""
    more = len(rows) > where.limit
    if more:
        # The surplus one is the furthest in the direction of reading.
        rows = rows[1:] if where.backward else rows[:-1]
    items = [seen(row, codec) for row in rows]
    if not items:
        return Page(items)
    has_older = where.backward or more
    has_newer = more if where.backward else where.after is not None
    return Page(
        items,
        _cursor(b"n", found, items[-1].id) if has_older else None,
        _cursor(b"p", found, items[0].id) if has_newer else None,
    )


def _cursor(direction: bytes, found: Filters, run_id: UUID) -> str:
    return base64.urlsafe_b64encode(direction + found.digest() + run_id.bytes).decode()


def _cursor_bytes(cursor: str) -> bytes:
    try:
        data = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (AttributeError, UnicodeError, binascii.Error):
        data = b""
    if len(data) != 23 or data[:1] not in {b"n", b"p"}:
        raise InvalidOptionError("the cursor cannot be read: give next_cursor or prev_cursor of a page, unchanged")
    return data


def _statuses(status: RunStatus | Sequence[RunStatus] | None) -> tuple[str, ...] | None:
    if status is None:
        return None
    found: set[str] = set()
    if not isinstance(cast("object", status), Iterable):
        raise InvalidOptionError(f"status={shown(status)}: give one of {', '.join(_STATUSES)}, or a list of them")
    for one in (status,) if isinstance(status, str) else status:
        if one not in _STATUSES:
            raise InvalidOptionError(f"status {shown(one)} does not exist; there are {', '.join(_STATUSES)}")
        found.add(one)
    return tuple(sorted(found))


def _moment(option: str, at: object) -> datetime | None:
    if at is None:
        return None
    if not isinstance(at, datetime) or not has_zone(at):
        raise InvalidOptionError(f"{option}={shown(at)} must be a datetime with a time zone")
    return at
