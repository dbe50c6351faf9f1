"""
Payloads as they stand in the database when there is a codec: sealed, and opened again. Shared by client and worker.

Layout: SEALED_CODEC, the 16 bytes of the run that the payload is bound to, what the codec has made of it.
Source: docs/decisions/0014-payload-encryption.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

import msgspec

from kedge.codecs import HOME_END, PayloadCodec, PayloadContext, split_header
from kedge.errors import (
    DamagedPayloadError,
    ErrorInfo,
    NotDecodableError,
    RunCrashedError,
    RunDeadlineError,
    RunNotFoundError,
)
from kedge.failures import decode_error, kind_of
from kedge.hashes import FINGERPRINT_BYTES, HASH_BYTES
from kedge.refs import RunRequest
from kedge.wire import JSON_CODEC, SEALED_CODEC, Buffer

TOPIC: Final = UUID(int=0)
"""In the place of a run's id: a topic's events go to many runs."""

VALUES: Final = frozenset("stepc")
"""Kinds of journal rows whose values are the application's; those of `f` are errors, all others the engine's own."""

# What SQL itself ends runs with; it holds no key.
_OF_SQL: Final = frozenset(map(kind_of, (RunDeadlineError, RunCrashedError, RunNotFoundError)))


# ---------------------------------------------------------------- where payloads stand


def input_place(home: UUID, workflow: str) -> PayloadContext:
    """Of a run, or of all that were started from it by reruns; the workflow with its version."""
    return PayloadContext(home, "input", workflow)


def value_place(home: UUID, kind: str, key: str, seq: int) -> PayloadContext:
    """Of a journal row; `home` as of the input."""
    return PayloadContext(home, "value", f"{kind}:{key}", seq)


def arguments_place(home: UUID, key: str, seq: int) -> PayloadContext:
    """Of a journal row's meta, where that holds hashes; of a failure or interruption `home` is the run."""
    return PayloadContext(home, "arguments", key, seq)


def output_place(run_id: UUID) -> PayloadContext:
    return PayloadContext(run_id, "output")


def error_place(run_id: UUID, key: str = "") -> PayloadContext:
    """Of a step, or of the run itself."""
    return PayloadContext(run_id, "error", key)


def event_place(run_id: UUID | None, slot: str, letter: UUID) -> PayloadContext:
    """Of a letter, by the id that its mail will have."""
    return PayloadContext(run_id or TOPIC, "event", slot, letter=letter)


def fast_forward_place(run_id: UUID, letter: UUID) -> PayloadContext:
    return PayloadContext(run_id, "fast-forward", letter=letter)


def poll_place(run_id: UUID, key: str, check: int) -> PayloadContext:
    return PayloadContext(run_id, "poll", key, check)


def log_place(run_id: UUID) -> PayloadContext:
    return PayloadContext(run_id, "log")


# ---------------------------------------------------------------- sealing and opening


def seal(codec: PayloadCodec, payload: bytes, place: PayloadContext) -> bytes:
    """Encrypt a payload; an empty one stays empty."""
    return SEALED_CODEC + place.run_id.bytes + codec.encode(payload, place) if payload else payload


def unseal(codec: PayloadCodec, data: Buffer, place: PayloadContext) -> bytes:
    """
    Decrypt a payload; one in clear comes back as it is, unless the codec is strict.

    Raises:
        KeyMissingError: The key is not held.
        DamagedPayloadError: It was made for another place or changed, or is in clear and may not be.
    """
    data = bytes(data)
    if data[:1] != SEALED_CODEC:
        if data and codec.strict and not _is_of_sql(data, place):
            raise DamagedPayloadError(str(place), "is in clear, which strict=True does not take")
        return data
    if split_header(data[HOME_END:]) is None:
        raise DamagedPayloadError(str(place), "its header is damaged")
    if data[1:HOME_END] != place.run_id.bytes:
        raise DamagedPayloadError(str(place), f"was encrypted for run {UUID(bytes=data[1:HOME_END])}, and moved")
    return codec.decode(data[HOME_END:], place)


def unseal_error(codec: PayloadCodec, data: Buffer, place: PayloadContext) -> ErrorInfo:
    """Decrypt and read what was kept of an exception. Never fails: what cannot be read is described as such."""
    try:
        return decode_error(unseal(codec, data, place))
    except NotDecodableError as unreadable:
        return ErrorInfo(kind_of(type(unreadable)), str(unreadable))


def is_sealed(data: Buffer | None) -> bool:
    return data is not None and data[:1] == SEALED_CODEC


def lineage(run_id: UUID, payloads: Iterable[Buffer], *, is_rerun: bool) -> UUID:
    """
    Return what a run's input and values are bound to: the run itself, or the one that a rerun goes back to.

    Args:
        run_id: Whose.
        payloads: The input, then values, in the order of the journal.
        is_rerun: Whether its meta says so; if not, there is no other lineage than its own.
    """
    if is_rerun:
        for data in payloads:
            if data[:1] == SEALED_CODEC and len(data) >= HOME_END:
                return UUID(bytes=bytes(data[1:HOME_END]))
    return run_id


def _is_of_sql(data: bytes, place: PayloadContext) -> bool:
    if place.place != "error" or place.name or data[:1] != JSON_CODEC:
        return False
    info = decode_error(data)
    return info.kind in _OF_SQL and info == ErrorInfo(info.kind, info.message)


# ---------------------------------------------------------------- starts


class SealedRequest(RunRequest[Any], frozen=True, gc=False):
    """A request whose payload is sealed for one run: for the database, and for nobody to read."""

    sealed_hash: bytes = b""

    @property
    def key_hash(self) -> bytes:
        """A keyed hash, in the place of the one that everybody can make."""
        return self.sealed_hash


def seal_request(codec: PayloadCodec, request: RunRequest[Any], run_id: UUID) -> SealedRequest:
    """Encrypt a request's input for the run that it starts."""
    is_keyed = request.key is not None and request.options.singleton is None
    return SealedRequest(
        request.ref,
        seal(codec, request.payload, input_place(run_id, request.ref.qualified_name)),
        request.key,
        request.options,
        seal_hash(codec, request.key_hash) if is_keyed else b"",
    )


def seal_hash(codec: PayloadCodec, key_hash: bytes) -> bytes:
    """
    Make the hash of a keyed start one that nobody can guess who has no key.

    Its first half, which says whether two hashes may be compared, changes with the key.
    """
    kind = codec.digest(b"type" + key_hash[:FINGERPRINT_BYTES])
    return kind[:FINGERPRINT_BYTES] + codec.digest(b"input" + key_hash)[:HASH_BYTES]


# ---------------------------------------------------------------- lines of a log


class SealedLine(msgspec.Struct, frozen=True):
    """What stands in a line's fields: all that the handler has said."""

    message: str
    fields: bytes = b""
    """A payload in clear."""


_encode_line: Final = msgspec.json.Encoder().encode
_decode_line: Final = msgspec.json.Decoder(SealedLine).decode


def seal_line(codec: PayloadCodec, run_id: UUID, message: str, fields: bytes) -> bytes:
    return seal(codec, JSON_CODEC + _encode_line(SealedLine(message, fields)), log_place(run_id))


def unseal_line(codec: PayloadCodec, run_id: UUID, data: bytes) -> SealedLine:
    """
    Read a sealed line.

    Raises:
        NotDecodableError: As `unseal`.
    """
    try:
        return _decode_line(unseal(codec, data, log_place(run_id))[1:])
    except msgspec.MsgspecError as error:
        raise DamagedPayloadError(str(log_place(run_id)), "is no line of a log") from error
