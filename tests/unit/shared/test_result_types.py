import functools
import gc
import weakref
from asyncio import Task
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, overload
from unittest.mock import call

import msgspec
import pytest

from kedge.errors import DefinitionError, NotEncodableError
from kedge.result_types import MISSING, check_plain, type_of_result

if TYPE_CHECKING:
    from pathlib import Path as OnlyForCheckers

T = TypeVar("T")
P = ParamSpec("P")


class Receipt(msgspec.Struct):
    id: str


def sync(order: str) -> Receipt:
    return Receipt(order)


async def asynchronous(order: str) -> Receipt:
    return Receipt(order)


def awaitable() -> Awaitable[Receipt]:
    return asynchronous("1")


def coroutine() -> Coroutine[Any, Any, Receipt]:
    return asynchronous("1")


def task() -> "Task[Receipt]":
    raise NotImplementedError


def nothing() -> None: ...


def never() -> NoReturn:
    raise NotImplementedError


def maybe() -> "list[Receipt | None]":
    return []


def foreign_parameter(path: "OnlyForCheckers") -> Receipt:
    return Receipt(path.name)


def foreign_result() -> "OnlyForCheckers":
    raise NotImplementedError


def anything() -> Any: ...


def some_object() -> object: ...


def generic(value: T) -> list[T]:
    return [value]


def unreadable() -> None: ...


unreadable.__annotations__["return"] = "list["
UNANNOTATED: Any = eval("lambda order: order")


@overload
def overloaded(value: int) -> int: ...
@overload
def overloaded(value: str) -> str: ...
def overloaded(value: int | str) -> int | str:
    return value


def decorated_with(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    return wrapper


class Gateway:
    def charge(self) -> Receipt:
        return Receipt("1")

    @classmethod
    def of_class(cls) -> Receipt:
        return Receipt("1")

    @staticmethod
    def of_nobody() -> Receipt:
        return Receipt("1")

    async def __call__(self) -> Receipt:
        return Receipt("1")


@pytest.mark.parametrize(
    "function",
    [
        sync,
        asynchronous,
        awaitable,
        coroutine,
        task,
        foreign_parameter,
        functools.partial(sync, "1"),
        functools.partial(functools.partial(asynchronous), order="1"),
        decorated_with(sync),
        decorated_with(decorated_with(asynchronous)),
        functools.lru_cache(sync),
        functools.partial(decorated_with(Gateway().charge)),
        Gateway().charge,
        Gateway.charge,
        Gateway.of_class,
        Gateway.of_nobody,
        Gateway(),
        Receipt,
    ],
)
def test_the_result_is_known_whatever_wraps_the_function(function: object) -> None:
    assert type_of_result(function) is Receipt
    assert type_of_result(function) is Receipt


@pytest.mark.parametrize(
    ("function", "expected"),
    [(nothing, type(None)), (never, type(None)), (maybe, list[Receipt | None]), (overloaded, int | str)],
)
def test_results_that_are_no_classes_are_known_too(function: object, expected: object) -> None:
    assert type_of_result(function) == expected


@pytest.mark.parametrize(
    "function",
    [UNANNOTATED, anything, some_object, generic, lambda: 1, len, functools.partial(print), call, 3],
)
def test_what_says_nothing_about_its_result_is_missing(function: Any) -> None:
    assert type_of_result(function) is MISSING


def test_a_result_that_only_checkers_know_is_explained() -> None:
    with pytest.raises(DefinitionError, match="move its import out of `if TYPE_CHECKING:`"):
        type_of_result(foreign_result)


def test_an_annotation_that_cannot_be_read_is_explained() -> None:
    with pytest.raises(DefinitionError, match="the result of unreadable cannot be read"):
        type_of_result(unreadable)


def test_functions_of_one_factory_keep_their_own_types() -> None:
    def make(type_: type) -> Callable[[], Any]:
        def made() -> Any: ...

        made.__annotations__["return"] = type_
        return made

    assert [type_of_result(make(type_)) for type_ in (int, str, Receipt)] == [int, str, Receipt]


def test_remembering_a_function_does_not_keep_it_alive() -> None:
    def temporary() -> int:
        return 1

    type_of_result(temporary)
    seen = weakref.ref(temporary)
    del temporary
    gc.collect()

    assert seen() is None


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "x", [], {}, [1, [None, {"a": ["x"]}]]])
def test_plain_values_need_no_type(value: object) -> None:
    check_plain(value, where="step 'a'")


def test_a_plain_value_that_contains_itself_is_left_to_the_encoder() -> None:
    value: list[Any] = []
    value.append(value)

    check_plain(value, where="step 'a'")


@pytest.mark.parametrize(
    "value", [Receipt("1"), (1,), {1}, b"x", [Receipt("1")], {"a": {"b": (1,)}}, {1: "a"}, object()]
)
def test_other_values_without_a_type_are_refused_with_the_remedy(value: object) -> None:
    with pytest.raises(NotEncodableError, match="annotate the function's result or give output=") as caught:
        check_plain(value, where="step 'charge'")

    assert caught.value.where == "step 'charge'"
