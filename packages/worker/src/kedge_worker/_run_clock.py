"""The time as a run sees it: the same on replay, without a write of its own."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from kedge_worker._branches import Branch
from kedge_worker._memo import RowMeta
from kedge_worker._runs import ClaimedRun

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class RunClock:
    """
    Made when a handler first asks.

    What it answers after an outcome of an earlier life is that outcome's time in the journal. After an outcome of this
    life it is the database's time of the claim and what has passed since; that rides with the run's next row, before
    which nothing durable can have come of it.
    """

    __slots__ = ("_claimed_at", "_known", "_pending", "_started")

    def __init__(self, claimed: ClaimedRun, started: float) -> None:
        self._claimed_at = claimed.claimed_at
        self._started = started
        self._known = {row.key: row.at for row in claimed.memo}
        self._pending: dict[str, int] = {}
        for row in claimed.memo:
            for key, micros in RowMeta.decode(row.meta).nows.items():
                self._known[key] = _EPOCH + timedelta(microseconds=micros)

    def now(self, branch: Branch) -> datetime:
        """The time of the branch's latest outcome, or of its beginning."""
        known = self._known.get(branch.last)
        if known is None:
            known = self._claimed_at + timedelta(seconds=time.monotonic() - self._started)
            self._known[branch.last] = known
            self._pending[branch.last] = (known - _EPOCH) // _MICROSECOND
        return known

    def take_pending(self) -> dict[str, int]:
        """What was answered since the last row, by the key of the outcome before."""
        pending, self._pending = self._pending, {}
        return pending
