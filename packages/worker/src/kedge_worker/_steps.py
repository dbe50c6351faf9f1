"""Operations with a body, steps, transactions, polls: how often the body is called, how long, what is kept of it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from kedge.errors import PayloadError
from kedge.failures import encode_error
from kedge.hashes import argument_hashes
from kedge_worker._attempts import Attempts
from kedge_worker._branches import call_in_step, operation
from kedge_worker._operations import Operations, cancellations
from kedge_worker._signals import ClosedError, LeaseLostError, NotAStep, ReplayMismatch
from kedge_worker._time_limits import TimedBody
from kedge_worker._transaction_body import TransactionBody

if TYPE_CHECKING:
    from kedge_worker._branches import Branch
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._outcomes import Operation
    from kedge_worker._runs import MemoRow
    from kedge_worker._waits import Served, Wait

_STOPS: Final = (ClosedError, LeaseLostError, ReplayMismatch, NotAStep, GeneratorExit)
"""Not of the body: the engine's, or the end of the coroutine itself."""


class Steps(Operations):
    """The operations of an async handler, those with a body included."""

    __slots__ = ()

    @operation
    async def step(
        self,
        key: str,
        branch: Branch,
        definition: StepDefinition,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        attempts: Attempts | None = None,
    ) -> Any:
        """A step, or what `attempts` says. A step that succeeds at once has none."""
        execution = self._execution
        of: Operation = "s" if attempts is None else attempts.of
        here = execution.enter()
        try:
            if execution.memo is not None and (row := execution.memo.get(key)) is not None:
                _decide(here, row)
                return await self._replay(row, of, branch, here, self._recall(definition, args))
            execution.begin_anew(key=key)
            if attempts is not None or (execution.waits is not None and execution.waits.stored(key) is not None):
                attempts = attempts or Attempts(execution, of, key, definition)
                served = await attempts.resume(self._server(of, branch, here))
                if served is not None and served.kept is not None:
                    return self.outcome(served, key, functools.partial(execution.recall, definition=definition))
            run = execution.run
            data = b""
            inputs = argument_hashes(args) if definition.check_input else ()
            value: Any = None
            while True:
                call = fn if attempts is None else attempts.bound(fn)
                started = time.monotonic()
                returned = False
                try:
                    batch = run.batch
                    if (batch is not None and not batch.stored) or run.lost:
                        await execution.barrier()
                        started = time.monotonic()
                    if definition.timeout_s is None:
                        value = call(*args) if definition.is_async else await self._in_thread(call, args)
                        if _is_awaitable(value):
                            value = await value
                    else:
                        value = await TimedBody(execution, key, definition, call, args, definition.timeout_s).run()
                    returned = True
                    if attempts is None or attempts.is_answer(value):
                        data, value = execution.encode(definition, key, value)
                        break
                except asyncio.CancelledError as error:
                    if cancellations() or execution.closed:
                        await self._interrupted(of, key, branch)
                        raise
                    attempts = attempts or Attempts(execution, of, key, definition)
                    await self._failed(error, attempts, branch, started, inputs)
                except _STOPS:
                    raise
                except BaseException as error:  # noqa: BLE001  # whatever a body raises is the step's failure
                    of_value = returned and issubclass(type(error), PayloadError)
                    attempts = attempts or Attempts(execution, of, key, definition)
                    await self._failed(error, attempts, branch, started, inputs, of_value=of_value)
                served = await attempts.pause(self._server(of, branch, here))
                if served.kept is not None:
                    return self.outcome(served, key, functools.partial(execution.recall, definition=definition))
            took_ms = int((time.monotonic() - started) * 1000)
            if attempts is not None:
                await self._keep_in_turn(of, of, key, branch, data, took_ms, inputs, beside=attempts.close)
            elif execution.branches.others or run.gate is not None or execution.closed:
                await self._keep_in_turn("s", "s", key, branch, data, took_ms, inputs)
            else:
                execution.keep("s", "s", key, branch, data, took_ms, inputs)
            return value
        finally:
            execution.leave(here)

    @operation
    async def transaction(
        self, key: str, branch: Branch, definition: StepDefinition, fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        execution = self._execution
        here = execution.enter()
        try:
            if execution.memo is not None and (row := execution.memo.get(key)) is not None:
                _decide(here, row)
                return await self._replay(row, "t", branch, here, self._recall(definition, args))
            execution.begin_anew(key=key)
            attempts = Attempts(execution, "t", key, definition)
            if attempts.is_known:
                await attempts.resume(self._server("t", branch, here))
            inputs = argument_hashes(args) if definition.check_input else ()
            seq = 0
            while True:
                started = time.monotonic()
                body = TransactionBody(execution, key, definition, fn, args)
                run_body = body.in_loop if definition.is_async else body.in_thread
                meta = functools.partial(execution.meta, "t", "t", inputs)
                try:
                    seq = await execution.transactions.run(
                        execution.run, key, run_body, sync=not definition.is_async, meta=meta
                    )
                    break
                except asyncio.CancelledError as error:
                    if cancellations() or execution.closed:
                        await self._interrupted("t", key, branch)
                        raise
                    await self._failed(error, attempts, branch, started, inputs)
                except LeaseLostError:
                    raise execution.lose() from None
                except _STOPS:
                    raise
                except BaseException as error:  # noqa: BLE001  # as in a step
                    await self._failed(error, attempts, branch, started, inputs, of_value=body.returned)
                await attempts.pause(self._server("t", branch, here))
            attempts.close()
            await self._hand_out(seq, "t", key, branch)
            return body.value
        finally:
            execution.leave(here)

    async def _failed(
        self,
        error: BaseException,
        attempts: Attempts,
        branch: Branch,
        started: float,
        inputs: tuple[bytes, ...],
        *,
        of_value: bool = False,
    ) -> None:
        """Return if another attempt follows the failed one; else keep the error, and raise what the handler gets."""
        execution = self._execution
        if execution.closed and cancellations() and not of_value:
            raise ClosedError from error  # perhaps it only raised because it was cancelled
        final = attempts.fails(error, started, of_value=of_value)
        if final is not None:
            info = attempts.describe(final, of_value=of_value)
            took_ms = int((time.monotonic() - started) * 1000)
            data = encode_error(info)
            of, key = attempts.of, attempts.key
            await self._keep_in_turn("f", of, key, branch, data, took_ms, inputs, beside=attempts.close)
            raise execution.rebuilt(info, key, attempts.definition) from final

    def _server(self, of: Operation, branch: Branch, here: Branch) -> Callable[[Wait], Awaitable[Served]]:
        def serve(wait: Wait) -> Awaitable[Served]:
            wait.race = here.race
            return self.serve(wait, of, branch)

        return serve

    def _recall(self, definition: StepDefinition, args: tuple[Any, ...]) -> StepDefinition | Callable[[MemoRow], Any]:
        """What a row of such a step means to the handler."""
        return self._execution.recall_with(definition, args) if definition.check_input else definition

    def _in_thread(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        execution = self._execution
        execution.in_threads += 1
        return execution.threads.run(functools.partial(call_in_step, fn, args), ended=execution.thread_ended)


def _decide(here: Branch, row: MemoRow) -> None:
    """An outcome of an earlier life has won its race: the others shall take nothing any more."""
    if here.race is not None and row.kind != "x":
        here.race.is_decided = True


def _is_awaitable(value: object) -> TypeGuard[Awaitable[Any]]:
    return type(value) is CoroutineType or inspect.isawaitable(value)
