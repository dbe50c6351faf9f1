"""What a sync handler is given: the operations of `Context` as plain calls, in the handler's own thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, cast, overload
from uuid import UUID

import kedge_worker._sending as letters
import kedge_worker._waiting as waiting
from kedge.durations import Duration
from kedge.errors import HandlerUseError, NestedStepError, PayloadError, WrongThreadError
from kedge.event_refs import EventMessage, EventRef
from kedge.result_types import MISSING
from kedge_worker._branches import NESTED
from kedge_worker._definitions import definition_of
from kedge_worker._facts import RunFacts
from kedge_worker._operations import Operations
from kedge_worker._outcomes import Mismatched
from kedge_worker._side_writes import SEND_LETTERS
from kedge_worker._signals import ClosedError, LeaseLostError, ReplayMismatch
from kedge_worker._transaction_body import SyncConn, TransactionBody

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from kedge_worker._branches import Branch
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution, Operation
    from kedge_worker._outcomes import RowKind
    from kedge_worker._runs import MemoRow
    from kedge_worker._waits import Served, Wait

T = TypeVar("T")
P = TypeVar("P")
D = TypeVar("D")
Ts = TypeVarTuple("Ts")

_OTHER_THREAD: Final = (
    "a SyncContext belongs to its handler's thread: call it there; for concurrency write an async handler"
)
# Typed as anything, for None is a type too.
_UNSET: Final[Any] = MISSING
_STOPS: Final = (asyncio.CancelledError, LeaseLostError, ReplayMismatch)


def _nothing() -> None:
    pass


class SyncContext(RunFacts):
    """
    The durable operations of a sync handler, which holds one of the worker's threads until it ends.

    Steps run in that thread too, one after the other: a sync handler has one branch.
    """

    __slots__ = ("_branch", "_task", "_thread")

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self._branch = execution.branches.root
        self._thread: int | None = None
        self._task: asyncio.Task[None] | None = None
        """What the handler's thread waits for, in the event loop."""

    def step(self, step_id: str, fn: Callable[[*Ts], T], /, *args: *Ts, output: TypeForm[T] = _UNSET) -> T:
        """
        Run the function once, keep its value, and answer what was kept, now and on replay.

        As `Context.step`, but in the handler's own thread, and async functions are refused.
        """
        branch, definition = self._begin(fn, output)
        key = branch.key(step_id)
        row = self._kept(key)
        if row is not None:
            return cast("T", self._replay(row, "s", definition))
        execution = self._execution
        batch = execution.run.batch
        if (batch is not None and not batch.stored) or execution.run.lost:
            self._await(execution.barrier())
        started = time.monotonic()
        returned = False
        branch.busy = True
        try:
            value = fn(*args)
            returned = True
            data, kept = execution.encode(definition, key, value)
        except _STOPS:
            raise
        except BaseException as error:  # whatever a body raises is the step's failure
            of_value = returned and isinstance(error, PayloadError)
            data, raised = execution.failure(error, "s", key, definition, of_value=of_value)
            self._keep("f", "s", key, data, started)
            raise raised from error
        finally:
            branch.busy = False
        self._keep("s", "s", key, data, started)
        return cast("T", kept)

    def transaction(
        self, step_id: str, fn: Callable[[SyncConn, *Ts], T], /, *args: *Ts, output: TypeForm[T] = _UNSET
    ) -> T:
        """
        Run the function with a psycopg `Connection`: its SQL and its kept value commit together, or not at all.

        As `Context.transaction`; it runs in another thread of the worker's.
        """
        branch, definition = self._begin(fn, output)
        key = branch.key(step_id)
        row = self._kept(key)
        if row is not None:
            return cast("T", self._replay(row, "t", definition))
        execution = self._execution
        started = time.monotonic()
        body = TransactionBody(execution, key, definition, fn, args)
        try:
            meta = functools.partial(execution.meta, "t", "t")
            work = execution.transactions.run(execution.run, key, body.in_thread, sync=True, meta=meta)
            execution.run.assigned.discard(self._await(work))
        except LeaseLostError:
            self._execution.loop.call_soon_threadsafe(execution.lose)
            raise
        except _STOPS:
            raise
        except BaseException as error:  # as in a step
            data, raised = execution.failure(error, "t", key, definition, of_value=body.returned)
            self._keep("f", "t", key, data, started)
            raise raised from error
        branch.last = key
        return cast("T", body.value)

    def sleep(self, step_id: str, duration: Duration, /) -> None:
        """
        Wait for a time that is counted and kept by the database.

        As `Context.sleep`. While the run is parked it holds no thread: the handler begins anew when its time has come.
        """
        self._wait(waiting.sleep(self._here().key(step_id), duration), "d", waiting.no_value)

    def sleep_until(self, step_id: str, when: datetime, /) -> None:
        """Wait until a moment of the database's clock; as `Context.sleep_until`."""
        self._wait(waiting.sleep_until(self._here().key(step_id), when), "d", waiting.no_value)

    @overload
    def wait_for(
        self, step_id: str, event: EventRef[P], /, *, topic: str | None = None, timeout: Duration | None = None
    ) -> P: ...
    @overload
    def wait_for(
        self, step_id: str, event: EventRef[P], /, *, topic: str | None = None, timeout: Duration | None, default: D
    ) -> P | D: ...
    def wait_for(
        self,
        step_id: str,
        event: EventRef[Any],
        /,
        *,
        topic: str | None = None,
        timeout: Duration | None = None,
        default: Any = MISSING,
    ) -> Any:
        """Wait for an event that is sent to this run, and answer its payload; as `Context.wait_for`."""
        execution = self._execution
        wait = waiting.event(execution, self._here().key(step_id), event, topic=topic, timeout=timeout)
        return self._wait(wait, "e", waiting.event_payload(execution, event, default))

    def pause(self, step_id: str, /) -> None:
        """Wait until somebody calls `client.resume`; as `Context.pause`."""
        self._wait(waiting.pause(self._here().key(step_id)), "u", waiting.no_value)

    def send(
        self, step_id: str, event: EventMessage, /, *, run: UUID | str | None = None, topic: str | None = None
    ) -> None:
        """Send an event to another run, or to a topic, once; as `Context.send`."""
        key = self._here().key(step_id)
        letter, size = letters.event_letter(self.run_id, key, event, run=run, topic=topic)
        row = self._kept(key)
        if row is not None:
            self._replay(row, "m", waiting.no_value)
            return
        execution = self._execution

        def let_go() -> None:
            execution.journal.add(execution.run, SEND_LETTERS, *letter, size=size)

        self._keep("m", "m", key, b"", time.monotonic(), beside=let_go)

    # ---- for the executor

    def run(self, handler: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Call the handler in this thread, which the context belongs to from now on."""
        self._thread = threading.get_ident()
        self._check_open()
        return handler(self, *args)

    @property
    def begun(self) -> bool:
        """Whether the handler has got its thread."""
        return self._thread is not None

    def interrupt(self) -> None:
        """End what the handler's thread waits for. In the event loop."""
        if self._task is not None:
            self._task.cancel()

    # ---- inside

    def _here(self) -> Branch:
        if threading.get_ident() != self._thread:
            raise WrongThreadError(_OTHER_THREAD)
        if self._branch.busy:
            raise NestedStepError(NESTED)
        self._check_open()
        return self._branch

    def _check_open(self) -> None:
        if self._execution.pausing:
            self._execution.loop.call_soon_threadsafe(self._execution.leave_for_pause)
        if self._execution.closed or self._execution.pausing:
            self._execution.noticed = True
            raise ClosedError

    def _wait(self, wait: Wait, of: Operation, recall: Callable[[MemoRow], T]) -> T:
        row = self._kept(wait.key)
        if row is not None:
            return cast("T", self._replay(row, of, recall))
        return Operations(self._execution).outcome(self._await(self._serve(wait, of)), wait.key, recall)

    async def _serve(self, wait: Wait, of: Operation) -> Served:
        """In the event loop: the handler's thread is blocked meanwhile."""
        execution = self._execution
        execution.active += 1
        try:
            return await Operations(execution).serve(wait, of, self._branch)
        finally:
            execution.active -= 1

    def _begin(self, fn: Callable[..., Any], output: Any) -> tuple[Branch, StepDefinition]:
        branch = self._here()
        definition = definition_of(fn)
        if definition.is_async:
            raise HandlerUseError("a sync handler's steps are plain functions: make the handler async for this one")
        return branch, definition if output is _UNSET else definition.with_output(output)

    def _kept(self, key: str) -> MemoRow | None:
        memo = self._execution.memo
        row = None if memo is None else memo.get(key)
        if row is None:
            self._execution.replaying = False
        return row

    def _replay(self, row: MemoRow, operation: Operation, recall: StepDefinition | Callable[[MemoRow], Any]) -> Any:
        execution = self._execution
        try:
            execution.check_row(row, operation)
            if row.kind == "x":
                raise ReplayMismatch(
                    f"{row.key!r} was interrupted in an earlier life; a sync handler interrupts nothing"
                )
            if execution.memo is not None:
                execution.memo.hand_out(row)
                execution.replaying = bool(execution.memo)
            self._branch.last = row.key
            return recall(row) if callable(recall) else execution.recall(row, recall)
        except ReplayMismatch as mismatch:
            execution.noticed = True
            execution.loop.call_soon_threadsafe(execution.stop, Mismatched(mismatch.reason))
            raise

    def _keep(
        self,
        kind: RowKind,
        operation: Operation,
        key: str,
        data: bytes,
        started: float,
        *,
        beside: Callable[[], None] = _nothing,
    ) -> None:
        execution = self._execution
        took_ms = int((time.monotonic() - started) * 1000)
        answer: concurrent.futures.Future[None] = concurrent.futures.Future()

        def keep() -> None:
            try:
                # What is done is done, though a closed run's handler does not get it any more.
                if not execution.closed or execution.may_keep():
                    execution.keep(kind, operation, key, self._branch, data, took_ms)
                    beside()
            except BaseException as error:  # noqa: BLE001  # it is the waiting thread's
                answer.set_exception(error)
            else:
                answer.set_result(None)

        execution.loop.call_soon_threadsafe(keep)
        answer.result()
        self._check_open()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the event loop do it, and wait for that in the handler's thread."""
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._execution.loop.call_soon_threadsafe(self._start, work, answer)
        try:
            return answer.result()
        except asyncio.CancelledError:
            self._execution.noticed = True
            raise

    def _start(self, work: Coroutine[Any, Any, T], answer: concurrent.futures.Future[T]) -> None:
        self._task = self._execution.loop.create_task(_answer(work, answer))


async def _answer(work: Coroutine[Any, Any, T], answer: concurrent.futures.Future[T]) -> None:
    try:
        answer.set_result(await work)
    except asyncio.CancelledError:
        answer.set_exception(ClosedError())
    except BaseException as error:  # noqa: BLE001  # it is the waiting thread's
        answer.set_exception(error)
