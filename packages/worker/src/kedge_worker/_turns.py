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
from collections.abc import Collection, Set
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

from kedge_worker._joins import joins_tasks_only

if TYPE_CHECKING:
    from uuid import UUID

    from kedge_worker._memo import Memo

_log: Final = logging.getLogger("kedge.worker")

LIVE: Final = 1 << 40
"""The place of an outcome of this life that has no seq yet: behind all that have one."""

# A task that has ended is news after one round of the event loop; a gather in a gather, or a shield, adds a round each.
_CALM_ROUNDS: Final = 4
# A task that spins with sleep(0) is never calm.
_MOST_ROUNDS: Final = 200
_LOOK_AGAIN_S: Final = 0.02
PATIENCE_S: Final = 5.0
"""
How long an outcome waits for one that came before it in an earlier life, while a task of the run that could still ask
for that one awaits something that is not kedge's: a raw sleep, a semaphore.
"""


class Rounds:
    """Counts the rounds of an event loop, for as long as somebody wants to know and no longer."""

    __slots__ = ("_loop", "_ready", "_ticking", "_until", "now", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # What asyncio will do next; other loops do not show it.
        self._ready: Collection[object] | None = getattr(loop, "_ready", None)
        self._ticking = False
        self._until = 0
        self.now = 0
        self.waiting: set[Turns] = set()
        """Who is to look each round."""

    def soon(self) -> int:
        """Answer the round in which what happens now has had its effects; rounds are counted until then."""
        self._until = self.now + _CALM_ROUNDS
        if not self._ticking:
            self._ticking = True
            self._loop.call_soon(self._tick)
        return self._until

    def _tick(self) -> None:
        self.now += 1
        if self._ready is not None and not self._ready:
            self.now = max(self.now, self._until)  # nothing else is about to happen: the rounds to come would be empty
        if self.waiting:
            for turns in tuple(self.waiting):
                turns.look()
        if self.now < self._until or self.waiting:
            self._loop.call_soon(self._tick)
        else:
            self._ticking = False


class Turns:
    """Who of a run's branches gets its outcome next."""

    __slots__ = (
        "_assigned",
        "_calm_at",
        "_closed",
        "_count",
        "_granted",
        "_loop",
        "_loose",
        "_memo",
        "_restless",
        "_rounds",
        "_run_id",
        "_timer",
        "_waited_s",
        "_waiting",
    )

    def __init__(
        self,
        run_id: UUID,
        loose: Set[asyncio.Task[Any]],
        memo: Memo | None,
        assigned: Set[int],
        rounds: Rounds,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._run_id = run_id
        self._assigned = assigned
        """Seqs of this life's outcomes that are stored, or on their way, before the handler has them."""
        self._loose = loose
        """The run's tasks that are in the handler's own code."""
        self._memo = memo
        self._rounds = rounds
        self._loop = loop
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._granted: asyncio.Future[None] | None = None
        self._calm_at = 0
        self._restless = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waited_s = 0.0
        self._closed = False

    async def take(self, place: int, *, insist: bool = False) -> asyncio.CancelledError | None:
        """
        Return when the outcome of this place (its seq if it has one, else LIVE) may be handed out. The caller does
        it at once, without awaiting anything. Closed, it returns at once.

        With `insist` it does not give up when the task is cancelled meanwhile, however often: anyio repeats it each
        round. It answers with the last of these errors.
        """
        swallowed: asyncio.CancelledError | None = None
        while not self._closed and not self._is_free_for(place):
            future: asyncio.Future[None] = self._loop.create_future()
            heappush(self._waiting, (place, next(self._count), future))
            self._look_each_round()
            try:
                if insist:
                    swallowed = await _insist(future) or swallowed
                else:
                    await future
            except asyncio.CancelledError:
                if self._granted is future:
                    self._granted = None
                self._look_each_round()
                raise
            self._granted = None
            # Since it was granted a wait may have been served, or somebody come who is to be before this one.
            if not self._is_awaited_by(place - 1) and not self._follows_another(place):
                break
        self.stir()
        return swallowed

    def stir(self) -> None:
        """Something happens in the handler's code: a task was made or has ended, an outcome is handed out."""
        self._calm_at = self._rounds.soon()
        if self._waiting and not self._closed:
            self._rounds.waiting.add(self)

    def nudge(self) -> None:
        """An operation begins: who waits for what its task might have asked may wait no longer."""
        if self._waiting:
            self._look_each_round()

    def close(self) -> None:
        """The run leaves: nothing is handed out any more."""
        self._closed = True
        self._rounds.waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for _, _, future in self._waiting:
            if not future.done():
                future.set_result(None)

    def look(self) -> None:
        """Once a round, while somebody waits: hand out the next outcome if all is calm."""
        if self._rounds.now < self._calm_at:
            return
        if self._is_stirring() and self._restless < _MOST_ROUNDS:
            self._restless += 1
            return
        self._restless = 0
        self._rounds.waiting.discard(self)
        self._grant()

    def _is_free_for(self, place: int) -> bool:
        if self._rounds.now < self._calm_at or self._granted is not None:
            return False
        if self._is_awaited_by(place) or self._is_stirring() or self._follows_another(place):
            return False
        lowest = None if self._memo is None else self._memo.lowest()
        return lowest is None or lowest >= place

    def _is_awaited_by(self, place: int) -> bool:
        """Whether somebody waits for a turn up to this place."""
        waiting = self._waiting
        while waiting and waiting[0][2].done():
            heappop(waiting)
        return bool(waiting) and waiting[0][0] <= place

    def _follows_another(self, place: int) -> bool:
        """Whether an outcome that came before has its seq, and has not been handed out."""
        return bool(self._assigned) and min(self._assigned) < place

    def _is_stirring(self) -> bool:
        """Whether a task that is in the handler's own code is about to run."""
        for task in self._loose:
            awaited = getattr(task, "_fut_waiter", None)
            if (awaited is None or awaited.done()) and not task.done():
                return True
        return False

    def _look_each_round(self) -> None:
        if not self._closed:
            self._rounds.waiting.add(self)
            self._rounds.soon()

    def _grant(self) -> None:
        if self._granted is not None or self._closed or not self._is_awaited_by(LIVE):
            return
        place = self._waiting[0][0]
        if self._follows_another(place):
            return  # looked at again when that one is handed out
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
        return self._waited_s >= PATIENCE_S or all(joins_tasks_only(task) for task in self._loose)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._waited_s += _LOOK_AGAIN_S
        if self._waited_s >= PATIENCE_S:
            _log.warning(
                "run %s: a replay has waited %g s for a task that awaits something which is not kedge's; its outcomes "
                "may come in another order now",
                self._run_id,
                PATIENCE_S,
            )
        self._look_each_round()


async def _insist(future: asyncio.Future[None]) -> asyncio.CancelledError | None:
    swallowed: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            swallowed = error
    return swallowed
