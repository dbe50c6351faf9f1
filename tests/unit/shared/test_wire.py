import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.errors import (
    DefinitionError,
    InvalidEventError,
    InvalidInputError,
    NotDecodableError,
    NotEncodableError,
    PayloadError,
    TooLargeError,
)
from kedge.wire import MAX_DEPTH, MAX_PAYLOAD_BYTES, NULL, decode, decoder, encode, parse_input, parser


class Line(msgspec.Struct, frozen=True):
    sku: str
    count: int


class Order(msgspec.Struct, frozen=True):
    order_id: str
    lines: list[Line]
    weight: float = 1.0
    note: str | None = None


@dataclass
class Parcel:
    weight: float


@attrs.define
class Box:
    size: int


class Address(TypedDict):
    zip: int


class Point(NamedTuple):
    x: int
    y: int


class Color(Enum):
    RED = "red"


class Rate(Enum):
    WRONG = math.nan


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class Untagged(msgspec.Struct):
    name: str


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def back_from(value: object) -> object:
    return decode(encode(value, where="x"), Any, where="x")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), parts),
    max_leaves=30,
)


@given(JSON)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    assert decode(encode(value, where="step 'a'"), Any, where="step 'a'") == value


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Order, Order("1", [Line("a", 2)], 0.1 + 0.2, "x\0y")),
        (Parcel, Parcel(1e308)),
        (Box, Box(3)),
        (Address, {"zip": 20457}),
        (Point, Point(1, 2)),
        (Color, Color.RED),
        (Cat | Dog, Dog("Rex")),
        (set[int], {1, 2, 3}),
        (tuple[int, str], (1, "a")),
        (dict[int, str], {1: "a"}),
        (bytes, b"\x00\xff"),
        (Decimal, Decimal("0.10")),
        (UUID, UUID(int=7)),
        (datetime, datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        (datetime, datetime(1, 1, 1)),  # noqa: DTZ001  # naive stays naive
        (timedelta, timedelta(days=-1, microseconds=1)),
        (Literal["a", 3], 3),
        (Annotated[int, msgspec.Meta(ge=0)], 0),
        (int | None, None),
        (dict[str, object], {"a": [1, {"b": None}]}),
        (object, {"a": [1]}),
        (None, None),
        (int, 2**53 + 1),
        (int, 2**64),
        (int, -(2**63)),
        (int, 10**400),
        (float, 5e-324),
        (float, -0.0),
        (str, "🚢\u202e\ufffe\\u0000"),
        (str, ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_typed_values_come_back_as_they_were(type_: Any, value: object) -> None:
    back: object = decode(encode(value, where="step 'a'"), type_, where="step 'a'")

    assert back == value
    assert type(back) is type(value)
    # Tells -0.0 from 0.0.
    assert repr(back) == repr(value) or not isinstance(value, float)


class Sly(list[Any]):
    """Encoded by what it holds; whoever walks through it is in for a surprise."""

    def __iter__(self) -> Any:
        raise RuntimeError("not today")


class SlyDict(dict[str, Any]):
    """The same for its keys and values."""

    def items(self) -> Any:
        raise RuntimeError("not today")


class Loop:
    def __init__(self) -> None:
        self.items = [self]


def cycle() -> list[Any]:
    value: list[Any] = [1]
    value.append({"again": value})
    return value


@pytest.mark.parametrize(
    ("make", "problem", "path"),
    [
        (lambda: float("nan"), "is nan", "$"),
        (lambda: float("inf"), "is inf", "$"),
        (lambda: [1.0, {"rate": -math.inf}], "is -inf", "$[1].rate"),
        (lambda: Order("1", [], math.nan), "is nan", "$.weight"),
        (lambda: Parcel(math.inf), "is inf", "$.weight"),
        (lambda: {"a": None, "b": [2**70, math.nan]}, "is nan", "$.b[1]"),
        (lambda: Rate, "is a EnumType", "$"),
        (lambda: Rate.WRONG, "is nan", "$"),
        (lambda: {"name": "\ud800"}, "contains a lone surrogate", "$.name"),
        (lambda: Order("\udfff", []), "contains a lone surrogate", "$.order_id"),
        (lambda: {"\ud800": 1}, "is a key with a lone surrogate", "$['\\ud800']"),
        (lambda: {(1, 2): 1}, "has a key of type tuple", "$[<tuple>]"),
        (lambda: {None: 1}, "has a key of type NoneType", "$[<NoneType>]"),
        (lambda: {7: {"a b": [math.nan]}}, "is nan", "$[7]['a b'][0]"),
        (cycle, "contains itself", "$[1].again"),
        (lambda: {"items": [1, 2, 3, object()]}, "is a object, which cannot be kept", "$.items[3]"),
        (Loop, "is a Loop, which cannot be kept", "$"),
        (lambda: (i for i in "ab"), "is a generator", "$"),
        (lambda: {"f": open}, "is a builtin_function_or_method", "$.f"),
        (lambda: [1 + 2j], "is a complex", "$[0]"),
        (lambda: [Line], "is a StructMeta", "$[0]"),
        (lambda: ValueError("x"), "is a ValueError", "$"),
        (lambda: {"sly": SlyDict(a=object())}, "is a object", "$.sly.a"),
        (lambda: {"sly": Sly([object()])}, "cannot be encoded: RuntimeError: not today", "$.sly"),
        (lambda: [10**5000], "cannot be encoded: ValueError", "$[0]"),
        (lambda: {10**5000: 1}, "has a key of type int", "$[<int>]"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_path(make: Callable[[], object], problem: str, path: str) -> None:
    with pytest.raises(NotEncodableError) as caught:
        encode(make(), where="step 'charge'")

    assert caught.value.where == "step 'charge'"
    assert caught.value.problem.startswith(problem)
    assert caught.value.path.startswith(path)
    assert str(caught.value).startswith("step 'charge': ")
    assert len(str(caught.value)) < 500


def test_a_shared_part_is_no_cycle() -> None:
    part = [1]

    assert back_from([part, part, {"a": part}]) == [[1], [1], {"a": [1]}]


def is_dict(value: object) -> bool:
    return isinstance(value, dict)


def is_container(value: object) -> bool:
    return isinstance(value, list | dict)


def parts_of(container: Any) -> list[Any]:
    return [container[place] for place in (container if is_dict(container) else range(len(container)))]


def containers_in(value: Any) -> list[Any]:
    return [value, *(inner for part in parts_of(value) for inner in containers_in(part))] if is_container(value) else []


@given(JSON, st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_a_number_that_json_cannot_hold_is_never_kept_as_null(value: object, bad: float, data: st.DataObject) -> None:
    places = containers_in(hidden := [value])
    place = data.draw(st.sampled_from(places))
    if isinstance(place, dict):
        place["bad"] = bad
    else:
        place.append(bad)

    with pytest.raises(NotEncodableError, match="which JSON cannot hold"):
        encode(hidden, where="x")


def test_null_as_text_and_as_none_is_no_fault() -> None:
    value = {"null": "null", "none": None, "packed": b"\xcb\x7f\xf8".decode("latin-1")}

    assert back_from(value) == value


@pytest.mark.parametrize("levels", [1, 127, 128])
def test_values_up_to_128_levels_are_kept(levels: int) -> None:
    assert back_from(nested(levels)) == nested(levels)


@pytest.mark.parametrize("levels", [129, 130, 900, 5_000, 200_000])
def test_deeper_values_are_refused_without_hurting_the_process(levels: int) -> None:
    with pytest.raises(TooLargeError, match="the limit is 128") as caught:
        encode({"a": nested(levels - 1)}, where="x")

    assert (caught.value.limit, caught.value.unit) == (MAX_DEPTH, "levels")


@pytest.mark.parametrize(
    "value",
    [
        "[" * 1000,
        {"]{[": "}" * 500, "a": ["[{"] * 200},
        ['\\"[' * 200, "\\" * 301, '"' * 77 + "[" * 300],
        [{"a": [i, None]} for i in range(500)],
    ],
)
def test_brackets_in_texts_and_side_by_side_are_not_levels(value: object) -> None:
    assert back_from(value) == value


def levels_of(value: Any) -> int:
    return 1 + max(map(levels_of, parts_of(value)), default=0) if is_container(value) else 0


@given(st.integers(120, 136), st.lists(st.text('[]{}"\\ab', max_size=12), max_size=8), JSON)
def test_levels_are_counted_exactly_whatever_stands_between(levels: int, texts: list[str], leaf: object) -> None:
    value = leaf
    for level in range(levels - levels_of(leaf)):
        value = [*texts, value] if level % 2 else {"[": value, "texts": texts}

    if (depth := levels_of(value)) <= MAX_DEPTH:
        assert encode(value, where="x")
    else:
        with pytest.raises(TooLargeError) as caught:
            encode(value, where="x")
        assert caught.value.size == depth


@pytest.mark.parametrize(("extra", "fits"), [(-1, True), (0, True), (1, False)])
def test_the_limit_counts_every_stored_byte(extra: int, fits: bool) -> None:
    # One byte for the codec, two for the quotes.
    value = "x" * (MAX_PAYLOAD_BYTES - 3 + extra)

    if fits:
        assert len(encode(value, where="x")) == MAX_PAYLOAD_BYTES + extra
    else:
        with pytest.raises(TooLargeError) as caught:
            encode(value, where="x")
        assert (caught.value.size, caught.value.limit) == (MAX_PAYLOAD_BYTES + 1, MAX_PAYLOAD_BYTES)


def test_the_limit_can_be_set() -> None:
    assert encode("x" * 2 * MAX_PAYLOAD_BYTES, where="x", limit=4 * MAX_PAYLOAD_BYTES)

    with pytest.raises(TooLargeError, match="12 bytes, the limit is 11"):
        encode("x" * 9, where="x", limit=11)


def test_nothing_is_one_constant() -> None:
    assert encode(None, where="x") is NULL
    assert decode(NULL, None, where="x") is None


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "there are no bytes"),
        (b"\x00", "unknown codec 0"),
        (b"\x03[]", "its header is damaged"),
        (b"[]", "unknown codec 91"),
        (b"\x01", "truncated"),
        (b"\x01[1,", "truncated"),
        (b"\x01[1] 2", "malformed"),
        (b'\x01["\xff"]', "not valid UTF-8"),
        (b"\x01[NaN]", "malformed"),
        (b"\x01[1e999]", "out of range"),
        (b"\x01[" + b"9" * 5000 + b"]", "out of range"),
        (b"\x01" + b"[" * 200_000, "nested too deep"),
        (b"\x02\x93", "truncated"),
        (b"\x02\xc1", "malformed"),
    ],
)
def test_damaged_bytes_are_a_typed_error(data: bytes, problem: str) -> None:
    with pytest.raises(NotDecodableError, match=problem) as caught:
        decode(data, list[Any] if b"[[" not in data else Any, where="step 'a'")

    assert caught.value.where == "step 'a'"


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x01", b"\x02"]))
def test_any_bytes_are_a_value_or_a_typed_error(data: bytes, codec: bytes) -> None:
    try:
        decode(codec + data, Order | list[int] | None, where="x")
    except NotDecodableError:
        pass


def test_message_pack_is_read_already() -> None:
    packed = b"\x02" + msgspec.msgpack.encode(Order("1", [Line("a", 2)]))

    assert decode(packed, Order, where="x") == Order("1", [Line("a", 2)])


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_payloads_come_in_any_kind_of_buffer(make: Callable[[bytes], Any]) -> None:
    assert decode(make(b"\x01[1,2]"), list[int], where="x") == [1, 2]


@pytest.mark.parametrize(
    ("stored", "problem", "path"),
    [
        (b'\x01{"order_id":1,"lines":[]}', "Expected `str`, got `int`", "$.order_id"),
        (b'\x01{"order_id":"1","lines":[{"sku":"a","count":"2"}]}', "Expected `int`, got `str`", "$.lines[0].count"),
        (b'\x01{"order_id":"1"}', "Object missing required field `lines`", "$.lines"),
        (b'\x01{"order_id":"1","lines":[{}]}', "Object missing required field `sku`", "$.lines[0].sku"),
        (b"\x01[]", "Expected `object`, got `array`", "$"),
    ],
)
def test_a_changed_type_is_told_by_the_field(stored: bytes, problem: str, path: str) -> None:
    with pytest.raises(NotDecodableError) as caught:
        decode(stored, Order, where="step 'a'")

    assert (caught.value.problem, caught.value.path) == (problem, path)


def test_readers_skip_fields_that_they_do_not_know() -> None:
    stored = encode({"order_id": "1", "lines": [], "added_later": {"a": [1]}}, where="x")

    assert decode(stored, Order, where="x") == Order("1", [])


class Holder(msgspec.Struct):
    later: "NotDefinedAnywhere"  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


@pytest.mark.parametrize(
    ("type_", "problem"),
    [
        ("Order", "is a text: give the type itself"),
        (list["Order"], "cannot be a payload"),
        (Untagged | Line, "give each Struct a tag"),
        (Parcel | Box, "cannot be a payload"),
        (list[int] | tuple[int], "cannot be a payload"),
        (complex, "builtins.complex is no type that can be read back"),
        (dict[str, Loop], "test_wire.Loop is no type that can be read back"),
        (Callable[[int], int], "Callable is no type that can be read back"),
        (3, "cannot be a payload"),
        (Holder, "'NotDefinedAnywhere' is not defined; move its import out of `if TYPE_CHECKING:`"),
    ],
)
def test_a_type_that_cannot_be_read_back_is_refused_before_the_first_value(type_: Any, problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        decoder(type_)


def test_a_decoder_is_made_once_a_type() -> None:
    assert decoder(list[Order]) is decoder(list[Order])


def test_a_type_that_has_no_hash_works_too() -> None:
    unhashable = Annotated[int, {"unit": "cents"}]

    assert decode(b"\x013", unhashable, where="x") == 3


def test_the_parsed_input_is_what_is_kept() -> None:
    parsed, payload = parse_input({"order_id": "1", "lines": [], "unknown": 1}, Order, where="input")

    assert parsed == Order("1", [])
    assert payload == b'\x01{"order_id":"1","lines":[],"weight":1.0,"note":null}'


@given(JSON)
def test_parsing_what_was_parsed_changes_nothing(value: object) -> None:
    parsed, payload = parse_input(value, Any, where="input")

    assert parse_input(parsed, Any, where="input") == (parsed, payload)
    assert decode(payload, Any, where="input") == parsed


@pytest.mark.parametrize(
    ("value", "problem", "path"),
    [
        (3, "Expected `object`, got `int`", "$"),
        (None, "Expected `object`, got `null`", "$"),
        (Order("1", [Line("a", 1.5)]), "Expected `int`, got `float`", "$.lines[0].count"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ({"lines": []}, "Object missing required field `order_id`", "$.order_id"),
        ({"order_id": "1", "lines": "ab"}, "Expected `array`, got `str`", "$.lines"),
        (Line("a", 1), "Object missing required field `order_id`", "$.order_id"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_the_field(value: object, problem: str, path: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input(value, Order, where="input of workflow 'a'")

    assert (caught.value.where, caught.value.problem, caught.value.path) == ("input of workflow 'a'", problem, path)


def test_a_parser_raises_the_error_that_it_is_told_to() -> None:
    with pytest.raises(InvalidEventError):
        parser(int, where="payload of event 'a'", error=InvalidEventError)("x")


class Positive(msgspec.Struct):
    cents: int

    def __post_init__(self) -> None:
        if self.cents < 0:
            raise ValueError("cents must not be negative")
        if self.cents == 13:
            raise LookupError("unlucky")
        if self.cents == 14:
            raise Untold


class Untold(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("cents", "problem"), [(-1, "cents must not be negative"), (13, "LookupError: unlucky"), (14, "Untold")]
)
def test_a_types_own_check_is_part_of_parsing(cents: int, problem: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"cents": cents}, Positive, where="input")

    assert caught.value.problem == problem


def test_a_parsed_input_that_grows_beyond_the_limit_is_refused() -> None:
    with pytest.raises(TooLargeError):
        parse_input({"order_id": "1", "lines": []}, Order, where="input", limit=35)


@pytest.mark.parametrize("error", [InvalidInputError, NotEncodableError])
def test_every_error_here_is_a_payload_error(error: type[Exception]) -> None:
    assert issubclass(error, PayloadError)


@pytest.mark.parametrize("value", [{1: "a", "1": "b"}, [{"x": {2.5: "a", "2.5": "b"}}]])
def test_two_keys_that_are_one_in_json_are_refused(value: Any) -> None:
    with pytest.raises(NotEncodableError, match="two keys that are one"):
        parse_input(value, Any, where="input")


def test_a_decoders_error_does_not_repeat_the_value() -> None:
    payload = encode("".join(("can", "ary")), where="x")

    with pytest.raises(NotDecodableError) as caught:
        decode(payload, Literal["a"], where="x")

    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_path_stays_short_whatever_the_keys_are() -> None:
    with pytest.raises(NotEncodableError) as caught:
        encode({"k" * 1_000_000: math.nan}, where="x")

    assert len(str(caught.value)) < 300
