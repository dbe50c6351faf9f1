"""
What a flush writes beside journal rows and moves: each kind is one statement, with arrays of what all runs of the batch
have of it.

Every one of them is fenced by the run's epoch and owner, and may be repeated: an outcome that is not known is settled
by the journal's rows where there are any, else by writing again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import kedge_worker._binary as _binary
import kedge_worker._statements as _statements


@dataclass(frozen=True, slots=True, eq=False)
class SideWrite:
    """A statement with the worker as $1, runs as $2, epochs as $3, and then these columns."""

    name: str
    sql: str
    columns: tuple[Callable[[Sequence[Any]], bytes], ...]

    def parameters(self, entries: Sequence[tuple[Any, ...]]) -> tuple[bytes, ...]:
        """What the entries of a batch look like in Postgres' binary format, a column each."""
        return tuple(encode(column) for encode, column in zip(self.columns, zip(*entries, strict=True), strict=True))


def _chars(items: Sequence[str]) -> bytes:
    return _binary.chars([item.encode() for item in items])


# seq of the parent's row, key of its wait, child's id, workflow, queue, priority, input, meta, resource, due_at,
# delay_s, timeout_s, tags; dependent, watched
START_CHILDREN: Final = SideWrite(
    "START_CHILDREN",
    _statements.START_CHILDREN,
    (
        _binary.ints,
        _binary.texts,
        _binary.uuids,
        _binary.texts,
        _binary.texts,
        _binary.ints,
        _binary.byteas,
        _binary.byteas,
        _binary.texts,
        _binary.timestamps,
        _binary.optional_floats,
        _binary.optional_floats,
        _binary.texts,
        _binary.bools,
        _binary.bools,
    ),
)


def started_lane(values: tuple[Any, ...]) -> tuple[str, str] | None:
    """Of an entry of START_CHILDREN: where (queue, workflow) the child can be claimed; None: not before its time."""
    workflow, queue, due_at, delay_s = values[3], values[4], values[9], values[10]
    return None if due_at is not None or delay_s else (queue, workflow)


OPEN_WAITS: Final = SideWrite(
    "OPEN_WAITS",
    _statements.OPEN_WAITS,
    # key, kind, slot, delay_s, due_at, limit_s, attempt, need, group_key, state
    (
        _binary.texts,
        _chars,
        _binary.texts,
        _binary.optional_floats,
        _binary.timestamps,
        _binary.optional_floats,
        _binary.ints,
        _binary.ints,
        _binary.texts,
        _binary.byteas,
    ),
)
CLOSE_WAITS: Final = SideWrite("CLOSE_WAITS", _statements.CLOSE_WAITS, (_binary.texts,))
CONSUME_MAIL: Final = SideWrite("CONSUME_MAIL", _statements.CONSUME_MAIL, (_binary.ints, _binary.uuids))
# kind, to whom, id, slot, payload, sender, event_id
SEND_LETTERS: Final = SideWrite(
    "SEND_LETTERS",
    _statements.SEND_LETTERS,
    (
        _chars,
        _binary.uuids,
        _binary.uuids,
        _binary.texts,
        _binary.byteas,
        _binary.optional_uuids,
        _binary.optional_uuids,
    ),
)
# n, attempt, took_ms, kind, key, error
KEEP_FAILURES: Final = SideWrite(
    "KEEP_FAILURES",
    _statements.KEEP_FAILURES,
    (_binary.ints, _binary.ints, _binary.ints, _chars, _binary.texts, _binary.byteas),
)

# done, total, percent, message
SET_PROGRESS: Final = SideWrite(
    "SET_PROGRESS",
    _statements.SET_PROGRESS,
    (_binary.bigints, _binary.optional_bigints, _binary.optional_floats, _binary.texts),
)
SET_METADATA: Final = SideWrite("SET_METADATA", _statements.SET_METADATA, (_binary.byteas,))
# n, level, message, fields
WRITE_LOG: Final = SideWrite(
    "WRITE_LOG", _statements.WRITE_LOG, (_binary.bigints, _binary.ints, _binary.texts, _binary.byteas)
)

SIDE_WRITES: Final = (
    START_CHILDREN,
    OPEN_WAITS,
    CLOSE_WAITS,
    CONSUME_MAIL,
    SEND_LETTERS,
    KEEP_FAILURES,
    SET_PROGRESS,
    SET_METADATA,
    WRITE_LOG,
)
"""In the order in which a flush writes them."""
