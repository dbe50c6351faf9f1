"""
A body that may take only so long. It runs in a task of its own, which is cancelled when its time is up, and left behind
when it does not end even then: whoever awaits the step gets to know in bounded time.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kedge_worker._branches import call_in_step
from kedge_worker._time_ups import StepTimeUp

if TYPE_CHECKING:
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution

_log: Final = logging.getLogger("kedge.worker")

_UNWINDING_S: Final = 5.0
"""How long a cancelled body may take to end."""
_CANCEL_AGAIN_S: Final = 1.0
"""anyio cancels what waits inside of a cancelled scope each round of the loop: that is not for the body."""


class _Ended(NamedTuple):
    value: Any
    error: BaseException | None


class TimedBody:
    """One attempt of a step that has a timeout; `run` once."""

    __slots__ = (
        "_args",
        "_cancelled_at",
        "_definition",
        "_ended",
        "_execution",
        "_expired",
        "_fn",
        "_in_thread",
        "_key",
        "_left",
        "_task",
        "_timeout_s",
        "_timer",
    )

    def __init__(
        self,
        execution: Execution,
        key: str,
        definition: StepDefinition,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        timeout_s: float,
    ) -> None:
        self._execution = execution
        self._key = key
        self._definition = definition
        self._fn = fn
        self._args = args
        self._timeout_s = timeout_s
        self._ended: asyncio.Future[None] = execution.loop.create_future()
        self._task: asyncio.Task[_Ended] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False
        self._left = False
        self._in_thread = False
        self._cancelled_at: float | None = None

    async def run(self) -> Any:
        """
        Answer the body's value, or raise its error; of a cancellation the body is told, as if it ran in this task.

        Raises:
            StepTimeUp: It has not ended in time. What it answers late is dropped.
        """
        # Made while an operation of its branch is under way, the task is known to be a step's body.
        self._task = task = self._execution.loop.create_task(self._caught())
        task.add_done_callback(self._task_ended)
        if self._definition.is_async:
            self._begin()
        interruption: asyncio.CancelledError | None = None
        try:
            while not self._ended.done():
                try:
                    await asyncio.wait((self._ended,))
                except asyncio.CancelledError as error:
                    if task.done() and not self._execution.closed:
                        raise  # nobody has told the body, so it cannot have made anything of it
                    interruption = interruption or error
                    self._cancel()
        finally:
            if self._timer is not None:
                self._timer.cancel()
        return self._outcome(task, interruption)

    def _outcome(self, task: asyncio.Task[_Ended], interruption: asyncio.CancelledError | None) -> Any:
        if self._expired and self._in_thread:
            self._leave_behind("its function cannot be stopped: it keeps its thread until it ends")
        ended = _Ended(None, asyncio.CancelledError())  # also of a task that was cancelled before it began
        if task.done() and not task.cancelled():
            ended = task.result()
        if interruption is not None and (self._expired or isinstance(ended.error, asyncio.CancelledError)):
            raise interruption
        if self._expired:
            raise StepTimeUp(f"it has not ended within {self._timeout_s:g} s") from ended.error
        if ended.error is not None:
            raise ended.error
        return ended.value

    async def _caught(self) -> _Ended:
        """Run the body; what it raises is a value, so that no task has an exception that nobody looks at."""
        try:
            value = self._fn(*self._args) if self._definition.is_async else await self._start_thread()
            if inspect.isawaitable(value):
                value = await value
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001  # raised where the step is awaited
            return _Ended(None, error)
        return _Ended(value, None)

    # ---- its time

    def _begin(self) -> None:
        if self._timer is None and not self._ended.done():
            self._timer = self._execution.loop.call_later(self._timeout_s, self._expire)

    def _expire(self) -> None:
        task = self._task
        if task is not None and not task.done():
            self._expired = True
            task.cancel()
            self._timer = self._execution.loop.call_later(_UNWINDING_S, self._give_up)

    def _cancel(self) -> None:
        now, task = self._execution.loop.time(), self._task
        if task is not None and (self._cancelled_at is None or now - self._cancelled_at >= _CANCEL_AGAIN_S):
            self._cancelled_at = now
            task.cancel()

    def _give_up(self) -> None:
        task = self._task
        if task is not None and not task.done():
            where = "".join(f" {frame.f_code.co_qualname}:{frame.f_lineno}" for frame in task.get_stack(limit=3))
            self._leave_behind(f"it was cancelled {_UNWINDING_S:g} s ago and still runs, in{where}")
            self._ended.set_result(None)

    def _task_ended(self, _: asyncio.Task[_Ended]) -> None:
        if self._left and not self._in_thread:
            self._execution.left_behind -= 1
        if not self._ended.done():
            self._ended.set_result(None)

    def _leave_behind(self, why: str) -> None:
        if not self._left:
            self._left = True
            self._execution.left_behind += 1
            _log.warning(
                "run %s: step %r has taken more than %g s, and %s; what it answers is dropped",
                self._execution.run.claimed.id,
                self._key,
                self._timeout_s,
                why,
            )

    # ---- in a thread

    def _start_thread(self) -> asyncio.Future[Any]:
        execution = self._execution
        loop = execution.loop

        def work() -> Any:
            # The time that it waits for a thread is not the function's.
            loop.call_soon_threadsafe(self._begin)
            return call_in_step(self._fn, self._args)

        self._in_thread = True
        execution.in_threads += 1
        return execution.threads.run(work, ended=self._thread_ended)

    def _thread_ended(self) -> None:
        self._in_thread = False
        if self._left:
            self._execution.left_behind -= 1
        self._execution.thread_ended()
