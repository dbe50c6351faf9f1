"""
Postgres' binary format of the few types that the api functions take and give.

Own code, because a lent connection may carry its owner's adapters (uuid as text, jsonb by another library), and because
it is three times as fast as going through a cursor. Source: the types' send and recv functions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from kedge.ids import uuid_of

T = TypeVar("T")

_UUID: Final = 2950
_TEXT: Final = 25
_BYTEA: Final = 17

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NULL: Final = b"\xff\xff\xff\xff"

_pack_int4: Final = struct.Struct("!i").pack
_pack_int8: Final = struct.Struct("!q").pack
_pack_float8: Final = struct.Struct("!d").pack
_unpack_int4: Final = struct.Struct("!i").unpack_from
_unpack_int8: Final = struct.Struct("!q").unpack_from
_unpack_float8: Final = struct.Struct("!d").unpack_from
# Of one dimension: dimensions, has nulls, type of elements, length, lower bound.
_pack_array: Final = struct.Struct("!iiIii").pack
_pack_empty_array: Final = struct.Struct("!iiI").pack


def _bool(value: bool) -> bytes:  # noqa: FBT001  # an encoder takes one value, whatever its type
    return b"\1" if value else b"\0"


def _timestamptz(value: datetime) -> bytes:
    return _pack_int8((value - _EPOCH) // _MICROSECOND)


def _uuids(items: Sequence[UUID | bytes]) -> bytes:
    if not items:
        return _pack_empty_array(0, 0, _UUID)
    size = b"\0\0\0\x10"
    bodies = [item if isinstance(item, bytes) else item.bytes for item in items]
    return _pack_array(1, 0, _UUID, len(items), 1) + size + size.join(bodies)


def _texts(items: Sequence[str | None]) -> bytes:
    return _array(_TEXT, [None if item is None else item.encode() for item in items])


def _byteas(items: Sequence[bytes | None]) -> bytes:
    return _array(_BYTEA, items)


def _array(oid: int, items: Sequence[bytes | None]) -> bytes:
    if not items:
        return _pack_empty_array(0, 0, oid)
    parts = [_pack_array(1, 1, oid, len(items), 1)]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts.append(_pack_int4(len(item)))
            parts.append(item)
    return b"".join(parts)


def _same(value: bytes) -> bytes:
    return value


ENCODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "bool": _bool,
    "bytea": _same,
    "bytea[]": _byteas,
    "float8": _pack_float8,
    "int4": _pack_int4,
    "int8": _pack_int8,
    "text": str.encode,
    "text[]": _texts,
    "timestamptz": _timestamptz,
    "uuid": lambda value: value.bytes,
    "uuid[]": _uuids,
}
"""Type -> from the Python value, never None, to what is sent."""


def _to_bool(data: bytes) -> bool:
    return data == b"\1"


def _to_int4(data: bytes) -> int:
    value: int = _unpack_int4(data)[0]
    return value


def _to_int8(data: bytes) -> int:
    value: int = _unpack_int8(data)[0]
    return value


def _to_float8(data: bytes) -> float:
    value: float = _unpack_float8(data)[0]
    return value


def _to_timestamptz(data: bytes) -> datetime:
    return _EPOCH + timedelta(microseconds=_to_int8(data))


def _to_uuid(data: bytes) -> UUID:
    return uuid_of(int.from_bytes(data))


def _to_array(of: Callable[[bytes], T]) -> Callable[[bytes], list[T | None]]:
    def to_array(data: bytes) -> list[T | None]:
        if _to_int4(data) == 0:
            return []
        items: list[T | None] = []
        (count,), position = _unpack_int4(data, 12), 20
        for _ in range(count):
            (size,) = _unpack_int4(data, position)
            position += 4
            if size < 0:
                items.append(None)
                continue
            items.append(of(data[position : position + size]))
            position += size
        return items

    return to_array


def _to_nothing(data: bytes) -> None:
    """Read a `void`."""


DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "bool": _to_bool,
    "bytea": _same,
    "bytea[]": _to_array(_same),
    "float8": _to_float8,
    "int4": _to_int4,
    "int4[]": _to_array(_to_int4),
    "int8": _to_int8,
    "text": bytes.decode,
    "text[]": _to_array(bytes.decode),
    "timestamptz": _to_timestamptz,
    "timestamptz[]": _to_array(_to_timestamptz),
    "uuid": _to_uuid,
    "void": _to_nothing,
}
"""Type -> from what came, never null, to the Python value."""
