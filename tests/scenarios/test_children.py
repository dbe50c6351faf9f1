"""Parents and children end to end: started once, told once, cancelled together, whatever dies in between."""

import asyncio
import signal
from collections.abc import Generator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge import ChildCancelledError, ChildFailedError, DomainError, EventRef, RunExistsError, WorkflowRef
from kedge_client import AsyncClient, Client, RunHandle
from kedge_worker import Context, Retry, SyncContext, Worker, workflow
from tests.scenarios.crew import count, crew, wait_until
from tests.scenarios.shop_of_children import family
from tests.scenarios.stage import Stage, handled, stage


class TooMany(DomainError):
    number: int


double = WorkflowRef("double", int, int, raises=(TooMany,))
elsewhere = WorkflowRef("elsewhere", int, int, queue="elsewhere")
keyed = WorkflowRef("keyed", int, int, key=lambda n: f"n:{n}")
napper = WorkflowRef("napper", str, str)
wake = EventRef("wake")


@workflow(double)
async def handle_double(_: Context, number: int) -> int:
    if number == 13:
        raise ValueError("an unlucky number")
    if number > 1000:
        raise TooMany(number)
    return 2 * number


@workflow(keyed)
async def handle_keyed(_: Context, number: int) -> int:
    return 100 * number


@workflow(napper)
async def handle_napper(ctx: Context, length: str) -> str:
    await ctx.sleep("nap", length)
    return "slept"


CHILDREN = (handle_double, handle_keyed, handle_napper)


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


def runs_of(play: Stage, ref: WorkflowRef[Any, Any]) -> list[str]:
    """The statuses of all runs of a workflow, in the order of their starts."""
    return [run.status for run in reversed(play.client.list_runs(workflow=ref).items)]


# ---- ends -----------------------------------------------------------------------------------------------------------


async def test_a_call_answers_the_childs_result_in_two_lives_of_its_parent(play: Stage) -> None:
    async def parent(ctx: Context) -> int:
        return await ctx.call("twice", double(21))

    ref, made = handled(parent)
    run = await play.play(ref(resource="customer-7", tags=["urgent"], priority=3), made, *CHILDREN)

    assert run.result(timeout=0) == 42
    assert play.epoch(run) == 2
    assert play.kinds(run) == ["twice/start child started completed", "twice child completed"]
    (child,) = play.client.list_runs(parent=run).items
    assert (child.resource, child.priority, list(child.tags)) == ("customer-7", 3, ["urgent"])


async def test_a_started_child_goes_on_by_itself_and_tells_its_end_when_it_is_asked_for(play: Stage) -> None:
    async def parent(ctx: Context) -> list[Any]:
        child = await ctx.start("twice", double(21))
        await ctx.sleep("nap", 0)
        return [str(child.run_id), await child.result(), await child.result()]

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)

    child_id, *results = run.result(timeout=0)
    assert results == [42, 42]
    assert play.client.get(child_id).status == "completed"


async def test_failures_and_cancellations_of_children_reach_their_parent_as_what_they_are(play: Stage) -> None:
    async def parent(ctx: Context) -> list[str]:
        seen: list[str] = []
        for name, number in (("unlucky", 13), ("many", 1001)):
            try:
                await ctx.call(name, double(number))
            except ChildFailedError as error:
                seen.append(f"{error.error.kind}: {error.error.message}")
            except TooMany as error:
                seen.append(f"too many: {error.number}")
        try:
            await ctx.call("nap", napper("1 day"))
        except ChildCancelledError as error:
            seen.append(f"cancelled: {error.reason}")
        return seen

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)
    (nap,) = (one for one in play.client.list_runs(parent=run).items if one.workflow == "napper")
    play.client.cancel(nap.id, reason="wake up")
    await play.go_on()

    assert run.result(timeout=0) == [
        "builtins.ValueError: an unlucky number",
        "too many: 1001",
        "cancelled: wake up",
    ]


async def test_grandchildren_are_children_of_children(play: Stage) -> None:
    tree = WorkflowRef("tree", int, int)

    @workflow(tree)
    async def grow(ctx: Context, depth: int) -> int:
        return 1 + sum(await ctx.map("twigs", tree, [depth - 1] * 2)) if depth else 1

    run = await play.play(tree(3), grow)

    assert run.result(timeout=0) == 15
    assert len(runs_of(play, tree)) == 15


async def test_sync_handlers_have_children_too(play: Stage) -> None:
    def parent(ctx: SyncContext) -> list[Any]:
        child = ctx.start("a", double(1))
        return [ctx.call("b", double(2)), child.result(), ctx.map("c", double, [3, 4])]

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)

    assert run.result(timeout=0) == [4, 2, [6, 8]]


