"""A step that the handler's own code cancelled is kept as interrupted, and interrupted again by the same code."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from kedge_worker._context import Context
from tests.unit.worker.journal import Lives, bound

Handler = Callable[[Context], Awaitable[Any]]


class Bodies:
    """Steps' functions, counted."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    async def echo(self, value: str) -> str:
        self.begun.append(value)
        return value

    async def never(self) -> str:
        self.begun.append("never")
        await asyncio.Event().wait()
        return "never"

    async def tidy(self) -> str:
        """Takes its time to unwind."""
        try:
            return await self.never()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)

    async def stubborn(self) -> str:
        """Does not let itself be interrupted."""
        with contextlib.suppress(asyncio.CancelledError):
            await self.never()
        return "done all the same"


async def live_and_repeat(handler: Handler, bodies: Bodies) -> tuple[Any, list[tuple[str, str]]]:
    """The result and the journal, the same in both lives; in the second nothing is executed."""
    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        journal = lives.journal.keys(claimed.id)
        bodies.begun.clear()
        again = await lives.again(claimed)
        assert again == move
        assert lives.journal.keys(claimed.id) == journal
        assert bodies.begun == []
        return lives.result(move), journal


async def test_by_a_raw_timeout() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.001):
                return await ctx.step("slow", bodies.never)
        except TimeoutError:
            return await ctx.step("instead", bodies.echo, "in time")

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "in time"
    assert journal == [("x", "slow"), ("s", "instead")]


async def test_by_wait_for() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> str:
        try:
            return await asyncio.wait_for(ctx.step("slow", bodies.never), 0.001)
        except TimeoutError:
            return "in time"

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "in time"
    assert journal == [("x", "slow")]


async def test_by_anyios_move_on_after() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> str:
        with anyio.move_on_after(0.001):
            await ctx.step("slow", bodies.tidy)
        return await ctx.step("then", bodies.echo, "on")

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "on"
    assert journal == [("x", "slow"), ("s", "then")]


async def test_by_a_failing_sibling_in_a_task_group() -> None:
    bodies = Bodies()

    async def give_up(ctx: Context) -> None:
        await ctx.step("decide", bodies.echo, "no")
        raise LookupError

    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("one", bodies.never))
                group.create_task(ctx.step("two", bodies.tidy))
                group.create_task(give_up(ctx))
        except* LookupError:
            pass
        return await ctx.step("after", bodies.echo, "all")

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "all"
    assert sorted(journal) == [("s", "after"), ("s", "~3/decide"), ("x", "one"), ("x", "two")]
    assert journal[-1] == ("s", "after")


async def test_by_a_failing_sibling_in_an_anyio_task_group() -> None:
    bodies = Bodies()

    async def give_up(ctx: Context) -> None:
        await ctx.step("decide", bodies.echo, "no")
        raise LookupError

    async def handler(ctx: Context) -> str:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(ctx.step, "one", bodies.never)
                group.start_soon(ctx.step, "two", bodies.tidy)
                group.start_soon(give_up, ctx)
        except* LookupError:
            pass
        return await ctx.step("after", bodies.echo, "all")

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "all"
    assert sorted(journal) == [("s", "after"), ("s", "~3/decide"), ("x", "one"), ("x", "two")]


async def test_by_losing_a_race() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> str:
        tasks = [
            asyncio.create_task(ctx.step("slow", bodies.never)),
            asyncio.create_task(ctx.step("fast", bodies.echo, "first")),
        ]
        done, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return await ctx.step("won", bodies.echo, done.pop().result())

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "first"
    assert journal == [("s", "fast"), ("x", "slow"), ("s", "won")]


async def test_a_race_has_the_same_winner_although_the_loser_would_be_faster_now() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> str:
        async def raced() -> str:
            async with asyncio.timeout(0.001):
                return await ctx.step("slow", bodies.never)

        async def steady() -> str:
            await ctx.step("one", bodies.echo, "1")
            for _ in range(2000):  # longer than the timeout, the first time
                await asyncio.sleep(0)
            return await ctx.step("two", bodies.echo, "2")

        tasks = [asyncio.create_task(raced()), asyncio.create_task(steady())]
        ends: list[str] = []
        for ended in asyncio.as_completed(tasks):
            try:
                ends.append(await ended)
            except TimeoutError:
                ends.append("timed out")
        return ",".join(ends)

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "timed out,2"
    assert journal == [("s", "~2/one"), ("x", "~1/slow"), ("s", "~2/two")]


async def test_of_a_step_that_waits_for_the_journal() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> str:
        lives.journal.held = True
        await ctx.step("one", bodies.echo, "1")
        try:
            async with asyncio.timeout(0.001):
                await ctx.step("two", bodies.echo, "2")
        except TimeoutError:
            lives.journal.held = False
            return "in time"
        return "late"

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()

    assert lives.result(move) == "in time"
    assert lives.journal.keys(claimed.id) == [("s", "one"), ("x", "two")]
    assert bodies.begun == ["1"]


async def test_not_of_a_body_that_ends_all_the_same() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> str:
        task = asyncio.create_task(ctx.step("stubborn", bodies.stubborn))
        await ctx.step("meanwhile", bodies.echo, "x")
        task.cancel()
        return await task

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "done all the same"
    assert journal == [("s", "meanwhile"), ("s", "stubborn")]


