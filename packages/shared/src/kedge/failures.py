"""An exception as bytes and back: what is kept of it, cut to size, and how a DomainError is rebuilt from that."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator
from typing import Any, Final, cast, get_type_hints
from weakref import WeakKeyDictionary

import msgspec

from kedge.errors import DefinitionError, DomainError, ErrorInfo, KedgeError, field_names, revive
from kedge.models import load_model
from kedge.shown import shown
from kedge.wire import JSON_CODEC, Buffer, decode, decoder, encode

MAX_MESSAGE_BYTES: Final = 4 * 1024
MAX_TRACEBACK_BYTES: Final = 32 * 1024
"""Of an error and its causes together."""
MAX_CAUSES: Final = 8
MAX_DATA_BYTES: Final = 64 * 1024

_MAX_KIND_BYTES: Final = 500
_MAX_FRAMES: Final = 50
_SHOWN_OF_GROUP: Final = 5

_encode_info: Final = msgspec.json.Encoder().encode
_decode_info: Final = decoder(ErrorInfo)


def kind_of(cls: type[BaseException]) -> str:
    """Answer the name by which a stored error remembers its class; nothing is ever imported by it."""
    return _cut(f"{cls.__module__}.{cls.__qualname__}", _MAX_KIND_BYTES)


def describe_error(error: BaseException, *, key: str | None = None, attempt: int | None = None) -> ErrorInfo:
    """
    Say what is to be kept of an exception. Never fails, whatever the exception's own code does.

    Args:
        error: Its causes are kept too, 8 of them at most.
        key: Of the step that failed.
        attempt: Which attempt failed, from 1.
    """
    (outermost, text), *causes = _with_tracebacks(_chain(error))
    cause: ErrorInfo | None = None
    for one, its_text in reversed(causes):
        message = _cut(_message(one), MAX_MESSAGE_BYTES // 4)
        cause = ErrorInfo(kind_of(type(one)), message, traceback=its_text, cause=cause)
    data, problem = _data(outermost) if isinstance(outermost, DomainError) else (None, "")
    message = _cut(_message(outermost) + problem, MAX_MESSAGE_BYTES)
    return ErrorInfo(kind_of(type(outermost)), message, key, attempt, text, cause, data)


def encode_error(error: BaseException | ErrorInfo, *, key: str | None = None, attempt: int | None = None) -> bytes:
    """Turn an exception, or what was kept of one, into a payload. Never fails."""
    info = error if isinstance(error, ErrorInfo) else describe_error(error, key=key, attempt=attempt)
    return JSON_CODEC + _encode_info(info)


def decode_error(data: Buffer | None) -> ErrorInfo:
    """Read what was kept of an exception. Never fails: damaged bytes are described as such."""
    try:
        return _decode_info(data or b"", where="a stored error")
    except KedgeError as unreadable:
        return ErrorInfo(kind_of(type(unreadable)), str(unreadable))


def domain_error(info: ErrorInfo, declared: tuple[type[DomainError], ...]) -> DomainError | None:
    """
    Rebuild a DomainError as its class.

    Args:
        info: What was kept of it.
        declared: The classes that may come back; their subclasses may, too.

    Returns:
        None when it is none of them, or when its fields no longer fit.
    """
    if info.data is None:
        return None
    for cls in _with_subclasses(declared):
        if kind_of(cls) == info.kind:
            try:
                fields = msgspec.convert(info.data, _struct_of(cls), dec_hook=load_model)
            except (msgspec.ValidationError, DefinitionError):
                return None
            return revive(cls, {name: getattr(fields, name) for name in field_names(cls)})
    return None


def check_domain_errors(classes: object) -> tuple[type[DomainError], ...]:
    """
    Return what is given as `raises=`, or refuse it.

    Raises:
        DefinitionError: It is no tuple of DomainError's subclasses, or a field's type cannot be a payload.
    """
    given = cast("tuple[object, ...]", classes) if isinstance(classes, tuple) else (classes,)
    declared = tuple(cls for cls in given if isinstance(cls, type) and issubclass(cls, DomainError))
    if given is not classes or len(declared) < len(given):
        raise DefinitionError(f"raises={shown(given)}: give a tuple of classes that derive from DomainError")
    for cls in declared:
        _struct_of(cls)
    return declared


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and len(chain) <= MAX_CAUSES and not any(following is one for one in chain):
        chain.append(following)
        context = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or context or _first_of_group(following)
    return chain


def _first_of_group(error: BaseException) -> BaseException | None:
    return cast("BaseExceptionGroup[BaseException]", error).exceptions[0] if _is_group(error) else None


def _is_group(error: BaseException) -> bool:
    return isinstance(error, BaseExceptionGroup)


def _with_tracebacks(chain: list[BaseException]) -> Iterator[tuple[BaseException, str | None]]:
    room = MAX_TRACEBACK_BYTES
    for error in chain:
        text = _traceback(error, room)
        room -= len(text.encode())
        yield error, text or None


def _traceback(error: BaseException, room: int) -> str:
    """Format the frames alone: the message is kept apart, and values of variables are not kept at all."""
    try:
        text = "".join(traceback.format_tb(error.__traceback__, limit=-_MAX_FRAMES))
    except Exception:  # noqa: BLE001  # the lines come from loaders and files that may be anything by now
        return ""
    clean = text.encode("utf-8", "replace")
    # The innermost frames stand at the end.
    return clean[max(0, len(clean) - room) :].decode("utf-8", "ignore")


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001  # __str__ of the user's
        return f"<its text cannot be made: {type(broken).__qualname__}>"
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        shown = group.exceptions[:_SHOWN_OF_GROUP]
        text += ": " + "; ".join(f"{type(one).__qualname__}: {_message(one)}" for one in shown)
    return text


def _data(error: DomainError) -> tuple[dict[str, Any] | None, str]:
    """Encode the declared fields, or say why they cannot be kept."""
    try:
        values = {name: getattr(error, name) for name in field_names(type(error))}
        payload = encode(values, where=type(error).__qualname__, limit=MAX_DATA_BYTES)
        data = decode(payload, dict[str, Any], where=type(error).__qualname__)
        msgspec.convert(data, _struct_of(type(error)), dec_hook=load_model)
    except (KedgeError, AttributeError, msgspec.ValidationError) as problem:
        return None, f" (its fields cannot be kept: {problem})"
    return data, ""


def _with_subclasses(classes: tuple[type[DomainError], ...]) -> Iterator[type[DomainError]]:
    for cls in classes:
        yield cls
        yield from _with_subclasses(tuple(cls.__subclasses__()))


_structs: Final[WeakKeyDictionary[Any, type[msgspec.Struct]]] = WeakKeyDictionary()


def _struct_of(cls: type[DomainError]) -> type[msgspec.Struct]:
    """Answer the struct by which the declared fields of a class are checked and converted; made once."""
    if (struct := _structs.get(cls)) is None:
        struct = _structs[cls] = _make_struct(cls)
    return struct


def _make_struct(cls: Any) -> type[msgspec.Struct]:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"{cls.__qualname__}: {error}; move it out of `if TYPE_CHECKING:` and functions"
        ) from error
    fields: list[Any] = []
    for field in dataclasses.fields(cls) if field_names(cls) else ():
        typed = (field.name, hints[field.name])
        if field.default is not dataclasses.MISSING:
            fields.append((*typed, field.default))
        elif field.default_factory is not dataclasses.MISSING:
            fields.append((*typed, msgspec.field(default_factory=field.default_factory)))
        else:
            fields.append(typed)
    struct = msgspec.defstruct(cls.__name__, fields, kw_only=True)
    decoder(struct)
    return struct


def _cut(text: str, limit: int) -> str:
    clean = text[: limit + 1].encode("utf-8", "replace")
    return clean.decode() if len(clean) <= limit else clean[: limit - 3].decode("utf-8", "ignore") + "..."
