"""Runs of the solo lanes in a worker that no child process can import: executed in it, and nothing beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from kedge import WorkflowRef
from kedge_client import AsyncClient
from kedge_worker import Context, Worker, _watchman, workflow
from kedge_worker._solo import Target
from tests import moves
from tests.sessions import Session

PATIENCE_S: Final = 60.0

order = WorkflowRef(moves.WORKFLOW, str, str)


class Bench:
    """A worker whose handlers say when they begin, and end when they are told to."""

    def __init__(self, url: str) -> None:
        self.said: list[str] = []
        self.may_end: dict[str, asyncio.Event] = {}
        self._news = asyncio.Condition()

        @workflow(order)
        async def execute(ctx: Context, name: str) -> str:
            await self.say(f"{name} begins")
            await self.may_end.setdefault(name, asyncio.Event()).wait()
            await self.say(f"{name} ends")
            return name

        self.worker = Worker(url, workflows=[execute], lease="60s", poll="1s")

    async def say(self, what: str) -> None:
        self.said.append(what)
        async with self._news:
            self._news.notify_all()

    async def hear(self, what: str) -> None:
        """Return when it has been said."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: what in self.said)

    def let_end(self, *names: str) -> None:
        for name in names:
            self.may_end.setdefault(name, asyncio.Event()).set()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[str], asyncio.Event]]:
    """Answers an event that is set when a line of the log begins so; the looks into solo lanes come close together."""
    monkeypatch.setattr(_watchman, "_SOLO_PATIENCE_S", 0.0)
    monkeypatch.setattr(_watchman, "_PERIOD_S", 0.05)
    monkeypatch.setattr(_watchman, "_QUIET_PERIOD_S", 0.05)
    awaited: list[tuple[str, asyncio.Event]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for beginning, event in awaited:
                if record.getMessage().startswith(beginning):
                    event.set()

    handler = Handler()
    logging.getLogger("kedge.worker").addHandler(handler)

    def wait_for(beginning: str) -> asyncio.Event:
        awaited.append((beginning, asyncio.Event()))
        return awaited[-1][1]

    yield wait_for
    logging.getLogger("kedge.worker").removeHandler(handler)


def start_solo(db: Session, name: str) -> UUID:
    """A run that has crashed twice; no worker has a chance to claim it before."""
    (run,) = moves.started(db, data=f'\x01"{name}"'.encode(), queue="elsewhere")
    db.rows(
        "update kedge.runs set queue = kedge.solo_lane($2), crashes = 2, epoch = 4 where id = $1", (run, moves.QUEUE)
    )
    return run


async def test_a_worker_that_no_child_can_import_executes_a_solo_run_when_it_is_empty_and_claims_nothing_beside_it(
    database_url: str, db: Session, logged: Callable[[str], asyncio.Event]
) -> None:
    bench = Bench(database_url)
    async with AsyncClient.connect(database_url) as client, bench.worker:
        before = await client.start(order("before"))
        await bench.hear("before begins")
        is_waiting = logged("solo: this worker executes alone")
        for name in ("solo0", "solo1"):
            start_solo(db, name)
        async with asyncio.timeout(PATIENCE_S):
            await is_waiting.wait()

        while_it_waits = list(bench.said)
        bench.let_end("before")
        await bench.hear("solo0 begins")
        after = await client.start(order("after"))
        bench.let_end("after", "solo0", "solo1")
        results = [await handle.result(timeout=PATIENCE_S) for handle in (before, after)]

    assert results == ["before", "after"]
    assert while_it_waits == ["before begins"]
    assert bench.said == [
        f"{name} {what}" for name in ("before", "solo0", "solo1", "after") for what in ("begins", "ends")
    ]
    assert set(moves.statuses(db).values()) == {"completed"}


async def test_a_worker_whose_children_do_not_come_to_work_executes_solo_runs_itself(
    database_url: str, db: Session, tmp_path: Path, logged: Callable[[str], asyncio.Event]
) -> None:
    bench = Bench(database_url)
    bench.worker.target = Target("no.such.module:worker", str(tmp_path))
    bench.let_end("solo")
    run = start_solo(db, "solo")
    failed = logged("solo: process")
    async with bench.worker:
        await bench.hear("solo ends")

    assert failed.is_set()
    assert moves.status(db, run) == "completed"
