"""Sorts the inbox when somebody rings, whatever this worker's slots do, and rings whom the letters concern."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from kedge_worker._errors import PostgresError, TroubleError, does_not_fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from kedge_worker._store import Store

_log: Final = logging.getLogger("kedge.worker")

_BATCH: Final = 500


class Courier:
    """
    Any number of workers may run one: whoever gets the inbox's lock sorts.

    `sorted_some` is called after letters have left: a claim had passed over their runs, and perhaps saw no others; or
    `sorted_own`, when they were all for runs in memory, so that there is nothing to claim.
    `has_mail` is called when this worker's own runs may have been sent something; `takes` tells whether it has room for
    runs of a queue and a workflow, so that nobody else need be woken for them.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker_id: UUID,
        ask: Callable[[UUID, str, str | None], None],
        sorted_some: Callable[[], None],
        sorted_own: Callable[[], None],
        has_mail: Callable[[], None],
        takes: Callable[[str, str], bool],
    ) -> None:
        self._store = store
        self._sorted_some = sorted_some
        self._sorted_own = sorted_own
        self._worker_id = worker_id
        self._ask = ask
        self._has_mail = has_mail
        self._takes = takes
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """There may be letters, or something for a run of this worker."""
        self._bell.set()

    async def run(self) -> None:
        while True:
            await self._bell.wait()
            self._bell.clear()
            try:
                _, has_looked = await self._sort()
                if not has_looked:
                    # Perhaps another courier was faster, with a letter to a run of ours; the beat is the backstop.
                    await self._look_for_mail()
                    await self._look_for_requests()
            except TroubleError as error:
                _log.warning("courier: %s", error)

    async def sort_all(self) -> int:
        """Sort until nothing moves any more; answers how many letters were sorted."""
        total, _ = await self._sort()
        return total

    async def _sort(self) -> tuple[int, bool]:
        """The same; answers also whether there was something for this worker's own runs, which has been looked for."""
        total, has_looked = 0, False
        limit = _BATCH
        while True:
            try:
                done = await self._store.sort_inbox(limit)
            except TroubleError:
                raise
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                if limit > 1:
                    limit //= 2  # down to the one letter that cannot be sorted
                    continue
                _log.error(
                    "courier: a letter cannot be sorted and moves to inbox_failed: %s", error.diag.message_primary
                )
                await self._store.fail_letter(f"{error.sqlstate}: {error.diag.message_primary}")
                limit = _BATCH
                continue
            total += done.letters
            owners = {*done.mailed, *done.asked}
            if done.lanes or done.letters > len(owners):
                self._sorted_some()
            elif done.letters:
                self._sorted_own()
            if done.ended:
                _log.info("courier: %d runs ended", len(done.ended))
                await self._store.notify_ended(done.ended)
            has_looked = has_looked or self._worker_id in owners
            if self._worker_id in done.mailed:
                await self._look_for_mail()
            if others := owners - {self._worker_id}:
                await self._store.ring_workers(list(others))
            if self._worker_id in done.asked:
                await self._look_for_requests()
            for queue, workflow in done.lanes:
                if not self._takes(queue, workflow):
                    await self._store.ring(queue, workflow)
            if done.letters == 0 or not done.remaining:
                return total, has_looked

    async def _look_for_mail(self) -> None:
        """Have mail fetched for runs of this worker: first, on the one connection, since handlers wait for it."""
        self._has_mail()
        await asyncio.sleep(0)

    async def _look_for_requests(self) -> None:
        """Hand what is wanted of runs of this worker to the executor."""
        for request in await self._store.requests():
            self._ask(request.run_id, request.kind, request.reason)
