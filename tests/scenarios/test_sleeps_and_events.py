"""Sleeps and events: what a run waits for, early or late, in memory or parked."""

import asyncio
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import msgspec
import pytest

from kedge import EventRef, InvalidDurationError, InvalidEventError, InvalidNameError, InvalidOptionError
from kedge_client import AsyncClient, EventTimeoutError
from kedge_worker import Context, SyncContext, Worker
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, handled, stage


class Payment(msgspec.Struct, frozen=True):
    """What an event carries."""

    cents: int


paid = EventRef("paid", Payment)
ticked = EventRef("ticked")

WEST = timezone(timedelta(hours=-5))


def on(wait: Callable[[Context], Any]) -> Callable[[Context], Any]:
    """Give a lambda its types."""
    return wait


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


async def test_a_sleep_of_days_parks_the_run_and_takes_place_once(play: Stage, clock: Clock) -> None:
    lives: list[str] = []

    async def handler(ctx: Context) -> str:
        lives.append("begin")
        await ctx.sleep("cool-off", "3 days")
        lives.append("awake")
        return "done"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.status() == "waiting"
    assert await play.go_on() == 0

    clock.advance("2 days 23 hours")
    await play.go_on()
    assert lives == ["begin"]

    clock.advance("1h1m")
    assert await play.go_on() == 1
    assert run.result(timeout=0) == "done"
    assert lives == ["begin", "begin", "awake"]


async def test_the_time_of_a_sleep_is_stored_once_and_not_moved_by_replays(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> str:
        await ctx.wait_for("first", ticked, timeout="1h", default=None)
        return "done"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    ((due,),) = play.rows("select due_at from kedge.waits")
    clock.advance("30m")
    # A life that only comes as far as the wait again.
    play.rows("update kedge.runs set state = 'p', due_at = null returning 1")
    await play.go_on()

    assert run.status() == "waiting"
    assert play.rows("select due_at from kedge.waits") == [(due,)]
    assert play.rows("select due_at from kedge.runs") == [(due,)]


async def test_a_time_that_has_passed_is_no_wait(play: Stage) -> None:
    async def handler(ctx: Context) -> str:
        await ctx.sleep_until("past", datetime.now(UTC) - timedelta(days=1))
        await ctx.sleep("nothing", 0)
        return "done"

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == "done"


async def test_sleep_until_ends_at_its_moment(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> str:
        await ctx.sleep_until("tomorrow", (await ctx.step("when", tomorrow)))
        return "done"

    async def tomorrow() -> datetime:
        return datetime.now(UTC) + timedelta(days=1)

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.status() == "waiting"

    clock.advance("1 day 1 minute")
    await play.go_on()
    assert run.result(timeout=0) == "done"


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (on(lambda ctx: ctx.sleep("a", "")), InvalidDurationError),
        (on(lambda ctx: ctx.sleep("a", -1)), InvalidDurationError),
        (on(lambda ctx: ctx.sleep("a", "3 fortnights")), InvalidDurationError),
        (on(lambda ctx: ctx.sleep("a", True)), InvalidDurationError),
        (on(lambda ctx: ctx.sleep_until("a", datetime(2030, 1, 1))), InvalidOptionError),  # noqa: DTZ001  # the point
        (on(lambda ctx: ctx.sleep_until("a", cast("Any", "2030-01-01"))), InvalidOptionError),
        (on(lambda ctx: ctx.wait_for("a", paid, timeout="soon")), InvalidDurationError),
        (on(lambda ctx: ctx.wait_for("a", paid, topic="")), InvalidNameError),
        (on(lambda ctx: ctx.sleep("a/b", 1)), InvalidNameError),
    ],
)
async def test_a_wait_that_is_written_wrongly_is_refused_where_it_is_written(
    play: Stage, wait: Any, error: type[Exception]
) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(error):
            await wait(ctx)
        return "refused"

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == "refused"
    assert play.kinds(run) == []


async def test_an_event_that_comes_early_is_kept_until_it_is_asked_for(play: Stage) -> None:
    async def handler(ctx: Context) -> int:
        return (await ctx.wait_for("settled", paid)).cents

    ref, made = handled(handler)
    play.cast(made)
    run = play.client.start(ref())
    run.send(paid(Payment(7)))
    await play.go_on()

    assert run.result(timeout=0) == 7


async def test_events_are_taken_in_the_order_in_which_they_came_each_once(play: Stage) -> None:
    async def handler(ctx: Context) -> list[int]:
        return [(await ctx.wait_for("settled", paid)).cents for _ in range(3)]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for cents in (3, 1, 2):
        run.send(paid(Payment(cents)))
    await play.go_on()

    assert run.result(timeout=0) == [3, 1, 2]
    assert play.kinds(run) == ["settled event completed", "settled#2 event completed", "settled#3 event completed"]


async def test_an_event_with_a_key_counts_once(play: Stage) -> None:
    async def handler(ctx: Context) -> list[int]:
        first = await ctx.wait_for("first", paid)
        second = await ctx.wait_for("second", paid, timeout="1s", default=Payment(0))
        return [first.cents, second.cents]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for _ in range(2):
        run.send(paid(Payment(1), key="evt-1"))
        await play.go_on()
    run.send(paid(Payment(5), key="evt-1"))
    Clock(play.url).advance("2s")
    await play.go_on()

    assert run.result(timeout=0) == [1, 0]


