"""One run while its handler is executed here: what its contexts and the executor share of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar, cast

from kedge.errors import StepFailedError, TooLargeError
from kedge.failures import kind_of
from kedge.retry import NonRetryable, Retry
from kedge.run_meta import RunMeta
from kedge_worker._branches import Branch, BranchTasks, RunBranches
from kedge_worker._kept_values import KeptValues
from kedge_worker._memo import Memo, RowMeta
from kedge_worker._outcomes import Mismatched, Operation, Outcome, Released, RowKind
from kedge_worker._run_clock import RunClock
from kedge_worker._runs import ChildStarts, Journal, LiveRun, Transactions
from kedge_worker._side_writes import SET_METADATA
from kedge_worker._signals import ClosedError, LeaseLostError, ReplayMismatch, StubbornHandler
from kedge_worker._turns import LIVE, Turns
from kedge_worker._waits import Kept, RunWaits

if TYPE_CHECKING:
    from kedge_worker._threads import Threads

T = TypeVar("T")

_WAITS: Final = {
    "e": "a wait for an event",
    "d": "a sleep",
    "p": "a poll",
    "r": "a step that is to be repeated",
    "c": "a wait for a child",
    "u": "a pause",
    "n": "a child's start",
}


MAX_ROWS: Final = 10_000
"""Outcomes of a run: each life reads them all. What goes on for longer starts child runs, or a new run of itself."""
_MOST_REFUSALS: Final = 1000
"""A handler that catches cancellations and asks again, for ever, would hold the event loop."""


class Owner(Protocol):
    """What an execution tells its executor."""

    look_at_clock: Callable[[], None] | None
    """By this machine's clock a time has come; None: this clock is all there is."""

    def replayed(self, execution: Execution, /) -> None:
        """All that earlier lives have kept is handed out, and it was much: that is not in memory any more."""
        ...

    def stopped(self, execution: Execution, /) -> None:
        """Something else than the handler's own end decided; called once."""
        ...

    def rests(self, execution: Execution, /) -> None:
        """Nothing goes on but waiting: perhaps the run can be parked."""
        ...

    def look(self) -> None:
        """There may be mail for runs that wait."""
        ...

    def waits_changed(self, execution: Execution, /) -> None:
        """The run begins to wait for mail or times, or no longer does."""
        ...

    def threads_ended(self, execution: Execution, /) -> None:
        """The last body in a thread has ended, after the execution was closed."""
        ...


