"""What a worker holds of large payloads: as much as its slots have room for, and nothing of a run that has left."""

import asyncio
import gc
from collections.abc import Callable, Generator

import pytest

from kedge import EventRef
from kedge.refs import WorkflowRef
from kedge_client import AsyncClient
from kedge_worker import Context, Worker, workflow
from kedge_worker._execution import Execution
from kedge_worker._life import Life
from kedge_worker._runs import LiveRun, Row
from kedge_worker._statements import CLAIM_BYTES
from tests.collector import without_collector
from tests.scenarios.stage import Stage, stage

MIB = 1024 * 1024
PAGES = 5
SLOTS = 6

echo = WorkflowRef("echo", str, str)
book = WorkflowRef("book", None, int)
paid = EventRef("paid", None)


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as opened:
        yield opened


async def until(happened: Callable[[], bool]) -> None:
    """The limit is for a broken build, not a promise."""
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.005)


def alive() -> list[object]:
    """What there is of runs, whether somebody holds it or it only waits for the collector."""
    return [one for one in gc.get_objects() if type(one) in (LiveRun, Execution, Row)]


async def same(text: str) -> str:
    return text


@workflow(echo)
async def handle_echo(ctx: Context, text: str) -> str:
    return await ctx.step("same", same, text)


async def test_of_runs_that_have_ended_nothing_is_held_not_even_for_the_garbage_collector(database_url: str) -> None:
    async with (
        AsyncClient.connect(database_url) as client,
        Worker(database_url, workflows=[handle_echo], grace="1s"),
    ):
        with without_collector():
            before = len(alive())
            runs = await client.start_many([echo("x" * 100_000) for _ in range(30)])
            for run in runs:
                await run.result(timeout=20)
            await until(lambda: len(alive()) <= before)


class Library:
    """Books of five pages, each of a MiB. A reader comes in, reads them all, and stays until he is let go."""

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self.may_read = asyncio.Event()
        self.may_leave = asyncio.Event()
        self.inside = 0
        self.have_read = 0
        self._look = look

    async def page(self) -> str:
        return "0" * (MIB - 3)

    async def read(self, ctx: Context) -> int:
        self.inside += 1
        self._look()
        await self.may_read.wait()
        for _ in range(PAGES):
            await ctx.step("page", self.page)
        await ctx.wait_for("paid", paid)
        self.have_read += 1
        await self.may_leave.wait()
        return PAGES


def held(life: Life) -> int:
    """Bytes of kept values that the engine has in memory."""
    return sum(len(row.value) for run in life.executor.runs.values() for row in run.claimed.memo)


async def test_a_worker_takes_up_only_as_many_journals_as_its_slots_have_room_for(play: Stage) -> None:
    library = Library()
    library.may_read.set()
    runs = [await play.play(book(), workflow(book)(library.read)) for _ in range(SLOTS)]
    for run in runs:
        run.send(paid())

    lives: list[Life] = []
    seen: list[int] = []
    library = Library(lambda: seen.append(held(lives[0])))
    worker = Worker(play.url, workflows=[workflow(book)(library.read)], concurrency=SLOTS)
    async with worker._one_life() as life:
        lives.append(life)
        await life.courier.sort_all()
        taken = await life.claimer.look()
        await until(lambda: library.inside == taken.runs)

        assert PAGES * MIB <= held(life) <= CLAIM_BYTES + PAGES * MIB
        assert (taken.is_full, life.claimer.is_full) == (True, True)

        # What has been read again is not in memory any more, and its slots are free, though the runs go on.
        library.may_read.set()
        await until(lambda: library.have_read == taken.runs)
        while library.inside < SLOTS:
            await life.claimer.look()
            await asyncio.sleep(0)
        await until(lambda: library.have_read == SLOTS)

        assert (held(life), len(life.executor.runs)) == (0, SLOTS)
        assert max(seen) <= CLAIM_BYTES + PAGES * MIB
        library.may_leave.set()
        await until(lambda: not life.executor.runs)
    assert [run.result() for run in runs] == [PAGES] * SLOTS
