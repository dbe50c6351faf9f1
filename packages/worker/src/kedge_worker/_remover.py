"""
Deletes ended runs whose time to be kept is over, a bounded batch at a time, with pauses in between.

Made only where some workflow has such a time: nobody else sends a statement. Any number of workers may do it at once:
each passes over what another one holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from kedge_worker._errors import PostgresError, does_not_fit

if TYPE_CHECKING:
    from kedge_worker._store import Cleared, Store

_log: Final = logging.getLogger("kedge.worker")

_PERIOD_S: Final = (45.0, 75.0)
_SHARE: Final = 0.2
"""Of the time, that all workers together may have a deletion under way in the database."""
_LAP_SHARE: Final = 0.01
"""Of the time, that all workers together may look again at what they have passed over."""
_LONGEST_LAP_S: Final = 3600.0
_FIRST_BATCH: Final = 25
_LARGEST_BATCH: Final = 400
_ROWS: Final = 10
"""Of each kind of history, for each run of a batch."""
_AIM_S: Final = 0.05
"""A batch that takes longer is followed by one half as large."""
_FIRST: Final = UUID(int=0)


class Remover:
    """
    Walks through the ended runs of each workflow in the order of their ids, which is that of their starts.

    What is not old enough when it is passed is met by a later walk from the beginning: the next one where that is
    cheap, within the hour where much is kept.

    Args:
        store: Makes one, for one round; it must be nobody else's, for a batch takes longer than others want to wait.
    """

    def __init__(self, store: Callable[[], Store]) -> None:
        self._new_store = store
        self._limit = _FIRST_BATCH
        self._stopped_at: dict[str, UUID] = {}
        self._lap_at = -_LONGEST_LAP_S
        self._lap_s = 0.0
        """What the last lap has cost, in seconds of the database."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(*_PERIOD_S))  # noqa: S311  # jitter
            try:
                await self.round()
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                self._limit = max(self._limit // 4, 1)
                _log.warning("remover: %s", error)

    async def round(self) -> int:
        """Delete what is old by now; answers how many runs were."""
        store = self._new_store()
        try:
            return await self._round(store)
        finally:
            with contextlib.suppress(PostgresError, OSError):
                await store.aclose()

    async def _round(self, store: Store) -> int:
        loop = asyncio.get_running_loop()
        workers, workflows = await store.workflows_to_clear()
        if not workflows:
            return 0
        if loop.time() - self._lap_at >= min(self._lap_s * workers / _LAP_SHARE, _LONGEST_LAP_S):
            self._lap_at, self._lap_s = loop.time(), 0.0
            self._stopped_at.clear()
        total = 0
        while True:
            begun = loop.time()
            if not await store.finish_removals(self._limit * _ROWS):
                if not workflows:
                    break
                places = [(name, self._stopped_at.get(name, _FIRST)) for name in workflows]
                total += self._note(workflows, await store.delete_ended(places, self._limit, self._limit * _ROWS))
            took_s = loop.time() - begun
            self._lap_s += took_s
            self._adapt(took_s)
            await _sleep(pause_s(took_s, workers))
        if total:
            _log.info("remover: %d ended runs deleted", total)
        return total

    def _note(self, workflows: list[str], cleared: list[Cleared]) -> int:
        """Put down where the walks have stopped; workflows that are not done come behind the others."""
        for one in cleared:
            self._stopped_at[one.workflow] = one.stopped_at
            workflows.remove(one.workflow)
            if not one.is_done:
                workflows.append(one.workflow)
        return sum(one.deleted for one in cleared)

    def _adapt(self, took_s: float) -> None:
        if took_s > _AIM_S:
            self._limit = max(self._limit // 2, 1)
        elif took_s < _AIM_S / 2:
            self._limit = min(self._limit * 2, _LARGEST_BATCH)


def pause_s(took_s: float, workers: int) -> float:
    """How long each of so many workers waits behind a batch, so that all together take no more than their share."""
    return took_s * (workers / _SHARE - 1)


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)
