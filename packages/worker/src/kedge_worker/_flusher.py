"""
Gathers all runs' writes into one flush at a time: while one is in flight the next batch gathers, without a timer.

Claims ride in the same round trip, so that the worker's row has one locker. What is not known to be stored is settled
by reading before anything is repeated; what the database refuses is cut down to the one run that it refuses.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from kedge_worker._errors import PostgresError, does_not_fit, is_gone, is_lease_lost, is_locked, is_temporary
from kedge_worker._runs import Batch, LiveRun, Row
from kedge_worker._signals import LeaseLostError

if TYPE_CHECKING:
    from kedge_worker._leased_store import ClaimAnswer, ClaimRequest, LeasedStore
    from kedge_worker._outcomes import Move, RowKind

_log: Final = logging.getLogger("kedge.worker")

MAX_ROWS: Final = 500
MAX_BYTES: Final = 8 * 1024 * 1024
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0


class FlushEvents(Protocol):
    """What a flusher tells and asks its worker."""

    def wanted_claim(self, ending: int) -> ClaimRequest | None:
        """What to claim in this round trip, in which `ending` runs leave; None: nothing."""
        ...

    def claimed(self, answer: ClaimAnswer) -> None:
        """The claim's answer."""
        ...

    def unclaimed(self) -> None:
        """The claim that was wanted has not been answered, or not been sent."""
        ...

    async def reconnected(self) -> None:
        """A new connection stands: a claim's answer may have been lost with the old one."""
        ...

    def settled(self, moved: Sequence[LiveRun], lost: Sequence[LiveRun]) -> None:
        """These runs have left this worker: by their own move, or because somebody else owns them."""
        ...

    def refused(self, run: LiveRun, error: PostgresError) -> None:
        """The database refuses the data of this run, and of this run only."""
        ...


