"""
Payloads as bytes: one codec byte, then msgspec's JSON; and what else stands in columns.

Every value goes through here once on its way out and once on its way in, so each microsecond counts: what can be known
about a type is known before, and what is slow is done only when something is wrong.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, overload

import msgspec

from kedge.errors import (
    InvalidInputError,
    NotDecodableError,
    NotEncodableError,
    PayloadError,
    TooLargeError,
)
from kedge.models import ModelFieldError, dump_model, load_model
from kedge.payload_faults import Fault, find_clash, find_fault
from kedge.payload_types import check_payload_type
from kedge.shown import told

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Buffer: TypeAlias = bytes | bytearray | memoryview

JSON_CODEC: Final = b"\x01"
MSGPACK_CODEC: Final = b"\x02"
"""Reserved: read, not yet written."""
SEALED_CODEC: Final = b"\x03"
"""Encrypted: opened by who holds the key, before anything is decoded (kedge.sealing)."""

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
"""The codec byte included."""
HARD_MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
"""No limit can be set higher; the database refuses more."""
MAX_DEPTH: Final = 128
"""Of lists and objects in each other; msgspec reads some 900, less on a deep stack."""

NULL: Final = JSON_CODEC + b"null"
"""The encoded None."""

_encode_json: Final = msgspec.json.Encoder(enc_hook=dump_model).encode
_encode_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=dump_model).encode

# MessagePack keeps what JSON loses: a float whose exponent is all ones is NaN or Infinity.
_NOT_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_search_null: Final = re.compile(rb"null").search
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_SIGNS: Final = bytes(set(range(256)) - set(b'[]{}"\\'))
_QUOTED_VALUE: Final = re.compile(r"^(Invalid (?:enum )?value) .*", re.DOTALL)
_MISSING_FIELD: Final = re.compile(r"missing required field `([^`]+)`")


def encode(value: object, *, where: str, limit: int = MAX_PAYLOAD_BYTES) -> bytes:
    """
    Turn a value into a payload that can be read back.

    Args:
        value: Anything that msgspec encodes, or a model such as pydantic's. NUL in texts is kept.
        where: Whose value it is, for the error: "step 'charge'".
        limit: In bytes.

    Raises:
        NotEncodableError: NaN or Infinity (msgspec would write null), a lone surrogate, a cycle, an unknown type.
        TooLargeError: More bytes than the limit, or more than 128 levels.
    """
    if value is None:
        return NULL
    try:
        body = _encode_json(value)
    except Exception as error:
        raise _not_encodable(value, where, error) from error
    size = len(body) + 1
    if size > limit:
        raise TooLargeError(where, size, limit)
    # A level costs two brackets: what is shorter than that cannot be too deep.
    if size > 2 * MAX_DEPTH and (depth := _depth(body)) > MAX_DEPTH:
        raise TooLargeError(where, depth, MAX_DEPTH, "levels")
    if _search_null(body) and (fault := _find_not_finite(value)):
        raise NotEncodableError(where, fault.problem, fault.path)
    return JSON_CODEC + body


class Decode(Protocol[T_co]):
    """Turns payloads back into values of one type."""

    def __call__(self, data: Buffer, /, *, where: str) -> T_co:
        """
        Decode strictly.

        Raises:
            NotDecodableError: The bytes are damaged, of a codec that this release does not know, or of another type.
        """
        ...


class Parse(Protocol[T_co]):
    """Checks a value against one type and encodes it."""

    def __call__(self, value: object, /) -> tuple[T_co, bytes]:
        """Answer the parsed value, as its reader will get it, and its payload."""
        ...


@overload
def decoder(type_: type[T], /) -> Decode[T]: ...
@overload
def decoder(type_: TypeForm[T], /) -> Decode[T]: ...
def decoder(type_: Any, /) -> Decode[Any]:
    """
    Answer the function that decodes payloads of a type; made once a type.

    Raises:
        DefinitionError: The type cannot be read back: a text, an unknown class, a union that cannot be told apart.
    """
    return _decoder(type_) if _is_hashable(type_) else _decoder.__wrapped__(type_)


@overload
def decode(data: Buffer, type_: type[T], *, where: str) -> T: ...
@overload
def decode(data: Buffer, type_: TypeForm[T], *, where: str) -> T: ...
def decode(data: Buffer, type_: Any, *, where: str) -> Any:
    """
    Decode one payload; for many of one type, keep its `decoder`.

    Raises:
        NotDecodableError: The bytes are damaged, of an unknown codec, or of another type.
        DefinitionError: The type cannot be read back.
    """
    return decoder(type_)(data, where=where)


@overload
def parser(
    type_: type[T], /, *, where: str, error: type[PayloadError] = ..., limit: int = MAX_PAYLOAD_BYTES
) -> Parse[T]: ...
@overload
def parser(
    type_: TypeForm[T], /, *, where: str, error: type[PayloadError] = ..., limit: int = MAX_PAYLOAD_BYTES
) -> Parse[T]: ...
def parser(
    type_: Any, /, *, where: str, error: type[PayloadError] = InvalidInputError, limit: int = MAX_PAYLOAD_BYTES
) -> Parse[Any]:
    """
    Answer the function that checks values against a type and encodes what its reader will get.

    Args:
        type_: What the value must be, after a way through JSON: a dict may stand for a Struct.
        where: Whose value it is, for the error: "input of workflow 'process-order'".
        error: What to raise when the value does not fit.
        limit: In bytes.

    Raises:
        DefinitionError: The type cannot be read back.
    """
    decoder(type_)
    decode_json = msgspec.json.Decoder(type_, dec_hook=load_model).decode

    def parse(value: object, /) -> tuple[Any, bytes]:
        payload = encode(value, where=where, limit=limit)
        body = payload[1:]
        try:
            parsed = decode_json(body)
        except Exception as failure:  # noqa: BLE001  # raised again, as ours
            raise error(where, *_misfit(failure)) from _without_values(failure)
        # The parsed value may differ: defaults filled in, unknown fields dropped, models that convert.
        if parsed is not None and _encode_json(parsed) != body:
            if clash := find_clash(value, _encode_json):
                raise NotEncodableError(where, clash.problem, clash.path)
            payload = encode(parsed, where=where, limit=limit)
        return parsed, payload

    return parse


@overload
def parse_input(value: object, type_: type[T], *, where: str, limit: int = MAX_PAYLOAD_BYTES) -> tuple[T, bytes]: ...
@overload
def parse_input(
    value: object, type_: TypeForm[T], *, where: str, limit: int = MAX_PAYLOAD_BYTES
) -> tuple[T, bytes]: ...
def parse_input(value: object, type_: Any, *, where: str, limit: int = MAX_PAYLOAD_BYTES) -> tuple[Any, bytes]:
    """
    Check one value; for many of one type, keep its `parser`.

    Raises:
        InvalidInputError: The value does not fit the type; `.path` is the field.
        NotEncodableError: The value cannot be kept at all.
        TooLargeError: It is larger than the limit.
        DefinitionError: The type cannot be read back.
    """
    return parser(type_, where=where, limit=limit)(value)


@lru_cache(maxsize=4096)
def _decoder(type_: Any) -> Decode[Any]:
    check_payload_type(type_)
    decode_json = msgspec.json.Decoder(type_, dec_hook=load_model).decode
    decode_msgpack = msgspec.msgpack.Decoder(type_, dec_hook=load_model).decode

    def decode_one(data: Buffer, /, *, where: str) -> Any:
        codec = data[:1]
        try:
            if codec == JSON_CODEC:
                return decode_json(data[1:])
            if codec == MSGPACK_CODEC:
                return decode_msgpack(data[1:])
        except Exception as failure:  # noqa: BLE001  # raised again, as ours
            raise NotDecodableError(where, *_misfit(failure)) from _without_values(failure)
        if not codec:
            raise NotDecodableError(where, "there are no bytes, not even a codec's")
        if codec == SEALED_CODEC:
            raise _lacks_codec(data, where)
        raise NotDecodableError(where, f"unknown codec {codec[0]}: it was written by a newer release, or is damaged")

    return decode_one


def _lacks_codec(data: Buffer, where: str) -> NotDecodableError:
    # Only who meets an encrypted payload needs to know of encryption.
    from kedge.codecs import lacks_codec

    return lacks_codec(data, where)


def _is_hashable(type_: object) -> bool:
    try:
        hash(type_)
    except Exception:  # noqa: BLE001  # whatever was given instead of a type
        return False
    return True


def _depth(body: bytes) -> int:
    """Count how deep the lists and objects of a JSON text are nested; 0 when there are too few to be too deep."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    brackets = body.translate(_BRACKETS, _NO_SIGNS).replace(b'""', b"")
    if b'"' in brackets or b"\\" in brackets:
        # Some text contains a bracket or an escape. Without escapes, every second piece between quotes is a text.
        outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
        brackets = b"".join(outside).translate(_BRACKETS, _NO_SIGNS)
    depth = 0
    while brackets:
        # Takes away the innermost level, everywhere.
        brackets = brackets.replace(b"[]", b"")
        depth += 1
    return depth


