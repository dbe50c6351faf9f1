"""Claims from the solo lanes, for a worker that no child can import: one run at a time, and nothing beside it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from kedge.names import solo_lane
from kedge_worker._claims import LOWEST, ClaimAnswer, ClaimRequest, Lane

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_LANES: Final = 50


class Alone:
    """
    Takes the claimer's place while `work` runs: nothing is claimed before the worker is empty.

    Args:
        queues: The worker's, by the names that people know.
        workflows: What it has handlers for.
        timeouts: Of workflows, in seconds.
        is_empty: Whether no run is in memory.
        poke: Makes the flusher ask.
    """

    def __init__(
        self,
        *,
        queues: Sequence[str],
        workflows: Sequence[str],
        timeouts: Mapping[str, float],
        is_empty: Callable[[], bool],
        poke: Callable[[], None],
    ) -> None:
        lanes = list(itertools.product(map(solo_lane, queues), workflows))
        self._pages = [_request(lanes[i : i + _MAX_LANES], timeouts) for i in range(0, len(lanes), _MAX_LANES)]
        self._page = 0
        self._is_empty = is_empty
        self._poke = poke
        self._asked = False
        self._done: asyncio.Event | None = None

    @property
    def is_on(self) -> bool:
        return self._done is not None

    async def work(self) -> None:
        """Return when the lanes are empty, and so is the worker."""
        self._page = 0
        self._done = asyncio.Event()
        try:
            self._poke()
            await self._done.wait()
        finally:
            self._done = None
            self._poke()

    def freed(self) -> None:
        """A run has left memory."""
        if self.is_on:
            self._poke()

    # ---- called by the flusher, in the claimer's place

    def wanted(self) -> ClaimRequest | None:
        if self._asked or self._done is None or not self._is_empty():
            return None
        if self._page == len(self._pages):
            self._done.set()
            return None
        self._asked = True
        return self._pages[self._page]

    def answered(self, answer: ClaimAnswer) -> None:
        self._asked = False
        self._page = 0 if answer.runs else self._page + 1
        self._poke()

    def unanswered(self) -> None:
        self._asked = False


def _request(lanes: Sequence[Lane], timeouts: Mapping[str, float]) -> ClaimRequest:
    return ClaimRequest(
        1, dict.fromkeys(lanes, LOWEST), {lane: timeouts[lane[1]] for lane in lanes if lane[1] in timeouts}
    )
