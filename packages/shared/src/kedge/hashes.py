"""What makes two inputs the same, for idempotency keys: a hash of the value and one of the type it was written by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec

from kedge.models import dump_model, is_readable, model_schema

HASH_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 8
ARGUMENT_BYTES: Final = 8

_encode_canonical: Final = msgspec.json.Encoder(enc_hook=dump_model, order="deterministic").encode

# For people; a better text must not make another type of it.
_TEXTS: Final = frozenset({"description", "title", "examples", "$comment"})


def input_hash(value: object) -> bytes:
    """Hash a parsed input to 16 bytes; keys of objects and members of sets count without their order."""
    return hashlib.blake2b(_encode_canonical(value), digest_size=HASH_BYTES).digest()


def argument_hashes(arguments: Iterable[object]) -> tuple[bytes, ...]:
    """Hash each argument of a step to 8 bytes, as `input_hash` does; to none what cannot be encoded."""
    return tuple(map(_argument_hash, arguments))


def _argument_hash(argument: object) -> bytes:
    try:
        text = _encode_canonical(argument)
    except Exception:  # noqa: BLE001  # a connection, a lock, a cycle: nothing that could be compared
        return b""
    return hashlib.blake2b(text, digest_size=ARGUMENT_BYTES).digest()


def fingerprint(type_: Any) -> bytes:
    """
    Hash a type to 8 bytes: the same in every process, another one when its values may look different.

    Hashes of inputs that were made by types with different fingerprints say nothing about each other.
    """
    try:
        text = _encode_canonical(_without_texts(msgspec.json.schema(type_, schema_hook=_schema)))
    except Exception:  # noqa: BLE001  # some types that can be decoded have no schema
        text = str(type_).encode()
    return hashlib.blake2b(text, digest_size=FINGERPRINT_BYTES).digest()


def _schema(type_: type[Any]) -> dict[str, Any]:
    return model_schema(type_) if is_readable(type_) else {"type": f"{type_.__module__}.{type_.__qualname__}"}


def _without_texts(schema: object) -> object:
    match schema:
        case dict():
            parts = cast("dict[str, object]", schema)
            # A property that happens to be called "title" holds a schema, not a text.
            kept = (name for name in parts if name not in _TEXTS or isinstance(parts[name], dict))
            return {name: _without_texts(parts[name]) for name in kept}
        case list():
            members = cast("list[object]", schema)
            # Sorted, since the order of a set's members differs between processes, and alternatives have none.
            return sorted(map(_without_texts, members), key=_encode_canonical)
        case _:
            return schema
