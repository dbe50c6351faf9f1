"""Sorts the inbox on a timer of its own, whatever this worker's slots do, and rings whom the letters concern."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final

from kedge_worker._errors import PostgresError, TroubleError, does_not_fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from kedge_worker._store import Store

_log: Final = logging.getLogger("kedge.worker")

_BATCH: Final = 500
_PERIOD_S: Final = (0.8, 1.0)


class Courier:
    """
    Any number of workers may run one: whoever gets the inbox's lock sorts.

    `sorted_some` is called after letters have left: a claim had passed over their runs, and perhaps saw no others.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker_id: UUID,
        ask_cancel: Callable[[UUID, str | None], None],
        sorted_some: Callable[[], None],
    ) -> None:
        self._store = store
        self._sorted_some = sorted_some
        self._worker_id = worker_id
        self._ask_cancel = ask_cancel
        self._bell = asyncio.Event()

    def ring(self) -> None:
        self._bell.set()

    async def run(self) -> None:
        while True:
            rang = self._bell.is_set()
            self._bell.clear()
            try:
                await self.sort_all()
                if rang:  # perhaps by another worker's courier, for a run of ours; the beat is the backstop
                    await self.fetch_requests()
            except TroubleError as error:
                _log.warning("courier: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(*_PERIOD_S)):  # noqa: S311  # jitter
                    await self._bell.wait()

    async def sort_all(self) -> int:
        """Sort until nothing moves any more; answers how many letters were sorted."""
        total = 0
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
            if done.letters:
                self._sorted_some()
            if done.ended:
                _log.info("courier: %d runs cancelled", len(done.ended))
                await self._store.notify_ended(done.ended)
            if done.owners:
                await self._store.ring_workers(done.owners)
            if self._worker_id in done.owners:
                await self.fetch_requests()
            if done.letters == 0 or not done.remaining:
                return total

    async def fetch_requests(self) -> None:
        """Hand requests for this worker's own runs to the executor."""
        for run_id, reason in (await self._store.requests()).items():
            self._ask_cancel(run_id, reason)
