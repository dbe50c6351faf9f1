"""What an async handler is given: operations, each of which is done once and then remembered."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeGuard, TypeVar, TypeVarTuple, overload

from kedge.result_types import MISSING
from kedge_worker._branches import call_in_step
from kedge_worker._definitions import definition_of
from kedge_worker._facts import RunFacts
from kedge_worker._outcomes import Mismatched
from kedge_worker._signals import ClosedError, LeaseLostError, ReplayMismatch
from kedge_worker._transaction_body import AsyncConn, SyncConn, TransactionBody
from kedge_worker._turns import COMMITTED, LIVE

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from kedge_worker._branches import Branch
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Operation
    from kedge_worker._runs import MemoRow

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STOPS: Final = (ClosedError, LeaseLostError, ReplayMismatch, GeneratorExit)
"""Not of the body: the engine's, or the end of the coroutine itself."""


class Context(RunFacts):
    """
    The durable operations of an async handler.

    They are plain functions that return a coroutine: the key of an operation is taken when it is *called*, so that
    `gather(*(ctx.step("f", fetch, url) for url in urls))` numbers in the order of the program.

    Source: docs/explanation/concepts.md, keys and branches.
    """

    __slots__ = ()

    @overload
    def step(
        self, step_id: str, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, step_id: str, fn: Callable[[*Ts], T], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[Any, Any, T]: ...
    def step(self, step_id: Any, fn: Any, /, *args: Any, output: Any = MISSING) -> Any:  # type: ignore[misc]
        """
        Run the function once, keep its value, and answer what was kept, now and on replay.

        Keyword arguments go through `functools.partial`, as in anyio.

        Args:
            step_id: Names the step within its branch; a repeat gets `#2`, `#3`, ... Not one of ~ / # [ ].
            fn: Async functions are awaited, others get a thread, which cannot be stopped.
            args: Its positional arguments.
            output: The type of the value, where the function's annotation does not say it.

        Raises:
            StepFailedError: The function raised; `.error` says what. Kept like a value.
            DomainError: It raised one of the errors that are declared with `@step(raises=...)`.
            PayloadError: It returned what cannot be kept. It is not called again.
            HandlerUseError: A mistake at this call: a context inside a step, in a foreign task, or not a function.
            InvalidNameError: The id cannot be one.
            DefinitionError: The function's annotation cannot be resolved.
        """
        branch = self._here()
        definition = definition_of(fn)
        if output is not MISSING:
            definition = definition.with_output(output)
        return self._step(branch.key(step_id), branch, definition, fn, args)

    @overload
    def transaction(
        self, step_id: str, fn: Callable[[AsyncConn, *Ts], Awaitable[T]], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def transaction(
        self, step_id: str, fn: Callable[[SyncConn, *Ts], T], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[Any, Any, T]: ...
    def transaction(self, step_id: Any, fn: Any, /, *args: Any, output: Any = MISSING) -> Any:  # type: ignore[misc]
        """
        Run the function with a connection: its SQL and its kept value commit together, or not at all.

        The function must not commit, and does SQL only: it is repeated when the database rolled it back.

        Args:
            step_id: As in `step`.
            fn: Gets an `AsyncConnection` of psycopg if it is async; others get a `Connection`, in a thread.
            args: Its arguments behind the connection.
            output: As in `step`.

        Raises:
            TransactionFailedError: The database refused for good; `.sqlstate` says why.
            StepFailedError: The function raised something else.
            DomainError: It raised one of the errors that are declared with `@step(raises=...)`.
            PayloadError: It returned what cannot be kept; nothing was committed.
            HandlerUseError: As in `step`.
        """
        branch = self._here()
        definition = definition_of(fn)
        if output is not MISSING:
            definition = definition.with_output(output)
        return self._transaction(branch.key(step_id), branch, definition, fn, args)

    def branch(self, name: str, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts) -> Coroutine[Any, Any, T]:
        """
        Run a part of the handler as a branch with a name: its keys begin with `name/`, whatever tasks were made before.

        For what runs concurrently and must survive changes of the code around it::

            await asyncio.gather(ctx.branch("left", work, 1), ctx.branch("right", work, 2))

        Args:
            name: As a step's id.
            fn: An async function; it is the handler's code, not a step.
            args: Its positional arguments.

        Raises:
            HandlerUseError: As in `step`.
            InvalidNameError: The name cannot be one.
        """
        return self._branch(self._here().named(name), fn, args)

    # ---- inside

    def _here(self) -> Branch:
        execution = self._execution
        if execution.closed:
            raise ClosedError
        return execution.tasks.here(execution.branches)

    async def _branch(self, branch: Branch, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
        execution = self._execution
        outer = self._here()
        execution.tasks.switch(outer, branch)
        try:
            return await fn(*args)
        finally:
            execution.tasks.switch(branch, outer)

    async def _step(
        self, key: str, branch: Branch, definition: StepDefinition, fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        execution = self._execution
        here = execution.enter()
        try:
            if execution.memo is not None and (row := execution.memo.get(key)) is not None:
                return await self._replay(row, "s", branch, definition)
            execution.replaying = False
            run = execution.run
            started = time.monotonic()
            returned = False
            try:
                batch = run.batch
                if (batch is not None and not batch.stored) or run.lost:
                    await execution.barrier()
                    started = time.monotonic()
                value = fn(*args) if definition.is_async else await self._in_thread(fn, args)
                if _is_awaitable(value):
                    value = await value
                returned = True
                data, value = execution.encode(definition, key, value)
            except asyncio.CancelledError as error:
                if _is_cancelled() or execution.closed:
                    await self._interrupted("s", key, branch)
                    raise
                await self._fail(error, "s", key, branch, definition, started)
            except _STOPS:
                raise
            except BaseException as error:  # noqa: BLE001  # whatever a body raises is the step's failure
                await self._fail(error, "s", key, branch, definition, started, of_value=returned)
            took_ms = int((time.monotonic() - started) * 1000)
            if execution.branches.others or run.gate is not None or execution.closed:
                await self._keep_in_turn("s", "s", key, branch, data, took_ms)
            else:
                execution.keep("s", "s", key, branch, data, took_ms)
            return value
        finally:
            execution.leave(here)

    async def _transaction(
        self, key: str, branch: Branch, definition: StepDefinition, fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        execution = self._execution
        here = execution.enter()
        try:
            if execution.memo is not None and (row := execution.memo.get(key)) is not None:
                return await self._replay(row, "t", branch, definition)
            execution.replaying = False
            started = time.monotonic()
            body = TransactionBody(execution, key, definition, fn, args)
            run_body = body.in_loop if definition.is_async else body.in_thread
            try:
                await execution.transactions.run(execution.run, key, run_body, sync=not definition.is_async)
            except asyncio.CancelledError as error:
                if _is_cancelled() or execution.closed:
                    await self._interrupted("t", key, branch)
                    raise
                await self._fail(error, "t", key, branch, definition, started)
            except LeaseLostError:
                raise execution.lose() from None
            except _STOPS:
                raise
            except BaseException as error:  # noqa: BLE001  # as in a step
                await self._fail(error, "t", key, branch, definition, started, of_value=body.returned)
            if execution.branches.others:
                try:
                    await execution.take_turn(COMMITTED)
                except asyncio.CancelledError:
                    await self._interrupted("t", key, branch)
                    raise
            if execution.closed:
                raise ClosedError
            branch.last = key
            return body.value
        finally:
            execution.leave(here)

    def _in_thread(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        execution = self._execution
        execution.in_threads += 1
        return execution.threads.run(functools.partial(call_in_step, fn, args), ended=execution.thread_ended)

    async def _replay(self, row: MemoRow, operation: Operation, branch: Branch, definition: StepDefinition) -> Any:
        execution = self._execution
        memo, turns = execution.memo, execution.branches.turns
        assert memo is not None  # noqa: S101  # the row came from it
        try:
            execution.check_row(row, operation)
            if row.kind == "x":
                memo.expect_interruption(row)
                await execution.loop.create_future()
            if execution.branches.others and turns is not None:
                await turns.take(row.seq)
        except asyncio.CancelledError:
            # Interrupted again; or now for the first time, by a raw timeout that came later then.
            if row.kind == "x" and not execution.closed and execution.branches.others and turns is not None:
                with contextlib.suppress(asyncio.CancelledError):
                    await turns.take(row.seq)
            if not execution.closed:
                memo.hand_out(row)
                branch.last = row.key
            raise
        except ReplayMismatch as mismatch:
            execution.stop(Mismatched(mismatch.reason))
            raise
        if execution.closed:
            raise ClosedError
        memo.hand_out(row)
        if not memo:
            execution.replaying = False
        branch.last = row.key
        try:
            return execution.recall(row, definition)
        except ReplayMismatch as mismatch:
            execution.stop(Mismatched(mismatch.reason))
            raise

    async def _fail(
        self,
        error: BaseException,
        operation: Operation,
        key: str,
        branch: Branch,
        definition: StepDefinition,
        started: float,
        *,
        of_value: bool = False,
    ) -> NoReturn:
        """Keep the error of a body and raise what the handler gets for it."""
        execution = self._execution
        if execution.closed and _is_cancelled() and not of_value:
            raise ClosedError from error  # perhaps it only raised because it was cancelled
        data, raised = execution.failure(error, operation, key, definition, of_value=of_value)
        took_ms = int((time.monotonic() - started) * 1000)
        await self._keep_in_turn("f", operation, key, branch, data, took_ms)
        raise raised from error

    async def _keep_in_turn(
        self, kind: Literal["s", "f"], operation: Operation, key: str, branch: Branch, data: bytes, took_ms: int
    ) -> None:
        execution = self._execution
        try:
            await execution.take_turn(LIVE)
        except asyncio.CancelledError:
            if execution.closed:
                if execution.may_keep():
                    execution.keep(kind, operation, key, branch, data, took_ms)
            else:
                await self._interrupted(operation, key, branch)
            raise
        if execution.closed:
            # What is done is done, though this life's handler does not get it any more.
            if execution.may_keep():
                execution.keep(kind, operation, key, branch, data, took_ms)
            raise ClosedError
        execution.keep(kind, operation, key, branch, data, took_ms)

    async def _interrupted(self, operation: Operation, key: str, branch: Branch) -> None:
        """Keep that the handler's own code cancelled an operation: on replay it must be interrupted again."""
        execution = self._execution
        in_turn = False
        while not execution.closed and not in_turn:
            try:
                await execution.take_turn(LIVE)
                in_turn = True
            except asyncio.CancelledError:
                # Cancelled once more: at once, out of turn. But no row between a transaction's seq and its commit.
                in_turn = execution.run.gate is None
        if not execution.closed:
            execution.keep("x", operation, key, branch, b"", 0)


def _is_awaitable(value: object) -> TypeGuard[Awaitable[Any]]:
    return type(value) is CoroutineType or inspect.isawaitable(value)


def _is_cancelled() -> bool:
    """Whether somebody asked the current task to end; else a body has raised CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
