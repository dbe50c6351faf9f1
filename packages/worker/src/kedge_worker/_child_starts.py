"""
Starts children that have a key or singleton, on a connection of their own: a start may have to wait for as long as some
caller's transaction with the same key is open, and neither the journal nor the courier must wait with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from kedge_worker._backoff import Backoff
from kedge_worker._errors import PostgresError, does_not_fit, is_gone, is_lease_lost, is_locked, is_temporary
from kedge_worker._signals import LeaseLostError

if TYPE_CHECKING:
    from kedge.start_terms import StartTerms
    from kedge_worker._runs import LiveRun, Started
    from kedge_worker._store import Store

_log: Final = logging.getLogger("kedge.worker")

_LONGEST_PAUSE_S: Final = 1.0


class Starter:
    """
    Implements `ChildStarts`.

    Args:
        store: Nobody else's.
        started: Called with the lane (queue, workflow) of a child that can be claimed.
        sealed: Encrypts what is kept of a child, if payloads are encrypted.
        timeline: Answers that of the server on which the parents' memos are; empty: it does not matter.
    """

    def __init__(
        self,
        store: Store,
        started: Callable[[str, str], None],
        sealed: Callable[[UUID, StartTerms], StartTerms] | None = None,
        timeline: Callable[[], str] = str,
    ) -> None:
        self._store = store
        self._sealed = sealed
        self._started = started
        self._timeline = timeline

    async def start(self, run: LiveRun, child_id: UUID, terms: StartTerms, *, is_dependent: bool) -> Started:
        pause = Backoff(_LONGEST_PAUSE_S)
        if self._sealed is not None:
            terms = self._sealed(child_id, terms)
        parent = run.claimed
        while True:
            try:
                answer = await self._store.start_child(
                    parent.id, parent.epoch, child_id, terms, is_dependent=is_dependent, timeline=self._timeline()
                )
            except PostgresError as error:
                if is_lease_lost(error):
                    raise LeaseLostError from error
                # An outcome that is not known is settled by asking again: the id is the same.
                if not (is_gone(error) or is_locked(error) or is_temporary(error) or does_not_fit(error)):
                    raise
                if not is_locked(error):
                    _log.warning("run %s: its child %s is not started yet: %s", parent.id, child_id, error)
                await pause.sleep()
                continue
            if answer is None:
                raise LeaseLostError
            if answer.run_id == child_id:
                self._started(terms.queue, terms.workflow)
            return answer

    async def aclose(self) -> None:
        await self._store.aclose()
