"""Sync handlers start children and map functions as async ones do, in plain calls."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from kedge.errors import (
    ChildFailedError,
    HandlerUseError,
    RunExistsError,
    StepFailedError,
    WrongThreadError,
)
from kedge.refs import WorkflowRef
from kedge.retry import Retry
from kedge_worker._definitions import step
from kedge_worker._outcomes import End, GiveBack, Park
from kedge_worker._runs import Started
from kedge_worker._sync_context import SyncContext
from tests.unit.worker.families import children, deliver, ended, failed, groups, watch_letters
from tests.unit.worker.journal import Lives, bound

double = WorkflowRef("double", int, int)
keyed = WorkflowRef("keyed", int, int, key=lambda n: f"n:{n}")


def unannotated(fn: Callable[[int], Any]) -> Callable[[int], Any]:
    """A lambda: only a call tells what it makes."""
    return fn


def call_once(ctx: SyncContext) -> int:
    return ctx.call("a", double(1))


async def test_a_call_is_started_and_parked_in_one_flush_and_answered_in_the_next_life() -> None:
    async with Lives(bound(call_once)) as lives:
        claimed, move = await lives.run()
        assert isinstance(move, Park)
        (child,) = children(lives.journal)
        assert (child.key, child.watched) == ("a", True)
        first = lives.result(await lives.again(claimed, mail=(ended("a", 2),)))
        again = lives.result(await lives.again(claimed))

        assert first == again == 2
        assert lives.journal.keys(claimed.id) == [("n", "a/start"), ("c", "a")]
        assert len(children(lives.journal)) == 1


async def test_an_end_that_comes_while_the_thread_waits_is_answered_at_once() -> None:
    async with Lives(bound(call_once), linger_s=60) as lives:
        claimed = lives.begin()
        await until_slowly(lambda: claimed.id in lives.executor.waiting)
        await deliver(lives, claimed.id, ended("a", 2))

        assert lives.result(await lives.journal.moved(claimed.id)) == 2


async def test_a_start_goes_on_and_its_result_is_waited_for_later() -> None:
    shown: list[str] = []

    def handler(ctx: SyncContext) -> list[Any]:
        child = ctx.start("a", double(1), on_parent_end="cancel")
        shown.append(repr(child))
        return [ctx.step("s", str, child.run_id), child.result(), child.result()]

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        (child,) = children(lives.journal)
        assert (child.dependent, child.watched) == (True, False)
        assert watch_letters(lives.journal) == [(child.id, "a/result")]
        await lives.again(claimed, mail=(ended("a/result", 2),))
        move = await lives.again(claimed, mail=(ended("a/result#2", 2),))

        assert lives.result(move) == [str(child.id), 2, 2]
        assert shown[0] == f"<SyncChild double {child.id}>"


async def test_a_failed_child_raises_live_and_on_replay() -> None:
    caught: list[ChildFailedError] = []

    def handler(ctx: SyncContext) -> str:
        try:
            ctx.call("a", double(1))
        except ChildFailedError as error:
            caught.append(error)
        return ctx.step("after", str, "on")

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        await lives.again(claimed, mail=(failed("a"),))
        move = await lives.again(claimed)

        assert lives.result(move) == "on"
        assert caught[0].args == caught[1].args
        assert len(caught) == 2


async def test_a_refused_start_raises_live_and_on_replay() -> None:
    caught: list[RunExistsError] = []

    def handler(ctx: SyncContext) -> str:
        for ask in (ctx.call, ctx.start):
            try:
                ask(ask.__name__, keyed(1))
            except RunExistsError as error:
                caught.append(error)
        return ctx.step("after", str, "on")

    async with Lives(bound(handler)) as lives:
        lives.child_starts.answers = [Started(uuid4(), "exists"), Started(uuid4(), "active")]
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "on"
        assert [error.args for error in caught[:2]] == [error.args for error in caught[2:]]
        assert len(lives.child_starts.asked) == 2


async def test_another_child_in_its_place_is_a_mismatch() -> None:
    for how in ("call", "start"):
        inputs = [1, 2]

        def handler(ctx: SyncContext) -> Any:
            return str(getattr(ctx, how)("a", double(inputs.pop(0))))  # noqa: B023

        async with Lives(bound(handler)) as lives:
            claimed, _ = await lives.run()
            move = await lives.again(claimed)

            assert isinstance(move, GiveBack)
            assert "has started 'double' with another input" in str(move.reason)


async def test_a_map_of_steps_runs_in_as_many_threads_as_there_are() -> None:
    together = threading.Barrier(3, timeout=10)

    def body(item: int) -> int:
        together.wait()
        return 10 * item

    def handler(ctx: SyncContext) -> list[int]:
        return ctx.map("m", body, [3, 1, 2])

    async with Lives(bound(handler), threads=3) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == [30, 10, 20]
        assert sorted(lives.journal.keys(claimed.id)) == [("s", "m[0]"), ("s", "m[1]"), ("s", "m[2]")]


@pytest.mark.parametrize("up_to", range(4))
async def test_a_map_of_steps_goes_on_where_it_was_cut(up_to: int) -> None:
    done: list[int] = []

    def body(item: int) -> int:
        done.append(item)
        return 10 * item

    def handler(ctx: SyncContext) -> list[int]:
        before = ctx.map("m", body, range(2))
        return [*before, ctx.step("s", body, 7)]

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        done.clear()
        move = await lives.again(claimed, up_to=up_to)

        assert lives.result(move) == [0, 10, 70]
        assert len(done) == 3 - up_to


async def test_the_first_failure_of_a_map_is_raised_live_and_on_replay() -> None:
    caught: list[StepFailedError] = []

    def handler(ctx: SyncContext) -> str:
        try:
            ctx.map("m", lambda item: 1 // item, [1, 0, 2])
        except StepFailedError as error:
            caught.append(error)
        return ctx.step("after", str, "on")

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "on"
        assert [error.key for error in caught] == ["m[1]", "m[1]"]


async def test_steps_of_a_map_that_are_to_be_tried_again_much_later_leave_memory() -> None:
    tried: list[int] = []

    @step(retry=Retry(3, initial="1h", maximum="1h", jitter=False))
    def flaky(item: int) -> int:
        tried.append(item)
        if item == 1 and tried.count(1) < 2:
            raise ValueError("not yet")
        return 10 * item

    def handler(ctx: SyncContext) -> list[int]:
        return ctx.map("m", flaky, range(3))

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert isinstance(move, Park)
        lives.journal.now_s += 3600
        move = await lives.again(claimed)

        assert lives.result(move) == [0, 10, 20]
        assert sorted(tried) == [0, 1, 1, 2]


async def test_a_map_of_children_is_parked_as_one_wait() -> None:
    by_lambda: Callable[[int], Any] = unannotated(lambda n: double(n, tags=["mapped"]))
    for fn in (double, by_lambda):

        def handler(ctx: SyncContext) -> list[int]:
            return ctx.map("m", fn, range(50), limit=20)  # noqa: B023

        async with Lives(bound(handler)) as lives:
            claimed, move = await lives.run()
            assert isinstance(move, Park)
            assert groups(lives.journal)[:2] == [("m[0]", 10, "m"), ("m[1]", 10, "m")]
            for told in range(0, 50, 10):
                move = await lives.again(claimed, mail=tuple(ended(f"m[{n}]", 2 * n) for n in range(told, told + 10)))

            assert lives.result(move) == [2 * n for n in range(50)]
            assert len(children(lives.journal)) == 50


async def test_a_cancelled_run_leaves_its_map() -> None:
    began = threading.Event()
    go_on = threading.Event()

    def body(_: int) -> None:
        began.set()
        go_on.wait(10)

    def handler(ctx: SyncContext) -> Any:
        return ctx.map("m", body, [1, 2])

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin()
        await until_slowly(began.is_set)
        lives.executor.ask(claimed.id, "x", "enough")
        move = await lives.journal.moved(claimed.id)
        go_on.set()

        assert isinstance(move, End)
        assert move.status == "x"


async def test_async_functions_and_wrong_threads_are_refused() -> None:
    async def body(item: int) -> int:
        return item

    def other(ctx: SyncContext) -> str:
        with pytest.raises(WrongThreadError):
            ctx.call("a", double(1))
        return "refused"

    def handler(ctx: SyncContext) -> list[str]:
        with pytest.raises(HandlerUseError, match="make the handler async"):
            ctx.map("m", body, [1])
        return ctx.map("threads", lambda _: other(ctx), [1])

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert lives.result(move) == ["refused"]


async def until_slowly(question: Any) -> None:
    """As `until`, for what another thread brings about."""
    async with asyncio.timeout(10):
        while not question():
            await asyncio.sleep(0.001)