async def test_by_a_raw_timeout_that_comes_earlier_on_replay() -> None:
    bodies = Bodies()
    lives = 0

    async def handler(ctx: Context) -> str:
        nonlocal lives
        lives += 1
        known = asyncio.Event()
        timeout = asyncio.timeout(3600 if lives == 1 else 0)

        async def other() -> None:
            # Kept first; and on replay it comes when the time is up.
            while lives == 2 and not timeout.expired():
                await asyncio.sleep(0)
            await ctx.step("other", bodies.echo, "1")
            known.set()

        async def timed() -> str:
            if lives == 1:
                await known.wait()
            try:
                async with timeout:
                    await ctx.step("one", bodies.echo, "2")
                    if lives == 1:
                        timeout.reschedule(0)
                    return await ctx.step("two", bodies.never)
            except TimeoutError:
                return "in time"

        return (await asyncio.gather(timed(), other()))[0]

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "in time"
    assert journal == [("s", "~2/other"), ("s", "~1/one"), ("x", "~1/two")]


async def test_of_a_transaction() -> None:
    bodies = Bodies()

    async def slow(_conn: Any) -> str:
        return await bodies.never()

    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.001):
                return await ctx.transaction("slow", slow)
        except TimeoutError:
            return "in time"

    result, journal = await live_and_repeat(handler, bodies)

    assert result == "in time"
    assert journal == [("x", "slow")]


async def test_of_an_outcome_that_waits_for_its_turn() -> None:
    bodies = Bodies()

    async def handler(ctx: Context) -> list[str]:
        async def racer(name: str) -> str:
            value = await ctx.step("go", bodies.echo, name)
            for task in tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            return value

        tasks = [asyncio.create_task(racer(name)) for name in "abc"]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        return [value if isinstance(value, str) else type(value).__name__ for value in ended]

    result, journal = await live_and_repeat(handler, bodies)

    assert result == ["a", "CancelledError", "CancelledError"]
    assert journal == [("s", "~1/go"), ("x", "~2/go"), ("x", "~3/go")]


async def test_a_body_that_cancels_itself_has_failed() -> None:
    async def handler(ctx: Context) -> str:
        async def body() -> None:
            inner = asyncio.create_task(asyncio.Event().wait())
            inner.cancel()
            await inner

        try:
            await ctx.step("a", body)
        except Exception as error:  # noqa: BLE001  # its kind is looked at
            return type(error).__name__
        return "went well"

    result, journal = await live_and_repeat(handler, Bodies())

    assert result == "StepFailedError"
    assert journal == [("f", "a")]


async def echo(value: str) -> str:
    return value


class Slow:
    """A sibling branch is late in the second life, so that a raw timeout goes off while a kept value waits."""

    def __init__(self, interrupted: Callable[[Context, Callable[[], Awaitable[str]]], Awaitable[object]]) -> None:
        self._interrupted = interrupted
        self._lives = 0

    async def handler(self, ctx: Context) -> list[object]:
        self._lives += 1
        is_again = self._lives > 1
        done = asyncio.Event()

        async def after() -> str:
            await done.wait()
            return "after"

        async def late() -> None:
            if is_again:
                await asyncio.sleep(0.1)
            await ctx.step("before", echo, "before")
            done.set()

        answer, _ = await asyncio.gather(self._interrupted(ctx, after), late())
        return [answer, await ctx.step("end", echo, "end")]


async def moves_on(ctx: Context, after: Callable[[], Awaitable[str]]) -> object:
    with anyio.move_on_after(0.03) as scope:
        await ctx.step("after", after)
        await ctx.sleep("nap", 3600)
    return scope.cancelled_caught


async def times_out(ctx: Context, after: Callable[[], Awaitable[str]]) -> object:
    try:
        async with asyncio.timeout(0.03):
            await ctx.step("after", after)
            await ctx.sleep("nap", 3600)
    except TimeoutError:
        return "late"
    return "in time"


async def comes_in_time(ctx: Context, after: Callable[[], Awaitable[str]]) -> object:
    """The timeout that goes off in the second life is over when something else interrupts the next wait."""
    with anyio.move_on_after(0.03):
        await ctx.step("after", after)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails(ctx))
            await ctx.sleep("nap", 3600)
    except* ZeroDivisionError:
        pass
    return "over"


async def fails(ctx: Context) -> None:
    await ctx.step("soon", echo, "soon")
    raise ZeroDivisionError


@pytest.mark.parametrize("interrupted", [moves_on, times_out, comes_in_time])
async def test_a_timeout_that_goes_off_while_a_kept_value_is_on_its_way_is_the_handlers_own(
    interrupted: Callable[[Context, Callable[[], Awaitable[str]]], Awaitable[object]],
) -> None:
    async with Lives(bound(Slow(interrupted).handler)) as lives:
        claimed, first = await lives.run()
        kept = lives.journal.keys(claimed.id)

        assert lives.result(await lives.again(claimed)) == lives.result(first)
        assert lives.journal.keys(claimed.id) == kept
