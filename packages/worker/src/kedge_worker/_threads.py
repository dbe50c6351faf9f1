"""A bounded number of daemon threads for functions that block: one that hangs must not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context as Variables
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Threads:
    """Started when needed, up to the limit; more work waits for its turn."""

    def __init__(self, limit: int, *, name: str) -> None:
        self.limit = limit
        self._name = name
        self._queue: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def run(self, function: Callable[[], T], *, ended: Callable[[], None] | None = None) -> asyncio.Future[T]:
        """
        Call the function in a thread, with the caller's context variables.

        Args:
            function: Cannot be stopped: cancelling the future drops its result, or its start if it has not begun.
            ended: Called in the event loop when the function has ended or will never begin, cancelled or not.
        """
        loop = asyncio.get_running_loop()
        job = _Job(function, loop.create_future(), ended, copy_context(), loop)
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._threads < self.limit:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Let idle threads end; busy ones end after their function."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.work()
            del job  # else an idle thread would hold the last function's arguments
            with self._lock:
                self._idle += 1


class _Job(Generic[T]):
    __slots__ = ("_ended", "_function", "_loop", "_variables", "future")

    def __init__(
        self,
        function: Callable[[], T],
        future: asyncio.Future[T],
        ended: Callable[[], None] | None,
        variables: Variables,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.future = future
        self._function = function
        self._ended = ended
        self._variables = variables
        self._loop = loop

    def work(self) -> None:
        value: T | None = None
        error: BaseException | None = None
        if not self.future.cancelled():
            try:
                value = self._variables.run(self._function)
            except BaseException as raised:  # noqa: BLE001  # handed over to who awaits it
                error = raised
        try:
            self._loop.call_soon_threadsafe(self._finish, value, error)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more
        finally:
            del error  # its traceback names this frame

    def _finish(self, value: Any, error: BaseException | None) -> None:
        future = self.future
        del self.future  # the error's traceback names this job
        if not future.done():
            if error is None:
                future.set_result(value)
            elif issubclass(type(error), StopIteration):
                # A future refuses it.
                future.set_exception(RuntimeError(f"a function in a thread raised {type(error).__qualname__}"))
            else:
                future.set_exception(error)
        if self._ended is not None:
            self._ended()