class Execution(KeptValues):
    """Open until its outcome is decided; closed, nothing new begins and nothing more reaches the handler."""

    __slots__ = (
        "active",
        "branches",
        "child_starts",
        "clock",
        "closed",
        "deadline",
        "in_threads",
        "insisting",
        "interrupt",
        "journal",
        "left_behind",
        "loop",
        "memo",
        "metadata",
        "moved",
        "noticed",
        "outcome",
        "owner",
        "parking",
        "patches",
        "pausing",
        "refusals",
        "replaying",
        "retry",
        "settled",
        "started",
        "step_retry",
        "task",
        "tasks",
        "threads",
        "transactions",
        "unkept_metadata",
        "waiting",
        "waits",
    )

    def __init__(
        self,
        run: LiveRun,
        *,
        journal: Journal,
        transactions: Transactions,
        threads: Threads,
        tasks: BranchTasks,
        owner: Owner,
        child_starts: ChildStarts,
        retry: Retry = Retry.NEVER,
        step_retry: Retry = Retry.NEVER,
    ) -> None:
        super().__init__(run)
        self.retry = retry
        """The policy of the run's own attempts, unless its start says something else."""
        self.step_retry = step_retry
        """The policy of steps that have none of their own."""
        self.journal = journal
        self.transactions = transactions
        self.child_starts = child_starts
        self.threads = threads
        self.tasks = tasks
        self.loop = tasks.loop
        self.owner = owner
        self.branches = RunBranches(self._make_turns)
        self.memo = Memo(run.claimed.memo, self._replayed if run.slots > 1 else None) if run.claimed.memo else None
        self.replaying = self.memo is not None
        """Until the first operation that earlier lives do not know."""
        self.closed = False
        self.outcome: Outcome | None = None
        """Decided from outside, or by a mismatch. None: the handler decides, or the lease is lost."""
        self.noticed = False
        """The handler has met the closed context: what it returns or raises after that does not count."""
        self.moved = False
        """The run's move is queued: nothing may be kept any more."""
        self.settled = False
        """The move is stored, although the handler has not ended yet."""
        self.in_threads = 0
        """Bodies that run in threads: they cannot be stopped."""
        self.left_behind = 0
        """Bodies of steps that have timed out, and have not ended even so."""
        self.task: asyncio.Task[None] | None = None
        """The root's: it ends with the handler."""
        self.interrupt: Callable[[], object] = _nothing
        """Make the handler notice that it is closed."""
        self.insisting: asyncio.TimerHandle | None = None
        """What comes when it has not unwound in time."""
        self.clock: RunClock | None = None
        self.started = time.monotonic()
        self.active = 0
        """Operations under way that do not just wait."""
        self.waiting: set[asyncio.Task[Any]] = set()
        """The tasks that are blocked in a durable wait."""
        self.waits: RunWaits | None = None
        if run.claimed.waits or run.claimed.mail:
            self.open_waits()
        self.pausing = False
        """Somebody pauses the run: it leaves at its next operation."""
        self.parking: asyncio.TimerHandle | None = None
        """The next look whether it can be parked."""
        self.deadline: asyncio.TimerHandle | None = None
        self.patches: dict[str, bool] = {}
        self.refusals = 0
        self.metadata: dict[str, Any] | None = None
        """What the start said and the handler has set; None: not asked for yet."""
        self.unkept_metadata: bytes | None = None
        """Set since the last outcome: it is kept with the next one."""

    @property
    def is_sync(self) -> bool:
        """Whether the handler has a thread instead of a task."""
        return self.branches.root.task is None

    # ---- its end

    def stop(self, outcome: Outcome | None) -> None:
        """Close, and make the handler unwind. None: the lease is lost. The first reason counts."""
        if not self.closed:
            self.outcome = outcome
            self.close()
            self.owner.stopped(self)

    def close(self) -> None:
        self.closed = True
        for timer in (self.parking, self.deadline):
            if timer is not None:
                timer.cancel()
        if self.branches.turns is not None:
            self.branches.turns.close()

    def release(self) -> None:
        """
        The handler has ended, and nobody asks any more. What refers to one another is taken apart: with its payloads it
        would wait for the garbage collector, which counts objects and not bytes.
        """
        if self.insisting is not None:
            self.insisting.cancel()
        self.interrupt = _nothing
        self.branches.end()
        self.memo = self.outcome = self.metadata = None
        if self.waits is not None:
            self.waits = self.run.gate_opened = None

    def _replayed(self) -> None:
        self.in_loop(self._forget_memo)

    def _forget_memo(self) -> None:
        if self.clock is None:  # it knows when outcomes were kept
            self.clock = RunClock(self.run.claimed, self.started)
        self.run.forget_memo()
        self.owner.replayed(self)

    def lose(self) -> LeaseLostError:
        self.run.lost = True
        self.stop(None)
        return LeaseLostError()

    # ---- operations

    def here(self) -> Branch:
        """
        The branch that asks, which no operation is under way in.

        Raises:
            ClosedError: The run leaves.
            HandlerUseError: The task is no branch of this run, or is inside a step's body.
        """
        here = self.tasks.here(self.branches)
        if self.pausing:
            self.leave_for_pause()
        if self.closed:
            self._refuse()
        return here

    @property
    def is_hopeless(self) -> bool:
        """The handler catches even what is raised at those that catch every cancellation."""
        return self.refusals > 2 * _MOST_REFUSALS

    def _refuse(self) -> NoReturn:
        self.refusals += 1
        if self.refusals > _MOST_REFUSALS:
            raise StubbornHandler
        raise ClosedError

    def pause(self) -> None:
        """Somebody pauses the run: operations that are under way end, and no other one begins."""
        self.pausing = True
        if not self.active and self.waiting:
            self.leave_for_pause()

    def leave_for_pause(self) -> None:
        """Give the run back; the request, which is stored, pauses it."""
        self.stop(Released())

    def enter(self) -> Branch:
        """Begin an operation in the calling task; raises as `here` does."""
        branches = self.branches
        here = self.here()
        here.busy = True
        self.active += 1
        if branches.others and here.task is not None:
            branches.loose.discard(here.task)
            if branches.turns is not None:
                branches.turns.nudge()
        return here

    def begin_anew(self, rows: int = 1, *, key: str | None = None) -> None:
        """
        An operation begins whose outcome no earlier life knows, and that will have so many rows.

        With its key it may go on beyond the limit if an earlier life has begun it.

        Raises:
            TooLargeError: The run would have more outcomes than a run may have.
        """
        self.replaying = False
        kept = self.run.next_seq - 1
        if kept + rows > MAX_ROWS and (key is None or self.waits is None or self.waits.stored(key) is None):
            raise TooLargeError(f"journal of run {self.run.claimed.id}", kept + rows, MAX_ROWS, "rows")

    def leave(self, here: Branch) -> None:
        here.busy = False
        self.active -= 1
        if self.waiting and not self.active:
            self.comes_to_rest()
        if self.branches.others and here.task is not None:
            self.branches.loose.add(here.task)

    def comes_to_rest(self) -> None:
        """All that goes on in the run's operations is waiting."""
        if self.pausing:
            self.leave_for_pause()
        elif not self.closed:
            self.owner.rests(self)

    def open_waits(self) -> RunWaits:
        """The run's waits and mail."""
        if self.waits is None:
            self.waits = RunWaits(
                self.run,
                self.journal,
                self.loop,
                self._keep_wait,
                changed=lambda: self.owner.waits_changed(self),
                look=self.owner.look,
                look_at_clock=self.owner.look_at_clock,
            )
        return self.waits

    def _keep_wait(self, kept: Kept, key: str) -> int | None:
        """Queue what ended a wait: it has its seq now, and the handler has it when it is stored."""
        if self.closed or self.run.lost:
            return None
        try:
            seq = self.journal.keep(self.run, kept.kind, key, kept.value, meta=self.meta(kept.kind, kept.of))
        except ClosedError:  # it cannot be encrypted, and the run leaves
            return None
        self.run.assigned.add(seq)
        self.keep_metadata()
        return seq

    def handed_out(self, seq: int) -> None:
        """The handler has this life's outcome, or will not have it."""
        self.run.assigned.discard(seq)
        if self.branches.turns is not None:
            self.branches.turns.stir()
            self.branches.turns.nudge()

    async def take_turn(self, place: int, *, insist: bool = False) -> asyncio.CancelledError | None:
        """
        Return when the next outcome may be kept and handed out; the caller does so without awaiting anything.

        With `insist` also if somebody cancels the task meanwhile, or once more: it answers with the error then.
        """
        branches, run = self.branches, self.run
        swallowed: asyncio.CancelledError | None = None
        while True:
            if branches.others and branches.turns is not None:
                swallowed = await branches.turns.take(place, insist=insist) or swallowed
            # What has its seq has it from before the transaction that holds the gate now.
            if run.gate is None or place < LIVE:
                return swallowed
            try:
                await run.gate.wait()
            except asyncio.CancelledError as error:
                if self.closed or not insist:
                    raise
                swallowed = error

    def may_keep(self) -> bool:
        """Whether a closed run still takes an outcome, so that its body need not run again elsewhere."""
        return not self.moved and not self.run.lost and self.run.gate is None

    def thread_ended(self) -> None:
        self.in_threads -= 1
        if self.in_threads == 0 and self.closed:
            self.owner.threads_ended(self)

    async def barrier(self) -> None:
        """Return when everything that the run has queued is stored: only then may a body begin."""
        run = self.run
        while (batch := run.batch) is not None and not batch.stored:
            try:
                await self.journal.durable(run)
            except LeaseLostError:
                raise self.lose() from None
        if run.lost:
            raise self.lose()
        if self.closed:
            raise ClosedError

    def keep(
        self,
        kind: RowKind,
        operation: Operation,
        key: str,
        branch: Branch,
        value: bytes,
        took_ms: int,
        inputs: tuple[bytes, ...] = (),
    ) -> None:
        """Queue an outcome. The gate is open, and it is this outcome's turn."""
        if self.run.lost:
            raise self.lose()
        branch.last = key
        self.journal.keep(self.run, kind, key, value, took_ms=took_ms, meta=self.meta(kind, operation, inputs))
        if self.unkept_metadata is not None:
            self.keep_metadata()

    def keep_metadata(self) -> None:
        """Write what the handler has set, in the transaction of what was queued just before or comes next."""
        metadata, self.unkept_metadata = self.unkept_metadata, None
        if metadata is not None:
            self.journal.add(self.run, SET_METADATA, metadata, size=100 + len(metadata))

    def in_loop(self, work: Callable[[], T]) -> T:
        """Do something in the event loop: at once from there, and from a sync handler's thread by asking it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            answer: concurrent.futures.Future[T] = concurrent.futures.Future()
            self.loop.call_soon_threadsafe(_answer, work, answer)
            return answer.result()
        return work()

    def patched(self, change: str) -> bool:
        """Whether this run has the change: told once a life, kept when it is told in new territory."""
        answer = self.patches.get(change)
        if answer is None:
            memo = self.memo
            if memo is not None and change in memo.patches:
                answer = True
            elif memo:
                answer = False
            else:
                answer = True
                if self.run.lost:
                    raise self.lose()
                self.journal.keep(self.run, "k", change, b"")
            self.patches[change] = answer
        return answer

    def meta(self, kind: RowKind, operation: str, inputs: tuple[bytes, ...] = ()) -> bytes:
        """The column `meta` of the run's next row: nearly always empty."""
        nows = self.clock.take_pending() if self.clock is not None else None
        if nows or inputs or kind in ("f", "x"):
            return RowMeta(operation if kind in ("f", "x") else "s", nows or {}, inputs).encode()
        return b""

    def check_wait(self, key: str, kind: str, slot: str | None) -> None:
        """
        Refuse a wait that an earlier life has begun as another one.

        Raises:
            ReplayMismatch: The code waits for something else than is stored.
        """
        stored = None if self.waits is None else self.waits.stored(key)
        if stored is not None and (stored.kind, stored.slot) != (kind, slot):
            found, wanted = (_WAITS.get(one, f"of kind {one!r}") for one in (stored.kind, kind))
            slots = "" if stored.slot == slot else f" ({stored.slot} and {slot})"
            mismatch = ReplayMismatch(f"{key!r} has begun as {found}, and is {wanted} in the code{slots}")
            self.noticed = True
            self.stop(Mismatched(mismatch.reason))
            raise mismatch

    # ---- another attempt of the run

    def retry_delay_s(self, error: BaseException) -> float | None:
        """How long the run waits until its next attempt; None: this failure is final."""
        terms = RunMeta.decode(self.run.claimed.meta).retry
        retry = self.retry if terms is None else terms.retry()
        attempt = self.run.claimed.attempt + 1
        if not issubclass(type(error), Exception) or retry.gives_up(error, attempt) or is_final(error):
            return None
        return retry.delay_after(attempt, error).total_seconds()

    def _make_turns(self, branches: RunBranches) -> Turns:
        claimed, assigned = self.run.claimed, self.run.assigned
        return Turns(claimed.id, branches.loose, self.memo, assigned, self.tasks.rounds, self.loop)


def _answer(work: Callable[[], T], answer: concurrent.futures.Future[T]) -> None:
    try:
        answer.set_result(work())
    except BaseException as error:  # noqa: BLE001  # it is the waiting thread's
        answer.set_exception(error)


def is_final(error: BaseException) -> bool:
    """Whether a step has failed with `NonRetryable`: that holds for the run, too."""
    return issubclass(type(error), StepFailedError) and cast("StepFailedError", error).error.kind == kind_of(
        NonRetryable
    )


def _nothing() -> None:
    pass
