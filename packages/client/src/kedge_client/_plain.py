"""Payloads as plain values, for people."""

from __future__ import annotations

from typing import Any, Final, cast
from uuid import UUID

from kedge.errors import PayloadError
from kedge.wire import decoder

_decode: Final = decoder(Any)


def plain(payload: bytes | None, where: str) -> object:
    """Decode a payload; None if there is none. A damaged one comes back as the bytes that it is."""
    if not payload:
        return None
    try:
        return _decode(payload, where=where)
    except PayloadError:
        # A list or a view must not fail for one damaged row; whoever decodes by type is told.
        return payload


def plain_mapping(payload: bytes | None, where: str) -> dict[str, Any]:
    """Decode a mapping; empty if there is none, or if it is something else."""
    value = plain(payload, where)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def plain_id(payload: bytes | None, where: str) -> UUID | None:
    """Decode the id of a run; None if it is none."""
    value = plain(payload, where)
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
