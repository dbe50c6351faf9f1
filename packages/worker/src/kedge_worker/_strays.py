"""
Runs that the database holds for this worker and that are not in memory: of a claim whose answer was lost or could not
be read, or of an end that could not be stored. They go back; nobody is charged but a run that is at fault itself.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

from kedge_worker._errors import PostgresError, is_about_data

if TYPE_CHECKING:
    from kedge_worker._leased_store import LeasedStore

_log: Final = logging.getLogger("kedge.worker")


class Strays:
    """
    Finds them and frees them; the flusher's task calls, at a time when nothing is in flight.

    Args:
        store: Of the worker.
        known: The runs in memory, with their epochs.
        crashed: Called when a run was charged: that may have made it solo.
    """

    def __init__(
        self, store: LeasedStore, *, known: Callable[[], Mapping[UUID, int]], crashed: Callable[[], None]
    ) -> None:
        self._store = store
        self._known = known
        self._crashed = crashed
        self._bad: dict[UUID, int] = {}
        """By id, the epoch in which nothing could be made of the run."""
        self._stuck: set[UUID] = set()
        self._suspects_next = False

    def charge(self, run: UUID, epoch: int) -> None:
        """Nothing of this run can be stored, not even its failure: as if this worker had died of it."""
        self._bad[run] = epoch

    def suspect(self) -> None:
        """A claim of a single run could not be read: the one that is found next."""
        self._suspects_next = True

    async def free(self) -> None:
        """
        Compare, and free what is not known here.

        Raises:
            PostgresError: Not about a run: it was not possible now.
        """
        known = self._known()
        owned = await self._store.owned()
        strays = {run: epoch for run, epoch in owned.items() if known.get(run) != epoch and run not in self._stuck}
        suspects, self._suspects_next = self._suspects_next and len(strays) == 1, False
        bad = strays if suspects else {run: epoch for run, epoch in strays.items() if self._bad.get(run) == epoch}
        good = {run: epoch for run, epoch in strays.items() if run not in bad}
        for run in bad:
            _log.error("run %s cannot be read or stored: that counts as a crash", run)
            await self._one(run, self._store.charge(run))
        self._bad.clear()
        if bad:
            self._crashed()
        if good:
            _log.warning("giving back %d runs of a claim that was not answered", len(good))
            try:
                await self._store.give_back(good)
            except PostgresError as error:
                if not is_about_data(error):
                    raise
                for run, epoch in good.items():
                    await self._one(run, self._store.give_back({run: epoch}))

    async def _one(self, run: UUID, freeing: Awaitable[None]) -> None:
        try:
            await freeing
        except PostgresError as error:
            if not is_about_data(error):
                raise
            _log.error("run %s cannot be freed, and is left to the lease: %s", run, error)
            self._stuck.add(run)
