"""Keys: branch path, id, and how often the branch has used it; taken when the call is made."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from kedge.errors import HandlerUseError, InvalidNameError
from kedge_worker._context import Context
from tests.unit.worker.journal import Lives, bound


async def double(value: int) -> int:
    return 2 * value


async def slow(value: int, rounds: int) -> int:
    for _ in range(rounds):
        await asyncio.sleep(0)
    return value


async def keys_of(handler: Callable[[Context], Awaitable[Any]]) -> list[str]:
    """The keys of a run's outcomes, in the order of the journal."""
    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        lives.result(move)
        return [key for _, key in lives.journal.keys(claimed.id)]


async def test_the_first_use_of_an_id_is_its_key_and_repeats_are_numbered() -> None:
    async def handler(ctx: Context) -> None:
        for _ in range(3):
            await ctx.step("a", double, 1)
        await ctx.step("b", double, 1)

    assert await keys_of(handler) == ["a", "a#2", "a#3", "b"]


async def test_numbers_follow_the_calls_and_not_who_ends_first() -> None:
    got: list[int] = []

    async def handler(ctx: Context) -> None:
        got.extend(await asyncio.gather(*(ctx.step("f", slow, i, 9 - 3 * i) for i in range(3))))

    keys = await keys_of(handler)

    assert got == [0, 1, 2]
    assert keys == ["f#3", "f#2", "f"]


async def test_a_number_is_taken_by_the_call_even_if_it_is_awaited_last() -> None:
    async def handler(ctx: Context) -> None:
        first = ctx.step("a", double, 1)
        second = ctx.step("a", double, 2)
        await second
        await first

    assert await keys_of(handler) == ["a#2", "a"]


async def test_tasks_are_branches_by_the_order_in_which_they_were_made() -> None:
    async def helper(ctx: Context, rounds: int) -> None:
        await slow(0, rounds)
        await ctx.step("fetch", double, 1)
        await ctx.step("save", double, 1)

    async def handler(ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(helper(ctx, 20))
            group.create_task(helper(ctx, 0))

    keys = await keys_of(handler)

    assert keys[0] == "~2/fetch"
    assert sorted(keys) == ["~1/fetch", "~1/save", "~2/fetch", "~2/save"]


async def test_branches_nest_and_count_by_themselves() -> None:
    async def leaf(ctx: Context) -> None:
        await ctx.step("x", double, 1)

    async def inner(ctx: Context) -> None:
        await asyncio.gather(leaf(ctx), leaf(ctx))

    async def handler(ctx: Context) -> None:
        await asyncio.create_task(inner(ctx))
        await asyncio.create_task(inner(ctx))

    assert await keys_of(handler) == ["~1/~1/x", "~1/~2/x", "~2/~1/x", "~2/~2/x"]


async def test_anyio_task_groups_number_like_asyncios() -> None:
    async def leaf(ctx: Context) -> None:
        await ctx.step("x", double, 1)

    async def handler(ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(leaf, ctx)
            group.start_soon(leaf, ctx)
            group.start_soon(ctx.step, "x", double, 1)  # called here, so it has its key from here

    assert sorted(await keys_of(handler)) == ["x", "~1/x", "~2/x"]


async def test_a_named_branch_has_the_same_path_whatever_tasks_were_made_before() -> None:
    async def leaf(ctx: Context) -> int:
        return await ctx.step("x", double, 1)

    async def handler(ctx: Context) -> None:
        await asyncio.create_task(asyncio.sleep(0))
        await asyncio.gather(ctx.branch("left", leaf, ctx), ctx.branch("right", leaf, ctx))
        await ctx.branch("left", leaf, ctx)
        await ctx.step("left", double, 1)
        await ctx.step("x", double, 1)

    assert await keys_of(handler) == ["left/x", "right/x", "left#2/x", "left", "x"]


async def test_a_branch_ends_where_its_function_ends() -> None:
    async def inner(ctx: Context) -> None:
        await ctx.step("x", double, 1)
        await asyncio.create_task(leaf(ctx))
        await ctx.branch("deeper", leaf, ctx)

    async def leaf(ctx: Context) -> None:
        await ctx.step("y", double, 1)

    async def handler(ctx: Context) -> None:
        await ctx.branch("b", inner, ctx)
        await ctx.step("x", double, 1)
        await asyncio.create_task(leaf(ctx))

    assert await keys_of(handler) == ["b/x", "b/~1/y", "b/deeper/y", "x", "~1/y"]


async def test_tasks_made_by_a_steps_body_are_no_branches() -> None:
    async def body() -> int:
        await asyncio.gather(double(1), double(2))
        return 1

    async def leaf(ctx: Context) -> None:
        await ctx.step("x", double, 1)

    async def handler(ctx: Context) -> None:
        await ctx.step("busy", body)
        await asyncio.create_task(leaf(ctx))

    assert await keys_of(handler) == ["busy", "~1/x"]


async def test_tasks_made_by_callbacks_are_no_branches() -> None:
    async def nothing() -> None:
        pass

    async def leaf(ctx: Context) -> None:
        await ctx.step("x", double, 1)

    async def handler(ctx: Context) -> None:
        made: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        # What a library does with a timer that it set up earlier: nobody knows when, so nobody can count it.
        loop.call_soon(lambda: made.append(loop.create_task(nothing())))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.gather(*made, leaf(ctx))

    assert await keys_of(handler) == ["~1/x"]


@pytest.mark.parametrize(
    "wrong", ["", " a", "a ", "a/b", "~1", "a#2", "m[0]", "a\n", "\x00", "é" * 101, "a" * 201, 7, None]
)
async def test_ids_that_cannot_be_keys_are_refused_at_the_call(wrong: Any) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(InvalidNameError):
            await ctx.step(wrong, double, 1)
        with pytest.raises(InvalidNameError):
            await ctx.branch(wrong, handler, ctx)
        return str(await ctx.step("a", double, 1))

    assert await keys_of(handler) == ["a"]


async def test_a_key_that_gets_too_long_by_nesting_is_refused_with_its_path() -> None:
    async def nested(ctx: Context, depth: int) -> None:
        if depth:
            await ctx.branch("b" * 50, nested, ctx, depth - 1)
        else:
            with pytest.raises(InvalidNameError) as refused:
                await ctx.step("s", double, 1)
            assert refused.value.name == f"{'b' * 50}/" * 4 + "s"

    async def handler(ctx: Context) -> None:
        await nested(ctx, 4)

    assert await keys_of(handler) == []


async def test_as_completed_of_coroutines_is_refused_since_it_makes_tasks_in_no_order() -> None:
    async def leaf(ctx: Context) -> None:
        await ctx.step("x", double, 1)

    async def handler(ctx: Context) -> None:
        coroutines = [leaf(ctx), leaf(ctx)]
        with pytest.raises(HandlerUseError, match="give it tasks"):
            next(iter(asyncio.as_completed(coroutines)))
        for coroutine in coroutines:
            coroutine.close()
        # Operations have their keys already, and tasks their places.
        for ended in asyncio.as_completed([ctx.step("y", double, i) for i in range(2)]):
            await ended
        for done in asyncio.as_completed([asyncio.create_task(leaf(ctx))]):
            await done

    assert sorted(await keys_of(handler)) == ["y", "y#2", "~3/x"]