async def test_a_child_of_a_queue_that_nobody_serves_waits_and_so_does_its_parent(play: Stage) -> None:
    async def parent(ctx: Context) -> int:
        return await ctx.call("far", elsewhere(7))

    @workflow(elsewhere)
    async def handle_elsewhere(_: Context, number: int) -> int:
        return number + 1

    ref, made = handled(parent)
    run = await play.play(ref(), made, handle_elsewhere)
    assert (run.status(), runs_of(play, elsewhere)) == ("waiting", ["pending"])

    await Worker(play.url, workflows=[handle_elsewhere], queues=["elsewhere"]).run_until_idle()
    await play.go_on()
    assert run.result(timeout=0) == 8


async def test_a_child_whose_record_is_gone_has_failed(play: Stage) -> None:
    async def parent(ctx: Context) -> str:
        child = await ctx.start("twice", double(1))
        await ctx.wait_for("go", wake)
        try:
            return str(await child.result())
        except ChildFailedError as error:
            return f"{error.error.kind}: {error.error.message}"

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)
    assert play.rows("delete from kedge.finished where workflow = 'double' returning workflow") == [("double",)]
    play.rows(
        "delete from kedge.journal j where not exists (select from kedge.all_runs r where r.id = j.run_id) returning 1"
    )
    run.send(wake())
    await play.go_on()

    assert "there is no record of it any more" in run.result(timeout=0)


# ---- many -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [300])
async def test_hundreds_of_children_cost_their_parent_two_lives(play: Stage, size: int) -> None:
    async def parent(ctx: Context) -> list[int]:
        return await ctx.map("m", double, [n for n in range(size + 1) if n != 13])

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)

    assert run.result(timeout=0) == [2 * n for n in range(size + 1) if n != 13]
    assert play.epoch(run) == 2
    assert len(play.client.steps(run)) == 2 * size


async def test_a_window_of_children_costs_a_life_for_each_half_of_it_at_most(play: Stage) -> None:
    async def parent(ctx: Context) -> int:
        return sum(await ctx.map("m", lambda n: double(n % 10), range(100), limit=10))

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)

    assert run.result(timeout=0) == 900
    assert play.epoch(run) <= 21
    assert play.rows("select count(*) from kedge.finished where workflow = 'double'") == [(100,)]


async def test_the_first_failure_of_a_map_wakes_its_parent_though_the_others_sleep(play: Stage) -> None:
    async def parent(ctx: Context) -> str:
        try:
            await ctx.map("m", lambda n: double(13) if n else napper("1 day"), range(3))
        except ChildFailedError as error:
            return error.key
        return "none"

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)

    assert run.result(timeout=0) in ("m[1]", "m[2]")
    assert runs_of(play, napper) == ["waiting"]


# ---- ends of parents ------------------------------------------------------------------------------------------------


async def test_a_cancelled_parent_takes_along_the_children_that_depend_on_it(play: Stage) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.start("on", napper("1 day"))
        await ctx.call("with", napper("2 days"), on_parent_end="cancel")

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)
    run.cancel()
    await play.go_on()

    assert run.status() == "cancelled"
    assert runs_of(play, napper) == ["waiting", "cancelled"]


@pytest.mark.parametrize("fails", [False, True], ids=["completes", "fails"])
async def test_children_that_depend_on_their_parent_end_with_it_however_it_ends(play: Stage, fails: bool) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.start("with", napper("1 day"), on_parent_end="cancel")
        if fails:
            raise ValueError("no")

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)
    await play.go_on()

    assert run.status() == ("failed" if fails else "completed")
    assert runs_of(play, napper) == ["cancelled"]


async def test_a_keyed_child_that_depends_on_its_parent_ends_with_it(play: Stage) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.call("with", napper("1 day", key="one"), on_parent_end="cancel")

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)
    run.cancel()
    await play.go_on()

    assert runs_of(play, napper) == ["cancelled"]


async def test_a_cancel_with_cascade_takes_along_all_children(play: Stage) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.map("naps", napper, ["1 day", "2 days"])

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)
    run.cancel(cascade=True)
    await play.go_on()

    assert runs_of(play, napper) == ["cancelled", "cancelled"]


async def test_the_ends_of_children_are_kept_for_a_parent_that_is_paused(play: Stage) -> None:
    async def parent(ctx: Context) -> list[int]:
        return await ctx.map("m", elsewhere, range(3))

    @workflow(elsewhere)
    async def handle_elsewhere(_: Context, number: int) -> int:
        return number

    ref, made = handled(parent)
    run = await play.play(ref(), made)
    run.pause()
    await play.go_on()
    await Worker(play.url, workflows=[handle_elsewhere], queues=["elsewhere"]).run_until_idle()
    await play.go_on()
    assert run.status() == "paused"

    run.resume()
    await play.go_on()
    assert run.result(timeout=0) == [0, 1, 2]


