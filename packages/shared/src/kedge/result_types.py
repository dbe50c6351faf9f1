"""Which type a step's value is decoded by: the function's return type, as far as it can be known at run time."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from kedge.errors import DefinitionError, NotEncodableError


class Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
"""There is no usable return type; None would be one."""

# By the function itself, not by its code: functions that a factory makes share their code, not their annotations.
_known: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()


def type_of_result(function: object) -> Any:
    """
    Find the type that a function's result has once it is awaited.

    Looks through partials, bound methods, decorators that keep `__wrapped__`, and objects with `__call__`; a class
    makes itself. Remembered for as long as the function lives.

    Returns:
        `MISSING` when there is no annotation, or one that says nothing: Any, object, a type variable.

    Raises:
        DefinitionError: The annotation names something that is unknown at run time.
    """
    inner = _unwrap(function)
    try:
        return _known[inner]
    except (KeyError, TypeError):
        pass
    found = _result_of(inner)
    try:
        _known[inner] = found
    except TypeError:
        pass  # Cannot be referred to weakly, as some builtins.
    return found


def type_of_parameter(function: object, name: str) -> Any:
    """
    Find the type that a parameter of a function is annotated with.

    Looks through the same as `type_of_result`, and answers `MISSING` for the same.

    Raises:
        DefinitionError: The annotation names something that is unknown at run time.
    """
    inner = _unwrap(function)
    hint = MISSING if isinstance(inner, type) else _annotation(inner, name, f"the parameter {name!r}", _LEAVE_OUT)
    return MISSING if _says_nothing(hint) else hint


def check_plain(value: object, *, where: str) -> None:
    """
    Refuse a value without a type to decode it by, unless it comes back equal without one.

    Raises:
        NotEncodableError: It is, or contains, something else than None, bool, int, float, str, list and dict.
    """
    kind = type(value)
    if value is None or kind is str or kind is int or kind is bool or kind is float:
        return
    parts: list[object] = [value]
    # By identity, so that a list which contains itself ends; encoding refuses it.
    seen: set[int] = set()
    while parts:
        part = parts.pop()
        kind = type(part)
        if kind is list or kind is dict:
            if id(part) in seen:
                continue
            seen.add(id(part))
        if kind is list:
            parts.extend(cast("list[object]", part))
        elif kind is dict:
            entries = cast("dict[object, object]", part)
            if any(type(name) is not str for name in entries):
                raise NotEncodableError(where, "a dict with keys other than text comes back changed; " + _ANNOTATE)
            parts.extend(entries.values())
        elif part is not None and kind not in _PLAIN:
            raise NotEncodableError(where, f"there is no type to decode a {kind.__qualname__} by; {_ANNOTATE}")


_PLAIN: Final = frozenset({str, int, float, bool})
_LEAVE_OUT: Final = "leave the annotation out"
_ANNOTATE: Final = "annotate the function's result or give output="


def _unwrap(function: Any) -> Any:
    """Go inwards to what carries the annotation."""
    # Bounded, for objects that answer every attribute with another one of their kind.
    for _ in range(100):
        kind: Any = cast("Any", type(function))
        if issubclass(kind, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, type):
            break
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isroutine(function) and hasattr(kind, "__call__"):  # noqa: B004  # the type's own
            function = kind.__call__
        else:
            break
    return function


def _result_of(function: Any) -> Any:
    if isinstance(function, type):
        return function
    hint = _annotation(function, "return", "the result", "give output=")
    return hint if hint is MISSING else _awaited(hint)


def _annotation(function: Any, name: str, what: str, advice: str) -> Any:
    annotations: dict[str, Any] = getattr(function, "__annotations__", {})
    if name not in annotations:
        return MISSING
    # This annotation alone: others may name what only type checkers import.
    bare = types.SimpleNamespace(__annotations__={name: annotations[name]})
    names: dict[str, Any] = getattr(function, "__globals__", {})
    try:
        return typing.get_type_hints(bare, globalns=names, include_extras=True)[name]
    except NameError as error:
        raise DefinitionError(
            f"{what} of {_name(function)} is annotated {annotations[name]!r}, but {error}: move its import out "
            f"of `if TYPE_CHECKING:`, its definition out of the function, or {advice}"
        ) from error
    except Exception as error:
        raise DefinitionError(
            f"the annotation {annotations[name]!r} of {what} of {_name(function)} cannot be read: {error}"
        ) from error


def _awaited(hint: Any) -> Any:
    """Answer what comes out of an awaitable, and `MISSING` for what says nothing."""
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Awaitable):
        # Awaitable[T], Coroutine[Any, Any, T], Task[T]: the last one is the result.
        return _awaited(typing.get_args(hint)[-1])
    if hint in (typing.NoReturn, typing.Never):
        return type(None)
    return MISSING if _says_nothing(hint) else hint


def _says_nothing(hint: Any) -> bool:
    return hint is typing.Any or hint is object or _has_variable(hint)


def _has_variable(hint: Any) -> bool:
    return isinstance(hint, typing.TypeVar) or any(map(_has_variable, typing.get_args(hint)))


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))
