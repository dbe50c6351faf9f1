"""
How waits, timeouts and interruptions of a handler's own code, and its way out of memory go together: a real worker, a
real database, and lives that know of one another only what is stored.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

import anyio
import msgspec
import pytest

from kedge import EventRef
from kedge_client import AsyncClient, AsyncRunHandle
from kedge_worker import Context, RawTimeoutError, StepFailedError, SyncContext, Worker, _executor
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, handled, stage


class Word(msgspec.Struct, frozen=True):
    """What an event carries."""

    text: str


one = EventRef("one", Word)
two = EventRef("two", Word)
three = EventRef("three", Word)


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as opened:
        yield opened


@contextlib.asynccontextmanager
async def working(play: Stage, made: Any, *, listen: bool = True) -> AsyncGenerator[AsyncClient]:
    """A worker that goes on working, and a client."""
    async with (
        AsyncClient.connect(play.url) as client,
        Worker(play.url, workflows=[made], grace="1s", poll="1s", listen=listen),
    ):
        yield client


async def until(question: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask until it is so; the limit is for a broken build, not a promise."""
    async with asyncio.timeout(15):
        try:
            while not await question():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError as error:
            error.add_note(f"it never came to this: {what}")
            raise


async def until_status(run: AsyncRunHandle[Any], status: str) -> None:
    async def is_so() -> bool:
        return await run.status() == status

    await until(is_so, f"{run.id} is {status}")


async def until_rows(play: Stage, run: AsyncRunHandle[Any], *keys: str) -> None:
    async def are_there() -> bool:
        return set(keys) <= {key for _, key in await asyncio.to_thread(journal, play, run)}

    try:
        await until(are_there, f"{keys} are kept")
    except BaseException as error:
        error.add_note(f"but {journal(play, run)}")
        raise


def journal(play: Stage, run: Any) -> list[tuple[str, str]]:
    """Kind and key of what is kept, in order; without the input."""
    return play.rows("select kind::text, key from kedge.journal where run_id = %s and seq > 0 order by seq", run.id)


def open_waits(play: Stage, run: Any) -> list[str]:
    return [key for (key,) in play.rows("select key from kedge.waits where run_id = %s order by key", run.id)]


async def word(text: str) -> str:
    return text


