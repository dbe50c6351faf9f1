"""A worker's write path without handlers: its row, its journal connection, its flusher, and what the flusher says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID, uuid4

from kedge_worker._claims import LOWEST, ClaimAnswer, ClaimRequest, Lane
from kedge_worker._errors import PostgresError
from kedge_worker._flusher import Flusher
from kedge_worker._leased_store import LeasedStore
from kedge_worker._outcomes import End, GiveBack
from kedge_worker._runs import Batch, ClaimedRun, LiveRun, Row
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Store
from tests import moves

PATIENCE_S: Final = 10.0
COMPLETED: Final = End("c", output=b"\x01null")
FAILED: Final = End("f", error=b"\x01{}")
CANCELLED: Final = End("x", reason="enough")
GIVEN_BACK: Final = GiveBack()


class Writer:
    """
    Implements `FlushEvents` as a worker's life does, and remembers what it is told.

    `runs` is what it has in memory; a claim is asked for by `claim` and never by itself.
    """

    def __init__(self, url: str, *, lease_s: float = 60.0, timeout_s: float = 5.0) -> None:
        self.settings = WorkerSettings(database_url=url, lease_s=lease_s)
        self.id = uuid4()
        self.control = Store(self.settings.control_conninfo(), worker_id=self.id, schema="kedge", timeout_s=timeout_s)
        self.store = LeasedStore(
            self.settings.journal_conninfo(), worker_id=self.id, schema="kedge", timeout_s=timeout_s
        )
        self.flusher = Flusher(self.store, self)
        self.runs: dict[UUID, LiveRun] = {}
        self.moved: list[LiveRun] = []
        self.lost: list[LiveRun] = []
        self.refusals: list[tuple[LiveRun, PostgresError]] = []
        self.given_back: dict[UUID, int] = {}
        self.compared: list[dict[UUID, int]] = []
        """What each comparison with the database found that is not in memory."""
        self.begun: list[UUID] = []
        """The claimed runs whose handlers would be executed."""
        self.unanswered_claims = 0
        self._wants = 0
        self._answers: list[list[LiveRun]] = []
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def register(self) -> None:
        await self.control.register(
            lease_s=self.settings.lease_s, name="writer", queues=[moves.QUEUE], workflows=[moves.WORKFLOW]
        )

    async def connect(self) -> None:
        await self.register()
        await self.store.connect()

    def run(self) -> asyncio.Task[None]:
        """Start the flusher's one task."""
        self._task = asyncio.create_task(self.flusher.run())
        self._task.add_done_callback(lambda _: self._tell())
        return self._task

    async def claim(self, limit: int = 100) -> list[LiveRun]:
        """Claim through the flusher; a claim whose answer is lost is repeated, as a worker does."""
        self._wants = limit
        self.flusher.poke()
        await self.until(lambda: bool(self._answers))
        return self._answers.pop()

    async def until(self, happened: Callable[[], bool]) -> None:
        """Return when it is so; fails when the flusher's task ends instead."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            while not happened():
                if self._task is not None and self._task.done():
                    self._task.result()
                    raise AssertionError("the flusher has returned")
                await self._news.wait()

    async def settled_all(self, runs: Sequence[LiveRun]) -> None:
        """Return when all of these have left."""
        await self.until(lambda: {id(run) for run in runs} <= {id(run) for run in self.moved + self.lost})

    async def aclose(self) -> None:
        self.flusher.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.store.abort()
        await self.control.aclose()

    # ---- FlushEvents

    def wanted_claim(self, ending: int, *, coming: int) -> ClaimRequest | None:  # noqa: ARG002  # the protocol's
        if not self._wants:
            return None
        return ClaimRequest(self._wants, lanes(), {})

    def claimed(self, answer: ClaimAnswer) -> None:
        self._wants = 0
        runs = [live(run) for run in answer.runs]
        self.runs.update({run.claimed.id: run for run in runs})
        self._answers.append(runs)
        self._tell()

    def begin(self, runs: Sequence[ClaimedRun]) -> None:
        self.begun += [run.id for run in runs]
        self._tell()

    def unclaimed(self, error: PostgresError) -> None:  # noqa: ARG002  # the protocol's
        self.unanswered_claims += 1
        self._tell()

    async def reconnected(self) -> None:
        self._tell()
        known = {run_id: run.claimed.epoch for run_id, run in self.runs.items()}
        owned = await self.store.owned()
        unknown = {run_id: epoch for run_id, epoch in owned.items() if known.get(run_id) != epoch}
        if unknown:
            await self.store.give_back(unknown)
        self.given_back.update(unknown)
        self.compared.append(unknown)
        self._tell()

    def settled(self, moved: Sequence[LiveRun], lost: Sequence[LiveRun]) -> None:
        for run in (*moved, *lost):
            self.runs.pop(run.claimed.id, None)
        self.moved += moved
        self.lost += lost
        self._tell()

    def sent(self, batch: Batch) -> None:
        """Nobody is rung."""

    def has_mail(self) -> None:
        """Nobody sorts here."""

    def refused(self, run: LiveRun, error: PostgresError) -> None:
        self.refusals.append((run, error))
        self._tell()

    # ---- inside

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._news:
                self._news.notify_all()

        task = asyncio.ensure_future(tell())
        self._telling = task


@asynccontextmanager
async def open_writer(url: str, *, lease_s: float = 60.0, timeout_s: float = 5.0) -> AsyncGenerator[Writer]:
    """A registered writer whose flusher runs."""
    writer = Writer(url, lease_s=lease_s, timeout_s=timeout_s)
    try:
        await writer.connect()
        writer.run()
        yield writer
    finally:
        await writer.aclose()


@asynccontextmanager
async def open_store(url: str, *, lease_s: float = 60.0, timeout_s: float = 5.0) -> AsyncGenerator[Writer]:
    """A registered writer whose store the test uses by itself, without a flusher."""
    writer = Writer(url, lease_s=lease_s, timeout_s=timeout_s)
    try:
        await writer.connect()
        yield writer
    finally:
        await writer.aclose()


def lanes(*names: str, floors: Mapping[Lane, tuple[int, int]] | None = None) -> dict[Lane, tuple[int, int]]:
    """The lanes of a claim, from their beginning or from a floor."""
    wanted = [(moves.QUEUE, name) for name in names or (moves.WORKFLOW,)]
    return {lane: (floors or {}).get(lane, LOWEST) for lane in wanted}


def live(claimed: ClaimedRun) -> LiveRun:
    """A run in memory, as its owner holds it."""
    return LiveRun(claimed, claimed.next_seq)


def batch(*runs: tuple[LiveRun, int, End | GiveBack | None]) -> Batch:
    """One flush: so many new rows of each run, and its move."""
    flush = Batch()
    for run, rows, move in runs:
        for _ in range(rows):
            seq = run.take_seq()
            flush.rows.append(Row(run, seq, "s", f"step{seq}", b"\x01%d" % seq))
        if move is not None:
            flush.moves.append((run, move))
        run.batch = flush
    return flush