async def test_nothing_is_a_payload(play: Stage) -> None:
    async def handler(ctx: Context) -> list[Any]:
        came = await ctx.wait_for("a", ticked, timeout="1h", default="default")
        never = await ctx.wait_for("b", ticked, timeout=0, default="default")
        return [came, never]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.send(ticked())
    await play.go_on()

    assert run.result(timeout=0) == [None, "default"]


async def test_a_payload_that_does_not_fit_raises_at_the_sender_and_takes_nothing(play: Stage) -> None:
    async def handler(ctx: Context) -> int:
        return (await ctx.wait_for("settled", paid)).cents

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    with pytest.raises(InvalidEventError, match="cents"):
        run.send(paid({"cents": "many"}))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the point
    await play.go_on()
    assert run.status() == "waiting"

    run.send(paid(Payment(1)))
    await play.go_on()
    assert run.result(timeout=0) == 1


async def test_without_a_default_the_end_of_the_time_raises_the_same_now_and_on_replay(
    play: Stage, clock: Clock
) -> None:
    caught: list[str] = []

    async def handler(ctx: Context) -> str:
        try:
            await ctx.wait_for("settled", paid, timeout="1 day")
        except EventTimeoutError as error:
            caught.append(error.key)
        await ctx.sleep("after", "1 day")
        return "done"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for _ in range(2):
        clock.advance("1 day 1s")
        await play.go_on()

    assert run.result(timeout=0) == "done"
    assert caught == ["settled", "settled"]


async def test_an_event_for_something_else_wakes_nobody_and_stays(play: Stage) -> None:
    async def handler(ctx: Context) -> str:
        await ctx.wait_for("settled", paid)
        await ctx.wait_for("tick", ticked)
        return "both"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    epoch = play.epoch(run)
    run.send(ticked())
    await play.go_on()
    assert play.epoch(run) == epoch

    run.send(paid(Payment(1)))
    await play.go_on()
    assert run.result(timeout=0) == "both"


async def test_several_waits_at_once_each_take_their_own(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> list[Any]:
        one, two, _ = await asyncio.gather(
            ctx.wait_for("one", paid), ctx.wait_for("two", paid), ctx.sleep("nap", "1 day")
        )
        return [one.cents, two.cents]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.send(paid(Payment(1)))
    await play.go_on()
    clock.advance("2 days")
    await play.go_on()
    assert run.status() == "waiting"
    run.send(paid(Payment(2)))
    await play.go_on()

    assert run.result(timeout=0) == [1, 2]


async def test_a_sync_handler_waits_without_a_thread(play: Stage, clock: Clock) -> None:
    def handler(ctx: SyncContext) -> list[Any]:
        payment = ctx.wait_for("settled", paid)
        ctx.sleep("nap", "1 day")
        late = ctx.wait_for("late", paid, timeout="1h", default=None)
        return [payment.cents, late]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.send(paid(Payment(1)))
    await play.go_on()
    clock.advance("1 day 1s")
    await play.go_on()
    assert run.status() == "waiting"
    clock.advance("2h")
    await play.go_on()

    assert run.result(timeout=0) == [1, None]


async def test_in_memory_and_parked_is_the_same_to_the_handler(database_url: str) -> None:
    """A worker that goes on working serves waits that have not been parked yet."""

    async def handler(ctx: Context) -> list[int]:
        return [(await ctx.wait_for("settled", paid)).cents for _ in range(20)]

    ref, made = handled(handler)
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=[made]):
        run = await client.start(ref())
        for cents in range(20):
            await run.send(paid(Payment(cents)))

        assert await run.result(timeout=20) == list(range(20))


async def test_what_waits_is_shown_while_it_waits(play: Stage) -> None:
    async def handler(ctx: Context) -> None:
        await asyncio.gather(ctx.wait_for("settled", paid, timeout="1 day"), ctx.sleep("nap", "1h"), ctx.pause("look"))

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    waits = {wait.key: wait for wait in play.client.get(run).waits}
    assert {key: wait.kind for key, wait in waits.items()} == {"settled": "event", "nap": "sleep", "look": "pause"}
    assert waits["settled"].event == "paid"
    assert waits["look"].due_at is None


async def test_code_that_makes_something_else_of_a_wait_is_put_off_and_what_was_sent_is_kept_for_code_that_fits(
    play: Stage, clock: Clock
) -> None:
    async def waits(ctx: Context) -> int:
        return (await ctx.wait_for("settled", paid)).cents

    async def steps(ctx: Context) -> int:
        return await ctx.step("settled", one)

    async def one() -> int:
        return 1

    ref, made = handled(waits)
    _, changed = handled(steps)
    run = await play.play(ref(), made)
    run.send(paid(Payment(7)))
    play.cast(changed)
    await play.go_on()
    # At rest beside mail that would wake it: no promise is broken, the code is.
    assert play.rows("select * from kedge.check_invariants()") == []
    assert "has begun as a wait for an event" in str(play.client.get(run).reason)

    play.cast(made)
    clock.advance("1h")
    await play.go_on()
    assert run.result(timeout=0) == 7
