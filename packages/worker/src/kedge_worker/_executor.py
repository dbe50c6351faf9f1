"""Which runs live here: starts them, stops them, and lets the journal move them when their handlers have ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from kedge.errors import ErrorInfo, RunDeadlineError
from kedge.failures import encode_error, kind_of
from kedge_worker._branches import BranchTasks
from kedge_worker._execution import Execution
from kedge_worker._handling import UNWINDING_S, current_task, end_leftovers, handle, handle_in_thread, outcome_of
from kedge_worker._outcomes import Cancelled, End, Mismatched, Outcome, Parked, Raised, Released, Returned, next_move
from kedge_worker._parking import Parking
from kedge_worker._runs import ChildStarts, ClaimedRun, Journal, LiveRun, Transactions, slots_of
from kedge_worker._threads import Threads

if TYPE_CHECKING:
    from kedge_worker._registry import Registry
    from kedge_worker._transactions import InThread
    from kedge_worker._waits import RunWaits
    from kedge_worker._workflows import Workflow

_log: Final = logging.getLogger("kedge.worker")


class Executor:
    """
    One asyncio task a run. Between `open` and `aclose` the event loop's task factory is wrapped, since tasks that a
    handler makes are branches of its run.

    Args:
        journal: Keeps outcomes and moves runs.
        transactions: Makes what runs transactional steps, given a way to call functions in the worker's threads.
        registry: The handlers.
        child_starts: Starts the children that have a key or singleton.
        threads: Sync steps at once; and as many sync handlers, each of which holds a thread for its whole life.
        on_free: Called when a run has left memory.
        linger_s: How long a run that only waits stays in memory.
        look: Called when there may be mail for a run that waits.
        look_at_clock: Called when by this machine's clock the time of a wait has come; None: then it has come.
    """

    def __init__(
        self,
        journal: Journal,
        transactions: Callable[[InThread], Transactions],
        registry: Registry,
        *,
        child_starts: ChildStarts,
        threads: int,
        on_free: Callable[[], None] | None = None,
        linger_s: Callable[[], float] = lambda: 0.0,
        look: Callable[[], None] = lambda: None,
        look_at_clock: Callable[[], None] | None = None,
    ) -> None:
        self.runs: dict[UUID, LiveRun] = {}
        """Every run that this worker owns as far as it knows: executed, unwinding, or with its move on the way."""
        self._journal = journal
        self._child_starts = child_starts
        self._registry = registry
        self._step_threads = Threads(threads, name="kedge-step")
        self._handler_threads = Threads(threads, name="kedge-handler")
        self._transactions = transactions(self._step_threads.run)
        self._on_free = on_free
        self._parking = Parking(linger_s)
        self.look = look
        self.look_at_clock = look_at_clock
        self.waiting: dict[UUID, RunWaits] = {}
        """The runs in memory that wait for mail or times."""
        self._branches: BranchTasks | None = None
        self._resources = contextlib.ExitStack()
        self._executions: dict[LiveRun, Execution] = {}
        self._heavy: set[LiveRun] = set()
        self._outcomes: dict[LiveRun, Outcome] = {}
        self._leaving = False
        self._quiet: asyncio.Future[None] | None = None

    def open(self) -> None:
        """Begin, in the running event loop."""
        self._branches = BranchTasks(asyncio.get_running_loop())
        self._resources.enter_context(self._branches.installed())

    async def aclose(self) -> None:
        """Put the event loop's task factory back; threads end when their functions do."""
        self._resources.close()
        self._step_threads.close()
        self._handler_threads.close()
        await self._transactions.aclose()

    # ---- a run's life

    def start(self, claimed: ClaimedRun, *, unreadable: str | None = None) -> LiveRun:
        """Execute a claimed run; one that is said to be unreadable is put off with that reason."""
        run = LiveRun(claimed, claimed.next_seq, is_observed=claimed.is_observed)
        self.runs[claimed.id] = run
        if claimed.memo or claimed.mail:
            self._weigh(run)
        workflow = self._registry.get(claimed.workflow)
        if claimed.request == "x":
            self._move(run, Cancelled(claimed.reason))
        elif claimed.request == "d":
            self._move(run, _out_of_time())
        elif claimed.request or self._leaving or self._branches is None:
            self._move(run, Released())
        elif unreadable is not None:
            self._move(run, Mismatched(unreadable))
        elif workflow is None:
            self._move(run, Mismatched(f"this worker has no handler for workflow {claimed.workflow!r}"))
        else:
            self._execute(run, workflow, self._branches)
        return run

    @property
    def more_slots(self) -> int:
        """How many slots the runs in memory take beyond one each."""
        return sum(run.slots - 1 for run in self._heavy) if self._heavy else 0

    def ask(self, run_id: UUID, request: str, reason: str | None) -> None:
        """
        Somebody wants the run to end or to pause, or its time is up. One that has ended meanwhile stays ended.

        Args:
            run_id: Which.
            request: `x` cancel, `d` deadline, `s` pause, `o` observe: tell when something happens to it.
            reason: For people.
        """
        if execution := self._execution(run_id):
            if request == "x":
                execution.stop(Cancelled(reason))
            elif request == "d":
                execution.stop(_out_of_time())
            elif request == "s":
                execution.pause()
            else:
                execution.run.is_observed = True

    def put_off(self, run_id: UUID, reason: str) -> None:
        """The run cannot go on here: it is given back for a while, and charged nothing."""
        if execution := self._execution(run_id):
            execution.stop(Mismatched(reason))

    def put_off_at_end(self, run: LiveRun, reason: str) -> None:
        """The same for a run whose end, or whatever was to become of it, cannot be kept."""
        self._move(run, Mismatched(reason))

    def fail(self, run: LiveRun, error: Exception) -> None:
        """The database refuses this run's data: it ends failed."""
        refused = Raised(encode_error(error))
        if execution := self._executions.get(run):
            execution.stop(refused)
        elif isinstance(self._outcomes.get(run), Raised):
            _log.error("run %s: not even its failure can be stored", run.claimed.id)
            run.lost = True
            self._free(run)
        else:
            self._move(run, refused)

    def lose(self, run_id: UUID) -> None:
        """Another worker owns the run: its handler unwinds, and nothing is written."""
        if run := self.runs.get(run_id):
            self._lose(run)

    def lose_all(self) -> None:
        """The worker's lease is lost."""
        for run in list(self.runs.values()):
            self._lose(run)

    def settled(self, moved: Sequence[LiveRun], lost: Sequence[LiveRun]) -> int:
        """
        These runs have left this worker: by their own move, or because somebody else owns them.

        Answers how many have moved and are not at their end: they can be claimed, now or at some time.
        """
        going_on = 0
        for run in moved:
            outcome = self._outcomes.pop(run, None)
            if outcome is not None:
                going_on += run.goes_on
                _log_move(run, outcome)
            execution = self._executions.get(run)
            if execution is None:
                self._free(run)
            else:
                execution.settled = True
        for run in lost:
            self._lose(run)
        return going_on

    async def shutdown(self, grace_s: float, *, hurry: asyncio.Event | None = None) -> list[UUID]:
        """
        Let handlers end for as long as the grace allows, then stop them and give their runs back.

        Args:
            grace_s: In seconds; what comes after it takes five more at most.
            hurry: Skips the grace when it is set.

        Returns:
            The runs that are not given back, because their code still runs.
        """
        self._leaving = True
        await self._until_quiet(grace_s, hurry)
        for execution in list(self._executions.values()):
            execution.stop(Released())
        await self._until_quiet(UNWINDING_S, None)
        return [run.claimed.id for run in self._executions]

    # ---- executing

    def _execute(self, run: LiveRun, workflow: Workflow[Any, Any], branches: BranchTasks) -> None:
        loop = branches.loop
        execution = Execution(
            run,
            journal=self._journal,
            transactions=self._transactions,
            threads=self._step_threads,
            tasks=branches,
            owner=self,
            child_starts=self._child_starts,
            retry=workflow.retry,
            step_retry=self._registry.step_retry,
        )
        self._executions[run] = execution
        if run.claimed.deadline_s is not None:
            execution.deadline = loop.call_later(run.claimed.deadline_s, execution.stop, _out_of_time())
        # Not through the factory: that of the application may begin tasks eagerly, and a claim must not run handlers.
        if workflow.is_async:
            task = asyncio.Task(self._run(execution, handle(execution, workflow)), loop=loop)
            root = execution.branches.root
            root.task = task
            branches.by_task[task] = root
        else:
            task = asyncio.Task(
                self._run(execution, handle_in_thread(execution, workflow, self._handler_threads)), loop=loop
            )
        execution.task = task

    async def _run(self, execution: Execution, handling: Coroutine[Any, Any, Outcome]) -> None:
        if execution.closed:  # stopped before it has begun
            handling.close()
            execution.noticed = True
            execution.tasks.by_task.pop(execution.task, None)
            self._ended(execution, execution.outcome or Released())
            return
        if not execution.is_sync and execution.task is not None:
            execution.interrupt = execution.task.cancel  # not before: a task that has not begun would not come here
        try:
            outcome = await handling
        except BaseException as error:  # noqa: BLE001  # GeneratorExit out of a future closes the coroutine that awaits it
            outcome = outcome_of(error, execution)
            execution.close()
        if execution.branches.others:
            await end_leftovers(execution)
        execution.tasks.by_task.pop(execution.task, None)
        self._ended(execution, outcome)

    def _ended(self, execution: Execution, outcome: Outcome) -> None:
        """The handler has ended: queue its run's move, unless that is no longer ours to say."""
        run = execution.run
        if execution.noticed and execution.outcome is not None:
            outcome = execution.outcome
        execution.outcome = outcome
        if not run.lost and not execution.moved:
            if execution.in_threads and not isinstance(next_move(outcome), End):
                return  # whoever gets the run would begin what still runs here; see threads_ended
            execution.moved = True
            execution.keep_metadata()
            self._move(run, outcome)
        self._leave(execution)

    def replayed(self, execution: Execution) -> None:
        self._weigh(execution.run)
        if self._on_free is not None:
            self._on_free()

    def stopped(self, execution: Execution) -> None:
        if current_task() is not execution.task:
            execution.interrupt()
        execution.insisting = execution.loop.call_later(UNWINDING_S, self._insist, execution)

    def rests(self, execution: Execution) -> None:
        self._parking.rests(execution)

    def waits_changed(self, execution: Execution) -> None:
        run_id, waits = execution.run.claimed.id, execution.waits
        if waits is not None and waits.open and not execution.closed:
            self.waiting[run_id] = waits
        elif waits is not None and self.waiting.get(run_id) is waits:
            del self.waiting[run_id]

    def threads_ended(self, execution: Execution) -> None:
        task, outcome = execution.task, execution.outcome
        if (
            self._executions.get(execution.run) is execution
            and task is not None
            and task.done()
            and outcome is not None
        ):
            self._ended(execution, outcome)

    def _insist(self, execution: Execution) -> None:
        """A stopped handler has not unwound in time."""
        run, task = execution.run, execution.task
        if self._executions.get(run) is not execution or task is None or task.done():
            return
        where = "".join(f" {frame.f_code.co_qualname}:{frame.f_lineno}" for frame in task.get_stack(limit=3))
        _log.warning(
            "run %s: its handler was stopped %g s ago and still runs, in%s", run.claimed.id, UNWINDING_S, where
        )
        outcome = execution.outcome
        if outcome is not None and not (execution.moved or run.lost) and isinstance(next_move(outcome), End):
            # Nobody else will execute it: its end need not wait for code that does not end.
            execution.moved = True
            self._move(run, outcome)
        execution.interrupt()
        for child in execution.branches.tasks:
            child.cancel()
        execution.insisting = execution.loop.call_later(UNWINDING_S, self._insist, execution)

    # ---- leaving

    def _move(self, run: LiveRun, outcome: Outcome) -> None:
        self._outcomes[run] = outcome
        move = next_move(outcome, before=run.claimed.reason)
        run.goes_on = not isinstance(move, End)
        self._journal.move(run, move)

    def _leave(self, execution: Execution) -> None:
        run = execution.run
        del self._executions[run]
        self.waits_changed(execution)
        execution.release()
        if run.lost or execution.settled:
            self._free(run)
        if not self._executions and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _lose(self, run: LiveRun) -> None:
        run.lost = True
        if execution := self._executions.get(run):
            execution.stop(None)
        else:
            self._free(run)

    def _free(self, run: LiveRun) -> None:
        self._outcomes.pop(run, None)
        if run.slots > 1:
            self._heavy.discard(run)
        # The same run may have been claimed again meanwhile, with a later epoch.
        if self.runs.get(run.claimed.id) is run:
            del self.runs[run.claimed.id]
            if self._on_free is not None:
                self._on_free()

    def _weigh(self, run: LiveRun) -> None:
        run.slots = slots_of(run.claimed)
        if run.slots > 1:
            self._heavy.add(run)
        else:
            self._heavy.discard(run)

    def _execution(self, run_id: UUID) -> Execution | None:
        run = self.runs.get(run_id)
        return None if run is None else self._executions.get(run)

    async def _until_quiet(self, seconds: float, hurry: asyncio.Event | None) -> None:
        if not self._executions:
            return
        self._quiet = asyncio.get_running_loop().create_future()
        waited: set[asyncio.Future[Any]] = {self._quiet}
        if hurry is not None:
            waited.add(asyncio.ensure_future(hurry.wait()))
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waited:
                future.cancel()
            self._quiet = None


def _out_of_time() -> Raised:
    info = ErrorInfo(kind_of(RunDeadlineError), "the run has not ended within its timeout")
    return Raised(encode_error(info))


_DONE: Final = {
    Returned: "completed",
    Raised: "failed",
    Cancelled: "cancelled",
    Parked: "parked",
    Released: "given back",
    Mismatched: "put off",
}


def _log_move(run: LiveRun, outcome: Outcome) -> None:
    level = logging.WARNING if isinstance(outcome, Raised | Mismatched) else logging.INFO
    if isinstance(outcome, Parked):
        level = logging.DEBUG
    if _log.isEnabledFor(level):
        claimed = run.claimed
        _log.log(
            level,
            "run %s (%s) %s: epoch %d, attempt %d",
            claimed.id,
            claimed.workflow,
            _DONE[type(outcome)],
            claimed.epoch,
            claimed.attempt,
        )
