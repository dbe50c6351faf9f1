"""Takes back the runs of dead workers, ends those whose time is up, forgets dead clients: a bounded batch at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from kedge.names import SOLO_LANE
from kedge_worker._errors import PostgresError, does_not_fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from kedge_worker._store import Store, TakenBack

_log: Final = logging.getLogger("kedge.worker")

_FORGET_PERIOD_S: Final = 60.0
_EXPIRE_BATCH: Final = 500
_FORGET_BATCH: Final = 1000


class Sweeper:
    """
    Any number of workers may run one: each passes over what another one holds.

    Args:
        store: Of the worker.
        may_take_back: False for one lease after a failed beat of one's own: perhaps only the database was away.
        found: Called when there may be something to claim.
        found_solo: Called when a run has come into a solo lane.
        sent: Called when there may be letters: those of runs that have ended.
    """

    def __init__(
        self,
        store: Store,
        *,
        may_take_back: Callable[[], bool],
        found: Callable[[], None],
        found_solo: Callable[[], None],
        sent: Callable[[], None],
    ) -> None:
        self._store = store
        self._may_take_back = may_take_back
        self._found = found
        self._found_solo = found_solo
        self._sent = sent
        self._forget_at = 0.0
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """Somebody has died, or a run's time is up."""
        self._bell.set()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._forget_at):
                    await self._bell.wait()
            duties = (self._take_back, self.expire) if self._bell.is_set() else (self._forget,)
            self._bell.clear()
            for duty in duties:
                try:
                    await duty()
                except PostgresError as error:
                    if does_not_fit(error):
                        raise
                    _log.warning("sweeper: %s", error)

    async def sweep(self) -> int:
        """Free what dead workers hold; answers how many runs were freed."""
        total = 0
        locked: list[UUID] = []
        while (taken := await self._store.take_back(locked)) is not None:
            total += taken.freed
            if taken.freed or not taken.remaining:
                _log.warning("take back: worker %s is dead, %d runs freed", taken.worker_name, taken.freed)
            if taken.ended:
                await self._tell(taken.ended)
            if taken.freed:
                await self._ring(taken)
            if taken.remaining:
                locked.append(taken.worker_id)  # next round
        return total

    async def expire(self) -> int:
        """End runs whose time is up; answers how many have ended."""
        total = 0
        while True:
            expired = await self._store.expire_runs(_EXPIRE_BATCH)
            total += len(expired.ended)
            if expired.ended:
                _log.warning("sweeper: the time of %d runs was up", len(expired.ended))
                await self._tell(expired.ended)
            if expired.owners:
                await self._store.ring_workers(expired.owners)
            if len(expired.ended) < _EXPIRE_BATCH:
                return total

    async def _take_back(self) -> None:
        if self._may_take_back():
            await self.sweep()

    async def _ring(self, taken: TakenBack) -> None:
        self._found()
        for queue, workflow in taken.lanes:
            if queue.startswith(SOLO_LANE):
                self._found_solo()  # nobody sleeps for these
            else:
                await self._store.ring(queue, workflow)

    async def _tell(self, ended: list[UUID]) -> None:
        await self._store.notify_ended(ended)
        self._sent()

    async def _forget(self) -> None:
        self._forget_at = asyncio.get_running_loop().time() + _FORGET_PERIOD_S
        while await self._store.forget_watchers() == _FORGET_BATCH:
            pass
