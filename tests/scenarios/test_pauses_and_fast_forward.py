"""What an operator does to a run that goes on: pauses that hold, waits that are cut short."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from kedge import EventRef
from kedge_client import AsyncClient, InvalidRunStateError
from kedge_worker import Context, Worker
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, handled, stage

approved = EventRef("approved", int)


def on(wait: Callable[[Context], Any]) -> Callable[[Context], Any]:
    """Give a lambda its types."""
    return wait


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


async def test_a_handler_that_pauses_goes_on_when_somebody_resumes_it(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> str:
        await ctx.pause("review")
        return "reviewed"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    clock.advance("400 days")
    assert await play.go_on() == 0
    assert run.status() == "waiting"

    run.resume()
    await play.go_on()
    assert run.result(timeout=0) == "reviewed"


async def test_a_pause_of_one_branch_does_not_stop_the_others(play: Stage, clock: Clock) -> None:
    async def sleeper(ctx: Context) -> str:
        await ctx.sleep("nap", "1h")
        return await ctx.step("work", work)

    async def work() -> str:
        return "worked"

    async def handler(ctx: Context) -> list[Any]:
        return list(await asyncio.gather(ctx.pause("review"), sleeper(ctx)))

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    clock.advance("2h")
    await play.go_on()
    assert [step.key for step in play.client.steps(run) if step.kind == "step"] == ["~2/work"]

    run.resume()
    await play.go_on()
    assert run.result(timeout=0) == [None, "worked"]


async def test_a_paused_run_stays_paused_whatever_comes_and_has_it_all_when_resumed(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> list[int]:
        first = await ctx.wait_for("first", approved)
        await ctx.sleep("nap", "1h")
        return [first, await ctx.wait_for("second", approved)]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.pause(reason="look into it")
    await play.go_on()
    assert run.status() == "paused"

    run.send(approved(1))
    run.send(approved(2))
    clock.advance("2h")
    await play.go_on()
    assert run.status() == "paused"
    assert play.client.get(run).unread_events == {"approved": 2}

    run.resume()
    await play.go_on()
    clock.advance("2h")
    await play.go_on()
    assert run.result(timeout=0) == [1, 2]


async def test_a_pending_run_can_be_paused_before_anybody_takes_it(play: Stage) -> None:
    async def handler(ctx: Context) -> int:
        return ctx.attempt

    ref, made = handled(handler)
    play.cast(made)
    run = play.client.start(ref())
    run.pause()
    assert await play.go_on() == 0
    assert run.status() == "paused"

    run.resume()
    run.resume()
    await play.go_on()
    assert run.result(timeout=0) == 1


async def test_a_run_that_works_pauses_between_two_steps_and_repeats_nothing(database_url: str) -> None:
    bodies: list[int] = []
    is_resumed = asyncio.Event()

    async def body(number: int) -> int:
        bodies.append(number)
        if not is_resumed.is_set():
            await asyncio.sleep(0.01)
        return number

    async def handler(ctx: Context) -> int:
        return sum([await ctx.step("one", body, number) for number in range(1000)])

    ref, made = handled(handler)
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=[made]):
        run = await client.start(ref())
        await run.pause()
        while await run.status() != "paused":
            await asyncio.sleep(0.01)
        assert len(bodies) < 1000

        is_resumed.set()
        await run.resume()
        assert await run.result(timeout=30) == sum(range(1000))
        assert bodies == list(range(1000))


async def test_a_cancel_ends_a_paused_run(play: Stage) -> None:
    async def handler(ctx: Context) -> None:
        await ctx.sleep("nap", "1h")

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.pause()
    await play.go_on()
    run.cancel(reason="no longer wanted")
    await play.go_on()

    assert run.status() == "cancelled"
    assert run.view().reason == "no longer wanted"
    with pytest.raises(InvalidRunStateError, match="cancelled"):
        run.resume()


@pytest.mark.parametrize(
    ("wait", "data", "expected"),
    [
        (on(lambda ctx: ctx.wait_for("w", approved)), 7, 7),
        (on(lambda ctx: ctx.sleep("w", "400 days")), None, None),
        (on(lambda ctx: ctx.pause("w")), None, None),
    ],
    ids=["event", "sleep", "pause"],
)
async def test_a_wait_can_be_fast_forwarded(play: Stage, wait: Any, data: object, expected: object) -> None:
    async def handler(ctx: Context) -> Any:
        return await wait(ctx)

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert play.client.fast_forward(run, data)
    await play.go_on()

    assert run.result(timeout=0) == expected


async def test_what_fits_no_event_does_not_fast_forward_it(play: Stage) -> None:
    async def handler(ctx: Context) -> int:
        return await ctx.wait_for("w", approved)

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert play.client.fast_forward(run, "no number")
    await play.go_on()
    assert run.status() == "waiting"

    run.send(approved(1))
    await play.go_on()
    assert run.result(timeout=0) == 1


async def test_there_is_nothing_to_fast_forward_in_a_run_that_does_not_wait(play: Stage) -> None:
    async def handler(ctx: Context) -> int:
        return ctx.attempt

    ref, made = handled(handler)
    play.cast(made)
    run = play.client.start(ref())
    assert not play.client.fast_forward(run)
    await play.go_on()
    assert run.result(timeout=0) == 1


async def test_the_named_wait_is_fast_forwarded_and_no_other(play: Stage) -> None:
    async def handler(ctx: Context) -> list[Any]:
        return list(await asyncio.gather(ctx.wait_for("a", approved), ctx.wait_for("b", approved)))

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    play.client.fast_forward(run, 2, wait="b")
    await play.go_on()
    play.client.fast_forward(run, 1, wait="a")
    await play.go_on()

    assert run.result(timeout=0) == [1, 2]


async def test_a_handler_that_catches_every_cancellation_does_not_hold_the_worker(play: Stage) -> None:
    async def stubborn(ctx: Context) -> None:
        while True:
            try:
                await ctx.wait_for("w", approved)
            except asyncio.CancelledError:
                pass

    async def innocent(ctx: Context) -> int:
        return ctx.attempt

    (stay, made), (pass_by, made_innocent) = handled(stubborn, name="stubborn"), handled(innocent, name="innocent")
    play.cast(made, made_innocent)
    staying = await play.play(stay())
    passing = await play.play(pass_by())

    assert passing.result(timeout=0) == 1
    assert staying.status() == "waiting"
