"""Takes back the runs of dead workers, a bounded batch at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from kedge_worker._errors import PostgresError, does_not_fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from kedge_worker._store import Store

_log: Final = logging.getLogger("kedge.worker")

_PERIOD_S: Final = (1.2, 1.6)


class Sweeper:
    """`may_take_back` is False for one lease after a failed beat of one's own: perhaps only the database was away."""

    def __init__(self, store: Store, *, may_take_back: Callable[[], bool], found: Callable[[], None]) -> None:
        self._store = store
        self._may_take_back = may_take_back
        self._found = found

    async def run(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(*_PERIOD_S))  # noqa: S311  # jitter
            try:
                if self._may_take_back():
                    await self.sweep()
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
                await self._store.notify_ended(taken.ended)
            if taken.freed:
                self._found()
                for queue, workflow in taken.lanes:
                    await self._store.ring(queue, workflow)
            if taken.remaining:
                locked.append(taken.worker_id)  # next round
        return total
