"""Run timeouts: the definition's reaches runs of clients that know only the ref, and ends them wherever they are."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from kedge import WorkflowRef
from kedge_client import AsyncClient, RunDeadlineError
from kedge_worker import Context, Worker, workflow
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, stage

nap = WorkflowRef[None, str]("nap", None, str)


@workflow(nap, timeout="1 day")
async def nap_for_days(ctx: Context) -> str:
    """Sleep for longer than a day."""
    await ctx.sleep("nap", "3 days")
    return "slept"


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


async def test_a_definitions_timeout_ends_a_parked_run_of_a_client_that_knows_only_the_ref(
    play: Stage, clock: Clock
) -> None:
    run = await play.play(nap(), nap_for_days)
    clock.advance("23h")
    await play.go_on()
    assert run.status() == "waiting"

    clock.advance("2h")
    await play.go_on()
    with pytest.raises(RunDeadlineError):
        run.result(timeout=0)
    assert play.rows("select count(*) from kedge.waits") == [(0,)]


@pytest.mark.parametrize("timeout", [None, "4 days"])
async def test_a_requests_timeout_counts_before_the_definitions(play: Stage, clock: Clock, timeout: str | None) -> None:
    run = await play.play(nap(timeout=timeout), nap_for_days)
    clock.advance("3 days 1h")
    await play.go_on()

    assert run.result(timeout=0) == "slept"


async def test_the_time_of_a_delayed_run_counts_from_when_it_is_due(play: Stage, clock: Clock) -> None:
    run = await play.play(nap(delay="10 days"), nap_for_days)
    clock.advance("10 days 1h")
    await play.go_on()
    assert run.status() == "waiting"

    clock.advance("1 day")
    await play.go_on()
    with pytest.raises(RunDeadlineError):
        run.result(timeout=0)


async def test_a_handler_whose_time_is_up_is_cancelled_and_its_finally_runs(database_url: str) -> None:
    unwound: list[str] = []
    begun = asyncio.Event()
    ref = WorkflowRef[None, None]("busy", None, None)

    async def body() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow(ref, timeout="50ms")
    async def handler(ctx: Context) -> None:
        try:
            await ctx.step("busy", body)
        finally:
            unwound.append("finally")

    workflows: list[Any] = [handler]
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=workflows):
        run = await client.start(ref())
        with pytest.raises(RunDeadlineError):
            await run.result(timeout=30)
        assert unwound == ["finally"] or not begun.is_set()
