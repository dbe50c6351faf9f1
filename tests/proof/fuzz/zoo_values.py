"""Values that have broken others: texts, numbers, structures, objects. Each is made anew: some serve only once."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

import msgspec

TEXTS: Final[tuple[str, ...]] = (
    "",
    " ",
    "\x00",
    "a\x00b",
    *map(chr, (0x01, 0x07, 0x0A, 0x0D, 0x1B, 0x1F, 0x7F, 0x80, 0x85, 0x9F)),
    "\ud800",
    "\udfff",
    "\udc00\ud800",
    "\ufdd0\ufffe\uffff\U0001ffff\U0010ffff",
    "\ufeffbom",
    "e" + "\u0301" * 1000,
    "\u202eabc\u202c\u2066",
    "\u2028\u2029",
    "\U0001f6a2\U0001f469\u200d\U0001f467",
    b"\xff\xfe\xc0\x80".decode("latin-1"),
    "\\u0000",
    "\\ud800",
    "null",
    "NaN",
    "MISSING",
    "UNSET",
    '"}],[{"',
    "x" * 200,
    "x" * 201,
    "\u00e9" * 100,
    "\u00e9" * 101,
    "x" * 255,
    "x" * 256,
    "x" * 2704,
    "x" * 2705,
    "x" * 7999,
    "x" * 8000,
    "'; drop schema kedge cascade; --",
    "%s %(a)s {} {0} :x $1 %I",
    'a"b',
    "o'brien",
    "a$$b",
    "a\\b",
    "pg_catalog",
    "!solo default",
    "a@b",
    "k:a",
    "t:a\x1fb",
    "a~b/c#d[e]",
    "../../etc/passwd",
    "<script>alert(1)</script>",
)

NUMBERS: Final[tuple[Any, ...]] = (
    0,
    -1,
    -0.0,
    2**31 - 1,
    2**31,
    2**53 + 1,
    -(2**63) - 1,
    2**63,
    2**64,
    10**30,
    10**400,
    10**4299,
    10**5000,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    1e15,
    1e-9,
    5e-324,
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    Decimal("1e999"),
    Decimal("-0"),
    True,
    False,
)


def nested(levels: int, *, kind: type = list) -> Any:
    """A list or dict in a list or dict, so many levels deep."""
    value: Any = kind()
    for _ in range(levels - 1):
        value = [value] if kind is list else {"a": value}
    return value


def cycle() -> list[Any]:
    """A list that contains itself."""
    value: list[Any] = [1]
    value.append({"again": value})
    return value


class SlyDict(dict[str, Any]):
    """Lies about what it holds, wherever it is asked."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __len__(self) -> int:
        return 10**9

    def keys(self) -> Any:
        return ["other"]

    def items(self) -> Any:
        raise RuntimeError("items")


class SlyList(list[Any]):
    """Cannot be walked through."""

    def __iter__(self) -> Any:
        raise RuntimeError("iter")


class SlyInt(int):
    def __repr__(self) -> str:
        return "null"

    __str__ = __repr__


class SlyFloat(float):
    def __repr__(self) -> str:
        raise RuntimeError("repr")


