"""What is known of a step's function, and what `@step` says of it."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from kedge.errors import DefinitionError, DomainError, HandlerUseError
from kedge_worker._definitions import definition_of, step

if TYPE_CHECKING:
    from decimal import Decimal as ForTypeCheckers


class Refused(DomainError):
    code: str


class Unreadable:
    """No type that can be read back."""


async def typed(value: int) -> int:
    return value


def test_a_function_stays_what_it_is() -> None:
    assert step(typed) is typed
    assert step(raises=(Refused,))(typed) is typed
    assert inspect.iscoroutinefunction(typed)


def test_what_is_known_is_found_out_once() -> None:
    async def function() -> int:
        return 1

    assert definition_of(function) is definition_of(function)


def test_methods_of_one_function_share_what_is_known() -> None:
    class Shop:
        async def charge(self) -> int:
            return 1

    assert definition_of(Shop().charge) is definition_of(Shop().charge)
    assert definition_of(functools.partial(Shop().charge)) is definition_of(Shop().charge)


def test_functions_made_by_one_factory_are_told_apart() -> None:
    def make(type_: Any) -> Callable[[], Any]:
        def function() -> Any:
            return None

        function.__annotations__["return"] = type_
        return function

    assert definition_of(make(int)).same is int
    assert definition_of(make(str)).same is str


def test_a_wrapper_keeps_the_declared_errors_and_is_known_by_itself() -> None:
    @step(raises=(Refused,))
    async def inner() -> int:
        return 1

    @functools.wraps(inner)
    def outer() -> Awaitable[int]:
        return inner()

    assert definition_of(outer).raises == (Refused,)
    assert definition_of(outer).function is outer
    assert definition_of(outer).is_async


def test_async_and_sync_are_told_apart() -> None:
    class Async:
        async def __call__(self) -> int:
            return 1

    assert definition_of(typed).is_async
    assert definition_of(Async()).is_async
    assert definition_of(functools.partial(typed, 1)).is_async
    assert not definition_of(len).is_async
    assert not definition_of(lambda: 1).is_async


@pytest.mark.parametrize("wrong", [7, "charge", None, [typed]])
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(HandlerUseError, match="not its result"):
        definition_of(wrong)


def test_a_result_that_cannot_be_read_back_is_refused_where_it_is_declared() -> None:
    async def function() -> Unreadable:
        return Unreadable()

    with pytest.raises(DefinitionError, match="Unreadable"):
        step(function)


def test_an_annotation_that_only_type_checkers_know_is_refused_with_the_remedy() -> None:
    async def function() -> "ForTypeCheckers":
        raise NotImplementedError

    with pytest.raises(DefinitionError, match="TYPE_CHECKING"):
        definition_of(function)


@pytest.mark.parametrize("raises", [Refused, [Refused], (ValueError,), ("Refused",)])
def test_raises_takes_a_tuple_of_domain_errors(raises: Any) -> None:
    with pytest.raises(DefinitionError, match="raises="):
        step(raises=raises)


@pytest.mark.parametrize("wrong", [functools.partial(typed, 1), int, typed(1)])
def test_step_stands_before_functions_only(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="stands before a function"):
        step(wrong)
    if inspect.iscoroutine(wrong):
        wrong.close()


def test_output_overrules_the_annotation() -> None:
    class Wanted(msgspec.Struct):
        value: int

    definition = definition_of(cast("Callable[[], Any]", dict)).with_output(Wanted)

    assert definition.decode(b'\x01{"value":1}', where="here") == Wanted(1)
