"""
Evicts runs that only wait. Parking is never needed for anything to be right, so it may be timid: what is not certain
stays in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kedge_worker._outcomes import Parked
from kedge_worker._suspension import find_blocker

if TYPE_CHECKING:
    from kedge_worker._execution import Execution

_log: Final = logging.getLogger("kedge.worker")

_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 1.0
_SOON_S: Final = 1.0
"""A wait that ends before is not worth a way out of memory and back."""
_LONG_S: Final = 60.0
"""After so long the log says once what keeps a waiting run in memory."""


class Parking:
    """`linger_s` answers how long a run that waits stays in memory before it is parked."""

    def __init__(self, linger_s: Callable[[], float]) -> None:
        self._linger_s = linger_s

    def rests(self, execution: Execution) -> None:
        """Nothing goes on in the run but waiting: look whether that lasts."""
        if execution.parking is None:
            linger_s = self._linger_s()
            execution.parking = execution.loop.call_later(linger_s, self._look, execution, linger_s, 0.0)

    def _look(self, execution: Execution, pause_s: float, waited_s: float) -> None:
        execution.parking = None
        if execution.closed or execution.active or not execution.waiting:
            return  # when it rests again, it says so
        waits = execution.open_waits()
        if waits.is_served:
            return  # a task goes on in a moment
        if waits.serves_soon:
            execution.parking = execution.loop.call_later(0, self._look, execution, pause_s, waited_s)
            return
        nearest_s = waits.nearest_s()
        if nearest_s is not None and nearest_s < _SOON_S and self._linger_s():
            # One whose time has come ends with a look at its mail: that may take as long as the database likes.
            soon_s = max(nearest_s, 0.0) + _FIRST_PAUSE_S
            execution.parking = execution.loop.call_later(soon_s, self._look, execution, 0.0, 0.0)
            return
        blocker = find_blocker(execution.branches, execution.waiting, bodies=execution.left_behind)
        if blocker is None:
            execution.stop(Parked(waits.stale()))
            return
        if waited_s < _LONG_S <= waited_s + pause_s:
            _log.info(
                "run %s waits, but stays in memory: %s. Only what is awaited through the context lets it leave",
                execution.run.claimed.id,
                blocker.what,
            )
        waited_s += pause_s
        pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        execution.parking = execution.loop.call_later(pause_s, self._look, execution, pause_s, waited_s)
