"""Every entry against what has broken others: never a crash, never a silent change, always a typed error."""

import io
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge import EventRef, WorkflowRef
from kedge.errors import KedgeError, PayloadError, UsageError
from kedge.failures import decode_error, encode_error
from kedge.result_types import check_plain
from kedge.wire import decode, encode, parse_input

T = TypeVar("T")

STRINGS = [
    "",
    " ",
    "\x00",
    *[chr(c) for c in (*range(1, 0x20), *range(0x7F, 0xA0))],
    "\ud800",
    "\udfff",
    "\udc00\ud800",
    "\ufffe\uffff\U0001ffff",
    "\ufeffbom",
    "e" + "\u0301" * 1000,
    "\u202eabc\u202c",
    "🚢👩‍👩‍👧‍👦",
    "x" * 2**20,
    b"\xff\xfe".decode("latin-1"),
    "\\u0000",
    "\\ud800",
    "null",
    "NaN",
    "MISSING",
    "UNSET",
    "x" * 7999,
    "x" * 8000,
    "x" * 2704,
    "x" * 2705,
    "'; drop schema x cascade; --",
    "%s{}:x$1",
]

NUMBERS: list[Any] = [
    0,
    -0.0,
    2**53 - 1,
    2**53,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**400,
    10**4299,
    10**5000,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    5e-324,
    Decimal("NaN"),
    Decimal("1e999"),
    True,
    False,
]


@dataclass
class Slow:
    at: datetime


class Level(IntEnum):
    HIGH = 3


class Shade(Enum):
    NOTHING = None


class Sly(dict[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def items(self) -> Any:
        raise RuntimeError("items")


class Extra(msgspec.Struct):
    a: int
    b: int | msgspec.UnsetType = msgspec.UNSET


def depth(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


async def a_coroutine() -> None: ...


SHARED = ["shared"]
STRUCTURES: list[Any] = [
    depth(127),
    depth(128),
    depth(129),
    depth(900),
    depth(5_000),
    depth(200_000),
    {str(n): n for n in range(100_000)},
    {1: "a", "1": "b"},
    {None: 1},
    {(1, 2): 1},
    {True: 1},
    {"k" * 2_000_000: 1},
    [],
    {},
    [SHARED, SHARED],
    {1, 2},
    frozenset({"a"}),
    b"bytes",
    bytearray(b"x"),
    memoryview(b"x"),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31),  # noqa: DTZ001
    date.max,
    timedelta.max,
    timedelta.min,
    Level.HIGH,
    Shade.NOTHING,
    UUID(int=0),
    uuid4(),
    Slow(datetime(2026, 1, 1, tzinfo=UTC)),
    Extra(1),
    Extra(1, 2),
    Sly(a=1),
    OrderedDict(a=1),
    defaultdict(list, a=[1]),
    (x for x in "ab"),
    io.StringIO("x"),
    object(),
    Extra,
    len,
    msgspec.Raw(b"not json"),
    msgspec.Raw(b"NaN"),
    msgspec.UNSET,
    Ellipsis,
    NotImplemented,
    ValueError("x"),
    range(3),
    1 + 2j,
    type,
]

ANY_REF = WorkflowRef.untyped("any")
LOOSE_EVENT_REF: Any = EventRef
ANY_EVENT: EventRef[Any] = LOOSE_EVENT_REF("any", Any)


def kept_or_refused(value: object) -> None:
    """Either the value is kept, and then reads the same ever after, or there is a typed error."""
    request = made_or_refused(lambda: ANY_REF(value), PayloadError)
    if request is not None:
        assert encode(request.input, where="x") == request.payload
        assert ANY_EVENT(value).payload == request.payload
        assert ANY_REF.encode_output(value) == request.payload


def made_or_refused(make: Callable[[], T], expected: type[KedgeError] = KedgeError) -> T | None:
    """Answer what is made, None when it is refused; anything but the expected error, with a short text, goes up."""
    try:
        return make()
    except expected as error:
        text = str(error)
    assert 0 < len(text) < 1_000
    return None


@pytest.mark.parametrize("value", [*STRINGS, *NUMBERS, *STRUCTURES], ids=lambda value: type(value).__name__)
def test_any_value_is_kept_as_it_is_read_or_refused(value: object) -> None:
    kept_or_refused(value)
    kept_or_refused({"field": [value]})


@pytest.mark.parametrize("number", NUMBERS, ids=lambda value: f"{type(value).__name__}")
def test_plain_numbers_are_never_changed(number: Any) -> None:
    if isinstance(number, Decimal):
        return
    try:
        (back,) = decode(encode([number], where="x"), list[Any], where="x")
    except PayloadError:
        assert not math.isfinite(number) if isinstance(number, float) else number >= 10**4299
        return

    assert (type(back), back) == (type(number), number)
    assert math.copysign(1, back) == math.copysign(1, number) if isinstance(number, float) else True


def test_a_coroutine_is_refused() -> None:
    coroutine = a_coroutine()

    with pytest.raises(PayloadError, match="is a coroutine"):
        encode(coroutine, where="x")
    coroutine.close()


@pytest.mark.parametrize("text", STRINGS, ids=range(len(STRINGS)))
def test_any_text_is_a_name_a_key_and_an_option_or_refused(text: str) -> None:
    options: list[dict[str, Any]] = [
        {"key": text},
        {"resource": text},
        {"queue": text},
        {"tags": [text]},
        {"metadata": {"a": text}},
        {"metadata": {text: 1}},
        {"delay": text},
        {"timeout": text},
        {"singleton": text},
        {"on_conflict": text},
        {"start_at": text},
        {text: 1},
    ]

    for given_ in options:
        made_or_refused(partial(ANY_REF, None, **given_))
    made_or_refused(lambda: WorkflowRef(text), UsageError)
    made_or_refused(lambda: WorkflowRef("a", version=text), UsageError)
    made_or_refused(lambda: EventRef(text), UsageError)


@pytest.mark.parametrize("value", [*NUMBERS, *STRUCTURES], ids=lambda value: type(value).__name__)
def test_any_object_as_an_option_is_refused_with_a_typed_error(value: Any) -> None:
    for option in (
        "key",
        "resource",
        "queue",
        "priority",
        "delay",
        "start_at",
        "timeout",
        "retry",
        "tags",
        "singleton",
    ):
        given_: Any = {option: value}
        made_or_refused(partial(ANY_REF, None, **given_))


@pytest.mark.parametrize("value", [*STRINGS, *NUMBERS, *STRUCTURES], ids=lambda value: type(value).__name__)
def test_an_error_about_any_value_can_be_kept(value: object) -> None:
    info = decode_error(encode_error(ValueError(value)))

    assert info.kind == "builtins.ValueError"
    assert len(info.message.encode()) <= 4096


@pytest.mark.parametrize("value", [*NUMBERS, *STRUCTURES], ids=lambda value: type(value).__name__)
def test_a_value_that_needs_no_type_comes_back_equal(value: object) -> None:
    try:
        check_plain(value, where="x")
        payload = encode(value, where="x")
    except PayloadError:
        return

    assert decode(payload, Any, where="x") == value


TYPES: st.SearchStrategy[type[object]] = st.from_type(type)


@given(TYPES.flatmap(st.from_type))
def test_any_object_that_python_knows_is_kept_or_refused(value: object) -> None:
    try:
        parsed, payload = parse_input(value, Any, where="x")
    except PayloadError:
        return

    assert parse_input(parsed, Any, where="x")[1] == payload
