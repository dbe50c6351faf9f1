"""How an operation of a sync handler goes: bodies in the handler's own thread, all else in the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from kedge.errors import NestedStepError, PayloadError, WrongThreadError
from kedge.failures import encode_error
from kedge.hashes import argument_hashes
from kedge_worker._attempts import Attempts
from kedge_worker._branches import NESTED
from kedge_worker._facts import RunFacts
from kedge_worker._operations import Operations
from kedge_worker._outcomes import Mismatched
from kedge_worker._signals import ClosedError, LeaseLostError, ReplayMismatch
from kedge_worker._transaction_body import TransactionBody

if TYPE_CHECKING:
    from kedge_worker._branches import Branch
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution
    from kedge_worker._outcomes import Operation, RowKind
    from kedge_worker._runs import MemoRow
    from kedge_worker._waits import Served, Wait

T = TypeVar("T")

_OTHER_THREAD: Final = (
    "a SyncContext belongs to its handler's thread: call it there; for concurrency write an async handler"
)
_REFUSED_S: Final = 0.1
_STOPS: Final = (asyncio.CancelledError, LeaseLostError, ReplayMismatch)


def _nothing() -> None:
    pass


class SyncOperations(RunFacts):
    """What a sync handler's context is made of; it belongs to one thread."""

    __slots__ = ("_branch", "_task", "_thread")

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self._branch = execution.branches.root
        self._thread: int | None = None
        self._task: asyncio.Task[None] | None = None
        """What the handler's thread waits for, in the event loop."""

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
            self._execution.refusals += 1
            if self._execution.is_hopeless:
                time.sleep(_REFUSED_S)  # its thread is lost; the others' share of the interpreter is not
            raise ClosedError

    def _wait(self, wait: Wait, of: Operation, recall: Callable[[MemoRow], T]) -> T:
        row = self._kept(wait.key)
        if row is not None:
            return cast("T", self._replay(row, of, recall))
        return Operations(self._execution).outcome(self._await(self._serve(wait, of)), wait.key, recall)

    async def _serve(self, wait: Wait, of: Operation) -> Served:
        """In the event loop: the handler's thread is blocked meanwhile."""
        execution = self._execution
        if execution.closed:  # since the handler has asked: nobody would interrupt this any more
            raise ClosedError
        execution.active += 1
        try:
            return await Operations(execution).serve(wait, of, self._branch)
        finally:
            execution.active -= 1

    def _step(
        self,
        key: str,
        definition: StepDefinition,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        attempts: Attempts | None = None,
    ) -> Any:
        """A step, or what `attempts` says."""
        execution, branch = self._execution, self._branch
        of: Operation = "s" if attempts is None else attempts.of
        row = self._kept(key)
        if row is not None:
            return self._replay(row, of, self._recall(definition, args))
        attempts = attempts or Attempts(execution, of, key, definition)
        if of != "s" or attempts.is_known:
            served = self._await(attempts.resume(self._server(of)))
            if served is not None and served.kept is not None:
                return self._outcome(served, key, definition)
        inputs = argument_hashes(args) if definition.check_input else ()
        data = b""
        kept: Any = None
        while True:
            call = attempts.bound(fn)
            batch = execution.run.batch
            if (batch is not None and not batch.stored) or execution.run.lost:
                self._await(execution.barrier())
            started = time.monotonic()
            returned = False
            branch.busy = True
            try:
                value = call(*args)
                returned = True
                if attempts.is_answer(value):
                    data, kept = execution.encode(definition, key, value)
                    break
            except _STOPS:
                raise
            except BaseException as error:  # noqa: BLE001  # whatever a body raises is the step's failure
                of_value = returned and issubclass(type(error), PayloadError)
                self._failed(error, attempts, started, inputs, of_value=of_value)
            finally:
                branch.busy = False
            served = self._await(attempts.pause(self._server(of)))
            if served.kept is not None:
                return self._outcome(served, key, definition)
        self._keep(of, of, key, data, started, inputs, beside=attempts.close)
        return kept

    def _transaction(self, key: str, definition: StepDefinition, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        execution = self._execution
        row = self._kept(key)
        if row is not None:
            return self._replay(row, "t", self._recall(definition, args))
        attempts = Attempts(execution, "t", key, definition)
        if attempts.is_known:
            self._await(attempts.resume(self._server("t")))
        inputs = argument_hashes(args) if definition.check_input else ()
        while True:
            started = time.monotonic()
            body = TransactionBody(execution, key, definition, fn, args)
            try:
                meta = functools.partial(execution.meta, "t", "t", inputs)
                work = execution.transactions.run(execution.run, key, body.in_thread, sync=True, meta=meta)
                execution.run.assigned.discard(self._await(work))
                break
            except LeaseLostError:
                execution.loop.call_soon_threadsafe(execution.lose)
                raise
            except _STOPS:
                raise
            except BaseException as error:  # noqa: BLE001  # as in a step
                self._failed(error, attempts, started, inputs, of_value=body.returned)
            self._await(attempts.pause(self._server("t")))
        execution.in_loop(attempts.close)
        self._branch.last = key
        return body.value

    def _failed(
        self,
        error: BaseException,
        attempts: Attempts,
        started: float,
        inputs: tuple[bytes, ...],
        *,
        of_value: bool,
    ) -> None:
        """Return if another attempt follows the failed one; else keep the error, and raise what the handler gets."""
        final = attempts.fails(error, started, of_value=of_value)
        if final is not None:
            info = attempts.describe(final, of_value=of_value)
            self._keep("f", attempts.of, attempts.key, encode_error(info), started, inputs, beside=attempts.close)
            raise self._execution.rebuilt(info, attempts.key, attempts.definition) from final

    def _server(self, of: Operation) -> Callable[[Wait], Awaitable[Served]]:
        return functools.partial(self._serve, of=of)

    def _outcome(self, served: Served, key: str, definition: StepDefinition) -> Any:
        recall = functools.partial(self._execution.recall, definition=definition)
        return Operations(self._execution).outcome(served, key, recall)

    def _recall(self, definition: StepDefinition, args: tuple[Any, ...]) -> StepDefinition | Callable[[MemoRow], Any]:
        return self._execution.recall_with(definition, args) if definition.check_input else definition

    def _kept(self, key: str) -> MemoRow | None:
        memo = self._execution.memo
        row = None if memo is None else memo.get(key)
        if row is None:
            self._execution.begin_anew(key=key)
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
            self._mismatch(mismatch)
            raise

    def _mismatch(self, mismatch: ReplayMismatch) -> None:
        execution = self._execution
        execution.noticed = True
        execution.loop.call_soon_threadsafe(execution.stop, Mismatched(mismatch.reason))

    def _keep(
        self,
        kind: RowKind,
        operation: Operation,
        key: str,
        data: bytes,
        started: float,
        inputs: tuple[bytes, ...] = (),
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
                    execution.keep(kind, operation, key, self._branch, data, took_ms, inputs)
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
