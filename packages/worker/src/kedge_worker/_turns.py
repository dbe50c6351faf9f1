"""
The order in which outcomes reach the branches of a run, live and on replay: one at a time, each when the one before has
had all its effects.

So a handler's way is a function of the journal's order alone, whatever the event loop did in between. Only runs with
several tasks come here: with one task there is nothing to order.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Set
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

from kedge_worker._joins import joins_tasks_only

if TYPE_CHECKING:
    from kedge_worker._memo import Memo

_log: Final = logging.getLogger("kedge.worker")

COMMITTED: Final = 1 << 40
"""The place of an outcome that has its seq already: behind everything from earlier lives, before all others."""
LIVE: Final = COMMITTED + 1
"""The place of an outcome of this life: behind everything from earlier lives."""

# A finished task, a gather in a gather, a shield: each hop between futures takes one round of the event loop.
_CALM_ROUNDS: Final = 3
# A task that spins with sleep(0) is never calm.
_MOST_ROUNDS: Final = 200
_LOOK_AGAIN_S: Final = 0.02
PATIENCE_S: Final = 5.0
"""
How long an outcome waits for one that came before it in an earlier life, while a task of the run that could still ask
for that one awaits something that is not kedge's: a raw sleep, a semaphore.
"""


class Turns:
    """Who of a run's branches gets its outcome next."""

    __slots__ = (
        "_calm",
        "_closed",
        "_count",
        "_granted",
        "_looking",
        "_loop",
        "_loose",
        "_memo",
        "_rounds",
        "_settled",
        "_timer",
        "_waited_s",
        "_waiting",
    )

    def __init__(self, loose: Set[asyncio.Task[Any]], memo: Memo | None, loop: asyncio.AbstractEventLoop) -> None:
        self._loose = loose
        """The run's tasks that are in the handler's own code."""
        self._memo = memo
        self._loop = loop
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._granted: asyncio.Future[None] | None = None
        self._settled = False
        self._calm = 0
        self._rounds = 0
        self._looking = False
        self._timer: asyncio.TimerHandle | None = None
        self._waited_s = 0.0
        self._closed = False

    async def take(self, place: int) -> None:
        """
        Return when the outcome of this place (a seq of the memo, COMMITTED or LIVE) may be handed out. The caller does
        it at once, without awaiting anything. Closed, it returns at once.
        """
        while not self._closed and not self._is_free_for(place):
            future: asyncio.Future[None] = self._loop.create_future()
            heappush(self._waiting, (place, next(self._count), future))
            self._look_soon()
            try:
                await future
            except asyncio.CancelledError:
                if self._granted is future:
                    self._granted = None
                    self._look_soon()
                raise
            self._granted = None
            if not self._has_better(place):
                break
        self._settled = False
        self._calm = self._rounds = 0
        self._look_soon()

    def stir(self) -> None:
        """A task of the run was made or has ended."""
        self._settled = False
        self._calm = 0
        self._look_soon()

    def look(self) -> None:
        """An operation began: who waits for what its task might have asked may wait no longer."""
        if self._waiting:
            self._look_soon()

    def close(self) -> None:
        """The run leaves: nothing is handed out any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for _, _, future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _is_free_for(self, place: int) -> bool:
        if not self._settled or self._granted is not None or self._has_better(place) or self._is_stirring():
            return False
        lowest = None if self._memo is None else self._memo.lowest()
        return lowest is None or lowest >= place

    def _has_better(self, place: int) -> bool:
        waiting = self._waiting
        while waiting and waiting[0][2].done():
            heappop(waiting)
        return bool(waiting) and waiting[0][0] < place

    def _is_stirring(self) -> bool:
        """Whether a task that is in the handler's own code is about to run."""
        for task in self._loose:
            awaited = getattr(task, "_fut_waiter", None)
            if (awaited is None or awaited.done()) and not task.done():
                return True
        return False

    def _look_soon(self) -> None:
        if not self._looking and not self._closed:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        self._rounds += 1
        self._calm = 0 if self._is_stirring() else self._calm + 1
        if self._calm < _CALM_ROUNDS and self._rounds < _MOST_ROUNDS:
            self._look_soon()
            return
        self._settled = True
        self._grant()

    def _grant(self) -> None:
        if self._granted is not None or self._closed:
            return
        self._has_better(0)  # forgets who was cancelled
        if not self._waiting:
            return
        place = self._waiting[0][0]
        memo = self._memo
        while memo is not None and (lowest := memo.lowest()) is not None and lowest < place:
            if memo.awaits_interruption(lowest):
                return
            if not self._is_stuck():
                self._look_later()
                return
            memo.skip(lowest)
        self._waited_s = 0.0
        self._granted = heappop(self._waiting)[2]
        self._granted.set_result(None)

    def _is_stuck(self) -> bool:
        """Whether no task of the run can ask for anything before somebody gets an outcome."""
        if self._waited_s >= PATIENCE_S:
            _log.warning(
                "replay: a task outside of steps awaits something for long; its outcomes are no longer waited for"
            )
            return True
        return all(joins_tasks_only(task) for task in self._loose)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._waited_s += _LOOK_AGAIN_S
        self._look_soon()
