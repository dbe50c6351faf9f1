"""What a run says of itself: metadata, progress, log lines; and what its code is told: patches, tokens."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from kedge import EventRef, InvalidOptionError, TooLargeError, WorkflowRef
from kedge_client import AsyncClient
from kedge_worker import Context, SyncContext, Worker, workflow
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, handled, stage

go = EventRef("go")


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


async def echo(value: Any) -> Any:
    return value


async def test_metadata_is_the_starts_and_what_the_handler_sets(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> dict[str, Any]:
        ctx.set_metadata(stage="one", count=1)
        await ctx.step("one", echo, 1)
        await ctx.sleep("nap", "1h")
        ctx.set_metadata(stage="two")
        return dict(ctx.metadata)

    ref, made = handled(handler)
    run = await play.play(ref(metadata={"source": "shop", "stage": "zero"}), made)
    assert play.client.get(run).metadata == {"source": "shop", "stage": "one", "count": 1}

    clock.advance("2h")
    await play.go_on()
    wanted = {"source": "shop", "stage": "two", "count": 1}
    assert run.result(timeout=0) == wanted
    assert play.client.get(run).metadata == wanted


async def test_metadata_without_a_step_behind_it_is_kept_with_the_end(play: Stage) -> None:
    def handler(ctx: SyncContext) -> None:
        ctx.set_metadata(done=True)

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert play.client.get(run).metadata == {"done": True}


async def test_too_much_metadata_is_refused_and_changes_nothing(play: Stage) -> None:
    async def handler(ctx: Context) -> dict[str, Any]:
        ctx.set_metadata(kept=1)
        with pytest.raises(TooLargeError):
            ctx.set_metadata(large="x" * 70_000)
        return dict(ctx.metadata)

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == {"kept": 1}


async def test_progress_is_what_the_handler_says_and_100_only_at_the_end(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> None:
        ctx.progress(1, 4, "a quarter")
        await ctx.sleep("nap", "1h")
        ctx.progress(4, 4)
        await ctx.sleep("nap", "1h")

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    first = play.client.progress(run)
    assert (first.done, first.total, first.percent, first.message) == (1, 4, 25.0, "a quarter")

    clock.advance("2h")
    await play.go_on()
    assert play.client.progress(run).percent == 99.0
    clock.advance("2h")
    await play.go_on()
    assert play.client.progress(run).percent == 100.0


async def test_progress_is_learned_from_declared_steps_and_from_the_run_before(play: Stage, clock: Clock) -> None:
    declared_ref = WorkflowRef[None, None]("declared", None, None)
    learned_ref = WorkflowRef[None, None]("learned", None, None)

    async def handler(ctx: Context) -> None:
        await ctx.step("one", echo, 1)
        await ctx.sleep("nap", "1h")
        await ctx.step("two", echo, 2)
        await ctx.step("three", echo, 3)

    declared, learned = workflow(declared_ref, total_steps=4)(handler), workflow(learned_ref)(handler)
    play.cast(declared, learned)
    first, second = await play.play(declared_ref()), await play.play(learned_ref())
    assert (play.client.progress(first).percent, play.client.progress(second).percent) == (25.0, None)
    clock.advance("2h")
    await play.go_on()

    third = await play.play(learned_ref())
    assert play.client.progress(third).percent == 25.0
    assert play.client.progress(third).source == "last_run"


@pytest.mark.parametrize("said", [(-1,), (2, 1), (1, -1), (1.5, 2), (True,)])
async def test_progress_that_cannot_be_is_refused(play: Stage, said: tuple[Any, ...]) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(InvalidOptionError):
            ctx.progress(*said)
        return "refused"

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == "refused"


async def test_log_lines_are_kept_with_the_run_once(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> None:
        ctx.log.info("begun", who="me")
        await ctx.sleep("nap", "1h")
        ctx.log("warning", "over", odd=float("nan"))

    ref, made = handled(handler)
    await play.play(ref(), made)
    clock.advance("2h")
    await play.go_on()

    lines = play.rows("select level, message from kedge.run_log where kind = 'l' order by id")
    assert lines == [(20, "begun"), (30, "over")]


async def test_a_log_is_bounded(play: Stage) -> None:
    def handler(ctx: SyncContext) -> None:
        for number in range(1100):
            ctx.log.info("line", number=number)

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    ((count, last),) = play.rows(
        "select count(*), (array_agg(message order by id desc))[1] from kedge.run_log where run_id = %s", run.id
    )
    assert count == 1001
    assert "1,000 lines" in last


async def test_what_happens_to_a_run_is_pushed_to_who_watches(database_url: str) -> None:
    async def handler(ctx: Context) -> str:
        ctx.log.info("begun")
        await ctx.step("one", echo, 1)
        ctx.progress(1, 2)
        await ctx.wait_for("go", go)
        return "done"

    ref, made = handled(handler)
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=[made]):
        run = await client.start(ref())
        seen: list[str] = []
        async with asyncio.timeout(30):
            async for event in client.watch(run):
                seen.append(event.kind)
                if event.kind == "step" and seen.count("step") == 1:
                    await run.send(go())
        assert await run.result() == "done"

    assert seen[-1] == "status"
    assert {"log", "step", "status"} <= set(seen)
    assert seen.count("step") == 2


async def test_a_patched_run_knows_it_and_one_from_before_goes_its_old_way(play: Stage, clock: Clock) -> None:
    async def before(ctx: Context) -> list[str]:
        await ctx.step("one", echo, 1)
        await ctx.sleep("nap", "1h")
        return ["old"]

    async def after(ctx: Context) -> list[str]:
        ways = ["new"] if ctx.patched("way") else ["old"]
        if ways == ["new"]:
            await ctx.step("zero", echo, 0)
        await ctx.step("one", echo, 1)
        await ctx.sleep("nap", "1h")
        ways.append("later" if ctx.patched("later") else "no")
        await ctx.sleep("nap", "1h")
        ways.append("later" if ctx.patched("later") else "no")
        return ways

    ref, old = handled(before)
    _, new = handled(after)
    first = await play.play(ref(), old)
    play.cast(new)
    second = await play.play(ref())
    for _ in range(3):
        clock.advance("2h")
        await play.go_on()

    assert first.result(timeout=0) == ["old", "later", "later"]
    assert second.result(timeout=0) == ["new", "later", "later"]


async def test_a_token_is_the_same_on_every_attempt(play: Stage, clock: Clock) -> None:
    tokens: list[str] = []

    async def handler(ctx: Context) -> None:
        tokens.append(ctx.token("charge"))
        await ctx.sleep("nap", "1h")

    ref, made = handled(handler)
    await play.play(ref(), made)
    clock.advance("2h")
    await play.go_on()

    assert len(tokens) == 2
    assert len(set(tokens)) == 1


async def test_a_run_has_at_most_ten_thousand_outcomes(play: Stage) -> None:
    async def handler(ctx: Context) -> list[Any]:
        numbers = [await ctx.step("n", echo, number) for number in range(10_000)]
        with pytest.raises(TooLargeError, match="10,000"):
            await ctx.step("one too many", echo, 1)
        return [len(numbers)]

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == [10_000]


async def test_a_wait_that_has_begun_goes_on_at_the_limit(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> str:
        for number in range(9_999):
            await ctx.step("n", echo, number)
        await ctx.sleep("the last one", "1h")
        return "slept"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    clock.advance("2h")
    await play.go_on()

    assert run.result(timeout=0) == "slept"
