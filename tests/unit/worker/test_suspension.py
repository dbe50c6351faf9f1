"""Which constructs of asyncio and anyio let a run leave memory, and which keep it there."""

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import coroutine
from typing import Any

import anyio
import pytest

from kedge_worker._branches import RunBranches
from kedge_worker._suspension import find_blocker
from tests.unit.worker.suspended import Suspended, rounds, suspended

EAGER: Any = getattr(asyncio, "eager_task_factory", None)
FACTORIES = [None] if EAGER is None else [None, EAGER]


@pytest.fixture(params=FACTORIES, ids=["plain", "eager"][: len(FACTORIES)], autouse=True)
async def factory(request: pytest.FixtureRequest) -> AsyncGenerator[None]:
    """Everything holds for tasks that begin eagerly (from Python 3.12 on), too."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(request.param)
    yield
    loop.set_task_factory(None)


async def parks(handler: Callable[[Suspended], Awaitable[object]]) -> None:
    async with suspended(handler) as run:
        assert run.blocker is None


async def stays(handler: Callable[[Suspended], Awaitable[object]], *said: str) -> None:
    async with suspended(handler) as run:
        blocker = run.blocker
        assert blocker is not None
        for words in said:
            assert words in blocker


# ---- what lets it leave


async def test_a_durable_wait_parks() -> None:
    async def handler(run: Suspended) -> None:
        await run.wait()

    await parks(handler)


async def test_a_wait_deep_in_helpers_parks() -> None:
    async def deep(run: Suspended, depth: int) -> None:
        await (deep(run, depth - 1) if depth else run.wait())

    await parks(lambda run: deep(run, 30))


async def test_an_awaited_task_parks() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.create_task(run.wait())

    await parks(handler)


async def test_a_task_in_a_task_in_a_task_parks() -> None:
    async def nested(run: Suspended, depth: int) -> None:
        await asyncio.create_task(nested(run, depth - 1) if depth else run.wait())

    await parks(lambda run: nested(run, 5))


async def test_a_gather_parks() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), run.wait())

    await parks(handler)


async def test_a_gather_in_a_gather_parks() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), asyncio.gather(run.wait(), asyncio.gather(run.wait(), run.wait())))

    await parks(handler)


@pytest.mark.parametrize("swallow", [True, False])
async def test_a_gather_of_which_some_have_ended_parks(swallow: bool) -> None:
    async def quick() -> int:
        return 1

    async def handler(run: Suspended) -> None:
        await asyncio.gather(quick(), run.wait(), quick(), return_exceptions=swallow)

    await parks(handler)


async def test_a_gather_of_which_some_have_failed_parks() -> None:
    async def fails() -> int:
        raise ValueError

    async def handler(run: Suspended) -> None:
        await asyncio.gather(fails(), run.wait(), return_exceptions=True)

    await parks(handler)


async def test_a_gather_that_has_just_ended_in_a_gather_keeps_the_run_until_that_is_known() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def handler(run: Suspended) -> None:
        with contextlib.suppress(ValueError):
            await asyncio.gather(run.wait(), asyncio.gather(asyncio.gather(fails())))
        await run.tasks.loop.create_future()

    looks: list[bool] = []
    async with suspended(handler, settle=False) as run:
        for _ in range(20):
            await asyncio.sleep(0)
            looks.append(run.look() is None)

    assert not any(looks)


async def test_a_task_group_parks() -> None:
    async def handler(run: Suspended) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.wait())
            group.create_task(run.wait())

    await parks(handler)


async def test_task_groups_in_task_groups_park() -> None:
    async def nested(run: Suspended, depth: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(nested(run, depth - 1) if depth else run.wait())
            group.create_task(run.wait())

    await parks(lambda run: nested(run, 4))


async def test_an_anyio_task_group_parks() -> None:
    async def handler(run: Suspended) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(run.wait)
            group.start_soon(run.wait)

    await parks(handler)


async def test_anyio_groups_in_asyncio_groups_park() -> None:
    async def inner(run: Suspended) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(run.wait)
            await asyncio.gather(run.wait(), run.wait())

    async def handler(run: Suspended) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(inner(run))
            group.create_task(inner(run))

    await parks(handler)


@pytest.mark.parametrize("when", [asyncio.ALL_COMPLETED, asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION])
async def test_a_wait_without_timeout_parks(when: str) -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.wait([asyncio.create_task(run.wait()) for _ in range(3)], return_when=when)

    await parks(handler)


async def test_as_completed_without_timeout_parks() -> None:
    async def handler(run: Suspended) -> None:
        for ended in asyncio.as_completed([asyncio.create_task(run.wait()) for _ in range(3)]):
            await ended

    await parks(handler)


async def test_as_completed_of_which_one_has_ended_parks() -> None:
    async def quick() -> None: ...

    async def handler(run: Suspended) -> None:
        for ended in asyncio.as_completed([asyncio.create_task(run.wait()), asyncio.create_task(quick())]):
            await ended

    await parks(handler)


async def test_as_completed_kept_as_a_list_parks() -> None:
    async def handler(run: Suspended) -> None:
        coming: list[Any] = list(asyncio.as_completed([asyncio.create_task(run.wait()) for _ in range(2)]))
        try:
            await coming[0]
        finally:
            coming[1].close()

    await parks(handler)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="ASYNC AS_COMPLETED IS NOT TESTED: it exists from 3.13 on")
async def test_as_completed_in_an_async_loop_parks() -> None:
    async def handler(run: Suspended) -> None:
        endings: Any = asyncio.as_completed([asyncio.create_task(run.wait()) for _ in range(2)])
        async for _ in endings:
            pass

    await parks(handler)


async def test_a_wait_for_without_timeout_parks() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.wait_for(run.wait(), None)

    await parks(handler)


async def test_a_wait_in_an_async_generator_parks() -> None:
    async def generator(run: Suspended) -> AsyncGenerator[int]:
        yield 1
        await run.wait()

    async def handler(run: Suspended) -> None:
        async for _ in generator(run):
            pass

    await parks(handler)


async def test_a_wait_behind_an_old_style_coroutine_parks() -> None:
    @coroutine
    def old(run: Suspended) -> Generator[Any, Any, None]:
        yield from run.wait().__await__()

    async def handler(run: Suspended) -> None:
        await old(run)

    await parks(handler)


async def test_a_wait_behind_an_object_with_await_parks() -> None:
    class Later:
        def __init__(self, run: Suspended) -> None:
            self.run = run

        def __await__(self) -> Generator[Any, Any, None]:
            return self.run.wait().__await__()

    async def handler(run: Suspended) -> None:
        await Later(run)

    await parks(handler)


async def test_shielded_scopes_without_deadline_park() -> None:
    async def handler(run: Suspended) -> None:
        with anyio.CancelScope(shield=True):
            await run.wait()

    await parks(handler)


async def test_a_thousand_branches_park() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.gather(*(run.wait() for _ in range(1000)))

    await parks(handler)


async def test_context_managers_that_hide_no_timeout_park() -> None:
    @contextlib.asynccontextmanager
    async def session() -> AsyncGenerator[int]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.sleep, 0)
            yield 1

    async def handler(run: Suspended) -> None:
        async with session(), asyncio.Lock():
            await run.wait()

    await parks(handler)


async def test_a_lock_that_is_held_across_a_wait_parks() -> None:
    async def handler(run: Suspended) -> None:
        async with asyncio.Lock():
            await run.wait()

    await parks(handler)


async def test_a_sync_handler_parks_when_its_thread_waits() -> None:
    async with suspended(lambda run: run.wait()) as run:
        branches = RunBranches(lambda _: pytest.fail("no task"))

        assert find_blocker(branches, run.waiting, bodies=0) is None
        assert find_blocker(branches, set(), bodies=0) is not None


# ---- what keeps it


async def test_a_body_that_runs_keeps_the_run() -> None:
    async with suspended(lambda run: run.wait()) as run:
        run.bodies = 1

        assert run.blocker == "has 1 operations under way"


async def test_a_run_that_waits_for_nothing_durable_stays() -> None:
    async def handler(_run: Suspended) -> None:
        await asyncio.create_task(asyncio.sleep(60))

    await stays(handler)


async def test_a_raw_sleep_keeps_the_run() -> None:
    async def handler(_run: Suspended) -> None:
        await asyncio.sleep(60)

    await stays(handler, "awaits asyncio.sleep in test_suspension.py:", "handler")


async def test_a_raw_sleep_beside_a_wait_keeps_the_run() -> None:
    async def napper() -> None:
        await asyncio.sleep(60)

    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), napper())

    await stays(handler, "awaits asyncio.sleep in test_suspension.py:", "napper")


async def test_a_raw_sleep_in_a_gather_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), asyncio.sleep(60))

    await stays(handler, "awaits asyncio.sleep in task")


@pytest.mark.parametrize("sleep", [asyncio.sleep, anyio.sleep])
async def test_sleep_zero_in_a_loop_keeps_the_run(sleep: Callable[[float], Awaitable[None]]) -> None:
    async def spins() -> None:
        while True:
            await sleep(0)

    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), spins())

    await stays(handler, "about to run")


async def test_anyio_sleep_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(run.wait)
            await anyio.sleep(60)

    await stays(handler, "awaits anyio.sleep in test_suspension.py:")


async def test_a_lock_keeps_the_run() -> None:
    lock = asyncio.Lock()

    async def locks(run: Suspended) -> None:
        async with lock:
            await run.wait()

    async def handler(run: Suspended) -> None:
        await asyncio.gather(locks(run), locks(run))

    await stays(handler, "awaits asyncio.Lock.acquire", "locks")


@pytest.mark.parametrize("kind", [asyncio.Semaphore, asyncio.BoundedSemaphore])
async def test_a_semaphore_keeps_the_run(kind: Callable[[int], asyncio.Semaphore]) -> None:
    gate = kind(1)

    async def limited(run: Suspended) -> None:
        async with gate:
            await run.wait()

    async def handler(run: Suspended) -> None:
        await asyncio.gather(limited(run), limited(run))

    await stays(handler, "asyncio.")


async def test_a_queue_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), asyncio.Queue[int]().get())

    await stays(handler, "Queue.get")


async def test_an_event_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), asyncio.Event().wait())

    await stays(handler, "Event.wait")


async def test_a_condition_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        condition = asyncio.Condition()
        waits = asyncio.create_task(run.wait())
        async with condition:
            await condition.wait()
        await waits

    await stays(handler, "Condition.wait")


async def test_a_barrier_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), asyncio.Barrier(2).wait())

    await stays(handler, "Barrier.wait")


async def test_anyio_streams_and_events_keep_the_run() -> None:
    async def handler(run: Suspended) -> None:
        send, receive = anyio.create_memory_object_stream[int]()
        async with anyio.create_task_group() as group, send, receive:
            group.start_soon(run.wait)
            await receive.receive()

    async def other(run: Suspended) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(run.wait)
            await anyio.Event().wait()

    await stays(handler, "receive")
    await stays(other, "wait")


async def test_a_socket_keeps_the_run() -> None:
    left, right = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=left)

    async def handler(run: Suspended) -> None:
        waits = asyncio.create_task(run.wait())
        await reader.read()
        await waits

    with right:
        await stays(handler, "awaits asyncio.StreamReader.read")
        writer.close()
        await writer.wait_closed()


async def test_a_bare_future_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        waits = asyncio.create_task(run.wait())
        await asyncio.get_running_loop().create_future()
        await waits

    await stays(handler, "awaits a Future in test_suspension.py:")


async def test_a_thread_keeps_the_run() -> None:
    stop = threading.Event()

    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), asyncio.to_thread(stop.wait, 10))

    async with suspended(handler) as run:
        blocker = run.blocker
        stop.set()

    assert blocker is not None
    assert "to_thread" in blocker


async def test_a_shield_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.shield(run.wait())

    await stays(handler)


async def test_a_task_of_somebody_else_keeps_the_run() -> None:
    other = asyncio.create_task(asyncio.sleep(60))

    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), asyncio.wait([other]))

    async def awaits(run: Suspended) -> None:
        waits = asyncio.create_task(run.wait())
        await other
        await waits

    await stays(handler, "not tasks of the run only")
    await stays(awaits, "not tasks of the run only")
    other.cancel()


async def test_a_foreign_future_in_a_gather_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.gather(run.wait(), asyncio.gather(run.wait(), future))

    await stays(handler, "awaits asyncio.gather", "not tasks of the run only")


async def test_a_future_that_has_just_come_in_keeps_the_run() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handler(run: Suspended) -> None:
        await asyncio.gather(run.wait(), future)

    async with suspended(handler) as run:
        future.set_exception(ValueError())

        assert run.blocker is not None


async def test_a_foreign_task_in_as_completed_keeps_the_run() -> None:
    other = asyncio.create_task(asyncio.sleep(60))

    async def handler(run: Suspended) -> None:
        for ended in asyncio.as_completed([asyncio.create_task(run.wait()), other]):
            await ended

    await stays(handler)
    other.cancel()


async def test_a_task_that_a_body_made_is_no_task_of_the_run() -> None:
    async def handler(run: Suspended) -> None:
        branch = run.tasks.by_task[asyncio.current_task()]
        branch.busy = True
        made = asyncio.create_task(asyncio.sleep(60))
        branch.busy = False
        waits = asyncio.create_task(run.wait())
        try:
            await made
        finally:
            made.cancel()
        await waits

    await stays(handler, "not tasks of the run only")


async def test_a_wait_with_a_timeout_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        await asyncio.wait([asyncio.create_task(run.wait())], timeout=60)

    await stays(handler, "awaits asyncio.wait")


async def test_as_completed_with_a_timeout_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        for ended in asyncio.as_completed([asyncio.create_task(run.wait())], timeout=60):
            await ended

    await stays(handler)


async def test_a_queue_beside_as_completed_is_not_taken_for_it() -> None:
    async def handler(run: Suspended) -> None:
        waits = asyncio.create_task(run.wait())
        coming = asyncio.as_completed([waits])
        await asyncio.Queue[int]().get()
        del coming

    await stays(handler, "Queue.get")


async def test_a_group_that_is_still_filled_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.wait())
            await asyncio.sleep(60)

    await stays(handler, "asyncio.sleep")


async def test_starting_a_task_that_does_not_report_keeps_the_run() -> None:
    async def starts(run: Suspended, *, task_status: Any) -> None:
        await run.wait()
        task_status.started()

    async def handler(run: Suspended) -> None:
        async with anyio.create_task_group() as group:
            await group.start(starts, run)

    await stays(handler, "start")


async def test_a_task_that_was_just_made_keeps_the_run() -> None:
    async def handler(run: Suspended) -> None:
        await run.wait()

    async with suspended(handler) as run:
        root = run.branches.root.task
        assert root is not None
        run.branches.others += 1

        assert run.blocker == "has a task that begins"
        run.branches.others -= 1


async def test_a_wait_that_has_just_got_its_answer_keeps_the_run() -> None:
    async with suspended(lambda run: run.wait()) as run:
        root: Any = run.branches.root.task
        root._fut_waiter.set_result(None)

        assert run.blocker is not None
        assert "about to run" in run.blocker


async def test_a_cancelled_branch_keeps_the_run_until_it_has_unwound() -> None:
    made: list[asyncio.Task[None]] = []

    async def handler(run: Suspended) -> None:
        made.extend(asyncio.create_task(run.wait()) for _ in range(2))
        await asyncio.wait(made)

    async with suspended(handler) as run:
        before = run.blocker
        made[0].cancel()
        between: list[str | None] = []
        while not made[0].done():
            between.append(run.blocker)
            await asyncio.sleep(0)
        between.append(run.blocker)  # it has ended, and who joins it has not heard
        await rounds()
        after = run.blocker

    assert before is None
    assert None not in between
    assert after is None


async def test_looking_asks_nothing_of_a_handlers_objects() -> None:
    asked: list[str] = []

    class Touchy:
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            raise AssertionError(name)

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __hash__(self) -> int:
            raise AssertionError("hashed")

    async def handler(run: Suspended) -> None:
        touchy = Touchy()
        box = [touchy, {1: touchy}]
        await asyncio.gather(run.wait(), asyncio.create_task(run.wait()))
        del touchy, box

    async with suspended(handler) as run:
        assert run.blocker is None
    assert asked == []
