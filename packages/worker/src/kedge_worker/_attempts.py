"""
The attempts of a step from its first failure on: what is stored of them, when the next one comes, when it is enough.

A failure that is followed by another attempt is written together with a wait for that one, so the count and the due
time survive crashes, parking and deploys. Only failures of user code get here: whatever else stops a body raises the
engine's own signals.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from kedge.failures import encode_error
from kedge_worker._side_writes import CLOSE_WAITS, KEEP_FAILURES
from kedge_worker._signals import ClosedError
from kedge_worker._waits import Wait

if TYPE_CHECKING:
    from kedge.errors import ErrorInfo
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution
    from kedge_worker._outcomes import Operation
    from kedge_worker._runs import StoredWait
    from kedge_worker._waits import Served

_log: Final = logging.getLogger("kedge.worker")

MAX_KEPT_FAILURES: Final = 1000
"""Of one operation, by one attempt of its run: an unlimited policy may fail for ever. The final one is always kept."""

# What the column holds: 24 days.
_LONGEST_MS: Final = 2**31 - 1


def took_ms(started: float) -> int:
    """How long ago that was, on the monotonic clock."""
    return min(int((time.monotonic() - started) * 1000), _LONGEST_MS)


class Attempts:
    """
    Of one step or transaction. It decides wherever it is called; in the event loop `resume`, `pause` and `close` write.

    Args:
        execution: Of its run.
        of: What it is.
        key: Its key, which is that of its wait, too.
        definition: Its function's, on the terms of this call.
    """

    __slots__ = ("_delay_s", "_failure", "definition", "execution", "failed", "is_open", "key", "of")

    wait_kind = "r"

    def __init__(self, execution: Execution, of: Operation, key: str, definition: StepDefinition) -> None:
        self.execution = execution
        self.of: Operation = of
        self.key = key
        self.definition = definition
        self.failed = 0
        """How many attempts have failed."""
        self.is_open = False
        """Its wait is stored."""
        self._delay_s = 0.0
        self._failure: tuple[bytes, int] | None = None
        """What is to be written of the attempt that has just failed, and how long that took."""

    # ---- what the operations ask

    @property
    def is_known(self) -> bool:
        """Whether earlier lives have left something."""
        return self._stored() is not None

    async def resume(self, serve: Callable[[Wait], Awaitable[Served]]) -> Served | None:
        """
        Go on where earlier lives have stopped: return when the next attempt is due; None if there is nothing.

        Args:
            serve: Lets a wait of the run begin, and answers what ends it.
        """
        self.execution.check_wait(self.key, self.wait_kind, None)
        stored = self._stored()
        if stored is None:
            self._begin()
            return None
        self.is_open = True
        self._restore(stored)
        return await serve(self._wait())

    def bound(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function as the next attempt calls it."""
        return fn

    def is_answer(self, value: object) -> bool:  # noqa: ARG002  # polls look at it
        """Whether that is what the operation answers. If not, another attempt follows after a pause."""
        return True

    def fails(self, error: BaseException, started: float, *, of_value: bool = False) -> BaseException | None:
        """
        Count a failed attempt. Answers the error that is final; None: another attempt follows after a pause.

        Args:
            error: What it raised.
            started: When it began, on the monotonic clock.
            of_value: The body went well, but its value cannot be kept: it need not be called again for that.
        """
        self.failed += 1
        policy = self.definition.retry or self.execution.step_retry
        if of_value or policy.gives_up(error, self.failed):
            return error
        self._delay_s = policy.delay_after(self.failed, error).total_seconds()
        info = self.execution.describe(error, self.of, self.key, attempt=self.failed)
        self._failure = encode_error(info), took_ms(started)
        return None

    async def pause(self, serve: Callable[[Wait], Awaitable[Served]]) -> Served:
        """Keep what has failed, and return when the next attempt is due."""
        execution, run = self.execution, self.execution.run
        if execution.closed and (execution.moved or run.lost):
            raise ClosedError
        failure, self._failure = self._failure, None
        if failure is not None:
            error, ms = failure
            if self._failures() <= MAX_KEPT_FAILURES:
                columns = (run.take_note(), self.failed, ms, self.of, self.key, error)
                execution.journal.add(run, KEEP_FAILURES, *columns, size=200 + len(error))
            again = "run %s: %r has failed (attempt %d); again in %.3g s"
            _log.info(again, run.claimed.id, self.key, self.failed, self._delay_s)
        self.is_open = True
        served = await serve(self._wait())
        if execution.pausing:
            execution.leave_for_pause()
            raise ClosedError
        return served

    def describe(self, error: BaseException, *, of_value: bool = False) -> ErrorInfo:
        """What is kept of the error that is final."""
        return self.execution.describe(error, self.of, self.key, attempt=max(self.failed, 1), of_value=of_value)

    def close(self) -> None:
        """It has its outcome, which was queued just before."""
        execution = self.execution
        if self.is_open and not (execution.moved or execution.run.lost):
            execution.journal.add(execution.run, CLOSE_WAITS, self.key)

    # ---- what polls do in another way

    def _failures(self) -> int:
        """How many there were in all, the last one included."""
        return self.failed

    def _begin(self) -> None:
        """Nothing is stored yet."""

    def _restore(self, stored: StoredWait) -> None:
        self.failed = stored.attempt

    def _wait(self) -> Wait:
        return Wait(
            self.wait_kind,
            self.key,
            read=lambda _: None,
            time_up=lambda: None,
            delay_s=self._delay_s,
            attempt=self.failed,
        )

    def _stored(self) -> StoredWait | None:
        waits = self.execution.waits
        return None if waits is None else waits.stored(self.key)
