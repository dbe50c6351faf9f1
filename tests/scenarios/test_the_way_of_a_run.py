"""From the client to a worker and back, in one process: what a user does first."""

import asyncio
from uuid import UUID

import msgspec
import psycopg
import pytest

from kedge import DomainError, WorkflowRef
from kedge_client import (
    AsyncClient,
    Client,
    NotEncodableError,
    RunCancelledError,
    RunFailedError,
    StepFailedError,
)
from kedge_worker import Context, SyncContext, Worker, step, workflow


class Job(msgspec.Struct, frozen=True):
    """What the workflows of this file get."""

    name: str
    number: int = 0


class CardDeclined(DomainError):
    """An error that travels."""

    code: str


greet = WorkflowRef("greet", Job, str)
greet_in_thread = WorkflowRef("greet-in-thread", Job, str)
decline = WorkflowRef("decline", Job, str, raises=(CardDeclined,))
crash = WorkflowRef("crash", Job, str)
linger = WorkflowRef("linger", Job, str)
nothing = WorkflowRef("nothing")


async def hello(name: str) -> str:
    """A step."""
    return f"hello {name}"


def hello_in_thread(name: str) -> str:
    """A sync step."""
    return f"hello {name}"


@workflow(greet)
async def greet_all(ctx: Context, job: Job) -> str:
    """Two steps at once, one of them in a thread."""
    one, two = await asyncio.gather(
        ctx.step("one", hello, job.name), ctx.step("two", hello_in_thread, job.name.upper())
    )
    return f"{one}, {two}"


@workflow(greet_in_thread)
def greet_from_a_thread(ctx: SyncContext, job: Job) -> str:
    """A sync handler."""
    return ctx.step("one", hello_in_thread, job.name)


@step(raises=(CardDeclined,))
async def refuse(code: str) -> str:
    """Raises what travels."""
    raise CardDeclined(code=code)


@workflow(decline)
async def be_declined(ctx: Context, job: Job) -> str:
    """Let a declared error through."""
    return await ctx.step("charge", refuse, job.name)


async def explode(name: str) -> str:
    """Raises what does not."""
    raise ValueError(f"no {name}")


@workflow(crash)
async def fail(ctx: Context, job: Job) -> str:
    """Let a step's error through."""
    return await ctx.step("explode", explode, job.name)


@workflow(nothing)
async def do_nothing(ctx: Context) -> None:
    """No input, no output, no step."""


ALL = (greet_all, greet_from_a_thread, be_declined, fail, do_nothing)


async def test_a_started_run_is_executed_and_its_result_comes_back(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=ALL):
        run = await client.start(greet(Job("you")))

        assert run.created
        assert await run.result(timeout="20s") == "hello you, hello YOU"
        assert (await run.view()).status == "completed"
        assert {s.key for s in await client.steps(run)} == {"one", "two"}


async def test_a_sync_handler_runs_in_a_thread(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=ALL):
        run = await client.start(greet_in_thread(Job("you")))

        assert await run.result(timeout="20s") == "hello you"


async def test_a_workflow_without_input_and_output(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=ALL):
        run = await client.start(nothing())

        await run.result(timeout="20s")

        assert await run.status() == "completed"


async def test_a_declared_error_comes_back_as_its_class(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=ALL):
        run = await client.start(decline(Job("expired")))

        with pytest.raises(CardDeclined) as caught:
            await run.result(timeout="20s")
        assert caught.value.code == "expired"


async def test_an_error_of_a_step_fails_the_run_and_says_where(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=ALL):
        run = await client.start(crash(Job("luck")))

        with pytest.raises(RunFailedError) as caught:
            await run.result(timeout="20s")
        assert caught.value.run_id == run.id
        assert StepFailedError.__name__ in caught.value.error.kind
        assert "no luck" in caught.value.error.message


async def test_a_value_that_cannot_be_kept_fails_the_run_with_its_step_and_path(database_url: str) -> None:
    odd = WorkflowRef("odd", Job, float)

    async def measure(name: str) -> dict[str, float]:
        return {name: float("nan")}

    @workflow(odd)
    async def keep_odd(ctx: Context, job: Job) -> float:
        return (await ctx.step("measure", measure, job.name))[job.name]

    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=[keep_odd]):
        run = await client.start(odd(Job("x")))

        with pytest.raises(RunFailedError) as caught:
            await run.result(timeout="20s")
        assert NotEncodableError.__name__ in caught.value.error.kind
        assert "measure" in caught.value.error.message


async def test_a_running_run_is_cancelled_and_its_finally_runs(database_url: str) -> None:
    unwound: list[UUID] = []
    begun = asyncio.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow(linger)
    async def be_lingering(ctx: Context, job: Job) -> str:
        try:
            await ctx.step("forever", forever)
        finally:
            unwound.append(ctx.run_id)
        return job.name

    async with AsyncClient.connect(database_url) as client, Worker(database_url, workflows=[be_lingering]):
        run = await client.start(linger(Job("x")))
        await begun.wait()

        await run.cancel(reason="changed my mind")

        with pytest.raises(RunCancelledError) as caught:
            await run.result(timeout="20s")
        assert caught.value.reason == "changed my mind"
        assert unwound == [run.id]


async def test_a_run_that_was_cancelled_before_any_worker_lived_never_begins(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client:
        run = await client.start(greet(Job("you")))
        await run.cancel()

        done = await Worker(database_url, workflows=ALL).run_until_idle()

        assert done == 0
        assert (await run.view()).status == "cancelled"
        assert await client.steps(run) == []


async def test_a_worker_claims_only_what_it_has_registered(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client:
        await client.start(greet(Job("you")))
        other = await client.start(crash(Job("x")))

        assert await Worker(database_url, workflows=[greet_all]).run_until_idle() == 1

        assert await other.status() == "pending"


async def test_run_once_takes_no_more_than_its_limit(database_url: str) -> None:
    async with AsyncClient.connect(database_url) as client:
        await client.start_many(greet(Job(f"n{i}")) for i in range(5))

        assert await Worker(database_url, workflows=ALL).run_once(limit=2) == 2

        assert await client.count_runs(status="completed") == 2
        assert await client.count_runs(status="pending") == 3


async def test_everything_works_without_notify(database_url: str) -> None:
    async with (
        AsyncClient.connect(database_url, listen=False) as client,
        Worker(database_url, workflows=ALL, listen=False, poll="100ms"),
    ):
        run = await client.start(greet(Job("you")))

        assert await run.result(timeout="20s") == "hello you, hello YOU"


async def test_an_urgent_run_goes_first_and_equals_go_in_order(database_url: str, conn: psycopg.Connection) -> None:
    async with AsyncClient.connect(database_url) as client:
        names = [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)]
        for name, priority in names:
            await client.start(greet(Job(name), priority=priority))

        worker = Worker(database_url, workflows=ALL, concurrency=1)
        assert await worker.run_until_idle() == 5

        rows = conn.execute("select input from kedge.runs_view order by started_at").fetchall()
        assert [msgspec.json.decode(row[0])["name"] for row in rows] == ["b", "d", "a", "c", "e"]


def test_the_sync_client_does_the_same(database_url: str) -> None:
    with Client.connect(database_url) as client:
        run = client.start(greet(Job("you")))
        asyncio.run(_until_idle(database_url))

        assert run.result(timeout=0) == "hello you, hello YOU"


async def _until_idle(url: str) -> None:
    await Worker(url, workflows=ALL).run_until_idle()
