"""The event loop's task factory: what it does for runs, and that it leaves everybody else alone."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from kedge.errors import HandlerUseError
from kedge_worker._context import Context
from kedge_worker._threads import Threads
from tests.unit.worker.journal import Lives, bound


async def echo(value: int) -> int:
    return value


async def test_the_loops_own_factory_is_used_and_put_back() -> None:
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        made.append(type(coro).__name__)
        return asyncio.Task(coro, loop=loop, **options)

    async def handler(ctx: Context) -> int:
        return await asyncio.create_task(ctx.step("a", echo, 1))

    loop = asyncio.get_running_loop()
    loop.set_task_factory(cast("Any", factory))
    try:
        async with Lives(bound(handler)) as lives:
            assert loop.get_task_factory() is not factory
            _, move = await lives.run()
        assert loop.get_task_factory() is factory
    finally:
        loop.set_task_factory(None)

    assert lives.result(move) == 1
    assert made


async def test_two_executors_in_one_loop_may_close_in_any_order() -> None:
    async def handler(ctx: Context) -> int:
        return await asyncio.create_task(ctx.step("a", echo, 1))

    loop = asyncio.get_running_loop()
    first, second = Lives(bound(handler)), Lives(bound(handler))
    async with second:
        await first.__aenter__()
        moves = await asyncio.gather(first.run(), second.run())
        await second.executor.aclose()
        await first.__aexit__(None, None, None)

    assert [
        key
        for lives, (claimed, _) in zip((first, second), moves, strict=True)
        for key in lives.journal.keys(claimed.id)
    ] == [
        ("s", "a"),
        ("s", "a"),
    ]
    loop.set_task_factory(None)


async def test_tasks_of_others_are_made_as_ever() -> None:
    async def handler(_ctx: Context) -> None: ...

    async with Lives(bound(handler)):
        coroutine = echo(1)
        task = asyncio.create_task(coroutine, name="mine")

        assert task.get_name() == "mine"
        assert task.get_coro() is coroutine
        assert await task == 1


async def test_names_and_contexts_of_tasks_are_kept() -> None:
    async def handler(_ctx: Context) -> str:
        task = asyncio.create_task(echo(1), name="mine")
        await task
        return task.get_name()

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert lives.result(move) == "mine"


async def test_two_tasks_may_share_a_context_and_are_two_branches() -> None:
    async def leaf(ctx: Context) -> None:
        await ctx.step("x", echo, 1)

    async def handler(ctx: Context) -> None:
        shared = contextvars.copy_context()
        tasks = [asyncio.create_task(leaf(ctx), context=shared) for _ in range(2)]
        await asyncio.gather(*tasks)

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()

    assert lives.result(move) is None
    assert sorted(lives.journal.keys(claimed.id)) == [("s", "~1/x"), ("s", "~2/x")]


async def test_a_task_that_is_cancelled_before_it_begins_leaves_no_warning() -> None:
    async def handler(ctx: Context) -> None:
        task = asyncio.create_task(ctx.step("a", echo, 1))
        task.cancel()
        await asyncio.wait([task])

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()

    assert lives.result(move) is None
    assert lives.journal.keys(claimed.id) == []


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
async def test_a_task_cannot_end_the_event_loop(error: BaseException) -> None:
    async def leave() -> None:
        raise error

    async def handler(ctx: Context) -> list[str]:
        async def body() -> str:
            ended = await asyncio.gather(leave(), return_exceptions=True)
            return type(ended[0]).__name__

        with pytest.raises(HandlerUseError, match=type(error).__name__):
            await asyncio.create_task(leave())
        return [await ctx.step("body", body)]

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert lives.result(move) == ["HandlerUseError"]


async def test_what_is_no_coroutine_is_refused_as_ever() -> None:
    async def handler(_ctx: Context) -> str:
        with pytest.raises(TypeError):
            await asyncio.create_task(cast("Any", 7))
        return "refused"

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert lives.result(move) == "refused"


EAGER: Any = getattr(asyncio, "eager_task_factory", None)


@pytest.mark.skipif(EAGER is None, reason="EAGER TASKS ARE NOT TESTED: they exist from Python 3.12 on")
async def test_eager_tasks_are_branches_too() -> None:
    async def leaf(ctx: Context, value: int) -> int:
        return await ctx.step("x", echo, value) + await ctx.step("x", echo, value)

    async def outer(ctx: Context) -> int:
        return await ctx.step("o", echo, 1) + sum(await asyncio.gather(leaf(ctx, 1), leaf(ctx, 2)))

    async def handler(ctx: Context) -> int:
        first = asyncio.create_task(outer(ctx))
        return await first + await ctx.step("x", echo, 3)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(EAGER)
    try:
        async with Lives(bound(handler)) as lives:
            claimed, move = await lives.run()
            again = await lives.again(claimed)
    finally:
        loop.set_task_factory(None)

    assert lives.result(move) == lives.result(again) == 10
    assert sorted(key for _, key in lives.journal.keys(claimed.id)) == [
        "x",
        "~1/o",
        "~1/~1/x",
        "~1/~1/x#2",
        "~1/~2/x",
        "~1/~2/x#2",
    ]


async def test_no_more_threads_than_allowed_and_each_job_gets_one() -> None:
    threads = Threads(2, name="test")
    names: set[str] = set()

    def work(value: int) -> int:
        names.add(threading.current_thread().name)
        return value

    values = await asyncio.gather(*(threads.run(functools.partial(work, i)) for i in range(20)))
    threads.close()

    assert values == list(range(20))
    assert len(names) <= 2


async def test_a_job_that_was_cancelled_before_it_began_does_not_run_and_says_that_it_is_over() -> None:
    threads = Threads(1, name="test")
    go = threading.Event()
    over: list[str] = []
    ran: list[str] = []

    blocking = threads.run(lambda: go.wait(10), ended=lambda: over.append("blocking"))
    queued = threads.run(lambda: ran.append("queued"), ended=lambda: over.append("queued"))
    queued.cancel()
    go.set()
    await blocking
    await threads.run(lambda: None)
    threads.close()

    assert ran == []
    assert over == ["blocking", "queued"]
