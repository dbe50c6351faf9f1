"""Calls a run's handler and says what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from kedge.errors import StepError
from kedge.failures import encode_error, kind_of
from kedge_worker._context import Context
from kedge_worker._outcomes import Mismatched, Outcome, Raised, Returned
from kedge_worker._signals import ReplayMismatch
from kedge_worker._sync_context import SyncContext

if TYPE_CHECKING:
    from kedge.refs import WorkflowRef
    from kedge_worker._execution import Execution
    from kedge_worker._threads import Threads
    from kedge_worker._workflows import Workflow

_log: Final = logging.getLogger("kedge.worker")

UNWINDING_S: Final = 5.0
"""How long a stopped handler, or what a handler left behind, may take to unwind before nobody waits for it."""


async def handle(execution: Execution, workflow: Workflow[Any, Any]) -> Outcome:
    """Execute an async handler in the current task."""
    ref = workflow.ref
    try:
        if workflow.takes_input:
            value = await workflow.fn(Context(execution), _take_input(execution, ref))
        else:
            value = await workflow.fn(Context(execution))
        outcome: Outcome = Returned(ref.encode_output(value))
    except BaseException as error:  # noqa: BLE001  # whatever a handler raises is its failure, not the worker's
        outcome = outcome_of(error, execution)
    execution.noticed = execution.closed
    execution.close()
    return outcome


async def handle_in_thread(execution: Execution, workflow: Workflow[Any, Any], threads: Threads) -> Outcome:
    """Execute a sync handler in a thread of its own, and wait until it has ended."""
    ref = workflow.ref
    context = SyncContext(execution)
    try:
        args = (_take_input(execution, ref),) if workflow.takes_input else ()
        execution.in_threads += 1
        ending = threads.run(functools.partial(context.run, workflow.fn, args), ended=execution.thread_ended)
        execution.interrupt = functools.partial(_interrupt_thread, context, ending)
        try:
            value = await ending
        finally:
            del ending  # the traceback of its error names this frame
        outcome: Outcome = Returned(ref.encode_output(value))
    except BaseException as error:  # noqa: BLE001  # as above
        outcome = outcome_of(error, execution)
    if not context.begun:
        execution.noticed = execution.closed
    execution.close()
    return outcome


def _take_input(execution: Execution, ref: WorkflowRef[Any, Any]) -> Any:
    run = execution.run
    value = ref.decode_input(run.claimed.input)
    run.forget_input()
    return value


def current_task() -> asyncio.Task[Any] | None:
    """Answer the running task; None outside of any."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _interrupt_thread(context: SyncContext, ending: asyncio.Future[Any]) -> None:
    if context.begun:
        context.interrupt()
    else:
        ending.cancel()


async def end_leftovers(execution: Execution) -> None:
    """Cancel the tasks that the handler has left behind, and wait until they have unwound; bounded."""
    deadline = execution.loop.time() + UNWINDING_S
    tasks = execution.branches.tasks
    if not execution.noticed:
        _log.warning(
            "run %s: its handler left %d unfinished tasks behind, which are cancelled: await what it starts",
            execution.run.claimed.id,
            len(tasks),
        )
    while tasks and (left_s := deadline - execution.loop.time()) > 0:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(list(tasks), timeout=min(left_s, 1))
        # Tasks leave the set by callbacks of their own.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def outcome_of(error: BaseException, execution: Execution) -> Outcome:
    """Say what a handler's exception means. The engine's signals mean little by themselves: they follow a decision."""
    # Its type, as `except` does: isinstance would also ask the error, which may say anything of its class.
    kind = type(error)
    if issubclass(kind, GeneratorExit) and current_task() is not execution.task:
        raise error  # the event loop is gone, and this coroutine with it
    if issubclass(kind, ReplayMismatch):
        return Mismatched(cast("ReplayMismatch", error).reason)
    if issubclass(kind, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # Not by the executor. Perhaps the event loop is about to end; perhaps the handler did it itself.
            return Mismatched("the handler's task was cancelled, and not by kedge")
    key: str | None = None
    delay_s: float | None = None
    try:
        if issubclass(kind, StepError):
            key = cast("StepError", error).key
        delay_s = execution.retry_delay_s(error)
    except Exception:  # noqa: BLE001  # an error of the user's making lacks what its class promises: it is final
        _log.warning("run %s: what its error %s says of itself cannot be read", execution.run.claimed.id, kind_of(kind))
    return Raised(encode_error(error, key=key), delay_s)
