"""
An exception as bytes and back: what is kept of it, without secrets and cut to size; how a DomainError comes of that.

An exception is an object of somebody's code, and a failing one at that. Its own code runs in few places here, guarded
against everything; what the interpreter keeps of an exception is read past whatever its class says.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator
from typing import Any, Final, cast, get_type_hints
from weakref import WeakKeyDictionary

import msgspec

from kedge.errors import DefinitionError, DomainError, ErrorInfo, KedgeError, field_names, revive
from kedge.models import load_model
from kedge.redaction import redact
from kedge.shown import shown, told
from kedge.wire import JSON_CODEC, Buffer, decode, decoder, encode

MAX_MESSAGE_BYTES: Final = 4 * 1024
MAX_TRACEBACK_BYTES: Final = 32 * 1024
"""Of an error and its causes together."""
MAX_CAUSES: Final = 8
MAX_DATA_BYTES: Final = 64 * 1024

_MAX_KIND_BYTES: Final = 500
_MAX_FRAMES: Final = 50
_SHOWN_OF_GROUP: Final = 5
_MAX_DEPTH_OF_GROUP: Final = 3

# Secrets are looked for before a text is cut to its size, but not in megabytes of it. What ends there may end within a
# secret, of which the rest is not seen: so much is dropped.
_WINDOW: Final = 16 * 1024
_EDGE: Final = 8 * 1024

# The interpreter's own: a subclass may say anything of these.
_CAUSE: Final = BaseException.__dict__["__cause__"].__get__
_CONTEXT: Final = BaseException.__dict__["__context__"].__get__
_SUPPRESSES: Final = BaseException.__dict__["__suppress_context__"].__get__
_TRACEBACK: Final = BaseException.__dict__["__traceback__"].__get__
_PARTS: Final = BaseExceptionGroup.__dict__["exceptions"].__get__

_encode_info: Final = msgspec.json.Encoder().encode
_decode_info: Final = decoder(ErrorInfo)


def kind_of(cls: type[BaseException]) -> str:
    """Answer the name by which a stored error remembers its class; nothing is ever imported by it."""
    try:
        name = f"{cls.__module__}.{cls.__qualname__}"
    except Exception:  # noqa: BLE001  # a metaclass may say anything of its classes
        name = type.__dict__["__name__"].__get__(cls)
    return _cut(name, _MAX_KIND_BYTES)


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
        message = _message(one, MAX_MESSAGE_BYTES // 4)
        cause = ErrorInfo(kind_of(type(one)), message, traceback=its_text, cause=cause)
    is_domain = issubclass(type(outermost), DomainError)
    data, problem = _data(cast("DomainError", outermost)) if is_domain else (None, "")
    message = _message(outermost, MAX_MESSAGE_BYTES, problem)
    return ErrorInfo(kind_of(type(outermost)), message, _key(key), attempt, text, cause, data)


def encode_error(error: BaseException | ErrorInfo, *, key: str | None = None, attempt: int | None = None) -> bytes:
    """Turn an exception, or what was kept of one, into a payload. Never fails."""
    # Not isinstance: that asks the exception, which may say anything of its class.
    info = error if type(error) is ErrorInfo else describe_error(cast("BaseException", error), key=key, attempt=attempt)
    try:
        return JSON_CODEC + _encode_info(info)
    except (TypeError, ValueError, NotImplementedError, RecursionError):
        return JSON_CODEC + _encode_info(msgspec.structs.replace(info, data=None))


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
        context = None if _SUPPRESSES(following) else _CONTEXT(following)
        following = _CAUSE(following) or context or _first_of_group(following)
    return chain


def _first_of_group(error: BaseException) -> BaseException | None:
    return next(iter(_parts_of_group(error)), None)


def _parts_of_group(error: BaseException) -> tuple[BaseException, ...]:
    return _PARTS(error) if issubclass(type(error), BaseExceptionGroup) else ()


def _with_tracebacks(chain: list[BaseException]) -> Iterator[tuple[BaseException, str | None]]:
    room = MAX_TRACEBACK_BYTES
    for error in chain:
        text = _traceback(error, room)
        room -= len(text.encode())
        yield error, text or None


def _traceback(error: BaseException, room: int) -> str:
    """Format the frames alone: the message is kept apart, and values of variables are not kept at all."""
    try:
        text = "".join(traceback.format_tb(_TRACEBACK(error), limit=-_MAX_FRAMES))
    except Exception:  # noqa: BLE001  # the lines come from loaders and files that may be anything by now
        return ""
    # The innermost frames stand at the end. A line of code may hold a secret, too.
    start = max(0, len(text) - 4 * MAX_TRACEBACK_BYTES)
    clean = redact(text[start:]).encode("utf-8", "replace")
    return clean[max(0, len(clean) - room) :].decode("utf-8", "ignore")


def _message(error: BaseException, limit: int, problem: str = "") -> str:
    """Answer the exception's text without secrets, and behind it what could not be kept of it."""
    text = _text(error, _MAX_DEPTH_OF_GROUP)
    if len(text) > _WINDOW:
        text = redact(text[:_WINDOW])
        text = text[: max(0, len(text) - _EDGE)] + "..."
    else:
        text = redact(text)
    return _cut(text + problem, limit)


def _text(error: BaseException, depth: int) -> str:
    try:
        # As a plain str: __str__ may answer a subclass, of which every method is the user's.
        text = str.__str__(str(error))
    except BaseException as broken:  # noqa: BLE001  # __str__ of the user's, which may even try to end the process
        return f"<its text cannot be made: {kind_of(type(broken)).removeprefix('builtins.')}>"
    if parts := _parts_of_group(error):
        if not depth:
            return text
        shown = parts[:_SHOWN_OF_GROUP] if depth == _MAX_DEPTH_OF_GROUP else parts[:1]
        text += ": " + "; ".join(f"{_name(one)}: {_text(one, depth - 1)}" for one in shown)
    return text


def _name(error: BaseException) -> str:
    return kind_of(type(error)).rpartition(".")[2]


def _key(key: object) -> str | None:
    """Answer a step's key as text that can be kept: users may raise a StepError of their own making."""
    return None if key is None else _cut(key if type(key) is str else shown(key), _MAX_KIND_BYTES)


def _data(error: DomainError) -> tuple[dict[str, Any] | None, str]:
    """Encode the declared fields, or say why they cannot be kept."""
    try:
        values = {name: getattr(error, name) for name in field_names(type(error))}
        payload = encode(values, where=type(error).__qualname__, limit=MAX_DATA_BYTES)
        data = decode(payload, dict[str, Any], where=type(error).__qualname__)
        msgspec.convert(data, _struct_of(type(error)), dec_hook=load_model)
    except (KedgeError, AttributeError, msgspec.ValidationError) as problem:
        return None, f" (its fields cannot be kept: {problem})"
    except Exception as problem:  # noqa: BLE001  # a field may be a property of the user's
        return None, f" (its fields cannot be kept: {told(problem)})"
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