class SlyText(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise RuntimeError(f"encode {encoding} {errors}")


class Pair(NamedTuple):
    a: int
    b: int


class Masked:
    """Raises whatever it is asked, its class included."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Dumping:
    """Looks like a model, and fails when it is dumped."""

    model_validate = None

    def model_dump(self, **_: object) -> Any:
        raise RecursionError("dump")


class DumpingItself:
    model_validate = None

    def model_dump(self, **_: object) -> Any:
        return self


class Bomb:
    """What pickle would execute."""

    def __reduce__(self) -> Any:
        return sys.exit, (13,)


class OddZone(tzinfo):
    def __init__(self, offset: Any) -> None:
        self.offset = offset

    def utcoffset(self, _: datetime | None, /) -> Any:
        if isinstance(self.offset, Exception):
            raise self.offset
        return self.offset

    def tzname(self, _: datetime | None, /) -> str:
        return "odd"

    def dst(self, _: datetime | None, /) -> None:
        return None


class Shade(enum.Enum):
    NOTHING = None
    NAN = math.nan


class Level(enum.IntEnum):
    HIGH = 3


class Way(enum.StrEnum):
    UP = "up"


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Measure:
    value: float
    at: datetime | None = None


class Point(msgspec.Struct):
    x: int
    y: int | msgspec.UnsetType = msgspec.UNSET


@dataclasses.dataclass
class Failing:
    a: int = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "a":
            raise RuntimeError("a")
        return super().__getattribute__(name)


async def coroutine() -> None: ...


def closed_coroutine() -> Any:
    """A coroutine that nobody awaits, without Python's warning about it."""
    made = coroutine()
    made.close()
    return made


SHARED: Final = ["shared"]

STRUCTURES: Final[dict[str, Callable[[], Any]]] = {
    "depth 127": lambda: nested(127),
    "depth 128": lambda: nested(128, kind=dict),
    "depth 129": lambda: nested(129),
    "depth 900": lambda: nested(900, kind=dict),
    "depth 5,000": lambda: nested(5_000),
    "depth 200,000": lambda: nested(200_000),
    "cycle": cycle,
    "100,000 keys": lambda: {str(n): n for n in range(100_000)},
    "two keys in one": lambda: {1: "a", "1": "b"},
    "two keys in one, inside": lambda: [{"x": {2.5: "a", "2.5": "b"}}],
    "key None": lambda: {None: 1},
    "key tuple": lambda: {(1, 2): 1},
    "key bool": lambda: {True: 1},
    "key int": lambda: {7: "seven"},
    "key NaN": lambda: {math.nan: 1},
    "key surrogate": lambda: {"\ud800": 1},
    "key bytes": lambda: {b"a": 1},
    "key date": lambda: {date(2020, 1, 1): 1},
    "key of 2 MB": lambda: {"k" * 2_000_000: math.nan},
    "empty list": list,
    "empty dict": dict,
    "shared": lambda: [SHARED, SHARED],
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({"a"}),
    "tuple": lambda: (1, "a"),
    "named tuple": lambda: Pair(1, 2),
    "deque": lambda: collections.deque([1]),
    "chain map": lambda: collections.ChainMap({"a": 1}),
    "bytes": lambda: b"\xff\x00",
    "bytearray": lambda: bytearray(b"x"),
    "memoryview": lambda: memoryview(b"abcdef")[::2],
    "year 1": lambda: datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23, minutes=59))),
    "year 9999": lambda: datetime.max.replace(tzinfo=timezone(-timedelta(hours=23, minutes=59))),
    "naive": lambda: datetime(2026, 3, 29, 2, 30),  # noqa: DTZ001
    "in UTC": lambda: datetime(2026, 1, 1, tzinfo=UTC),
    "zone too far": lambda: datetime(2026, 1, 1, tzinfo=OddZone(timedelta(hours=30))),
    "zone is a number": lambda: datetime(2026, 1, 1, tzinfo=OddZone(5)),
    "zone raises": lambda: datetime(2026, 1, 1, tzinfo=OddZone(KeyError("zone"))),
    "zone of nothing": lambda: datetime(2026, 1, 1, tzinfo=OddZone(None)),
    "date": lambda: date.max,
    "longest": lambda: timedelta.max,
    "shortest": lambda: timedelta.min,
    "enum of None": lambda: Shade.NOTHING,
    "enum of NaN": lambda: Shade.NAN,
    "int enum": lambda: Level.HIGH,
    "text enum": lambda: Way.UP,
    "flags": lambda: Bits.A | Bits.B,
    "uuid": lambda: UUID(int=0),
    "dataclass": lambda: Measure(1.5, datetime(2026, 1, 1, tzinfo=UTC)),
    "dataclass with NaN": lambda: [Measure(math.nan)],
    "struct": lambda: Point(1),
    "dataclass that fails": Failing,
    "raw": lambda: {"a": msgspec.Raw(b'{"b": 1}')},
    "raw that is none": lambda: {"a": msgspec.Raw(b'1,"b":2')},
    "raw that breaks": lambda: [msgspec.Raw(b"{]")],
    "raw of NaN": lambda: msgspec.Raw(b"NaN"),
    "raw that is empty": lambda: msgspec.Raw(b""),
    "unset": lambda: [msgspec.UNSET],
    "sly dict": lambda: SlyDict(a=1),
    "sly list": lambda: SlyList([1, 2]),
    "sly int": lambda: SlyInt(5),
    "sly float": lambda: SlyFloat(5.5),
    "sly text": lambda: SlyText("a"),
    "sly key": lambda: {SlyText("a"): 1},
    "model that fails": Dumping,
    "model that dumps itself": DumpingItself,
    "bomb": Bomb,
    "masked": Masked,
    "object": object,
    "complex": lambda: 1j,
    "range": lambda: range(3),
    "ellipsis": lambda: ...,
    "class": lambda: Point,
    "function": lambda: cycle,
    "module": lambda: sys,
    "generator": lambda: (n for n in [1]),
    "coroutine": closed_coroutine,
    "file": lambda: sys.stdout,
    "exception": lambda: ValueError("as a value"),
}


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


VALUES: Final[dict[str, Callable[[], Any]]] = {
    **{f"text {number}": _always(text) for number, text in enumerate(TEXTS)},
    **{f"number {number}": _always(value) for number, value in enumerate(NUMBERS)},
    **STRUCTURES,
}
"""Name -> what makes it."""


def sized(size: int) -> str:
    """A text whose payload has so many bytes: the codec's, and two quotes."""
    return "x" * (size - 3)


def is_same(one: Any, other: Any) -> bool:
    """Equal and of equal types, all the way down; one NaN is like another."""
    if type(one) is not type(other):
        return False
    kind = cast("type[object]", type(one))
    if issubclass(kind, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    if issubclass(kind, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if issubclass(kind, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other) and str(one) == str(other)