class Bell:
    """A body that waits until the test rings."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.rung = asyncio.Event()
        self.bodies = 0

    async def body(self) -> str:
        self.bodies += 1
        self.begun.set()
        await self.rung.wait()
        return "rung"


# ---- waits are served in memory


async def test_an_event_is_served_while_a_long_step_of_a_sibling_goes_on(play: Stage) -> None:
    bell = Bell()

    async def waits(ctx: Context) -> str:
        came = await ctx.wait_for("one", one)
        return await ctx.step("behind", word, came.text)

    async def handler(ctx: Context) -> list[str]:
        return list(await asyncio.gather(ctx.step("long", bell.body), waits(ctx)))

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await bell.begun.wait()
        await run.send(one(Word("hello")))
        await until_rows(play, run, "~2/one", "~2/behind")

        assert await run.status() == "running"
        assert not bell.rung.is_set()
        bell.rung.set()
        assert await run.result(timeout=20) == ["rung", "hello"]
    assert bell.bodies == 1
    assert play.epoch(run.id) == 1


def naps_beside(bell: Bell, nap: str) -> Any:
    async def naps(ctx: Context) -> str:
        await ctx.sleep("nap", nap)
        return await ctx.step("behind", word, "awake")

    async def handler(ctx: Context) -> list[str]:
        return list(await asyncio.gather(ctx.step("long", bell.body), naps(ctx)))

    return handler


async def test_a_timer_of_a_sibling_ends_in_time_beside_a_long_step(play: Stage) -> None:
    bell = Bell()
    ref, made = handled(naps_beside(bell, "50ms"))
    async with working(play, made) as client:
        run = await client.start(ref())
        await until_rows(play, run, "~2/nap", "~2/behind")

        assert not bell.rung.is_set()
        bell.rung.set()
        assert await run.result(timeout=20) == ["rung", "awake"]
    assert bell.bodies == 1


async def test_the_databases_clock_ends_a_timer_beside_a_long_step(play: Stage, clock: Clock) -> None:
    bell = Bell()
    ref, made = handled(naps_beside(bell, "1m"))
    async with working(play, made) as client:
        run = await client.start(ref())
        await until(lambda: asyncio.to_thread(lambda: bool(open_waits(play, run))), "the nap is stored")
        await asyncio.to_thread(clock.advance, "61s")
        await until_rows(play, run, "~2/nap", "~2/behind")

        assert not bell.rung.is_set()
        bell.rung.set()
        assert await run.result(timeout=20) == ["rung", "awake"]
    assert bell.bodies == 1


async def test_a_pause_beside_a_long_step_is_resumed_without_notifications(play: Stage) -> None:
    bell = Bell()

    async def pauses(ctx: Context) -> str:
        await ctx.pause("look")
        return await ctx.step("behind", word, "resumed")

    async def handler(ctx: Context) -> list[str]:
        return list(await asyncio.gather(ctx.step("long", bell.body), pauses(ctx)))

    ref, made = handled(handler)
    async with working(play, made, listen=False) as client:
        run = await client.start(ref())
        await until(lambda: asyncio.to_thread(lambda: bool(open_waits(play, run))), "the pause is stored")
        await client.resume(run)
        await until_rows(play, run, "~2/look", "~2/behind")

        bell.rung.set()
        assert await run.result(timeout=20) == ["rung", "resumed"]


async def test_a_branch_that_loops_over_steps_does_not_starve_a_siblings_wait(play: Stage) -> None:
    stop = asyncio.Event()

    async def loops(ctx: Context) -> None:
        while not stop.is_set():
            await ctx.step("again", asyncio.sleep, 0.001)

    async def waits(ctx: Context) -> str:
        came = await ctx.wait_for("one", one)
        stop.set()
        return came.text

    async def handler(ctx: Context) -> str:
        _, text = await asyncio.gather(loops(ctx), waits(ctx))
        return text

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await until_rows(play, run, "~1/again#3")
        await run.send(one(Word("hello")))

        assert await run.result(timeout=20) == "hello"
    assert play.epoch(run.id) == 1


# ---- what parks, and what stays


async def gathered(ctx: Context) -> list[str]:
    return [came.text for came in await asyncio.gather(ctx.wait_for("one", one), ctx.wait_for("two", two))]


async def grouped(ctx: Context) -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ctx.wait_for("one", one)), group.create_task(ctx.wait_for("two", two))]
    return [task.result().text for task in tasks]


async def grouped_by_anyio(ctx: Context) -> list[str]:
    texts: dict[str, str] = {}

    async def waits(name: str, event: EventRef[Word]) -> None:
        texts[name] = (await ctx.wait_for(name, event)).text

    async with anyio.create_task_group() as group:
        group.start_soon(waits, "one", one)
        group.start_soon(waits, "two", two)
    return [texts["one"], texts["two"]]


async def waited(ctx: Context) -> list[str]:
    tasks = [asyncio.create_task(ctx.wait_for("one", one)), asyncio.create_task(ctx.wait_for("two", two))]
    await asyncio.wait(tasks)
    return [task.result().text for task in tasks]


async def completed(ctx: Context) -> list[str]:
    tasks = [asyncio.create_task(ctx.wait_for("one", one)), asyncio.create_task(ctx.wait_for("two", two))]
    return sorted([(await ended).text for ended in asyncio.as_completed(tasks)])


async def shielded_by_anyio(ctx: Context) -> list[str]:
    texts: list[str] = []
    with anyio.CancelScope(shield=True):
        texts.append((await ctx.wait_for("one", one)).text)
        texts.append((await ctx.wait_for("two", two)).text)
    return texts


JOINS = [gathered, grouped, grouped_by_anyio, waited, completed, shielded_by_anyio]


@pytest.mark.parametrize("handler", JOINS)
async def test_a_run_that_only_waits_leaves_memory_and_comes_back_for_each_event(play: Stage, handler: Any) -> None:
    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await until_status(run, "waiting")
        await run.send(one(Word("a")))
        await until(lambda: asyncio.to_thread(lambda: bool(journal(play, run))), "the first event is kept")
        await until_status(run, "waiting")
        await run.send(two(Word("b")))

        assert await run.result(timeout=20) == ["a", "b"]
    assert play.epoch(run.id) > 1


async def test_a_raw_sleep_beside_a_wait_keeps_the_run_and_what_follows_it_is_not_late(play: Stage) -> None:
    async def naps(ctx: Context) -> str:
        await asyncio.sleep(0.5)
        return await ctx.step("behind", word, "awake")

    async def handler(ctx: Context) -> list[Any]:
        return list(await asyncio.gather(ctx.wait_for("one", one), naps(ctx)))

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await until_rows(play, run, "~2/behind")  # nobody has sent anything
        assert play.epoch(run.id) == 1
        await until_status(run, "waiting")


async def test_in_what_stays_in_memory_events_are_served(play: Stage) -> None:
    go = asyncio.Event()

    async def foreign(ctx: Context) -> str:
        await go.wait()
        return await ctx.step("behind", word, "gone")

    async def handler(ctx: Context) -> list[str]:
        came, gone = await asyncio.gather(ctx.wait_for("one", one), foreign(ctx))
        return [came.text, gone]

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await until(lambda: asyncio.to_thread(lambda: bool(open_waits(play, run))), "the wait is stored")
        await run.send(one(Word("a")))
        await until_rows(play, run, "one")
        go.set()

        assert await run.result(timeout=20) == ["a", "gone"]
    assert play.epoch(run.id) == 1


# ---- raw timeouts


async def by_asyncio(ctx: Context, seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds):
            return (await ctx.wait_for("one", one)).text
    except TimeoutError:
        return "late"


async def by_wait_for(ctx: Context, seconds: float) -> str:
    try:
        return (await asyncio.wait_for(ctx.wait_for("one", one), seconds)).text
    except TimeoutError:
        return "late"


async def by_move_on(ctx: Context, seconds: float) -> str:
    with anyio.move_on_after(seconds):
        return (await ctx.wait_for("one", one)).text
    return "late"


async def by_fail_after(ctx: Context, seconds: float) -> str:
    try:
        with anyio.fail_after(seconds):
            return (await ctx.wait_for("one", one)).text
    except TimeoutError:
        return "late"


@contextlib.asynccontextmanager
async def somebody_elses(seconds: float) -> AsyncGenerator[None]:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(seconds))
        yield


async def by_third_party(ctx: Context, seconds: float) -> str:
    try:
        async with somebody_elses(seconds):
            return (await ctx.wait_for("one", one)).text
    except TimeoutError:
        return "late"


async def over_a_group(ctx: Context, seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            task = group.create_task(ctx.wait_for("one", one))
        return task.result().text
    except TimeoutError:
        return "late"


TIMEOUTS = [by_asyncio, by_wait_for, by_move_on, by_fail_after, by_third_party, over_a_group]


@pytest.mark.parametrize("limited", TIMEOUTS)
async def test_a_raw_timeout_keeps_its_meaning_and_a_late_event_changes_nothing(play: Stage, limited: Any) -> None:
    async def handler(ctx: Context) -> list[str]:
        found = await limited(ctx, 0.3)
        return [found, (await ctx.wait_for("again", one)).text]

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        # The run is parked behind the timeout, not in it, and has kept that the wait was interrupted.
        await until_status(run, "waiting")
        ((kind, _),) = journal(play, run)
        assert kind == "x"
        assert open_waits(play, run) == ["again"]
        await run.send(one(Word("too late for the first")))

        assert await run.result(timeout=20) == ["late", "too late for the first"]
    assert play.epoch(run.id) > 1


@pytest.mark.parametrize("limited", TIMEOUTS)
async def test_an_event_within_a_raw_timeout_is_served_in_memory(play: Stage, limited: Any) -> None:
    entered = asyncio.Event()

    async def handler(ctx: Context) -> str:
        entered.set()
        found: str = await limited(ctx, 250)
        return found

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await entered.wait()
        await until(lambda: asyncio.to_thread(lambda: bool(open_waits(play, run))), "the wait is stored")
        for _ in range(20):  # some looks
            await asyncio.sleep(0.02)
            assert await run.status() == "running"
        await run.send(one(Word("in time")))

        assert await run.result(timeout=20) == "in time"
    assert play.epoch(run.id) == 1


@pytest.mark.parametrize("limited", TIMEOUTS)
async def test_a_raw_timeout_of_more_than_five_minutes_is_refused_at_the_wait(play: Stage, limited: Any) -> None:
    refused: list[str] = []

    async def handler(ctx: Context) -> str:
        try:
            await limited(ctx, 301)
        except* RawTimeoutError as errors:
            refused.extend(str(error) for error in errors.exceptions)
        return "refused"

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == "refused"
    assert "timeout=" in refused[0]
    assert "test_suspension.py" in refused[0] or "task" in refused[0]
    assert play.kinds(run) == []
    assert open_waits(play, run) == []


async def test_a_timeout_of_the_wait_itself_may_be_as_long_as_it_likes(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> str:
        return (await ctx.wait_for("one", one, timeout="30 days", default=Word("late"))).text

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.status() == "waiting"
    clock.advance("31 days")
    await play.go_on()

    assert run.result(timeout=0) == "late"


# ---- the order of replays


async def as_they_complete(ctx: Context, order: list[str]) -> None:
    tasks = {
        asyncio.create_task(ctx.wait_for(event.name, event), name=event.name): event.name for event in (one, two, three)
    }
    for ended in asyncio.as_completed(tasks):
        order.append((await ended).text)
        await ctx.step("seen", word, order[-1])


async def first_of_those_left(ctx: Context, order: list[str]) -> None:
    left = {asyncio.create_task(ctx.wait_for(event.name, event)) for event in (one, two, three)}
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        order.extend(sorted(task.result().text for task in done))
        await ctx.step("seen", word, order[-1])


async def each_by_itself(ctx: Context, order: list[str]) -> None:
    async def waits(event: EventRef[Word]) -> None:
        order.append((await ctx.wait_for(event.name, event)).text)
        await ctx.step("seen", word, order[-1])

    await asyncio.gather(*(waits(event) for event in (one, two, three)))


@pytest.mark.parametrize("collect", [as_they_complete, first_of_those_left, each_by_itself])
async def test_waits_end_in_the_order_in_which_they_ended_first_in_every_life(play: Stage, collect: Any) -> None:
    lives: list[list[str]] = []

    async def handler(ctx: Context) -> list[str]:
        order: list[str] = []
        lives.append(order)
        await collect(ctx, order)
        return order

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for event, text in ((three, "c"), (one, "a"), (two, "b")):
        run.send(event(Word(text)))
        await play.go_on()

    assert run.result(timeout=0) == ["c", "a", "b"]
    assert lives == [[], ["c"], ["c", "a"], ["c", "a", "b"]]


async def test_events_that_came_while_the_run_was_away_end_their_waits_in_one_order_for_all_lives(play: Stage) -> None:
    lives: list[list[str]] = []

    async def handler(ctx: Context) -> list[str]:
        order: list[str] = []
        lives.append(order)
        await as_they_complete(ctx, order)
        await ctx.pause("look")
        return order

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for event, text in ((two, "b"), (three, "c"), (one, "a")):
        run.send(event(Word(text)))
    await play.go_on()
    assert run.status() == "waiting"
    play.client.resume(run)
    await play.go_on()

    assert run.result(timeout=0) == lives[-1] == lives[-2]
    assert sorted(lives[-1]) == ["a", "b", "c"]


# ---- interruptions


async def test_a_wait_that_a_failing_sibling_interrupts_is_interrupted_in_every_life(play: Stage) -> None:
    async def fails() -> str:
        raise ValueError("no")

    async def handler(ctx: Context) -> list[str]:
        said: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.wait_for("lost", one))
                group.create_task(ctx.step("fails", fails))
        except* StepFailedError as errors:
            said.append(type(errors.exceptions[0]).__name__)
        said.append((await ctx.wait_for("next", one)).text)
        said.append((await ctx.wait_for("last", two)).text)
        return said

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert journal(play, run) == [("f", "fails"), ("x", "lost")]
    assert open_waits(play, run) == ["next"]
    # Not for the one that was interrupted, though that had asked first.
    run.send(one(Word("a")))
    await play.go_on()
    assert run.status() == "waiting"
    run.send(two(Word("b")))
    await play.go_on()

    assert run.result(timeout=0) == ["StepFailedError", "a", "b"]


async def test_a_race_of_the_handlers_own_keeps_its_winner(play: Stage) -> None:
    async def handler(ctx: Context) -> list[str]:
        racers = [asyncio.create_task(ctx.wait_for("one", one)), asyncio.create_task(ctx.wait_for("two", two))]
        done, left = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        winner = next(iter(done)).result().text
        return [winner, (await ctx.wait_for("last", three)).text]

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    run.send(two(Word("b")))
    await play.go_on()
    assert journal(play, run) == [("e", "two"), ("x", "one")]
    run.send(one(Word("a")))  # what the loser had waited for
    run.send(three(Word("c")))
    await play.go_on()

    assert run.result(timeout=0) == ["b", "c"]
    assert journal(play, run) == [("e", "two"), ("x", "one"), ("e", "last")]


# ---- how a run leaves memory


async def swallows(ctx: Context, seen: list[str]) -> str:
    for _ in range(5):
        try:
            return (await ctx.wait_for("one", one)).text
        except asyncio.CancelledError:
            seen.append("swallowed")
    return "not the result of the run"


async def swallows_and_returns(ctx: Context, seen: list[str]) -> str:
    try:
        return (await ctx.wait_for("one", one)).text
    except asyncio.CancelledError:
        seen.append("swallowed")
    return "not the result of the run"


async def catches_everything_and_steps(ctx: Context, seen: list[str]) -> str:
    try:
        return (await ctx.wait_for("one", one)).text
    except BaseException:
        seen.append("caught")
        await ctx.step("compensate", word, "never at a park")
        raise


async def steps_in_finally(ctx: Context, seen: list[str]) -> str:
    try:
        return (await ctx.wait_for("one", one)).text
    finally:
        seen.append("finally")
        await ctx.step("tidy", word, "only at the end")


async def raises_in_finally(ctx: Context, seen: list[str]) -> str:
    try:
        return (await ctx.wait_for("one", one)).text
    except asyncio.CancelledError:
        seen.append("caught")
        raise ValueError("not the error of the run") from None


async def returns_exceptions(ctx: Context, seen: list[str]) -> str:
    came = await asyncio.gather(ctx.wait_for("one", one), ctx.wait_for("one", one), return_exceptions=True)
    if any(isinstance(each, BaseException) for each in came):
        seen.append("exceptions")
        await ctx.step("compensate", word, "never at a park")
    return " ".join(each.text for each in came if isinstance(each, Word))


async def shields(ctx: Context, seen: list[str]) -> str:
    text = ""
    try:
        with anyio.CancelScope(shield=True):
            text = (await ctx.wait_for("one", one)).text
    finally:
        seen.append("finally")
    return text


async def awaits_in_finally(ctx: Context, seen: list[str]) -> str:
    try:
        return (await ctx.wait_for("one", one)).text
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0.05)
        seen.append("slept")


AWKWARD = [
    swallows,
    swallows_and_returns,
    catches_everything_and_steps,
    steps_in_finally,
    raises_in_finally,
    returns_exceptions,
    shields,
    awaits_in_finally,
]


@pytest.mark.parametrize("awkward", AWKWARD)
async def test_a_handler_that_takes_a_park_badly_is_parked_all_the_same(play: Stage, awkward: Any) -> None:
    seen: list[str] = []

    async def handler(ctx: Context) -> str:
        text: str = await awkward(ctx, seen)
        return text

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.status() == "waiting"
    assert journal(play, run) == []
    # A gather that is cancelled is cancelled, whatever it returns otherwise.
    assert seen or awkward is returns_exceptions
    for _ in range(2):
        run.send(one(Word("hello")))
    await play.go_on()

    result = run.result(timeout=0)
    assert result == ("hello hello" if awkward is returns_exceptions else "hello")
    assert "compensate" not in [key for _, key in journal(play, run)]
    assert ("s", "tidy") in journal(play, run) or awkward is not steps_in_finally


async def test_the_handler_has_unwound_before_the_park_is_stored(play: Stage) -> None:
    states: list[str] = []

    async def handler(ctx: Context) -> str:
        try:
            return (await ctx.wait_for("one", one)).text
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.05)
                states.append((await asyncio.to_thread(play.rows, "select state::text from kedge.runs"))[0][0])

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.status() == "waiting"
    assert states == ["r"]


async def test_a_handler_that_does_not_stop_is_not_executed_twice_at_once(
    play: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_executor, "UNWINDING_S", 0.05)
    caplog.set_level(logging.WARNING, "kedge.worker")
    stop, stuck = asyncio.Event(), asyncio.Event()
    at_once: list[int] = []
    inside = 0

    async def handler(ctx: Context) -> str:
        nonlocal inside
        inside += 1
        at_once.append(inside)
        try:
            return (await ctx.wait_for("one", one)).text
        finally:
            stuck.set()
            while not stop.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await stop.wait()
            inside -= 1

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await stuck.wait()
        await run.send(one(Word("hello")))

        async def said() -> bool:
            return "still runs" in caplog.text

        await until(said, "the log names the handler that does not stop")
        assert at_once == [1]
        stop.set()

        assert await run.result(timeout=20) == "hello"
    assert at_once == [1, 1]


async def test_tasks_that_are_left_behind_by_a_park_have_ended_before_it_is_stored(play: Stage) -> None:
    ended: list[str] = []
    begun = 0

    async def background(ctx: Context) -> None:
        nonlocal begun
        begun += 1
        try:
            await ctx.wait_for("two", two)
        finally:
            await asyncio.sleep(0)
            ended.append("background")

    async def handler(ctx: Context) -> str:
        task = asyncio.create_task(background(ctx))
        text = (await ctx.wait_for("one", one)).text
        task.cancel()
        await asyncio.wait([task])
        return text

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.status() == "waiting"
    assert ended == ["background"] * begun
    run.send(one(Word("hello")))
    await play.go_on()

    assert run.result(timeout=0) == "hello"


# ---- sync handlers


async def test_a_sync_handler_is_parked_past_its_except_exception(play: Stage) -> None:
    seen: list[str] = []

    def handler(ctx: SyncContext) -> str:
        try:
            return ctx.wait_for("one", one).text
        except Exception as error:
            seen.append(type(error).__name__)
            raise
        finally:
            seen.append("finally")

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.status() == "waiting"
    assert seen == ["finally"]
    run.send(one(Word("hello")))
    await play.go_on()

    assert run.result(timeout=0) == "hello"


async def test_a_sync_handler_that_catches_everything_meets_a_closed_context(play: Stage) -> None:
    refused: list[str] = []

    def handler(ctx: SyncContext) -> str:
        try:
            return ctx.wait_for("one", one).text
        except BaseException:  # noqa: BLE001  # that is the point
            try:
                ctx.step("compensate", str, "never at a park")
            except BaseException as error:  # noqa: BLE001  # as above
                refused.append(type(error).__name__)
        return "not the result of the run"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.status() == "waiting"
    assert len(refused) == 1
    assert journal(play, run) == []
    run.send(one(Word("hello")))
    await play.go_on()

    assert run.result(timeout=0) == "hello"


# ---- cancel, and a lost lease


@pytest.mark.parametrize("is_parked", [True, False])
async def test_a_cancelled_run_that_waits_unwinds_and_begins_nothing(play: Stage, is_parked: bool) -> None:
    seen: list[str] = []
    hold = asyncio.Event()

    async def handler(ctx: Context) -> None:
        try:
            if is_parked:
                await ctx.wait_for("one", one)
            else:
                await asyncio.gather(ctx.wait_for("one", one), hold.wait())
        finally:
            seen.append("finally")
            await ctx.step("tidy", word, "never")

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await until(lambda: asyncio.to_thread(lambda: bool(open_waits(play, run))), "the wait is stored")
        if is_parked:
            await until_status(run, "waiting")
        await run.cancel(reason="enough")
        await until_status(run, "cancelled")

    assert seen == ["finally"]  # of a parked run: at its park
    assert journal(play, run) == []
    assert open_waits(play, run) == []


async def test_a_worker_that_lost_its_lease_writes_nothing_of_a_wait(play: Stage) -> None:
    entered = asyncio.Event()
    lives: list[str] = []

    async def handler(ctx: Context) -> str:
        lives.append("life")
        entered.set()
        # In memory: a raw sleep beside the wait.
        task = asyncio.create_task(asyncio.sleep(60))
        try:
            return (await ctx.wait_for("one", one)).text
        finally:
            task.cancel()

    ref, made = handled(handler)
    async with working(play, made) as client:
        run = await client.start(ref())
        await entered.wait()
        await until(lambda: asyncio.to_thread(lambda: bool(open_waits(play, run))), "the wait is stored")
        # As a take back does it.
        await asyncio.to_thread(
            play.rows,
            "update kedge.runs set state = 'p', worker_id = null, epoch = epoch + 1, "
            "seq = nextval('kedge.runs_seq') returning 1",
        )
        await run.send(one(Word("hello")))

        assert await run.result(timeout=30) == "hello"
    assert len(lives) == 2
    assert [kind for kind, _ in journal(play, run)] == ["e"]


# ---- a worker that stops


async def test_a_run_that_waits_does_not_hold_up_a_worker_that_stops(play: Stage) -> None:
    async def handler(ctx: Context) -> str:
        come = await ctx.wait_for("one", one, timeout=0.7, default=None)
        return "nobody" if come is None else come.text

    ref, made = handled(handler)
    async with AsyncClient.connect(play.url) as client:
        worker = Worker(play.url, workflows=[made], grace="12s")
        async with worker:
            run = await client.start(ref())
            await until(lambda: asyncio.to_thread(lambda: bool(open_waits(play, run))), "it waits")
            async with asyncio.timeout(8):
                await worker.stop()
        async with Worker(play.url, workflows=[made]):
            assert await run.result(timeout=20) == "nobody"


async def test_waits_beside_a_long_step_are_served_while_a_worker_stops(play: Stage) -> None:
    bell = Bell()

    async def handler(ctx: Context) -> list[Any]:
        late = ctx.wait_for("two", two, timeout=0.3, default=None)
        return list(await asyncio.gather(ctx.step("long", bell.body), ctx.wait_for("one", one), late))

    ref, made = handled(handler)
    async with AsyncClient.connect(play.url) as client:
        worker = Worker(play.url, workflows=[made], grace="12s")
        async with worker:
            run = await client.start(ref())
            await bell.begun.wait()
            stopping = asyncio.create_task(worker.stop())
            await run.send(one(Word("hello")))
            # Another worker's courier.
            await asyncio.to_thread(play.rows, "select sorted from kedge.sort_inbox(10)")
            await until_rows(play, run, "one", "two")
            bell.rung.set()
            async with asyncio.timeout(8):
                await stopping
        assert (await run.result(timeout=0))[2] is None
    assert play.epoch(run.id) == 1
