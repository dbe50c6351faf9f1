"""
A worker's process: it ends when its work has, whatever handlers have left behind, and when its event loop is dead.

Only for `kedge-worker run` and the children that it starts: a process that belongs to somebody else is not ours to end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn

STUCK: Final = 6
"""The exit code of a process whose event loop was dead."""

_FAILED: Final = 1

_log: Final = logging.getLogger("kedge.worker")

_LEFT_BEHIND_S: Final = 5.0
"""How long the interpreter may take to end once the work is done."""
_DEAD_LEASES: Final = 3
"""Two without an answer, and the lease keeper has stopped; after the third the lease is over for certain."""
_LOOKS_A_LEASE: Final = 20
_LAST_WORDS_S: Final = 1.0


def run_as_process(work: Callable[[], Coroutine[Any, Any, int]], *, lease_s: float) -> int:
    """
    Run this in an event loop of its own and answer the exit code; what is left afterwards is given five seconds.

    An event loop that does not answer for three leases ends the process with `STUCK`: its runs belong to others by
    then, signals do not reach it, and whoever watches over the process starts another one.

    So does a `sys.exit` in a callback of the application's, which leaves the event loop with no handler to answer for
    it: the process dies with its runs, as with `os._exit`. To give them back would let it kill workers for ever.
    """
    # What was imported stays; the garbage collector need not look through it each time.
    gc.collect()
    gc.freeze()
    with asyncio.Runner() as runner:
        try:
            return runner.run(_watched(work, lease_s))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else _FAILED
            _end(
                code or _FAILED, "worker: %s; the process ends, and its runs with it. Its main thread is at\n%s", error
            )


async def _watched(work: Callable[[], Coroutine[Any, Any, int]], lease_s: float) -> int:
    watchdog = _Watchdog(lease_s)
    watchdog.start()
    answering = asyncio.create_task(watchdog.answer(), name="kedge-watchdog")
    code = _FAILED
    try:
        code = await work()
    finally:
        answering.cancel()
        # asyncio waits for tasks, and the interpreter for threads, that a handler has left behind: perhaps for ever.
        watchdog.work_is_done(code)
    return code


class _Watchdog(threading.Thread):
    def __init__(self, lease_s: float) -> None:
        super().__init__(name="kedge-watchdog", daemon=True)
        self._period_s = lease_s / _LOOKS_A_LEASE
        self._answered = False
        self._done = threading.Event()
        self._code = _FAILED

    async def answer(self) -> None:
        """Show that the event loop is alive."""
        while True:
            self._answered = True
            await asyncio.sleep(self._period_s / 2)

    def work_is_done(self, code: int) -> None:
        self._code = code
        self._done.set()

    def run(self) -> None:
        unanswered = 0
        # Counted, not measured: a process that was frozen as a whole comes back with all of its threads.
        while not self._done.wait(self._period_s):
            unanswered = 0 if self._answered or _is_debugged() else unanswered + 1
            self._answered = False
            if unanswered >= _DEAD_LEASES * _LOOKS_A_LEASE:
                message = "worker: the event loop has not answered for %d leases; ending the process. It is at\n%s"
                _end(STUCK, message, _DEAD_LEASES)
        time.sleep(_LEFT_BEHIND_S)
        message = "worker: stopped %g s ago, and something goes on; ending the process. Its main thread is at\n%s"
        _end(self._code, message, _LEFT_BEHIND_S)


def _end(code: int, message: str, about: object) -> NoReturn:
    where = "".join(traceback.format_stack(sys._current_frames().get(threading.main_thread().ident or 0)))  # noqa: SLF001
    # Whoever is stuck may hold the log's lock: nobody waits for these words for long.
    speaker = threading.Thread(target=_log.error, args=(message, about, where), daemon=True)
    speaker.start()
    speaker.join(_LAST_WORDS_S)
    os._exit(code)


def _is_debugged() -> bool:
    """Somebody has stopped the main thread to look at it."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    while frame is not None:
        if frame.f_trace is not None:
            return True
        frame = frame.f_back
    return False
