"""Postgres' binary format, as far as the journal's statements need it. Source: the server's send/recv functions."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

_UUID: Final = 2950
_INT4: Final = 23
_INT8: Final = 20
_TEXT: Final = 25
_BYTEA: Final = 17
_CHAR: Final = 18
_FLOAT8: Final = 701
_TIMESTAMPTZ: Final = 1184
_BOOL: Final = 16

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NULL: Final = b"\xff\xff\xff\xff"
_header: Final = struct.Struct("!iiIii").pack
_length: Final = struct.Struct("!i").pack


def uuids(items: Sequence[bytes]) -> bytes:
    """uuid[] of the 16 bytes of each."""
    return _fixed(_UUID, b"\0\0\0\x10", items)


def chars(items: Sequence[bytes]) -> bytes:
    """The one-byte type "char", as an array."""
    return _fixed(_CHAR, b"\0\0\0\x01", items)


def ints(items: Sequence[int]) -> bytes:
    """int4[]."""
    count = len(items)
    flat = [4] * (2 * count)
    flat[1::2] = items
    return _start(_INT4, count) + struct.pack(f"!{2 * count}i", *flat)


def bigints(items: Sequence[int]) -> bytes:
    """int8[]."""
    return _fixed(_INT8, b"\0\0\0\x08", [item.to_bytes(8, "big", signed=True) for item in items])


def optional_bigints(items: Sequence[int | None]) -> bytes:
    """int8[] with nulls."""
    return _varying(_INT8, [None if item is None else item.to_bytes(8, "big", signed=True) for item in items])


def floats(items: Sequence[float]) -> bytes:
    """float8[]."""
    return _fixed(_FLOAT8, b"\0\0\0\x08", [struct.pack("!d", item) for item in items])


def optional_floats(items: Sequence[float | None]) -> bytes:
    """float8[] with nulls."""
    return _varying(_FLOAT8, [None if item is None else struct.pack("!d", item) for item in items])


def bools(items: Sequence[bool]) -> bytes:
    """bool[]."""
    return _fixed(_BOOL, b"\0\0\0\x01", [b"\x01" if item else b"\0" for item in items])


def optional_uuids(items: Sequence[bytes | None]) -> bytes:
    """uuid[] with nulls."""
    return _varying(_UUID, items)


def timestamps(items: Sequence[datetime | None]) -> bytes:
    """timestamptz[] with nulls."""
    micros = [None if item is None else (item - _EPOCH) // _MICROSECOND for item in items]
    return _varying(_TIMESTAMPTZ, [None if one is None else one.to_bytes(8, "big", signed=True) for one in micros])


def texts(items: Sequence[str | None]) -> bytes:
    """text[]."""
    return _varying(_TEXT, [None if item is None else item.encode() for item in items])


def byteas(items: Sequence[bytes | None]) -> bytes:
    """bytea[]."""
    return _varying(_BYTEA, items)


def int4(value: int) -> bytes:
    return _length(value)


def to_int(data: bytes) -> int:
    """Any integer type."""
    return int.from_bytes(data, "big", signed=True)


def to_float(data: bytes) -> float:
    """A float8."""
    (value,) = struct.unpack("!d", data)
    return float(value)


def to_datetime(data: bytes) -> datetime:
    """A timestamptz."""
    return _EPOCH + timedelta(microseconds=int.from_bytes(data, "big", signed=True))


def _start(oid: int, count: int) -> bytes:
    return _header(1, 1, oid, count, 1) if count else struct.pack("!iiI", 0, 0, oid)


def _fixed(oid: int, prefix: bytes, items: Sequence[bytes]) -> bytes:
    return _start(oid, len(items)) + prefix + prefix.join(items) if items else _start(oid, 0)


def _varying(oid: int, items: Sequence[bytes | None]) -> bytes:
    parts = [_start(oid, len(items))]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts.append(_length(len(item)))
            parts.append(item)
    return b"".join(parts)
