"""
What stays in memory of a run: nothing when it has left, not even for the garbage collector, which counts no bytes; and
while it goes on what it still needs.
"""

import asyncio
import gc
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from kedge import EventRef
from kedge.refs import WorkflowRef
from kedge_worker._context import Context
from kedge_worker._execution import Execution
from kedge_worker._memo import Memo
from kedge_worker._runs import Mail, MemoRow
from kedge_worker._sync_context import SyncContext
from kedge_worker._waits import RunWaits
from kedge_worker._workflows import workflow
from tests.collector import without_collector
from tests.unit.worker.journal import START, Lives, bound

RUNS = 5
MIB = 1024 * 1024
paid = EventRef("paid", str)


def alive() -> list[str]:
    """What there is of runs, whether somebody holds it or it only waits for the collector."""
    kinds = (Execution, Memo, RunWaits, Context, SyncContext)
    return sorted(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)


async def echo(value: int) -> int:
    return value


def echo_sync(value: int) -> int:
    return value


async def refused() -> None:
    raise ValueError("no")


async def steps(ctx: Context) -> int:
    return await ctx.step("a", echo, 1) + await ctx.step("b", echo, 2)


async def branches(ctx: Context) -> tuple[int, int]:
    return await asyncio.gather(ctx.step("a", echo, 1), ctx.step("b", echo, 2))


async def failing(ctx: Context) -> None:
    await ctx.step("a", echo, 1)
    raise ValueError("no")


async def failing_step(ctx: Context) -> None:
    await ctx.step("a", refused)


async def parked(ctx: Context) -> str:
    return await ctx.wait_for("paid", paid)


async def metadata(ctx: Context) -> None:
    ctx.set_metadata(stage="a")
    await ctx.step("a", echo, 1)


def sync_steps(ctx: SyncContext) -> int:
    return ctx.step("a", echo_sync, 1) + ctx.step("b", echo_sync, 2)


def sync_failing(ctx: SyncContext) -> None:
    ctx.step("a", echo_sync, 1)
    raise ValueError("no")


HANDLERS: list[Callable[[Any], Any]] = [
    steps,
    branches,
    failing,
    failing_step,
    parked,
    metadata,
    sync_steps,
    sync_failing,
]


async def until_nothing_is_left(lives: Lives, before: list[str]) -> None:
    """A thread that has executed a handler lets it go a moment later."""
    async with asyncio.timeout(10):
        while lives.executor.runs or alive() != before:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
async def test_a_run_that_has_left_leaves_nothing_to_the_garbage_collector(handler: Callable[[Any], Any]) -> None:
    async with Lives(bound(handler)) as lives:
        with without_collector():
            before = alive()
            for _ in range(RUNS):
                await lives.run()

            await until_nothing_is_left(lives, before)


async def test_neither_does_one_that_comes_back_or_is_cancelled() -> None:
    async def handler(ctx: Context) -> str:
        await ctx.step("a", echo, 1)
        return await ctx.wait_for("paid", paid)

    async with Lives(bound(handler), linger_s=60) as lives:
        with without_collector():
            before = alive()
            claimed = lives.begin()
            await _waits(lives)
            lives.executor.ask(claimed.id, "x", "enough")
            await lives.journal.moved(claimed.id)
            await until_nothing_is_left(lives, before)
            again = lives.begin_again(claimed)
            await _waits(lives)
            lives.executor.ask(again.id, "s", None)
            await lives.journal.moved(again.id)

            await until_nothing_is_left(lives, before)


# ---- what a run needs no more while it goes on


def kept(key: str, seq: int, size: int) -> MemoRow:
    return MemoRow(seq, "s", key, b'\x01"' + b"0" * size + b'"', b"", START + timedelta(seconds=seq))


async def text() -> str:
    return "new"


async def test_an_input_is_forgotten_when_the_handler_has_it() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def handler(_: Context, given: str) -> int:
        begun.set()
        await may_end.wait()
        return len(given)

    made = workflow(WorkflowRef("test", str, int))(handler)
    async with Lives(made) as lives:
        claimed = lives.begin("x" * 10_000)
        await begun.wait()
        (run,) = lives.executor.runs.values()
        assert run.claimed.input == b""
        may_end.set()
        move = await lives.journal.moved(claimed.id)

        assert lives.result(move) == 10_000


async def test_a_journal_takes_a_slot_for_each_mib_until_it_is_handed_out() -> None:
    may_read, has_read, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(ctx: Context) -> list[Any]:
        await may_read.wait()
        await ctx.step("a", text)
        await ctx.step("b", text)
        told = ctx.now()
        has_read.set()
        await may_end.wait()
        return [await ctx.step("c", text), ctx.now() == told, told == START + timedelta(seconds=2)]

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin(memo=(kept("a", 1, MIB), kept("b", 2, 2 * MIB)), next_seq=3)
        (run,) = lives.executor.runs.values()
        assert (run.slots, lives.executor.more_slots, len(run.claimed.memo)) == (4, 3, 2)

        may_read.set()
        await has_read.wait()
        assert (run.slots, lives.executor.more_slots, run.claimed.memo) == (1, 0, ())
        assert lives.freed == 1

        may_end.set()
        move = await lives.journal.moved(claimed.id)
        assert lives.result(move) == ["new", False, True]


def sync_reader(ctx: SyncContext) -> list[int]:
    return [len(ctx.step("a", sync_text)), len(ctx.step("b", sync_text))]


def sync_text() -> str:
    return "new"


async def test_so_does_that_of_a_sync_handler() -> None:
    async with Lives(bound(sync_reader)) as lives:
        claimed = lives.begin(memo=(kept("a", 1, 2 * MIB),), next_seq=2)
        before = lives.executor.more_slots
        (run,) = lives.executor.runs.values()
        move = await lives.journal.moved(claimed.id)

        assert (before, lives.executor.more_slots, run.claimed.memo) == (2, 0, ())
        assert lives.result(move) == [2 * MIB, 3]


async def test_a_run_that_leaves_before_its_journal_is_handed_out_gives_its_slots_back() -> None:
    async def handler(ctx: Context) -> str:
        await asyncio.Event().wait()
        return await ctx.step("a", text)

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin(memo=(kept("a", 1, 3 * MIB),), next_seq=2)
        before = lives.executor.more_slots
        lives.executor.ask(claimed.id, "x", "enough")
        await lives.journal.moved(claimed.id)
        async with asyncio.timeout(10):
            while lives.executor.runs:
                await asyncio.sleep(0)

        assert (before, lives.executor.more_slots) == (3, 0)


async def test_unread_mail_takes_slots_as_long_as_it_is_unread() -> None:
    async def handler(ctx: Context) -> str:
        return await ctx.wait_for("other", paid)

    async with Lives(bound(handler), linger_s=60) as lives:
        lives.begin(mail=(Mail(uuid4(), 1, "e:late", b"\x01" + b"0" * 2 * MIB),))
        await _waits(lives)

        assert lives.executor.more_slots == 2


async def _waits(lives: Lives) -> None:
    async with asyncio.timeout(10):
        while not lives.executor.waiting:
            await asyncio.sleep(0)