# ---- other attempts -------------------------------------------------------------------------------------------------


async def test_a_failed_parent_that_is_retried_hears_of_a_child_that_ended_meanwhile(play: Stage) -> None:
    breaks = [True]

    async def parent(ctx: Context) -> int:
        async with asyncio.TaskGroup() as group:
            call = group.create_task(ctx.call("far", elsewhere(7)))
            group.create_task(fail_once(ctx))
        return call.result()

    async def fail_once(ctx: Context) -> None:
        await ctx.step("settle", settle)
        if breaks:
            raise ValueError("not yet")

    async def settle() -> None:
        await asyncio.sleep(0)

    @workflow(elsewhere)
    async def handle_elsewhere(_: Context, number: int) -> int:
        return number + 1

    ref, made = handled(parent)
    run = await play.play(ref(), made)
    assert run.status() == "failed"
    await Worker(play.url, workflows=[handle_elsewhere], queues=["elsewhere"]).run_until_idle()
    await play.go_on()

    breaks.clear()
    run.retry()
    await play.go_on()
    assert run.result(timeout=0) == 8
    assert runs_of(play, elsewhere) == ["completed"]


async def test_another_attempt_of_a_parent_is_told_again_what_became_of_its_child(play: Stage) -> None:
    told: list[str] = []

    async def parent(ctx: Context) -> int:
        try:
            return await ctx.call("twice", double(13))
        except ChildFailedError as error:
            told.append(error.error.message)
            raise

    ref, made = handled(parent)
    run = await play.play(ref(retry=Retry(2, initial=0)), made, *CHILDREN)

    assert run.status() == "failed"
    assert told == ["an unlucky number"] * 2
    assert runs_of(play, double) == ["failed"]


async def test_a_child_that_was_retried_first_gives_a_retried_parent_its_result(play: Stage) -> None:
    breaks = [True]
    brittle = WorkflowRef("brittle", int, int)

    @workflow(brittle)
    async def handle_brittle(_: Context, number: int) -> int:
        if breaks:
            raise ValueError("broken")
        return number

    async def parent(ctx: Context) -> int:
        return await ctx.call("it", brittle(5))

    ref, made = handled(parent)
    run = await play.play(ref(), made, handle_brittle)
    assert run.status() == "failed"

    breaks.clear()
    (child,) = play.client.list_runs(parent=run).items
    play.client.retry(child.id)
    run.retry()
    await play.go_on()
    assert run.result(timeout=0) == 5
    assert runs_of(play, brittle) == ["completed"]


@pytest.mark.parametrize(("step_id", "calls", "maps"), [("call", 2, 6), ("map", 1, 6), ("map[2]", 1, 4)])
async def test_a_rerun_from_a_call_or_a_map_has_children_of_its_own(
    play: Stage, step_id: str, calls: int, maps: int
) -> None:
    async def parent(ctx: Context) -> list[int]:
        return [await ctx.call("call", double(1)), *await ctx.map("map", double, [2, 3, 4], limit=1)]

    ref, made = handled(parent)
    run = await play.play(ref(), made, *CHILDREN)
    again = run.rerun_from(step_id)
    await play.go_on()

    assert again.result(timeout=0) == run.result(timeout=0) == [2, 4, 6, 8]
    inputs = [
        row[0]
        for row in play.rows(
            "select convert_from(j.value, 'UTF8') from kedge.journal j"
            " join kedge.finished f on f.id = j.run_id"
            " where j.seq = 0 and f.workflow = 'double'"
        )
    ]
    assert (sum(text.endswith("1") for text in inputs), len(inputs)) == (calls, calls + maps)


# ---- keys -----------------------------------------------------------------------------------------------------------


async def test_a_keyed_child_that_has_ended_already_is_answered(play: Stage) -> None:
    async def parent(ctx: Context) -> list[Any]:
        child = await ctx.start("again", keyed(7))
        return [str(child.run_id), await child.result(), await ctx.call("call", keyed(7))]

    ref, made = handled(parent)
    before = await play.play(keyed(7), made, *CHILDREN)
    run = await play.play(ref())

    assert run.result(timeout=0) == [str(before.id), 700, 700]
    assert runs_of(play, keyed) == ["completed"]


async def test_two_parents_share_a_keyed_child(play: Stage) -> None:
    async def parent(ctx: Context) -> int:
        return await ctx.call("shared", keyed(7))

    ref, made = handled(parent)
    play.cast(made, *CHILDREN)
    runs = play.client.start_many([ref() for _ in range(5)])
    await play.go_on()

    assert [run.result(timeout=0) for run in runs] == [700] * 5
    assert runs_of(play, keyed) == ["completed"]


