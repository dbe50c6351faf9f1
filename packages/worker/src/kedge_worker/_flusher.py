"""
Gathers all runs' writes into one flush at a time: while one is in flight the next batch gathers, without a timer.

Claims ride in the same round trip, so that the worker's row has one locker. What is not known to be stored is settled
by reading before anything is repeated; what the database refuses is cut down to the one run that it refuses; a run that
somebody has locked is put off, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from kedge_worker._backoff import Backoff
from kedge_worker._errors import PostgresError, does_not_fit, is_gone, is_lease_lost, is_locked, is_temporary
from kedge_worker._outcomes import End
from kedge_worker._runs import Batch, ClaimedRun, LiveRun, Row
from kedge_worker._side_writes import SEND_LETTERS, START_CHILDREN
from kedge_worker._signals import ClosedError, LeaseLostError

if TYPE_CHECKING:
    from kedge_worker._claims import ClaimAnswer, ClaimRequest
    from kedge_worker._leased_store import LeasedStore
    from kedge_worker._outcomes import Move, RowKind
    from kedge_worker._side_writes import SideWrite

_log: Final = logging.getLogger("kedge.worker")

MAX_ROWS: Final = 500
MAX_BYTES: Final = 8 * 1024 * 1024
# A row that somebody has locked may be free at any moment, and looking is cheap: SKIP LOCKED waits for nobody.
_LONGEST_PUT_OFF_S: Final = 1.0
# A database that is back has work again within three seconds.
_LONGEST_RECONNECT_S: Final = 2.0


class FlushEvents(Protocol):
    """What a flusher tells and asks its worker."""

    def wanted_claim(self, ending: int, *, coming: int) -> ClaimRequest | None:
        """What to claim in this round trip, in which `ending` runs leave and `coming` ones begin; None: nothing."""

    def claimed(self, answer: ClaimAnswer) -> None:
        """The claim's answer; its runs are told of in `begin`, before anything can happen to them."""

    def begin(self, runs: Sequence[ClaimedRun]) -> None:
        """These runs are claimed."""

    def unclaimed(self, error: PostgresError) -> None:
        """The claim that was wanted has not been answered, or its answer cannot be read."""

    async def reconnected(self) -> None:
        """A new connection stands: a claim's answer may have been lost with the old one."""

    def settled(self, moved: Sequence[LiveRun], lost: Sequence[LiveRun]) -> None:
        """These runs have left this worker: by their own move, or because somebody else owns them."""

    def sent(self, batch: Batch) -> None:
        """Letters or children of this batch are there for whoever takes them."""

    def has_mail(self) -> None:
        """There are letters that nobody has sorted."""

    def refused(self, run: LiveRun, error: PostgresError) -> None:
        """The database refuses the data of this run, and of this run only."""


