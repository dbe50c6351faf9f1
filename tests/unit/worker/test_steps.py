"""A step is done once; its value, or its error, is kept and comes back the same."""

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from kedge.errors import (
    DomainError,
    HandlerUseError,
    NestedStepError,
    NotDecodableError,
    NotEncodableError,
    PayloadError,
    StepFailedError,
    TooLargeError,
)
from kedge.failures import decode_error
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._outcomes import End
from tests.unit.worker.journal import Lives, bound


class Charge(msgspec.Struct, frozen=True):
    charge_id: str
    cents: float


class CardDeclined(DomainError):
    code: str


@dataclass
class Calls:
    """What bodies did, over all lives."""

    count: int = 0


async def live_and_repeat(handler: Callable[[Context], Awaitable[Any]]) -> tuple[Any, Any]:
    """The results of a run's first life, and of one that knows everything."""
    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        first = lives.result(move)
        return first, lives.result(await lives.again(claimed))


async def test_a_value_is_the_decoded_stored_one_the_first_time_and_on_replay() -> None:
    calls = Calls()

    async def charge() -> Charge:
        calls.count += 1
        return Charge("ch_1", 5)  # an int, where the type says float

    async def handler(ctx: Context) -> str:
        value = await ctx.step("charge", charge)
        return f"{value!r} {type(value.cents).__name__}"

    first, again = await live_and_repeat(handler)

    assert first == again == "Charge(charge_id='ch_1', cents=5.0) float"
    assert calls.count == 1


async def test_a_sync_function_runs_in_a_thread_with_the_handlers_context() -> None:
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    async def handler(ctx: Context) -> bool:
        return await ctx.step("where", where)

    assert await live_and_repeat(handler) == (False, False)


async def test_partials_methods_and_callable_objects_are_functions_too() -> None:
    class Adder:
        def __init__(self, more: int) -> None:
            self.more = more

        async def add(self, value: int) -> int:
            return value + self.more

        async def __call__(self, value: int) -> int:
            return value + self.more

        @staticmethod
        def twice(value: int) -> int:
            return 2 * value

    async def scaled(value: int, *, factor: int) -> int:
        return value * factor

    def wrapped_async(value: int) -> Awaitable[int]:
        return Adder(7).add(value)

    async def handler(ctx: Context) -> list[int]:
        adder = Adder(10)
        return [
            await ctx.step("method", adder.add, 1),
            await ctx.step("object", adder, 2),
            await ctx.step("static", Adder.twice, 3),
            await ctx.step("partial", functools.partial(scaled, factor=5), 4),
            await ctx.step("lambda", lambda: 5),
            await ctx.step("awaitable", wrapped_async, 6),
            await ctx.step("builtin", abs, -7),
        ]

    first, again = await live_and_repeat(handler)

    assert first == again == [11, 12, 6, 20, 5, 13, 7]


async def test_output_says_the_type_where_the_function_does_not() -> None:
    async def handler(ctx: Context) -> str:
        value = await ctx.step("charge", lambda: Charge("ch_2", 1.5), output=Charge)
        return value.charge_id

    assert await live_and_repeat(handler) == ("ch_2", "ch_2")


async def test_a_value_without_a_type_is_refused_and_the_body_is_not_run_again() -> None:
    calls = Calls()

    def untyped():  # type: ignore[no-untyped-def]  # that is the point
        calls.count += 1
        return Charge("ch_3", 1)

    async def handler(ctx: Context) -> str:
        try:
            await ctx.step("charge", untyped)
        except NotEncodableError as error:
            return str(error)
        return "kept"

    first, again = await live_and_repeat(handler)

    assert first == again
    assert "step 'charge'" in first
    assert "give output=" in first
    assert calls.count == 1


async def nan() -> dict[str, list[float]]:
    return {"amounts": [1.0, float("nan")]}


async def large() -> str:
    return "x" * (1024 * 1024)


async def lying() -> int:
    return "seven"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("function", "error", "path"),
    [(nan, NotEncodableError, "$.amounts[1]"), (large, TooLargeError, "$"), (lying, NotDecodableError, "$")],
)
async def test_a_value_that_cannot_be_kept_is_the_steps_own_typed_error(
    function: Callable[[], Awaitable[Any]], error: type[Exception], path: str
) -> None:
    async def handler(ctx: Context) -> list[str]:
        with pytest.raises(error) as caught:
            await ctx.step("value", function)
        assert isinstance(caught.value, PayloadError)
        return [str(caught.value), caught.value.where, caught.value.path]

    first, again = await live_and_repeat(handler)

    assert first == again
    assert first[1:] == ["step 'value'", path]


async def test_a_failure_is_the_same_object_type_live_and_on_replay() -> None:
    calls = Calls()

    async def explode() -> None:
        calls.count += 1
        raise ZeroDivisionError("by nought")

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("explode", explode)
        error = caught.value
        return [error.key, error.error.kind, error.error.message, error.attempts, error.run_id == ctx.run_id]

    first, again = await live_and_repeat(handler)

    assert first == again == ["explode", "builtins.ZeroDivisionError", "by nought", 1, True]
    assert calls.count == 1


async def test_only_the_first_life_has_the_original_error_as_the_cause() -> None:
    causes: list[BaseException | None] = []

    async def explode() -> None:
        raise ZeroDivisionError

    async def handler(ctx: Context) -> None:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("explode", explode)
        causes.append(caught.value.__cause__)

    await live_and_repeat(handler)

    assert isinstance(causes[0], ZeroDivisionError)
    assert causes[1] is None