async def test_parents_of_two_resources_have_each_their_own_keyed_child_unless_it_is_said_otherwise(
    play: Stage,
) -> None:
    async def parent(ctx: Context) -> list[str]:
        own = [await ctx.start("own", keyed(7)), await ctx.start("single", keyed(8, key="one", singleton="raise"))]
        shared = await ctx.start("shared", keyed(9, resource="everybody"))
        return [str(child.run_id) for child in (*own, shared)]

    ref, made = handled(parent)
    play.cast(made, *CHILDREN)
    runs = play.client.start_many([ref(resource="a"), ref(resource="b"), ref()])
    await play.go_on()

    own, single, shared = zip(*[run.result(timeout=0) for run in runs], strict=True)
    assert (len(set(own)), len(set(single)), len(set(shared))) == (3, 3, 1)
    assert [play.client.get(UUID(child)).resource for child in (*own, shared[0])] == ["a", "b", None, "everybody"]


async def test_conflicts_of_keys_and_singletons_are_errors_that_stay_the_same(play: Stage) -> None:
    async def parent(ctx: Context) -> list[str]:
        seen: list[str] = []
        requests = (
            keyed(8, key="n:7"),
            keyed(7, key="n:7", on_conflict="raise"),
            napper("1 day", key="one", singleton="raise"),
        )
        for number, request in enumerate(requests):
            try:
                await ctx.start(f"r{number}", request)
            except RunExistsError as error:
                seen.append(f"{type(error).__name__} {error.existing_id}")
        await ctx.sleep("nap", 0)
        return seen

    ref, made = handled(parent)
    existing = await play.play(keyed(7), made, *CHILDREN)
    active = await play.play(napper("1 day", key="one", singleton="raise"))
    run = await play.play(ref())

    assert run.result(timeout=0) == [
        f"InputConflictError {existing.id}",
        f"RunExistsError {existing.id}",
        f"RunActiveError {active.id}",
    ]


async def test_a_keyed_child_waits_for_a_callers_open_start_and_holds_up_nobody_else(database_url: str) -> None:
    async def parent(ctx: Context) -> int:
        return await ctx.call("shared", keyed(7))

    ref, made = handled(parent)
    async with (
        AsyncClient.connect(database_url) as client,
        await psycopg.AsyncConnection.connect(database_url) as conn,
        Worker(database_url, workflows=[made, *CHILDREN]),
    ):
        mine = await client.start(keyed(7), conn=conn)  # not committed
        waiting = await client.start(ref())
        await until_blocked(database_url)
        others = [await client.start(double(n)) for n in range(5)]
        assert [await run.result(timeout="20s") for run in others] == [0, 2, 4, 6, 8]
        assert await waiting.status() == "running"

        await conn.commit()
        assert await waiting.result(timeout="20s") == 700
        assert (await client.get(mine.id)).status == "completed"
        assert await client.count_runs(workflow=keyed) == 1


async def until_blocked(url: str) -> None:
    """A worker's start of a child waits for somebody."""
    query = "select count(*) from pg_stat_activity where application_name = 'kedge starts' and wait_event_type = 'Lock'"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn, asyncio.timeout(20):
        while (await (await conn.execute(query)).fetchone()) != (1,):
            await asyncio.sleep(0.01)


# ---- deaths ---------------------------------------------------------------------------------------------------------


def test_children_of_a_killed_worker_are_started_once(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        victim = workers.start("tests.scenarios.shop_of_children:worker")
        parents: list[RunHandle[Any]] = client.start_many([family(30) for _ in range(10)])
        started = "select count(*) from kedge.journal where kind = 'n'"
        for enough in (40, 160):
            wait_until(lambda: count(conn, started) >= enough, f"{enough} children")  # noqa: B023
            workers.end(victim, signal.SIGKILL)
            victim = workers.start("tests.scenarios.shop_of_children:worker")

        assert [run.result(timeout="60s") for run in parents] == [sum(range(30))] * 10
        assert count(conn, "select count(*) from kedge.finished where workflow = 'shelf'") == 10 * 30
        assert count(conn, "select count(*) from kedge.runs") == 0
        assert count(conn, "select count(distinct parent_id) from kedge.finished where workflow = 'shelf'") == 10


def test_parents_and_children_of_several_workers_find_each_other(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url, LEASE="15s") as workers, Client.connect(database_url) as client:
        for _ in range(2):
            workers.start("tests.scenarios.shop_of_children:worker")
        parents = client.start_many([family(20) for _ in range(20)])

        assert [run.result(timeout="60s") for run in parents] == [sum(range(20))] * 20
        assert count(conn, "select count(*) from kedge.finished where workflow = 'shelf'") == 400
        assert count(conn, "select max(epoch) from kedge.finished where workflow = 'shelf'") == 1