def _find_not_finite(value: object) -> Fault | None:
    try:
        if not _NOT_FINITE.search(_encode_msgpack(value)):
            return None
    except Exception:  # noqa: BLE001, S110  # MessagePack refuses some of what JSON takes, such as large integers
        pass
    return find_fault(value, _encode_json, max_depth=MAX_DEPTH)


def _not_encodable(value: object, where: str, error: Exception) -> PayloadError:
    fault = find_fault(value, _encode_json, max_depth=MAX_DEPTH)
    if fault is None:
        return NotEncodableError(where, told(error))
    if fault.too_deep:
        return TooLargeError(where, MAX_DEPTH + 1, MAX_DEPTH, "levels")
    return NotEncodableError(where, fault.problem, fault.path)


def _misfit(error: Exception) -> tuple[str, str]:
    """Take the problem and the field's path out of what a decoder raised."""
    if isinstance(error, UnicodeDecodeError):
        return "is not valid UTF-8", "$"
    if isinstance(error, RecursionError):
        return "is nested too deep", "$"
    if not isinstance(error, msgspec.MsgspecError):
        return told(error), "$"
    problem, found, place = str(error).rpartition(" - at ")
    if not found:
        problem, place = str(error), "$"
    # Of an enum or Literal msgspec repeats the value, which may be somebody's secret, in errors that are logged.
    problem = _QUOTED_VALUE.sub(r"\1", problem)
    path = place.replace("`", "")
    if isinstance(error.__cause__, ModelFieldError):
        path += error.__cause__.path
    elif missing := _MISSING_FIELD.search(problem):
        path += f".{missing[1]}"
    return problem[:300], path


def _without_values(error: Exception) -> Exception | None:
    """Answer the decoder's error, unless it repeats a value: what is logged with its causes must not."""
    is_quoting = isinstance(error, msgspec.MsgspecError) and _QUOTED_VALUE.search(str(error))
    return None if is_quoting or isinstance(error.__cause__, ModelFieldError) else error
