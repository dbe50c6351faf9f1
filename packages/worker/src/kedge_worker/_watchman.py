"""
Looks around in one statement, and rings whoever has something to do that nobody has rung for.

Everybody else sleeps until rung: an idle worker sends this look and its beats, and little more. What is known to come
before the next look, a run that falls due or a lease that may lapse, is rung for by a timer, to the millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final

from kedge_worker._errors import PostgresError, does_not_fit, is_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kedge_worker._store import Seen, Store

_log: Final = logging.getLogger("kedge.worker")

_PERIOD_S: Final = 1.0
_QUIET_PERIOD_S: Final = 2.0
"""While this worker sleeps, hears its doorbell, and has found nothing to do."""
_SHORTEST_S: Final = 0.02
# A lease is over by the database's clock, and this is not that one: too early would cost a whole period.
_MARGIN_S: Final = 0.05
# Whoever has made a run solo looks for it at once; the others only help.
_SOLO_PATIENCE_S: Final = 3.0


class Watchman:
    """
    Any number of workers may have one.

    Args:
        store: Of the worker.
        queues: Its queues, by the names that people know.
        workflows: What it has handlers for.
        poll_s: The longest time between two looks, if it is less than the two seconds of a quiet worker.
        sleeps: Whether the worker sleeps, with a doorbell that can wake it.
        letters: Called when there are some to sort.
        sweep: Called when a worker is dead, or a run's time is up.
        solo: Called when a run in a solo lane has been left alone.
        claim: Called when there is something to claim, and when a sleeper has to be registered again.
        cut_off: Called when the database was not reached: other connections to it may have gone, too.
    """

    def __init__(
        self,
        store: Store,
        *,
        queues: Sequence[str],
        workflows: Sequence[str],
        poll_s: float,
        sleeps: Callable[[], bool],
        letters: Callable[[], None],
        sweep: Callable[[], None],
        solo: Callable[[], None],
        claim: Callable[[], None],
        cut_off: Callable[[], None],
    ) -> None:
        self._store = store
        self._queues = queues
        self._workflows = workflows
        self._poll_s = poll_s
        self._sleeps = sleeps
        self._letters = letters
        self._sweep = sweep
        self._solo = solo
        self._claim = claim
        self._cut_off = cut_off
        self._timers: list[asyncio.TimerHandle] = []
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """Something may fall due soon that did not stand there at the last look."""
        self._bell.set()

    async def run(self) -> None:
        while True:
            self._bell.clear()
            is_quiet = False
            try:
                is_quiet = self._heed(
                    await self._store.look(self._queues, self._workflows, patience_s=_SOLO_PATIENCE_S)
                )
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                _log.warning("watchman: %s", error)
                if is_gone(error):
                    self._cut_off()
            await asyncio.sleep(_SHORTEST_S)
            period_s = min(self._poll_s, _QUIET_PERIOD_S if is_quiet and self._sleeps() else _PERIOD_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_s * random.uniform(0.8, 1)):  # noqa: S311  # jitter
                    await self._bell.wait()

    def _heed(self, seen: Seen) -> bool:
        """Ring for what there is, now and later; answers whether there is nothing now."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        rung = [
            self._ring_in(0.0 if seen.has_letters else None, self._letters),
            self._ring_in(0.0 if seen.is_time_up else seen.lapse_s, self._sweep, _MARGIN_S),
            self._ring_in(0.0 if seen.has_solo_runs else None, self._solo),
            self._ring_in(0.0 if seen.is_ready else seen.due_s, self._claim),
        ]
        if self._sleeps() and not seen.is_registered:
            self._claim()  # rung for letters that somebody else has sorted: nobody could ring again
        return not any(rung)

    def _ring_in(self, seconds: float | None, ring: Callable[[], None], margin_s: float = 0.0) -> bool:
        """Now, later, or not before the next look; answers whether it was now."""
        if seconds is None:
            return False
        if seconds <= 0:
            ring()
            return True
        if seconds < _QUIET_PERIOD_S:
            self._timers.append(asyncio.get_running_loop().call_later(seconds + margin_s, ring))
        return False
