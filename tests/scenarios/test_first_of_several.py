"""`ctx.first`: the first of several, the same on every replay, and what becomes of the others."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from kedge import EventRef
from kedge_worker import Context, HandlerUseError, StepFailedError
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, handled, stage

yes = EventRef("yes", str)
no = EventRef("no", str)


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


async def test_the_first_to_come_wins_and_stays_the_winner(play: Stage, clock: Clock) -> None:
    seen: list[Any] = []

    async def handler(ctx: Context) -> list[Any]:
        won = await ctx.first("answer", ctx.wait_for("yes", yes), ctx.wait_for("no", no), ctx.sleep("late", "1h"))
        seen.append(won)
        await ctx.sleep("after", "2h")
        return list(won)

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.send(no("never"))
    await play.go_on()
    run.send(yes("too late"))
    clock.advance("3h")
    await play.go_on()

    assert run.result(timeout=0) == [1, "never"]
    assert seen == [(1, "never"), (1, "never")]


async def test_what_the_losers_would_have_taken_is_kept_for_later_waits(play: Stage) -> None:
    async def handler(ctx: Context) -> list[Any]:
        won = await ctx.first("answer", ctx.wait_for("yes", yes), ctx.wait_for("no", no))
        rest = await ctx.first("rest", ctx.wait_for("yes", yes), ctx.wait_for("no", no))
        return [*won, *rest]

    ref, made = handled(handler)
    play.cast(made)
    run = play.client.start(ref())
    # Both are there before anybody waits.
    run.send(no("first"))
    run.send(yes("second"))
    await play.go_on()

    assert run.result(timeout=0) == [1, "first", 0, "second"]
    assert play.rows("select count(*) from kedge.waits") == [(0,)]


async def test_losers_leave_no_wait_behind(play: Stage) -> None:
    async def handler(ctx: Context) -> None:
        await ctx.first("answer", ctx.wait_for("yes", yes), ctx.sleep("late", "1h"))
        await ctx.pause("end")

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.send(yes("now"))
    await play.go_on()

    assert [wait.key for wait in play.client.get(run).waits] == ["end"]


async def test_a_step_may_race_a_timer(play: Stage, clock: Clock) -> None:
    cancelled: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append("slow")
            raise
        return "slow"

    async def quick() -> str:
        return "quick"

    async def handler(ctx: Context) -> list[Any]:
        won = await ctx.first("race", ctx.step("slow", slow), ctx.step("quick", quick))
        await ctx.sleep("after", "1h")
        return list(won)

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    clock.advance("2h")
    await play.go_on()

    assert run.result(timeout=0) == [1, "quick"]
    assert cancelled == ["slow"]


async def test_branches_may_be_code_that_waits_several_times(play: Stage) -> None:
    async def talk(ctx: Context, name: str) -> str:
        one = await ctx.wait_for("one", EventRef(f"{name}-1", str))
        two = await ctx.wait_for("two", EventRef(f"{name}-2", str))
        return f"{one} {two}"

    async def handler(ctx: Context) -> list[Any]:
        return list(await ctx.first("talk", talk(ctx, "a"), talk(ctx, "b")))

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for event, payload in (("a-1", "hello"), ("b-1", "good"), ("b-2", "day")):
        run.send(EventRef(event, str)(payload))
        await play.go_on()

    assert run.result(timeout=0) == [1, "good day"]


async def test_what_the_winner_raises_is_raised_and_raised_again(play: Stage, clock: Clock) -> None:
    async def explode() -> None:
        raise ValueError("boom")

    async def handler(ctx: Context) -> str:
        try:
            await ctx.first("race", ctx.sleep("late", "1h"), ctx.step("explode", explode))
        except StepFailedError as error:
            await ctx.sleep("after", "1h")
            return error.error.message
        return "no"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    clock.advance("2h")
    await play.go_on()

    assert run.result(timeout=0) == "boom"


async def test_a_race_beside_other_branches_keeps_its_place(play: Stage, clock: Clock) -> None:
    async def echo(value: str) -> str:
        return value

    async def racer(ctx: Context, name: str) -> list[Any]:
        won = await ctx.first("race", ctx.wait_for("yes", yes), ctx.sleep("late", "1h"))
        return [name, *won, await ctx.step("say", echo, name)]

    async def handler(ctx: Context) -> list[Any]:
        got = await asyncio.gather(racer(ctx, "a"), racer(ctx, "b"))
        await ctx.sleep("after", "2h")
        more = await asyncio.gather(ctx.step("x", echo, "x"), ctx.step("y", echo, "y"))
        return [*got, *more]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.send(yes("one"))
    await play.go_on()
    for _ in range(3):
        clock.advance("2h")
        await play.go_on()

    assert run.result(timeout=0) == [["a", 0, "one", "a"], ["b", 1, None, "b"], "x", "y"]


@pytest.mark.parametrize("count", [0, 1, 6])
async def test_too_few_and_too_many_are_refused(play: Stage, count: int) -> None:
    async def handler(ctx: Context) -> str:
        branches: Any = [ctx.sleep("late", "1h") for _ in range(count)]
        with pytest.raises(HandlerUseError, match="first"):
            await ctx.first("race", *branches)
        return "refused"

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == "refused"


async def test_a_race_beside_another_branch_takes_what_is_there_before_its_run_leaves(play: Stage) -> None:
    async def race(ctx: Context) -> list[Any]:
        return list(
            await ctx.first("race", ctx.wait_for("yes", yes), ctx.wait_for("no", no, timeout=0, default="late"))
        )

    async def handler(ctx: Context) -> list[Any]:
        won: list[Any]
        won, _ = await asyncio.gather(race(ctx), ctx.pause("end"))
        return won

    ref, made = handled(handler)
    async with asyncio.timeout(20):
        run = await play.play(ref(), made)
    assert "~1/race first completed" in play.kinds(run)

    run.resume()
    await play.go_on()
    assert run.result(timeout=0) == [1, "late"]