class Flusher:
    """Implements `Journal` on a `LeasedStore`; `run` is its one task and the only user of the store."""

    def __init__(self, store: LeasedStore, events: FlushEvents) -> None:
        self._store = store
        self._events = events
        self._queue: deque[Batch] = deque((Batch(),))
        self._wake = asyncio.Event()
        self._busy = False
        self._closing = False
        self._compare = False
        self._idle_waiters: list[asyncio.Future[None]] = []

    # ---- what the executor and the context use

    def keep(self, run: LiveRun, kind: RowKind, key: str, value: bytes, *, took_ms: int = 0, meta: bytes = b"") -> int:
        seq = run.take_seq()
        batch = self._queue[-1]
        if len(batch.rows) >= MAX_ROWS or batch.size >= MAX_BYTES:
            batch = Batch()
            self._queue.append(batch)
        batch.rows.append(Row(run, seq, kind, key, value, meta, took_ms))
        batch.size += len(value) + len(meta) + 100
        run.batch = batch
        self._wake.set()
        return seq

    async def durable(self, run: LiveRun) -> None:
        while not run.lost:
            batch = run.batch
            if batch is None or batch.stored:
                return
            waiter = asyncio.get_running_loop().create_future()
            batch.waiters.append(waiter)
            await waiter
        raise LeaseLostError

    def move(self, run: LiveRun, move: Move) -> None:
        if run.lost:
            self._events.settled((), (run,))
            return
        batch = self._queue[-1]
        if len(batch.moves) >= MAX_ROWS:
            batch = Batch()
            self._queue.append(batch)
        batch.moves.append((run, move))
        run.batch = batch
        self._wake.set()

    # ---- the one task

    def poke(self) -> None:
        """There may be something to claim."""
        self._wake.set()

    def compare_soon(self) -> None:
        """Compare what the database holds for this worker with what is in memory, before the next write."""
        self._compare = True
        self._wake.set()

    async def drained(self) -> None:
        """Return when nothing is queued or in flight."""
        while self._busy or self._pending():
            waiter = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def close(self) -> None:
        """Let `run` return; what is still queued stays unwritten."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """
        Write until closed.

        Raises:
            LeaseLostError: This worker's row is gone.
            PostgresError: The schema or the privileges do not fit.
        """
        while not self._closing:
            self._wake.clear()
            if self._compare:
                await self._compare_now()
            claim = self._events.wanted_claim(len(self._queue[0].moves))
            if not self._pending() and claim is None:
                self._busy = False
                for waiter in self._idle_waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._idle_waiters.clear()
                await self._wake.wait()
                continue
            self._busy = True
            batch = self._queue.popleft()
            if not self._queue:
                self._queue.append(Batch())
            await self._write(batch, claim)

    async def _compare_now(self) -> None:
        self._compare = False
        try:
            await self._events.reconnected()
        except PostgresError as error:
            if is_lease_lost(error):
                raise LeaseLostError from error
            _log.warning("journal: %s", error)

    def _pending(self) -> bool:
        head = self._queue[0]
        return bool(head.rows or head.moves) or len(self._queue) > 1

    async def _write(self, batch: Batch, claim: ClaimRequest | None) -> None:
        pause_s = _FIRST_PAUSE_S
        while batch.rows or batch.moves or claim is not None:
            try:
                answer = await self._store.flush(batch, claim)
            except PostgresError as error:
                if claim is not None:
                    claim = None  # asked for again when this is over
                    self._events.unclaimed()
                batch = await self._after(error, batch, pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            if answer.kept == len(batch.rows) and answer.moved == len(batch.moves):
                self._stored(batch)
                batch = _NOTHING
            else:
                batch = await self._settle_or_reconnect(batch)
            if answer.claim is not None:
                self._events.claimed(answer.claim)
            claim = None

    async def _after(self, error: PostgresError, batch: Batch, pause_s: float) -> Batch:
        """Deal with a refused or unanswered flush; answers what is still to be written."""
        if is_lease_lost(error):
            raise LeaseLostError from error
        if is_gone(error):
            _log.warning("journal: %s; reconnecting", error)
            await self._reconnect()
            return await self._settle_or_reconnect(batch)
        if is_locked(error):
            return await self._write_carefully(batch, pause_s)
        if is_temporary(error):
            _log.warning("journal: %s; repeating in %.2g s", error, pause_s)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  # jitter
            return batch
        if does_not_fit(error):
            raise error
        return await self._narrow_down(error, batch)

    async def _reconnect(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._store.connect()
                await self._events.reconnected()
            except (PostgresError, TimeoutError, OSError) as error:
                if is_lease_lost(error):
                    raise LeaseLostError from error
                if does_not_fit(error):
                    raise
                _log.warning("journal: cannot reconnect: %s; next try in %.2g s", error, pause_s)
            else:
                _log.info("journal: reconnected")
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  # jitter
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _settle_or_reconnect(self, batch: Batch) -> Batch:
        while True:
            try:
                return await self._settle(batch)
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                _log.warning("journal: %s; reconnecting to settle", error)
                await self._reconnect()

    async def _settle(self, batch: Batch) -> Batch:
        """Ask the database what became of each run of the batch; answers what must be written again."""
        runs = list(dict.fromkeys([row.run for row in batch.rows] + [run for run, _ in batch.moves]))
        if not runs:
            return _NOTHING
        standings = await self._store.settle(runs, batch.rows)
        moves = dict(batch.moves)
        moved: list[LiveRun] = []
        lost: list[LiveRun] = []
        again = Batch()
        for run in runs:
            standing = standings[run.claimed.id]
            rows = [row for row in batch.rows if row.run is run]
            missing = [row for row in rows if row.seq not in standing.rows]
            foreign = any(epoch != run.claimed.epoch for epoch in standing.rows.values())
            if standing.mine and not foreign:
                again.rows += missing
                if run in moves:
                    again.moves.append((run, moves[run]))
            elif run in moves and standing.epoch == run.claimed.epoch and not missing and not foreign:
                moved.append(run)
            else:
                lost.append(run)
        self._hand_over(batch, again, moved, lost)
        return again

    async def _write_carefully(self, batch: Batch, pause_s: float) -> Batch:
        """
        Somebody holds a row of this batch: lock the moving runs that are free in one round trip, write for those and
        for the runs that do not move. A run that was not obtained is put off whole, never in part.
        """
        try:
            free = await self._store.lock_moving(batch)
            now, later = _split(batch, lambda run: run.claimed.id in free, only_moving=True)
            answer = await self._store.flush(now, None, only=free)
        except PostgresError as error:
            if not is_locked(error):
                return await self._after(error, batch, pause_s)
            # Not a run but the worker's own row, or a table: nothing can be written for the moment.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  # jitter
            return batch
        if answer.kept != len(now.rows) or answer.moved != len(now.moves):
            again = await self._settle_or_reconnect(now)
            later.rows[:0] = again.rows
            later.moves[:0] = again.moves
        else:
            self._stored(now)
        for run in _runs(later):
            _take_with(run, batch, later)
        _wake(batch)
        if later.rows or later.moves:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  # jitter
        return later

    async def _narrow_down(self, error: PostgresError, batch: Batch) -> Batch:
        """An error about data: halve the batch down to the one run that fails alone."""
        runs = _runs(batch)
        if len(runs) == 1:
            run = runs[0]
            _log.error("run %s: Postgres refuses its data: %s", run.claimed.id, error.diag.message_primary)
            run.batch = None
            _wake(batch)
            self._events.refused(run, error)
            return _NOTHING
        half = set(runs[: len(runs) // 2])
        first, second = _split(batch, lambda run: run in half)
        for part in (first, second):
            for run in _runs(part):
                _take_with(run, batch, part)
        _wake(batch)
        await self._write(first, None)
        return second

    def _stored(self, batch: Batch) -> None:
        batch.stored = True
        for waiter in batch.waiters:
            if not waiter.done():
                waiter.set_result(None)
        if batch.moves:
            self._events.settled([run for run, _ in batch.moves], ())

    def _hand_over(self, batch: Batch, again: Batch, moved: list[LiveRun], lost: list[LiveRun]) -> None:
        for run in lost:
            run.lost = True
        for run in _runs(again):
            _take_with(run, batch, again)
        _wake(batch)
        if moved or lost:
            self._events.settled(moved, lost)


_NOTHING: Final = Batch()


def _runs(batch: Batch) -> list[LiveRun]:
    return list(dict.fromkeys([row.run for row in batch.rows] + [run for run, _ in batch.moves]))


def _take_with(run: LiveRun, old: Batch, new: Batch) -> None:
    if run.batch is old:
        run.batch = new


def _wake(batch: Batch) -> None:
    """Whoever waits looks again: its run is stored, lost, or in another batch by now."""
    batch.stored = True
    for waiter in batch.waiters:
        if not waiter.done():
            waiter.set_result(None)
    batch.waiters.clear()


def _split(batch: Batch, first: Callable[[LiveRun], bool], *, only_moving: bool = False) -> tuple[Batch, Batch]:
    """Two batches, each run whole in one of them; with `only_moving`, runs that do not move go into the first."""
    moving = {run for run, _ in batch.moves}
    one, other = Batch(), Batch()
    for row in batch.rows:
        (one if (only_moving and row.run not in moving) or first(row.run) else other).rows.append(row)
    for run, move in batch.moves:
        (one if first(run) else other).moves.append((run, move))
    return one, other
