"""Finds the place in a value that cannot be kept. Slow and thorough: only asked when something is wrong."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from kedge.models import dump_model, is_model
from kedge.shown import MAX_SHOWN, shown, told


class Fault(NamedTuple):
    """What cannot be kept, and where: `$.items[3]`."""

    problem: str
    path: str
    too_deep: bool = False


class _BadKey(NamedTuple):
    problem: str


_Parts: TypeAlias = Iterator[tuple[str, object]]
_Encode: TypeAlias = Callable[[object], bytes]

_SEQUENCES: Final = (list, tuple, set, frozenset, deque)


def find_fault(value: object, encode: _Encode, *, max_depth: int) -> Fault | None:
    """
    Look at every part of a value and answer the first one that cannot be kept.

    Args:
        value: Any object; it may contain itself.
        encode: What a part must pass to be kept; it may raise anything.
        max_depth: What is nested deeper is a fault.
    """
    try:
        return _find_fault(value, encode, max_depth)
    except Exception as error:  # noqa: BLE001  # a value that raises even when it is asked for its class
        return Fault(f"is a {type(value).__qualname__}, or contains what cannot be looked at: {told(error)}", "$")


def find_clash(value: object, encode: _Encode) -> Fault | None:
    """
    Answer the first dict of which two keys are one in JSON, as 1 and "1" are: one of the two values would be lost.

    Args:
        value: Something that has been encoded: it has an end and no fault.
        encode: What encodes a part of it.
    """
    parts: list[object] = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            entries = cast("dict[object, object]", part)
            is_plain = all(type(key) is str for key in entries)
            if not is_plain and len({encode({key: 0}) for key in entries}) < len(entries):
                return Fault("contains a dict with two keys that are one in JSON, as 1 and '1' are", "$")
            parts.extend(dict[object, object].values(entries))
        elif isinstance(part, _SEQUENCES):
            parts.extend(cast("tuple[object, ...]", part))
        elif isinstance(part, msgspec.Struct):
            parts.extend(getattr(part, name) for name in part.__struct_fields__)
        elif dataclasses.is_dataclass(part):
            parts.extend(getattr(part, field.name) for field in dataclasses.fields(part) if hasattr(part, field.name))
    return None


def _find_fault(value: object, encode: _Encode, max_depth: int) -> Fault | None:
    # A stack of our own: the value may be nested deeper than Python may call.
    stack: list[_Parts] = [iter([("$", value)])]
    path: list[str] = []
    inside: list[int] = []
    while stack:
        try:
            step, part = next(stack[-1], ("", _END))
        except Exception as error:  # noqa: BLE001  # a container of the user's that cannot be walked through
            return Fault(f"cannot be encoded: {told(error)}", "".join(path))
        if part is _END:
            stack.pop()
            if path:
                path.pop()
                inside.pop()
            continue
        problem, parts = _look_at(part, encode)
        if id(part) in inside:
            problem = "contains itself"
        elif parts is not None and len(stack) > max_depth:
            return Fault(f"is nested deeper than {max_depth} levels", "".join((*path, step)), too_deep=True)
        if problem:
            return Fault(problem, "".join((*path, step)))
        if parts is not None:
            stack.append(parts)
            path.append(step)
            inside.append(id(part))
    return None


_END: Final = object()


def _look_at(value: object, encode: _Encode) -> tuple[str | None, _Parts | None]:
    """Answer what is wrong with the value itself, and its parts if it has any."""
    if isinstance(value, _BadKey):
        return value.problem, None
    if value is msgspec.UNSET:
        return None, None
    try:
        parts = _parts(dump_model(value) if is_model(type(value)) else value, encode)
        if parts is not None:
            return None, parts
        encoded = encode(value)
    except UnicodeEncodeError:
        return "contains a lone surrogate", None
    except RecursionError:
        return "is nested too deep", None
    except (TypeError, NotImplementedError):
        return f"is a {type(value).__qualname__}, which cannot be kept", None
    except Exception as error:  # noqa: BLE001  # whatever the value's own code raises
        return f"cannot be encoded: {told(error)}", None
    plain: object = value.value if isinstance(value, Enum) else value
    if encoded == b"null" and isinstance(plain, float):
        return f"is {plain!r}, which JSON cannot hold", None
    return None, None


def _parts(value: object, encode: _Encode) -> _Parts | None:
    if isinstance(value, str | int | float | Enum | None):
        return None
    if isinstance(value, dict):
        return _items(cast("dict[object, object]", value), encode)
    if isinstance(value, _SEQUENCES):
        return ((f"[{i}]", part) for i, part in enumerate(cast("tuple[object, ...]", value)))
    if isinstance(value, msgspec.Struct):
        return _fields(value, value.__struct_fields__)
    if dataclasses.is_dataclass(value):
        return _fields(value, tuple(field.name for field in dataclasses.fields(value)))
    attributes: tuple[Any, ...] | None = getattr(type(value), "__attrs_attrs__", None)
    return None if attributes is None else _fields(value, tuple(attribute.name for attribute in attributes))


def _items(value: dict[object, object], encode: _Encode) -> _Parts:
    # dict's own: a subclass may do anything there, and encoding does not ask it either.
    for key, part in dict[object, object].items(value):
        step = _step(key)
        try:
            encode({key: 0})
        except UnicodeEncodeError:
            yield step, _BadKey("is a key with a lone surrogate")
        except Exception:  # noqa: BLE001  # its own code may run, if only a subclass of int's
            yield step, _BadKey(f"has a key of type {type(key).__qualname__}; keys must be text or numbers")
        yield step, part


def _step(key: object) -> str:
    if isinstance(key, str):
        return f".{key}" if key.isidentifier() and len(key) <= MAX_SHOWN else f"[{shown(key)}]"
    # Not every key has a repr: an int may have too many digits for one.
    return f"[{key}]" if isinstance(key, int) and abs(key) < 2**64 else f"[<{type(key).__qualname__}>]"


def _fields(value: object, names: tuple[str, ...]) -> _Parts:
    return ((f".{name}", getattr(value, name)) for name in names if hasattr(value, name))
