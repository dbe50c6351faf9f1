import asyncio
import traceback
from datetime import date
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge import DomainError, ErrorInfo
from kedge.errors import DefinitionError
from kedge.failures import (
    MAX_CAUSES,
    MAX_MESSAGE_BYTES,
    MAX_TRACEBACK_BYTES,
    check_domain_errors,
    decode_error,
    describe_error,
    domain_error,
    encode_error,
    kind_of,
)
from kedge.wire import decode

if TYPE_CHECKING:
    from pathlib import Path as OnlyForCheckers


class CardDeclined(DomainError):
    code: str
    on: date | None = None


class StolenCard(CardDeclined):
    """A subclass with the same fields."""


class OutOfStock(DomainError):
    """Without fields."""


class Unkeepable(DomainError):
    what: Any


class BrokenText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text today")


class NoText(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # noqa: PLE0307  # the mistake


class BrokenEverything(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError

    def __str__(self) -> str:
        return repr(self)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  # that is what it is for
        return caught


def kept(error: BaseException) -> ErrorInfo:
    return decode_error(encode_error(raised(error), key="charge", attempt=2))


def test_an_error_is_kept_with_its_class_message_and_place() -> None:
    info = kept(ValueError("no such card"))

    assert (info.kind, info.message, info.key, info.attempt) == ("builtins.ValueError", "no such card", "charge", 2)
    assert info.traceback is not None
    assert "in raised" in info.traceback
    assert (info.cause, info.data) == (None, None)


def test_what_was_described_is_encoded_as_it_is() -> None:
    info = ErrorInfo("a.B", "text", cause=ErrorInfo("c.D", ""), data={"code": "x"})

    assert decode_error(encode_error(info)) == info


def test_values_of_variables_are_not_kept() -> None:
    def charge(token: str) -> None:
        local = token * 2
        raise ValueError(len(local))

    with pytest.raises(ValueError, match="24") as caught:
        charge("sk_live_4242")
    payload = encode_error(caught.value)

    assert b"sk_live_4242sk_live_4242" not in payload
    assert b"in charge" in payload


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenText(), "<its text cannot be made: RuntimeError>"),
        (NoText(), "<its text cannot be made: TypeError>"),
        (BrokenEverything(), "<its text cannot be made: RuntimeError>"),
        (ValueError("a\ud800b"), "a?b"),
        (ValueError("a\0b"), "a\0b"),
        (ValueError(), ""),
        (KeyError("order"), "'order'"),
        (KeyboardInterrupt(), ""),
        (SystemExit(3), "3"),
        (asyncio.CancelledError(), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_errors_are_kept_all_the_same(error: BaseException, message: str) -> None:
    info = kept(error)

    assert info.kind == kind_of(type(error))
    assert info.message == message


@pytest.mark.parametrize("sign", ["x", "é", "🚢", "\udfff"])
def test_a_long_message_is_cut_between_characters(sign: str) -> None:
    message = kept(ValueError(sign * 1_000_000)).message

    assert MAX_MESSAGE_BYTES - 8 <= len(message.encode()) <= MAX_MESSAGE_BYTES
    assert message.endswith("...")


def test_a_long_traceback_keeps_its_innermost_frames() -> None:
    def fall(depth: int) -> None:
        if depth:
            fall(depth - 1)
        else:
            raise_here()

    def raise_here() -> None:
        raise RecursionError

    with pytest.raises(RecursionError) as caught:
        fall(300)
    info = describe_error(caught.value)

    assert info.traceback is not None
    assert len(info.traceback.encode()) <= MAX_TRACEBACK_BYTES
    assert "raise_here" in info.traceback.splitlines()[-2]


def fall_in_file(name: str, depth: int, cause: BaseException | None = None) -> BaseException:
    """Raise through so many functions, each in a line that is as long as the file's name."""
    space: dict[str, Any] = {"cause": cause}
    exec(compile("def bottom(_): raise LookupError from cause", "bottom.py", "exec"), space)
    exec(compile("def odd(n): (odd if n > 0 else bottom)(n - 1)", name, "exec"), space)
    try:
        space["odd"](depth)
    except LookupError as error:
        return error
    raise AssertionError


def test_a_traceback_of_long_lines_is_cut_at_its_outer_end() -> None:
    text = describe_error(fall_in_file("x" * 20_000, 2)).traceback

    assert text is not None
    assert MAX_TRACEBACK_BYTES - 4 <= len(text.encode()) <= MAX_TRACEBACK_BYTES
    assert text.endswith('File "bottom.py", line 1, in bottom\n')


def test_the_tracebacks_of_causes_share_the_room() -> None:
    error = fall_in_file("é" * 5_000, 1, fall_in_file("y" * 9_000, 1, fall_in_file("z" * 9_000, 1)))

    info = describe_error(error)

    assert info.cause is not None
    assert info.cause.cause is not None
    sizes = [len((one.traceback or "").encode()) for one in (info, info.cause, info.cause.cause)]
    assert sizes[0] > 20_000
    assert MAX_TRACEBACK_BYTES - 4 <= sum(sizes) <= MAX_TRACEBACK_BYTES


def test_errors_of_a_thousand_causes_stay_small() -> None:
    error: BaseException = ValueError("first")
    for number in range(1000):
        try:
            raise LookupError(f"{number} " + "x" * 10_000) from error
        except LookupError as caught:
            error = caught

    payload = encode_error(error)

    chain = [decode_error(payload)]
    while chain[-1].cause:
        chain.append(chain[-1].cause)
    assert len(chain) == MAX_CAUSES + 1
    assert [info.message.split()[0] for info in chain[:3]] == ["999", "998", "997"]
    assert sum(len((info.traceback or "").encode()) for info in chain) <= MAX_TRACEBACK_BYTES
    assert len(payload) < 64 * 1024


def test_causes_are_those_that_python_would_show() -> None:
    def hide() -> None:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None

    def show() -> None:
        try:
            raise KeyError("context")
        except KeyError:
            raise ValueError("shown")  # noqa: B904  # the context is what this is about

    with pytest.raises(ValueError, match="shown") as hidden:
        hide()
    with pytest.raises(ValueError, match="shown") as shown:
        show()
    alone, with_context = describe_error(hidden.value), describe_error(shown.value)

    assert alone.cause is None
    assert with_context.cause is not None
    assert with_context.cause.kind == "builtins.KeyError"


def test_errors_that_cause_each_other_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one

    info = kept(one)

    assert info.cause is not None
    assert (info.cause.message, info.cause.cause) == ("other", None)


def test_a_group_tells_what_is_in_it() -> None:
    inner = ExceptionGroup("inner", [KeyError("c")])

    info = kept(ExceptionGroup("two failed", [ValueError("a"), BrokenText(), inner, *[OSError(n) for n in range(9)]]))

    assert info.message.startswith(
        "two failed (12 sub-exceptions): ValueError: a; BrokenText: <its text cannot be made"
    )
    assert "ExceptionGroup: inner (1 sub-exception): KeyError: 'c'" in info.message
    assert "OSError: 3" not in info.message
    assert info.cause is not None
    assert info.cause.kind == "builtins.ValueError"


def test_a_class_that_nobody_can_name_is_kept_under_a_short_name() -> None:
    monster = type("é" * 100_000, (Exception,), {"__module__": None})

    assert len(kept(monster()).kind.encode()) <= 500


def test_nothing_of_an_error_is_executed_when_it_is_read() -> None:
    class Bomb(Exception):
        def __reduce__(self) -> Any:
            return (pytest.fail, ("executed",))

    info = kept(Bomb("x"))

    assert info.message == "x"
    assert isinstance(info, ErrorInfo)


@pytest.mark.parametrize("damaged", [None, b"", b"\x01", b"\x09{}", b"\x01[]", b'\x01{"kind":1,"message":""}'])
def test_a_stored_error_that_is_damaged_is_described_as_such(damaged: bytes | None) -> None:
    info = decode_error(damaged)

    assert info.kind == "kedge.errors.NotDecodableError"
    assert info.message.startswith("a stored error: ")


@given(st.text(st.characters(), max_size=300), st.lists(st.binary(max_size=50), max_size=3))
def test_any_message_can_be_kept(text: str, args: list[bytes]) -> None:
    info = kept(ValueError(text, *args))

    assert info.kind == "builtins.ValueError"
    assert info == decode(encode_error(info), ErrorInfo, where="x")


def test_a_domain_error_comes_back_as_its_class() -> None:
    info = kept(CardDeclined("expired", on=date(2026, 1, 1)))

    again = domain_error(info, (OutOfStock, CardDeclined))

    assert type(again) is CardDeclined
    assert (again.code, again.on) == ("expired", date(2026, 1, 1))
    assert info.data == {"code": "expired", "on": "2026-01-01"}
    assert info.message == "code='expired', on=datetime.date(2026, 1, 1)"


def test_a_domain_error_without_fields_comes_back_too() -> None:
    assert type(domain_error(kept(OutOfStock()), (OutOfStock,))) is OutOfStock


def test_a_subclass_of_a_declared_error_comes_back_as_itself() -> None:
    assert type(domain_error(kept(StolenCard("x")), (CardDeclined,))) is StolenCard
    assert type(domain_error(kept(StolenCard("x")), (DomainError,))) is StolenCard


@pytest.mark.parametrize(
    ("error", "declared"),
    [(CardDeclined("x"), ()), (CardDeclined("x"), (OutOfStock, StolenCard)), (ValueError("x"), (DomainError,))],
)
def test_what_was_not_declared_does_not_come_back(error: Exception, declared: tuple[type[DomainError], ...]) -> None:
    assert domain_error(kept(error), declared) is None


@pytest.mark.parametrize("data", [{}, {"code": 3}, {"code": None}, None])
def test_a_domain_error_whose_fields_have_changed_does_not_come_back(data: dict[str, Any] | None) -> None:
    assert domain_error(ErrorInfo(kind_of(CardDeclined), "x", data=data), (CardDeclined,)) is None


def test_a_field_that_was_added_with_a_default_is_filled_in() -> None:
    again = domain_error(ErrorInfo(kind_of(CardDeclined), "x", data={"code": "x", "gone": 1}), (CardDeclined,))

    assert again is not None
    assert vars(again) == {"code": "x", "on": None}


@pytest.mark.parametrize("what", [object(), float("nan"), "\ud800", "x" * 100_000, {1: object()}])
def test_a_domain_error_that_cannot_be_kept_is_kept_as_any_other(what: object) -> None:
    info = kept(Unkeepable(what))

    assert info.data is None
    assert info.kind == kind_of(Unkeepable)
    assert domain_error(info, (Unkeepable,)) is None
    assert "its fields cannot be kept" in info.message or len(info.message.encode()) == MAX_MESSAGE_BYTES


def test_a_domain_error_of_the_wrong_types_is_kept_as_any_other() -> None:
    info = kept(CardDeclined(3))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert info.data is None
    assert "its fields cannot be kept: Expected `str`, got `int`" in info.message


class Lazy(DomainError):
    path: "OnlyForCheckers"


class Alien(DomainError):
    what: complex


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        (CardDeclined, "give a tuple"),
        ([CardDeclined], "give a tuple"),
        ((ValueError,), "give a tuple of classes that derive from DomainError"),
        ((CardDeclined("x"),), "give a tuple"),
        ((Lazy,), "move it out of `if TYPE_CHECKING:`"),
        ((Alien,), "complex is no type that can be read back"),
    ],
)
def test_what_is_declared_is_checked(given_: object, problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        check_domain_errors(given_)


def test_kinds_are_what_tracebacks_print() -> None:
    error = kept(CardDeclined("x"))

    last_line = traceback.format_exception_only(CardDeclined("x"))[-1]
    assert last_line.startswith(error.kind)


def test_a_newer_error_is_read_by_this_release() -> None:
    newer = b'\x01{"kind":"a.B","message":"m","added":{"later":1}}'

    assert decode_error(newer) == ErrorInfo("a.B", "m")
    assert msgspec.json.decode(encode_error(ErrorInfo("a.B", "m"))[1:]) == {"kind": "a.B", "message": "m"}
