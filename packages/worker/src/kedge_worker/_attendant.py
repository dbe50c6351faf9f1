"""
Serves the runs in memory that wait: fetches their mail when somebody rings, and asks the database's clock whose time
has come.

A loop's own timers end most waits to the millisecond; the look at the clock is for a clock that was moved, and the look
at the mail for a notification that was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from kedge_worker._errors import PostgresError, does_not_fit
from kedge_worker._statements import CLAIM_BYTES

if TYPE_CHECKING:
    from uuid import UUID

    from kedge_worker._runs import Mail
    from kedge_worker._store import Store
    from kedge_worker._waits import RunWaits

_log: Final = logging.getLogger("kedge.worker")

_PERIOD_S: Final = 1.0


class Attendant:
    """
    Args:
        store: Is asked.
        waiting: The runs in memory that wait, as they are when it is looked at.
        opened: Decrypts what has come for a run; what it cannot decrypt stays where it is.
    """

    def __init__(
        self,
        store: Store,
        waiting: Mapping[UUID, RunWaits],
        opened: Callable[[UUID, RunWaits, Sequence[Mail]], Sequence[Mail]] = lambda _run, _waits, mail: mail,
    ) -> None:
        self._store = store
        self._opened = opened
        self._waiting = waiting
        self._bell = asyncio.Event()
        self._mail_rings = False
        self._clock_rings = False
        self._clock_at = 0.0
        """When the clock was looked at last, in the event loop's time."""

    def ring(self) -> None:
        """There may be mail."""
        self._mail_rings = True
        self._bell.set()

    def ring_clock(self) -> None:
        """By this machine's clock the time of a wait has come."""
        self._clock_rings = True
        self._bell.set()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PERIOD_S):
                    await self._bell.wait()
            if not self._bell.is_set():
                self._mail_rings = True
            self._bell.clear()
            try:
                await self._answer()
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                _log.warning("attendant: %s", error)
                await asyncio.sleep(_PERIOD_S)
                # What was asked for has not been answered.
                self.ring_clock()
                self.ring()

    async def _answer(self) -> None:
        loop = asyncio.get_running_loop()
        # Also where the bell rings all the time.
        if self._clock_rings or loop.time() - self._clock_at >= _PERIOD_S:
            self._clock_rings = False
            await self.look_at_clock()
            self._clock_at = loop.time()
        # By now a time that has come may have asked for it: what came before it counts.
        if self._mail_rings:
            self._mail_rings = False
            await self.look()

    async def look(self) -> None:
        """Fetch the mail of all runs that wait."""
        waiting = dict(self._waiting)
        if not waiting:
            return
        known = [mail for waits in waiting.values() for mail in waits.known_mail()]
        # Only of these it is known afterwards that nothing has come before their time: others may be due by then.
        due = {run_id: waits.due() for run_id, waits in waiting.items()}
        is_all = False
        while not is_all:
            mail = await self._store.new_mail(list(waiting), known)
            for run_id, letters in mail.items():
                waits = waiting[run_id]
                waits.receive(self._opened(run_id, waits, letters))
            known += [letter.id for letters in mail.values() for letter in letters]
            is_all = sum(len(letter.payload) for letters in mail.values() for letter in letters) < CLAIM_BYTES
        for run_id, waits in waiting.items():
            waits.has_looked(due[run_id])

    async def look_at_clock(self) -> None:
        """End the waits whose time has come by the database's clock; set the timers of those that are near."""
        if self._waiting:
            for run_id, key, attempt, left_s in await self._store.times_up(list(self._waiting), within_s=2 * _PERIOD_S):
                if (waits := self._waiting.get(run_id)) is not None:
                    waits.comes_in(key, attempt, left_s)
