"""Exceptions that have broken others: in their text, their class, their causes, their fields."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

from kedge.errors import DomainError, ErrorInfo, NotEncodableError, StepError, StepFailedError
from kedge.retry import NonRetryable, RetryAfter
from tests.proof.fuzz.zoo_values import SlyText


class TextRaises(Exception):
    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def __str__(self) -> str:
        raise self.raised


class TextIsSly(Exception):
    def __str__(self) -> str:
        return SlyText("sly")


class TextIsNone(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # noqa: PLE0307  # the mistake


class ClassRaises(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("class")


class ClassLies(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return GeneratorExit


class AllRaises(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class CauseRaises(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        raise RuntimeError("cause")


class CauseIsNone(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return 5

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return 7


class NamesRaise(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in {"__module__", "__qualname__"}:
            raise RuntimeError(name)
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=NamesRaise):
    pass


class PartsRaise(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise RuntimeError("exceptions")


class PartsAreNone(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        return ()


class Reduced(Exception):
    def __reduce__(self) -> Any:
        return exit, (13,)


class Base(BaseException):
    pass


class Domain(DomainError):
    what: Any


class DomainThatFails(DomainError):
    what: Any

    def __getattribute__(self, name: str) -> Any:
        if name == "what":
            raise RuntimeError("what")
        return super().__getattribute__(name)


class Hollow(StepFailedError):
    """Has nothing of what its class promises."""

    def __init__(self) -> None:
        Exception.__init__(self, "hollow")


class HollowRetryAfter(RetryAfter):
    def __init__(self) -> None:
        Exception.__init__(self, "hollow")


class SqlLike(Exception):
    sqlstate: Any = object()


def long_named() -> Exception:
    class Named(Exception):
        pass

    Named.__qualname__ = "\ud800" + "x" * 100_000
    return Named("named")


def chained(length: int) -> Exception:
    error = ValueError("innermost")
    for number in range(length):
        outer = ValueError(f"link {number}")
        outer.__cause__ = error
        error = outer
    return error


def circular() -> Exception:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def grouped(depth: int, width: int) -> Exception:
    error: Exception = ValueError("leaf")
    for _ in range(depth):
        error = ExceptionGroup[Exception]("group", [error] * width)
    return error


def info(**fields: Any) -> ErrorInfo:
    values: dict[str, Any] = {"kind": "k", "message": "m", **fields}
    return ErrorInfo(**values)


ERRORS: Final[dict[str, Callable[[], BaseException]]] = {
    "plain": lambda: ValueError("plain"),
    "text raises": lambda: TextRaises(RuntimeError()),
    "text raises KeyboardInterrupt": lambda: TextRaises(KeyboardInterrupt()),
    "text raises SystemExit": lambda: TextRaises(SystemExit(3)),
    "text raises CancelledError": lambda: TextRaises(asyncio.CancelledError()),
    "text raises itself": lambda: TextRaises(TextRaises(ValueError())),
    "text is sly": TextIsSly,
    "text is None": TextIsNone,
    "class raises": ClassRaises,
    "class lies": ClassLies,
    "all raises": AllRaises,
    "cause raises": CauseRaises,
    "cause is none": CauseIsNone,
    "nameless": Nameless,
    "long named": long_named,
    "reduced": Reduced,
    "20 MB of arguments": lambda: ValueError(*["x" * 1_000_000] * 20),
    "NUL": lambda: ValueError("a\0b"),
    "surrogate": lambda: ValueError("\ud800"),
    "not ASCII": lambda: ValueError("\U0001f6a2\u202e\x1b[31m"),
    "number without text": lambda: ValueError(10**5000),
    "os error": lambda: OSError(10**400, "\ud800", b"\xff"),
    "unicode error": lambda: UnicodeDecodeError("utf8", b"\xff" * 100, 0, 1, "\ud800"),
    "syntax error": lambda: SyntaxError("x", ("\ud800", 1, 10**9, "\ud800" * 10)),
    "1,000 causes": lambda: chained(1000),
    "circle of causes": circular,
    "group": lambda: ExceptionGroup("g", [ValueError("a"), KeyError("b")]),
    "group, 400 deep": lambda: grouped(400, 1),
    "group, 30 deep and 5 wide": lambda: grouped(30, 5),
    "group of hostile ones": lambda: ExceptionGroup("g", [ClassRaises(), AllRaises(), TextRaises(RuntimeError())]),
    "group of base": lambda: BaseExceptionGroup("g", [KeyboardInterrupt(), SystemExit(3)]),
    "parts raise": lambda: PartsRaise("g", [ValueError()]),
    "parts are none": lambda: PartsAreNone("g", [ValueError()]),
    "base": Base,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": lambda: StopAsyncIteration(5),
    "CancelledError": asyncio.CancelledError,
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
    "TimeoutError": TimeoutError,
    "domain": lambda: Domain(what={"a": 1}),
    "domain of an object": lambda: Domain(what=object()),
    "domain of NaN": lambda: Domain(what=math.nan),
    "domain of a circle": lambda: Domain(what=circular()),
    "domain of 1 MB": lambda: Domain(what="x" * 1_000_000),
    "domain that fails": lambda: DomainThatFails(what=1),
    "domain of nothing": lambda: Domain.__new__(Domain),
    "final": lambda: NonRetryable("final"),
    "after": lambda: RetryAfter(0),
    "after nothing": HollowRetryAfter,
    "step error of an object": lambda: StepError(uuid4(), object()),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    "step error of a surrogate": lambda: StepError(uuid4(), "\ud800", info(message="\ud800")),
    "step error of bad info": lambda: StepFailedError(uuid4(), "k", info(attempt="x", data={"args": [object()]})),
    "hollow step error": Hollow,
    "payload error of objects": lambda: NotEncodableError(object(), object(), object()),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    "like SQL": SqlLike,
}
"""Name -> what makes it."""