class Flusher:
    """Implements `Journal` on a `LeasedStore`; `run` is its one task and the only user of the store."""

    def __init__(self, store: LeasedStore, events: FlushEvents) -> None:
        self._store = store
        self._events = events
        self._queue: deque[Batch] = deque((Batch(),))
        self._wake = asyncio.Event()
        self._busy = False
        self._unanswered_since: float | None = None
        self._closing = False
        self._more_is_ready = False
        """The last claim came back full: the next one goes at once, and what that has brought is executed meanwhile."""
        self._brought: list[ClaimedRun] = []
        self._compare = False
        self._put_off = Batch()
        """Runs that left a flush whole, because somebody else has locked their rows."""
        self._put_off_pause = Backoff(_LONGEST_PUT_OFF_S)
        self._claim_pause = Backoff()
        self._idle_waiters: list[asyncio.Future[None]] = []

    # ---- what the executor and the context use

    def keep(self, run: LiveRun, kind: RowKind, key: str, value: bytes, *, took_ms: int = 0, meta: bytes = b"") -> int:
        seq = run.take_seq()
        batch = self._gathering()
        batch.rows.append(Row(run, seq, kind, key, value, meta, took_ms))
        batch.size += len(value) + len(meta) + 100
        run.batch = batch
        batch.is_observed = batch.is_observed or run.is_observed
        self._wake.set()
        return seq

    def add(self, run: LiveRun, side: SideWrite, *values: object, size: int = 100) -> None:
        # What was queued for the run just before stands in the last batch, even if that is full by now.
        last = self._queue[-1]
        batch = last if run.batch is last else self._gathering()
        batch.add(side, run, values)
        batch.size += size
        run.batch = batch
        batch.is_observed = batch.is_observed or run.is_observed
        self._wake.set()

    def _gathering(self) -> Batch:
        batch = self._queue[-1]
        if max(len(batch.rows), len(batch.moves)) >= MAX_ROWS or batch.size >= MAX_BYTES:
            batch = Batch()
            self._queue.append(batch)
        return batch

    async def durable(self, run: LiveRun) -> None:
        while not run.lost:
            if run.refused:
                raise ClosedError
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
        batch = self._gathering()
        batch.moves.append((run, move))
        if isinstance(move, End):
            batch.size += len(move.output or b"") + len(move.error or b"")
        run.batch = batch
        batch.is_observed = batch.is_observed or run.is_observed
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
        """Return when nothing is queued, put off or in flight."""
        while self._busy or self._pending() or self._put_off:
            waiter = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    @property
    def silent_s(self) -> float:
        """For how many seconds the database has owed an answer; 0 when it owes none."""
        since = self._unanswered_since
        return 0.0 if since is None else asyncio.get_running_loop().time() - since

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
            if self._compare or self._put_off or not (self._pending() or self._more_is_ready):
                self._begin()
            if self._compare and self._claim_pause.is_over:
                await self._compare_now()
            if self._put_off and self._put_off_pause.is_over:
                await self._try_again()
                continue
            if self._busy and not self._pending() and not self._more_is_ready:
                await asyncio.sleep(0)  # whom the last flush has woken may write more: with a claim, and not behind it
            may_claim = not self._compare and self._claim_pause.is_over
            ending, coming = len(self._queue[0].moves), len(self._brought)
            claim = self._events.wanted_claim(ending, coming=coming) if may_claim else None
            if not self._pending() and claim is None:
                self._begin()
                await self._sleep()
                continue
            self._busy = True
            batch = self._queue.popleft()
            if not self._queue:
                self._queue.append(Batch())
            await self._write(batch, claim)

    async def _sleep(self) -> None:
        """Until there is something to write, or the time has come for what was put off."""
        self._busy = False
        if not self._put_off:
            for waiter in self._idle_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle_waiters.clear()
        times = [self._put_off_pause.until] if self._put_off else []
        times += [] if self._claim_pause.is_over else [self._claim_pause.until]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(times, default=None)):
                await self._wake.wait()

    async def _compare_now(self) -> None:
        self._compare = False
        try:
            await self._events.reconnected()
        except PostgresError as error:
            if is_lease_lost(error):
                raise LeaseLostError from error
            _log.warning("journal: cannot compare: %s", error)
            if is_gone(error):
                await self._reconnect()  # which compares; while nothing is written nobody else would
            else:
                self._compare = True
                self._claim_pause.failed()

    def _pending(self) -> bool:
        return bool(self._queue[0]) or len(self._queue) > 1

    async def _write(self, batch: Batch, claim: ClaimRequest | None) -> None:
        pause = Backoff()
        while batch or claim is not None:
            self._is_owed()
            try:
                answer = await self._store.flush(batch, claim, meanwhile=self._begin)
                self._unanswered_since = None
            except PostgresError as error:
                self._begin()  # it may not have come to that
                if not is_gone(error):
                    self._unanswered_since = None
                after = self._after if claim is None else self._after_claim
                claim = None  # asked for again when this is over
                batch = await after(error, batch, pause)
                continue
            if answer.kept == len(batch.rows) and answer.moved == len(batch.moves):
                self._stored(batch)
                batch = _NOTHING
            else:
                batch = await self._settle_or_reconnect(batch)
            if answer.has_mail:
                self._events.has_mail()
            self._more_is_ready = answer.claim is not None and answer.claim.is_full
            if answer.claim is not None:
                self._claim_pause.succeeded()
                self._events.claimed(answer.claim)
                self._brought = answer.claim.runs
            claim = None

    def _begin(self) -> None:
        """
        Hand over what a claim has brought: when the next flush is on its way, so that the database need not wait, or
        when there is none. In between nothing is awaited: nobody can look for these runs and not find them.
        """
        brought, self._brought = self._brought, []
        if brought:
            self._events.begin(brought)

    async def _after_claim(self, error: PostgresError, batch: Batch, pause: Backoff) -> Batch:
        """
        Deal with the error of a flush that had a claim behind it: either of them may have failed. The batch is written
        again alone, so that no run answers for the claim; settling tells if it stands already.
        """
        self._events.unclaimed(error)
        if is_lease_lost(error) or is_gone(error) or does_not_fit(error):
            return await self._after(error, batch, pause)
        # Its runs may be taken all the same: what failed may be the reading behind the commit.
        self._compare = True
        what = "a claim, or the flush before it," if batch else "a claim"
        _log.warning("journal: %s was refused: %s; next claim in %.2g s", what, error, self._claim_pause.next_s)
        self._claim_pause.failed()
        if is_locked(error) and batch:
            return await self._write_carefully(batch, pause)
        return batch

    async def _after(self, error: PostgresError, batch: Batch, pause: Backoff) -> Batch:
        """Deal with a refused or unanswered flush; answers what is still to be written."""
        if is_lease_lost(error):
            raise LeaseLostError from error
        if is_gone(error):
            _log.warning("journal: %s; reconnecting", error)
            await self._reconnect()
            return await self._settle_or_reconnect(batch)
        if is_locked(error):
            return await self._write_carefully(batch, pause)
        if is_temporary(error):
            _log.warning("journal: %s; repeating in %.2g s", error, pause.next_s)
            await pause.sleep()
            return batch
        if does_not_fit(error):
            raise error
        return await self._narrow_down(error, batch)

    def _is_owed(self) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = asyncio.get_running_loop().time()

    async def _reconnect(self) -> None:
        self._is_owed()
        pause = Backoff(_LONGEST_RECONNECT_S)
        while True:
            try:
                await self._store.connect()
                await self._events.reconnected()
            except (PostgresError, TimeoutError, OSError) as error:
                if is_lease_lost(error):
                    raise LeaseLostError from error
                if does_not_fit(error):
                    raise
                _log.warning("journal: cannot reconnect: %s; next try in %.2g s", error, pause.next_s)
                await pause.sleep()
            else:
                _log.info("journal: reconnected")
                self._unanswered_since = None
                return

    async def _settle_or_reconnect(self, batch: Batch) -> Batch:
        pause = Backoff()
        while True:
            try:
                return await self._settle(batch)
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                _log.warning("journal: %s; reconnecting to settle", error)
                if not is_gone(error):
                    await pause.sleep()
                await self._reconnect()

    async def _settle(self, batch: Batch) -> Batch:
        """Ask the database what became of each run of the batch; answers what must be written again."""
        runs = batch.runs()
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
                if len(missing) == len(rows):  # what rides with rows is stored when they are; else it may be repeated
                    for side, entries in batch.sides.items():
                        for one, values in entries:
                            if one is run:
                                again.add(side, run, values)
                if run in moves:
                    again.moves.append((run, moves[run]))
            elif run in moves and standing.epoch == run.claimed.epoch and not missing and not foreign:
                moved.append(run)
            else:
                lost.append(run)
        for run in lost:
            run.lost = True
        again.is_observed = batch.is_observed
        batch.hand_over(again)
        if moved or lost:
            self._events.settled(moved, lost)
        if moved:
            # Who waits for them may not have been rung; if that does not work, their own look finds it.
            with contextlib.suppress(PostgresError):
                await self._store.notify_ended(moved)
        return again

    async def _write_carefully(self, batch: Batch, pause: Backoff) -> Batch:
        """
        Somebody holds a row of this batch: lock the moving runs that are free in one round trip, write for those and
        for the runs that do not move. A run that was not obtained is put off whole, never in part.
        """
        moving = {run for run, _ in batch.moves}
        now, later = batch, Batch()
        try:
            free = await self._store.lock_moving(batch)
            obtained = {run for run in batch.runs() if run not in moving or run.claimed.id in free}
            now, later = batch.split(obtained)
            answer = await self._store.flush(now, None, only=free)
        except PostgresError as error:
            batch = now.merged(later)
            if not is_locked(error):
                return await self._after(error, batch, pause)
            # Not a run but the worker's own row, or a table: nothing can be written for the moment.
            await pause.sleep()
            return batch
        if answer.kept == len(now.rows) and answer.moved == len(now.moves):
            self._stored(now)
            again = _NOTHING
        else:
            again = await self._settle_or_reconnect(now)
        # Skipped is not gone: whoever held the row may have taken the run from us.
        later = await self._settle_or_reconnect(later)
        if later:
            if not self._put_off:
                self._put_off_pause.failed()
            self._put_off = self._put_off.merged(later)
        return again

    async def _try_again(self) -> None:
        """Write what was put off, as far as its rows are free by now."""
        self._busy = True
        batch, self._put_off = self._put_off, Batch()
        await self._write(await self._write_carefully(batch, Backoff()), None)
        if not self._put_off:
            self._put_off_pause.succeeded()

    async def _narrow_down(self, error: PostgresError, batch: Batch) -> Batch:
        """An error about data: halve the batch down to the one run that fails alone."""
        weight = batch.weight()
        left = await self._settle_or_reconnect(batch)  # what failed may be a bell behind the commit
        if left.weight() < weight:
            return left
        batch, runs = left, left.runs()
        if len(runs) > 1:
            first, second = batch.split(set(runs[: len(runs) // 2]))
            await self._write(first, None)
            return second
        (run,) = runs
        _log.error("run %s: Postgres refuses its data: %s", run.claimed.id, error.diag.message_primary)
        run.refused = True
        run.batch = None
        # What is queued behind it stands on what was refused; only as failed can the run end.
        for queued in self._queue:
            queued.drop(lambda one: one is run, keep_move=_is_failure)
        self._events.refused(run, error)
        batch.wake()
        return _NOTHING

    def _stored(self, batch: Batch) -> None:
        batch.wake()
        if START_CHILDREN in batch.sides or SEND_LETTERS in batch.sides:
            self._events.sent(batch)
        if batch.moves:
            self._events.settled([run for run, _ in batch.moves], ())
        batch.let_go()


_NOTHING: Final = Batch()


def _is_failure(move: Move) -> bool:
    return isinstance(move, End) and move.status == "f"
