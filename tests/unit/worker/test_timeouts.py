"""An attempt of a step may take only so long: it is cancelled, has failed, and is repeated if the policy says so."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from kedge.errors import (
    HandlerUseError,
    InvalidDurationError,
    NestedStepError,
    StepFailedError,
    StepTimedOutError,
)
from kedge.failures import decode_error
from kedge.retry import Retry
from kedge_worker import _time_limits
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._outcomes import Park
from kedge_worker._sync_context import SyncContext
from tests.unit.worker.journal import Lives, MemoryJournal, bound, claim, failures

SHORT = 0.005
TWICE = Retry(2, initial=0)


async def live(handler: Callable[[Context], Awaitable[Any]]) -> tuple[Any, MemoryJournal]:
    """The same live and on replay."""
    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()
        result = lives.result(move)
        assert lives.result(await lives.again(claimed)) == result
        return result, lives.journal


async def for_ever() -> int:
    await asyncio.Event().wait()
    return 1


async def at_once() -> int:
    return 1


async def test_a_body_that_takes_too_long_is_cancelled_and_its_step_times_out() -> None:
    ended: list[str] = []

    async def body() -> None:
        try:
            await for_ever()
        finally:
            ended.append("cancelled")

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepTimedOutError) as caught:
            await ctx.step("a", body, timeout=SHORT)
        error = caught.value
        return [error.key, error.attempts, error.error.message]

    result, journal = await live(handler)

    assert result == ["a", 1, "it has not ended within 0.005 s"]
    assert ended == ["cancelled"]
    (rows,) = journal.rows.values()
    info = decode_error(rows[0].value)
    assert info.kind == "kedge.errors.StepTimedOutError"
    assert info.cause is not None
    assert "in for_ever" in (info.cause.traceback or ""), "where it stood"


async def test_it_is_a_failed_step_and_a_timeout_for_whoever_catches_these() -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", for_ever, timeout=SHORT)
        with pytest.raises(TimeoutError):
            await ctx.step("b", for_ever, timeout=SHORT)
        return type(caught.value).__name__

    assert (await live(handler))[0] == "StepTimedOutError"


async def test_a_timeout_is_a_failed_attempt_and_the_next_one_has_its_own_time() -> None:
    calls = 0

    async def body() -> int:
        nonlocal calls
        calls += 1
        return await (for_ever() if calls == 1 else at_once())

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", body, timeout=SHORT, retry=TWICE)

    result, journal = await live(handler)

    assert (result, calls) == (1, 2)
    assert [(one.attempt, one.error.kind) for one in failures(journal)] == [(1, "kedge.errors.StepTimedOutError")]


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        (Retry(2, initial=0, retry_on=(TimeoutError,)), 2),
        (Retry(2, initial=0, retry_on=(StepTimedOutError,)), 2),
        (Retry(2, initial=0, retry_on=(ConnectionError,)), 1),
        (Retry(2, initial=0, give_up_on=(TimeoutError,)), 1),
    ],
)
async def test_for_a_policy_it_is_a_timeout_error(policy: Retry, attempts: int) -> None:
    async def handler(ctx: Context) -> int:
        with pytest.raises(StepTimedOutError) as caught:
            await ctx.step("a", for_ever, timeout=SHORT, retry=policy)
        return caught.value.attempts

    assert (await live(handler))[0] == attempts


async def test_the_functions_own_timeout_counts_where_the_call_says_nothing() -> None:
    @step(timeout=SHORT)
    async def body() -> int:
        await asyncio.sleep(0.02)
        return 1

    async def handler(ctx: Context) -> list[int]:
        with pytest.raises(StepTimedOutError):
            await ctx.step("own", body)
        return [await ctx.step("longer", body, timeout="1m"), await ctx.step("none", body, timeout=None)]

    assert (await live(handler))[0] == [1, 1]


@pytest.mark.parametrize("wrong", [0, -1, "soon", True])
async def test_a_timeout_that_is_none_is_refused_where_it_is_written(wrong: Any) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(InvalidDurationError) as caught:
            await ctx.step("a", at_once, timeout=wrong)
        return caught.value.option

    assert (await live(handler))[0] == "timeout"
    with pytest.raises(InvalidDurationError):
        step(timeout=wrong)


async def test_a_body_in_time_is_what_it_is_without_a_timeout() -> None:
    async def explode() -> None:
        raise SystemExit(3)

    async def nested(ctx: Context) -> str:
        with pytest.raises(NestedStepError):
            await ctx.step("inner", at_once)
        return "refused"

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("exit", explode, timeout="1m")
        with pytest.raises(StepFailedError) as cancelled:
            await ctx.step("cancel", raise_cancelled, timeout="1m")
        return [
            caught.value.error.kind,
            cancelled.value.error.kind,
            await ctx.step("nested", nested, ctx, timeout="1m"),
            await ctx.step("thread", lambda: threading.current_thread().name.split("-")[1], timeout="1m"),
        ]

    async def raise_cancelled() -> None:
        raise asyncio.CancelledError

    result, _ = await live(handler)

    assert result == ["builtins.SystemExit", "asyncio.exceptions.CancelledError", "refused", "step"]


async def test_the_late_result_of_a_body_that_does_not_let_itself_be_cancelled_is_dropped() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "late"

    async def handler(ctx: Context) -> str:
        with pytest.raises(StepTimedOutError):
            await ctx.step("a", stubborn, timeout=SHORT)
        return "timed out"

    assert (await live(handler))[0] == "timed out"


async def test_a_body_that_never_ends_is_left_behind_and_said_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_time_limits, "_UNWINDING_S", 0.005)
    release = asyncio.Event()

    async def deaf() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    async def handler(ctx: Context) -> str:
        with pytest.raises(StepTimedOutError):
            await ctx.step("a", deaf, timeout=SHORT)
        return "went on"

    result, _ = await live(handler)
    release.set()
    await asyncio.sleep(0)

    assert result == "went on"
    assert "step 'a' has taken more than 0.005 s, and it was cancelled 0.005 s ago and still runs" in caplog.text


async def test_a_run_stays_in_memory_while_a_body_that_timed_out_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    begun = threading.Event()

    def deaf() -> None:
        begun.set()
        release.wait(10)

    async def handler(ctx: Context) -> str:
        with pytest.raises(StepTimedOutError):
            await ctx.step("a", deaf, timeout=SHORT)
        await ctx.sleep("long", "1h")
        return "went on"

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        run = lives.executor.start(claimed)
        while not lives.journal.waits(claimed.id):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert claimed.id not in lives.journal.moves
        assert lives.executor._executions[run].left_behind == 1
        release.set()

        assert await lives.journal.moved(claimed.id) == Park(())


async def test_the_result_of_a_thread_is_dropped_and_the_next_attempt_gets_another_thread() -> None:
    release = threading.Event()
    threads: list[str] = []

    def body() -> str:
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            release.wait(10)
            return "late"
        release.set()
        return "second"

    async def handler(ctx: Context) -> str:
        return await ctx.step("a", body, timeout=SHORT if not threads else "1m", retry=TWICE)

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == "second"
        assert lives.journal.keys(claimed.id) == [("s", "a")]
    assert len(set(threads)) == 2


async def test_the_time_that_a_function_waits_for_a_thread_is_not_its_own() -> None:
    release = threading.Event()

    def block() -> str:
        release.wait(10)
        return "blocked"

    def quick() -> str:
        return "quick"

    async def let_go() -> None:
        await asyncio.sleep(0.03)
        release.set()

    async def handler(ctx: Context) -> list[str]:
        first = asyncio.create_task(ctx.step("block", block))
        releasing = asyncio.create_task(let_go())
        await asyncio.sleep(0)
        second = asyncio.create_task(ctx.step("quick", quick, timeout=0.02))
        answers = [await first, await second]
        await releasing
        return answers

    async with Lives(bound(handler), threads=1, linger_s=60) as lives:
        _, move = await lives.run()

        assert lives.result(move) == ["blocked", "quick"]


# ---- and other people's cancellations


async def test_a_cancellation_by_the_handler_is_no_timeout() -> None:
    ended: list[str] = []

    async def body() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)
            ended.append("unwound")

    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(SHORT):
                await ctx.step("a", body, timeout="1m")
        except TimeoutError as error:
            return type(error).__name__
        return "no"

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == "TimeoutError"
        assert lives.journal.keys(claimed.id) == [("x", "a")]
        assert ended == ["unwound"], "before the handler goes on"
        assert lives.result(await lives.again(claimed)) == "TimeoutError"


async def test_a_scope_of_anyio_around_it_works_and_lets_the_body_unwind() -> None:
    ended: list[str] = []

    async def body() -> None:
        try:
            await for_ever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.003)
            ended.append("unwound")

    async def handler(ctx: Context) -> str:
        with anyio.move_on_after(SHORT) as scope:
            await ctx.step("a", body, timeout="1m")
        return "cancelled" if scope.cancelled_caught else "no"

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == "cancelled"
        assert lives.journal.keys(claimed.id) == [("x", "a")]
        assert ended == ["unwound"]
        assert lives.result(await lives.again(claimed)) == "cancelled"


async def test_scopes_inside_the_body_are_its_own() -> None:
    async def body() -> str:
        with anyio.move_on_after(0.001):
            await for_ever()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        return "through"

    async def handler(ctx: Context) -> str:
        return await ctx.step("a", body, timeout="1m")

    assert (await live(handler))[0] == "through"


async def test_a_timeout_within_a_task_group_fails_it_as_any_error_does() -> None:
    async def handler(ctx: Context) -> list[str]:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("a", for_ever, timeout=SHORT))
                group.create_task(ctx.step("b", for_ever))
        except BaseExceptionGroup as error:
            return [type(one).__name__ for one in error.exceptions]
        return []

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == ["StepTimedOutError"]
        assert lives.journal.keys(claimed.id) == [("f", "a"), ("x", "b")]
        assert lives.result(await lives.again(claimed)) == ["StepTimedOutError"]


async def test_a_shutdown_stops_the_body_and_counts_nothing() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def body() -> int:
        begun.set()
        try:
            return await for_ever()
        finally:
            ended.append("unwound")

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", body, timeout="1m", retry=TWICE)

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await begun.wait()
        await lives.executor.shutdown(0)

        assert lives.journal.keys(claimed.id) == []
        assert failures(lives.journal) == []
    assert ended == ["unwound"]


async def test_a_value_that_comes_in_spite_of_a_cancellation_counts_as_without_a_timeout() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "all the same"

    async def handler(ctx: Context) -> str:
        async with asyncio.timeout(SHORT):
            return await ctx.step("a", stubborn, timeout="1m")

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == "all the same"
        assert lives.journal.keys(claimed.id) == [("s", "a")]


async def test_sync_handlers_and_transactions_refuse_timeouts_and_say_why() -> None:
    @step(timeout="1m")
    def timed() -> int:
        return 1

    @step(timeout="1m")
    def timed_with(_: Any) -> int:
        return 1

    def handler(ctx: SyncContext) -> list[Any]:
        said: list[Any] = []
        with pytest.raises(HandlerUseError, match="a sync handler's steps have no timeout") as caught:
            ctx.step("a", timed)
        said.append(str(caught.value))
        with pytest.raises(HandlerUseError, match="a sync handler's steps have no timeout"):
            ctx.step("a", timed, timeout="1m")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(HandlerUseError, match="a sync handler's steps have no timeout"):
            ctx.poll("a", timed, every="1s")
        with pytest.raises(HandlerUseError, match="a transaction has no timeout"):
            ctx.transaction("t", timed_with)
        return [*said, ctx.step("a", timed, timeout=None)]

    async def async_handler(ctx: Context) -> str:
        with pytest.raises(HandlerUseError, match="a transaction has no timeout") as caught:
            await ctx.transaction("t", timed_with)
        return str(caught.value)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()
        assert lives.result(move)[-1] == 1
    assert "statement_timeout" in (await live(async_handler))[0]


EAGER: Any = getattr(asyncio, "eager_task_factory", None)


@pytest.mark.skipif(EAGER is None, reason="EAGER TASKS ARE NOT TESTED: they exist from Python 3.12 on")
async def test_bodies_that_begin_eagerly_are_timed_too() -> None:
    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepTimedOutError):
            await ctx.step("a", for_ever, timeout=SHORT)
        return [await ctx.step("b", at_once, timeout="1m"), await ctx.step("c", lambda: 1, timeout="1m")]

    loop = asyncio.get_running_loop()
    loop.set_task_factory(EAGER)
    try:
        result, _ = await live(handler)
    finally:
        loop.set_task_factory(None)

    assert result == [1, 1]
