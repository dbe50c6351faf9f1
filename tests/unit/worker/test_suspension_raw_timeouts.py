"""Raw timeouts of a handler's code are found wherever they hide, and keep the run in memory; long ones are refused."""

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest

from kedge.errors import RawTimeoutError
from kedge_worker._suspension import LIMIT_S, check_raw_timeout, open_timeout
from tests.unit.worker.suspended import Suspended, rounds, suspended

Handler = Callable[[Suspended], Awaitable[object]]

EAGER: Any = getattr(asyncio, "eager_task_factory", None)
FACTORIES = [None] if EAGER is None else [None, EAGER]


@pytest.fixture(params=FACTORIES, ids=["plain", "eager"][: len(FACTORIES)], autouse=True)
async def factory(request: pytest.FixtureRequest) -> AsyncGenerator[None]:
    """Everything holds for tasks that begin eagerly (from Python 3.12 on), too."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(request.param)
    yield
    loop.set_task_factory(None)


# ---- constructs: each opens a timeout around a wait


async def plain(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await run.wait()


async def named(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds) as scope:
        await run.wait()
    assert not scope.expired()


async def at_a_time(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + seconds):
        await run.wait()


async def later_set(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(None) as scope:
        scope.reschedule(asyncio.get_running_loop().time() + seconds)
        await run.wait()


async def wait_for(run: Suspended, seconds: float) -> None:
    await asyncio.wait_for(run.wait(), seconds)


async def wait_for_a_task(run: Suspended, seconds: float) -> None:
    await asyncio.wait_for(asyncio.create_task(run.wait()), seconds)


async def wait_for_a_gather(run: Suspended, seconds: float) -> None:
    await asyncio.wait_for(asyncio.gather(run.wait(), run.wait()), seconds)


async def move_on(run: Suspended, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await run.wait()


async def fail_after(run: Suspended, seconds: float) -> None:
    with anyio.fail_after(seconds):
        await run.wait()


async def shielded(run: Suspended, seconds: float) -> None:
    with anyio.move_on_after(seconds, shield=True):
        await run.wait()


async def around_a_shield(run: Suspended, seconds: float) -> None:
    with anyio.move_on_after(seconds), anyio.CancelScope(shield=True):
        await run.wait()


async def scope(run: Suspended, seconds: float) -> None:
    with anyio.CancelScope(deadline=anyio.current_time() + seconds):
        await run.wait()


async def scope_set_later(run: Suspended, seconds: float) -> None:
    with anyio.CancelScope() as opened:
        opened.deadline = anyio.current_time() + seconds
        await run.wait()


async def groups_scope(run: Suspended, seconds: float) -> None:
    async with anyio.create_task_group() as group:
        group.cancel_scope.deadline = anyio.current_time() + seconds
        await run.wait()


async def deep(run: Suspended, seconds: float) -> None:
    async def helper(depth: int) -> None:
        await (helper(depth - 1) if depth else run.wait())

    async with asyncio.timeout(seconds):
        await helper(20)


async def in_a_helper(run: Suspended, seconds: float) -> None:
    async def helper(depth: int) -> None:
        await (helper(depth - 1) if depth else plain(run, seconds))

    await helper(20)


@contextlib.asynccontextmanager
async def hidden(seconds: float) -> AsyncGenerator[None]:
    async with asyncio.timeout(seconds):
        yield


@contextlib.contextmanager
def hidden_scope(seconds: float) -> Generator[None]:
    with anyio.fail_after(seconds):
        yield


@contextlib.asynccontextmanager
async def hidden_deeper(seconds: float) -> AsyncGenerator[None]:
    async with hidden(math.inf if seconds < 0 else seconds), asyncio.Lock():
        yield


@contextlib.asynccontextmanager
async def hidden_in_a_stack(seconds: float) -> AsyncGenerator[None]:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(hidden_deeper(seconds))
        yield


async def third_party(run: Suspended, seconds: float) -> None:
    async with hidden(seconds):
        await run.wait()


async def third_party_sync(run: Suspended, seconds: float) -> None:
    with hidden_scope(seconds):
        await run.wait()


async def third_party_nested(run: Suspended, seconds: float) -> None:
    async with hidden_deeper(seconds):
        await run.wait()


async def third_party_stack(run: Suspended, seconds: float) -> None:
    async with hidden_in_a_stack(seconds):
        await run.wait()


class Guard:
    """A context manager as a class, which keeps its timeout to itself."""

    def __init__(self, seconds: float) -> None:
        self._scope = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._scope.__aexit__(*error)


async def third_party_class(run: Suspended, seconds: float) -> None:
    async with Guard(seconds):
        await run.wait()


async def exit_stack(run: Suspended, seconds: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(seconds))
        await run.wait()


async def exit_stack_of_scopes(run: Suspended, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(anyio.move_on_after(seconds))
        await run.wait()


async def in_a_closure(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds) as opened:

        def more() -> None:
            opened.reschedule(None)

        await run.wait()
        more()


async def in_a_generator(run: Suspended, seconds: float) -> None:
    async def generator() -> AsyncGenerator[int]:
        async with asyncio.timeout(seconds):
            yield 1
            await run.wait()

    async for _ in generator():
        pass


async def around_a_generators_consumer(run: Suspended, seconds: float) -> None:
    async def generator() -> AsyncGenerator[int]:
        async with asyncio.timeout(seconds):
            yield 1

    numbers = generator()
    try:
        async for _ in numbers:
            await run.wait()
    finally:
        with contextlib.suppress(BaseException):
            await numbers.aclose()


async def by_anext(run: Suspended, seconds: float) -> None:
    async def generator() -> AsyncGenerator[int]:
        async with asyncio.timeout(seconds):
            await run.wait()
            yield 1

    await anext(generator(), None)


AROUND_ITSELF: list[Callable[[Suspended, float], Awaitable[None]]] = [
    plain,
    named,
    at_a_time,
    later_set,
    move_on,
    fail_after,
    shielded,
    around_a_shield,
    scope,
    scope_set_later,
    groups_scope,
    deep,
    in_a_helper,
    third_party,
    third_party_sync,
    third_party_nested,
    third_party_stack,
    third_party_class,
    exit_stack,
    exit_stack_of_scopes,
    in_a_closure,
    in_a_generator,
    around_a_generators_consumer,
    by_anext,
]
GENERATORS = [in_a_generator, by_anext]
ONES_TASKS = [wait_for, wait_for_a_task, wait_for_a_gather]


async def over_a_group(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
        group.create_task(run.wait())
        group.create_task(run.wait())


async def over_an_anyio_group(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds), anyio.create_task_group() as group:
        group.start_soon(run.wait)
        group.start_soon(run.wait)


async def scope_over_an_anyio_group(run: Suspended, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as group:
            group.start_soon(run.wait)


async def over_a_gather(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await asyncio.gather(run.wait(), asyncio.gather(run.wait(), run.wait()))


async def over_a_wait(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await asyncio.wait([asyncio.create_task(run.wait())])


async def over_as_completed(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        for ended in asyncio.as_completed([asyncio.create_task(run.wait())]):
            await ended


async def over_a_task(run: Suspended, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await asyncio.create_task(run.wait())


async def over_tasks_in_tasks(run: Suspended, seconds: float) -> None:
    async def child() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.wait())

    async with hidden(seconds):
        await asyncio.gather(child(), child())


IN_THE_PARENT = [
    *ONES_TASKS,
    over_a_group,
    over_an_anyio_group,
    scope_over_an_anyio_group,
    over_a_gather,
    over_a_wait,
    over_as_completed,
    over_a_task,
    over_tasks_in_tasks,
]
ALL = [*AROUND_ITSELF, *IN_THE_PARENT]


@pytest.mark.parametrize("construct", ALL)
async def test_an_open_raw_timeout_keeps_the_run(construct: Callable[[Suspended, float], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()

    async with suspended(lambda run: construct(run, 1000.0)) as run:
        blocker, now = run.look(), loop.time()

    assert blocker is not None
    if blocker.timeout is None:
        # Before Python 3.12 wait_for awaits a future of its own.
        assert construct in ONES_TASKS
        assert "wait_for" in blocker.what
    else:
        assert now + 990 < blocker.timeout < now + 1001
        assert "has an open raw timeout around " in blocker.what


@pytest.mark.parametrize("construct", ALL)
async def test_the_nearest_timeout_of_a_suspended_task_is_known(
    construct: Callable[[Suspended, float], Awaitable[None]],
) -> None:
    loop = asyncio.get_running_loop()

    async with suspended(lambda run: construct(run, 1000.0)) as run:
        root = run.branches.root.task
        assert root is not None
        when, now = open_timeout(root), loop.time()

    assert when is not None
    assert now + 990 < when < now + 1001


@pytest.mark.parametrize("construct", AROUND_ITSELF)
async def test_the_nearest_timeout_of_the_current_task_is_known(
    construct: Callable[[Suspended, float], Awaitable[None]],
) -> None:
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_scheduled") and (sys.version_info < (3, 12) or construct in GENERATORS):
        pytest.skip("RUNNING TASKS ON UVLOOP ARE NOT TESTED: they do not show everything")
    found: list[float | None] = []

    class Looks(Suspended):
        async def wait(self) -> None:
            task = asyncio.current_task()
            assert task is not None
            found.append(open_timeout(task))

    async with suspended(lambda run: construct(Looks(run.tasks), 1000.0)):
        now = loop.time()

    assert len(found) == 1
    assert found[0] is not None
    assert now + 990 < found[0] < now + 1001


@pytest.mark.parametrize("construct", ALL)
async def test_a_wait_under_a_timeout_beyond_the_limit_is_refused(
    construct: Callable[[Suspended, float], Awaitable[None]],
) -> None:
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_scheduled") and (sys.version_info < (3, 12) or construct in GENERATORS):
        pytest.skip("RUNNING TASKS ON UVLOOP ARE NOT TESTED: they do not show everything")
    eager = loop.get_task_factory() is not None

    async def handler(run: Suspended) -> None:
        run.limit_s = 300
        with contextlib.suppress(RawTimeoutError, BaseExceptionGroup):
            await construct(run, 1000.0)
        await run.tasks.loop.create_future()

    async with suspended(handler) as run:
        refused, blocker = run.refused, run.look()

    if not refused:
        # An eager task begins before anybody waits for it: then the look finds it.
        assert eager
        assert construct in IN_THE_PARENT
        assert blocker is not None
        assert blocker.timeout is not None
        return
    assert "timeout=" in refused[0]
    assert " 300 s " in refused[0]


@pytest.mark.parametrize("construct", ALL)
async def test_a_wait_under_a_timeout_within_the_limit_is_allowed(
    construct: Callable[[Suspended, float], Awaitable[None]],
) -> None:
    async def handler(run: Suspended) -> None:
        run.limit_s = 300
        await construct(run, 299.0)

    async with suspended(handler) as run:
        assert run.waiting
        assert run.blocker is not None


async def test_the_refusal_names_the_place() -> None:
    async def handler(_run: Suspended) -> None:
        task = asyncio.current_task()
        assert task is not None
        with anyio.fail_after(3600), pytest.raises(RawTimeoutError) as refused:
            check_raw_timeout(task)
        said.append(str(refused.value))

    said: list[str] = []
    async with suspended(handler):
        pass

    assert "test_suspension_raw_timeouts.py:" in said[0]
    assert "handler" in said[0]
    assert "goes off in 3600 s" in said[0]


async def test_the_limit_is_five_minutes() -> None:
    assert LIMIT_S == 300


# ---- what counts as none


async def never(run: Suspended) -> None:
    async with asyncio.timeout(None):
        await run.wait()


async def taken_back(run: Suspended) -> None:
    async with asyncio.timeout(1000) as opened:
        opened.reschedule(None)
        await run.wait()


async def left(run: Suspended) -> None:
    async with asyncio.timeout(1000) as opened:
        await asyncio.sleep(0)
    with anyio.move_on_after(1000) as scope:
        await asyncio.sleep(0)
    await run.wait()
    assert opened
    assert scope


async def not_entered(run: Suspended) -> None:
    kept = [asyncio.timeout(1000), anyio.CancelScope(deadline=anyio.current_time() + 1000), asyncio.timeout_at(1)]
    first = kept[0]
    await run.wait()
    assert first


async def endless_scope(run: Suspended) -> None:
    with anyio.CancelScope(), anyio.move_on_after(None), anyio.CancelScope(deadline=math.inf):
        await run.wait()


async def scope_made_endless(run: Suspended) -> None:
    with anyio.move_on_after(1000) as opened:
        opened.deadline = math.inf
        await run.wait()


async def endless_wait_for(run: Suspended) -> None:
    await asyncio.wait_for(run.wait(), None)


async def gone_off(run: Suspended) -> None:
    async with asyncio.timeout(0):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await run.wait()


async def endless_group(run: Suspended) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(run.wait)


async def timer_of_a_client(run: Suspended) -> None:
    """A client that has timers of its own, as connection pools have."""

    class Client:
        def __init__(self) -> None:
            self.timer = asyncio.get_running_loop().call_later(1000, self.close)

        def close(self) -> None: ...

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None:
            self.timer.cancel()

    async with Client():
        await run.wait()


NONE = [
    never,
    taken_back,
    left,
    not_entered,
    endless_scope,
    scope_made_endless,
    endless_wait_for,
    gone_off,
    endless_group,
    timer_of_a_client,
]


@pytest.mark.parametrize("construct", NONE)
async def test_what_is_no_open_timeout_does_not_keep_the_run(construct: Handler) -> None:
    async def handler(run: Suspended) -> None:
        run.limit_s = 0
        await construct(run)

    async with suspended(handler) as run:
        root = run.branches.root.task
        assert root is not None

        assert open_timeout(root) is None
        assert run.blocker is None


async def test_a_timeout_of_somebody_elses_task_does_not_keep_the_run() -> None:
    async with asyncio.timeout(1000) as opened, suspended(lambda run: run.wait()) as run:

        async def handler(inner: Suspended) -> None:
            theirs = opened
            await inner.wait()
            assert theirs

        assert run.blocker is None
        async with suspended(handler) as other:
            assert other.blocker is None


async def test_a_siblings_timeout_over_its_own_work_is_no_ones_elses() -> None:
    stop = asyncio.Event()

    async def works() -> None:
        async with asyncio.timeout(1000):
            await stop.wait()

    async def handler(run: Suspended) -> None:
        run.limit_s = 300
        async with asyncio.TaskGroup() as group:
            group.create_task(works())
            await asyncio.sleep(0)
            group.create_task(run.wait())

    async with suspended(handler) as run:
        assert run.waiting
        assert run.blocker is not None
        stop.set()
        await rounds()

        assert run.blocker is None


async def test_a_timeout_over_the_body_of_a_group_is_not_around_its_children() -> None:
    async def handler(run: Suspended) -> None:
        run.limit_s = 300
        async with asyncio.TaskGroup() as group:
            group.create_task(run.wait())
            async with asyncio.timeout(1000):
                await asyncio.sleep(0)

    async with suspended(handler) as run:
        assert run.waiting
        assert run.blocker is None


async def test_a_shield_keeps_a_parents_timeout_from_a_wait() -> None:
    async def handler(run: Suspended) -> None:
        run.limit_s = 300
        async with asyncio.timeout(1000):
            await asyncio.shield(asyncio.create_task(run.wait()))

    async with suspended(handler) as run:
        assert run.waiting
        assert run.blocker is not None


# ---- the nearest, and timers


async def test_of_several_timeouts_the_nearest_counts() -> None:
    loop = asyncio.get_running_loop()

    async def handler(run: Suspended) -> None:
        async with asyncio.timeout(2000), hidden(500), asyncio.timeout(1000):
            with anyio.move_on_after(3000):
                await run.wait()

    async with suspended(handler) as run:
        root = run.branches.root.task
        assert root is not None
        when = open_timeout(root)

    assert when is not None
    assert when - loop.time() < 501


async def test_a_near_timeout_within_a_far_one_is_allowed() -> None:
    async def handler(run: Suspended) -> None:
        run.limit_s = 300
        async with asyncio.timeout(2000), asyncio.timeout(100):
            await run.wait()

    async with suspended(handler) as run:
        assert run.waiting


class Opaque:
    """A context manager that leads nowhere: its timeout is in an object that is no context manager."""

    def __init__(self) -> None:
        self.inside = Inside()

    async def __aenter__(self) -> None:
        await self.inside.scope.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self.inside.scope.__aexit__(*error)


class Inside:
    def __init__(self) -> None:
        self.scope = asyncio.timeout(1000)


async def timer_for_the_task(run: Suspended) -> None:
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(1000, task.cancel)
    try:
        await run.wait()
    finally:
        timer.cancel()


async def hidden_too_deep(run: Suspended) -> None:
    async with Opaque():
        await run.wait()


@pytest.mark.parametrize("construct", [timer_for_the_task, hidden_too_deep])
async def test_a_timer_that_aims_at_a_task_keeps_the_run(construct: Handler) -> None:
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_scheduled"):
        pytest.skip("TIMERS OF UVLOOP ARE NOT TESTED: it does not show them")

    async with suspended(construct) as run:
        blocker = run.look()

    assert blocker is not None
    assert blocker.timeout is not None
    assert blocker.timeout > loop.time() + 990


async def test_many_objects_around_a_wait_are_looked_at_in_bounds() -> None:
    class Session:
        def __init__(self, depth: int) -> None:
            self.inner = [Session(depth - 1) for _ in range(6)] if depth else []

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    async def handler(run: Suspended) -> None:
        with Session(6):
            await run.wait()

    async with suspended(handler) as run:
        assert run.blocker is None


async def test_a_task_that_never_began_has_no_timeout() -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(0))

    assert open_timeout(task) is None
    await task
    assert open_timeout(task) is None


async def test_a_wait_without_timeouts_passes_the_check() -> None:
    task = asyncio.current_task()
    assert task is not None

    check_raw_timeout(task, limit_s=0)