async def test_a_declared_error_comes_back_as_its_class_with_its_fields() -> None:
    @step(raises=(CardDeclined,))
    async def charge() -> None:
        raise CardDeclined(code="stolen")

    async def handler(ctx: Context) -> str:
        try:
            await ctx.step("charge", charge)
        except CardDeclined as declined:
            return declined.code
        return "charged"

    assert await live_and_repeat(handler) == ("stolen", "stolen")


async def test_an_undeclared_domain_error_is_a_failed_step() -> None:
    async def charge() -> None:
        raise CardDeclined(code="stolen")

    async def handler(ctx: Context) -> str:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("charge", charge)
        return caught.value.error.message

    assert await live_and_repeat(handler) == ("code='stolen'", "code='stolen'")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopAsyncIteration()])
@pytest.mark.parametrize("in_thread", [False, True])
async def test_whatever_a_body_raises_is_the_steps_failure(error: BaseException, in_thread: bool) -> None:
    async def explode() -> None:
        raise error

    def explode_in_thread() -> None:
        raise error

    async def handler(ctx: Context) -> str:
        with pytest.raises(StepFailedError) as caught:
            await (ctx.step("explode", explode_in_thread) if in_thread else ctx.step("explode", explode))
        return caught.value.error.kind

    first, again = await live_and_repeat(handler)

    assert first == again
    assert first.endswith(type(error).__qualname__)


async def test_an_uncaught_failure_ends_the_run_and_names_the_step() -> None:
    async def explode() -> None:
        raise ZeroDivisionError("by nought")

    async def handler(ctx: Context) -> None:
        await ctx.step("explode", explode)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert isinstance(move, End)
    error = decode_error(move.error)
    assert (move.status, error.kind, error.key) == ("f", "kedge.errors.StepFailedError", "explode")


async def test_no_body_begins_before_what_was_kept_is_durable() -> None:
    async def handler(ctx: Context) -> None:
        async def note(name: str) -> None:
            lives.journal.log.append(f"body {name}")

        await ctx.step("a", note, "a")
        await ctx.step("b", note, "b")

    async with Lives(bound(handler)) as lives:
        await lives.run()

    assert lives.journal.log == ["body a", "keep a", "durable", "body b", "keep b"]


async def test_what_ends_a_wait_is_there_at_once_and_no_body_begins_before_it_is_durable() -> None:
    async def handler(ctx: Context) -> None:
        async def note(name: str) -> None:
            lives.journal.log.append(f"body {name}")

        await ctx.sleep("nap", 0.001)
        lives.journal.log.append("goes on")
        await ctx.step("b", note, "b")

    async with Lives(bound(handler), linger_s=60) as lives:
        await lives.run()

    # First the wait itself is stored, which has no row.
    assert lives.journal.log == ["durable", "keep nap", "goes on", "durable", "body b", "keep b"]


async def test_no_body_of_any_branch_begins_before_what_the_others_kept_is_durable() -> None:
    async def handler(ctx: Context) -> None:
        async def note(name: str) -> None:
            lives.journal.log.append(f"body {name}")

        async def later() -> None:
            await ctx.step("a", note, "a")
            lives.journal.log.append("a is known")
            ready.set()

        async def other() -> None:
            await ready.wait()
            await ctx.step("b", note, "b")

        ready = asyncio.Event()
        await asyncio.gather(later(), other())

    async with Lives(bound(handler)) as lives:
        await lives.run()

    log = lives.journal.log
    assert log.index("a is known") < log.index("durable") < log.index("body b")


async def test_the_return_value_rides_with_the_last_step() -> None:
    async def one() -> int:
        return 1

    async def handler(ctx: Context) -> int:
        return await ctx.step("one", one)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert lives.result(move) == 1
    assert lives.journal.flushes == 0


async def test_the_context_cannot_be_used_inside_a_step() -> None:
    async def nothing() -> None: ...

    async def handler(ctx: Context) -> list[str]:
        async def nested() -> str:
            with pytest.raises(NestedStepError):
                await ctx.step("inner", nothing)
            with pytest.raises(NestedStepError):
                ctx.now()
            return "refused"

        async def nested_in_a_task() -> str:
            return await asyncio.create_task(nested())

        async def awaits(what: Awaitable[None]) -> str:
            with pytest.raises(NestedStepError):
                await what
            return "refused"

        def nested_in_a_thread() -> str:
            with pytest.raises(NestedStepError):
                ctx.now()
            return "refused"

        made_outside = ctx.step("inner", nothing)
        answers = [
            await ctx.step("a", nested),
            await ctx.step("b", nested_in_a_task),
            await ctx.step("c", nested_in_a_thread),
            await ctx.step("d", awaits, made_outside),
            await ctx.branch("e", lambda: ctx.step("f", nested)),
        ]
        made_outside.close()
        return answers

    first, again = await live_and_repeat(handler)

    assert first == again == ["refused"] * 5


async def test_a_result_in_the_place_of_its_function_is_refused_and_leaves_nothing_behind() -> None:
    async def charge() -> int:
        return 1

    async def handler(ctx: Context) -> str:
        with pytest.raises(HandlerUseError, match="not its result") as caught:
            await ctx.step("a", cast("Any", charge()))
        return str(caught.value)

    await live_and_repeat(handler)


async def test_a_step_that_was_never_awaited_leaves_a_gap_in_the_numbers_and_nothing_else() -> None:
    async def one() -> int:
        return 1

    async def handler(ctx: Context) -> int:
        ctx.step("a", one).close()
        return await ctx.step("a", one)

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()

    assert lives.result(move) == 1
    assert lives.journal.keys(claimed.id) == [("s", "a#2")]
