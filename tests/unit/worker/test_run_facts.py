"""What a run knows of itself, the same in all its lives."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.run_meta import RunMeta
from kedge_worker._context import Context
from tests.unit.worker.journal import START, Lives, bound


async def echo(value: int) -> int:
    return value


async def test_a_handler_knows_its_run() -> None:
    seen: list[Any] = []

    async def handler(ctx: Context) -> None:
        seen.extend([ctx.run_id, ctx.attempt, ctx.resource, dict(ctx.metadata)])
        metadata: Any = ctx.metadata
        with pytest.raises(TypeError):
            metadata["more"] = 1

    async with Lives(bound(handler)) as lives:
        meta = RunMeta({"source": "shop"}).encode()
        claimed, _ = await lives.run(attempt=2, resource="customer-7", meta=meta)

    assert seen == [claimed.id, 3, "customer-7", {"source": "shop"}]


async def test_uuids_and_random_numbers_are_new_each_time_and_the_same_on_replay() -> None:
    async def handler(ctx: Context) -> list[str]:
        async def in_branch() -> list[str]:
            return [str(ctx.uuid()), str(ctx.random().random())]

        made = [str(ctx.uuid()), str(ctx.uuid()), str(ctx.random().random()), str(ctx.random().random())]
        for branch in await asyncio.gather(in_branch(), in_branch()):
            made += branch
        return made

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        _, other = await lives.run()
        again = await lives.again(claimed)

    made = lives.result(move)
    assert len(set(made)) == 8
    assert lives.result(again) == made
    assert set(made).isdisjoint(lives.result(other))


async def test_the_time_stands_still_between_operations_and_is_the_same_on_replay() -> None:
    async def handler(ctx: Context) -> list[str]:
        times = [ctx.now(), ctx.now()]
        await ctx.step("a", echo, 1)
        await ctx.step("b", echo, 1)
        times += [ctx.now(), ctx.now()]
        await ctx.step("c", echo, 1)
        return [time.isoformat() for time in times]

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        later = replace(claimed, claimed_at=START + timedelta(days=1))
        again = await lives.again(later)

    times = [datetime.fromisoformat(text) for text in lives.result(move)]
    assert times[0] == times[1] >= START
    assert times[2] == times[3] > times[0]
    assert times[3] < START + timedelta(hours=1)
    assert lives.result(again) == lives.result(move)


async def test_before_anything_durable_came_of_it_the_time_may_be_another_one() -> None:
    async def handler(ctx: Context) -> str:
        return ctx.now().isoformat()

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        again = await lives.again(replace(claimed, claimed_at=START + timedelta(days=1)))

    assert datetime.fromisoformat(lives.result(again)) - datetime.fromisoformat(lives.result(move)) > timedelta(
        hours=23
    )


async def test_after_a_known_outcome_that_nobody_had_asked_the_time_of_it_is_the_journals() -> None:
    async def before(ctx: Context) -> None:
        await ctx.step("a", echo, 1)

    async def after(ctx: Context) -> str:
        await ctx.step("a", echo, 1)
        return ctx.now().isoformat()

    versions = [before, after]

    async def handler(ctx: Context) -> Any:
        return await versions.pop(0)(ctx)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert lives.result(move) == (START + timedelta(seconds=1)).isoformat()


async def test_the_log_names_the_run_and_says_nothing_twice(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kedge.run")

    async def handler(ctx: Context) -> None:
        ctx.log.info("before a")
        await ctx.step("a", echo, 1)
        ctx.log("info", "behind a", order="o-1")
        await ctx.step("b", echo, 1)
        ctx.log.info("behind b")

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        first = list(caplog.records)
        caplog.clear()
        await lives.again(claimed, up_to=1)

    assert [record.getMessage() for record in first] == ["before a", "behind a", "behind b"]
    assert {getattr(record, "run_id") for record in first} == {str(claimed.id)}  # noqa: B009  # of the extra
    assert getattr(first[1], "fields") == {"order": "o-1"}  # noqa: B009
    # How far the first life came with what stands behind its last outcome is not known: said twice rather than never.
    assert [record.getMessage() for record in caplog.records] == ["behind a", "behind b"]
