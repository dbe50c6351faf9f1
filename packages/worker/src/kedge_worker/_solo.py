"""
Runs of the solo lanes: their workers died with them twice in a row, perhaps by their fault, perhaps by a neighbour's.

They are executed where nothing innocent is beside them: in a child process that is a worker of its own, started from
where this worker was imported; or, where that is not known, in this process while nothing else runs in it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from uuid import UUID, uuid4

from kedge_worker._child_process import ChildProcess, spawn
from kedge_worker._errors import PostgresError, does_not_fit

if TYPE_CHECKING:
    from kedge_worker._store import Store

_log: Final = logging.getLogger("kedge.worker")

LAPSED: Final = 87
"""A child's exit code: its lease was lost, though nothing in it had crashed."""

_PERIOD_S: Final = (1.2, 1.6)
_MAX_FAILED_STARTS: Final = 3
_START_S: Final = 60.0
_UNWINDING_S: Final = 15.0
# Without its row it can write nothing any more.
_LOST_S: Final = 5.0


class Target(NamedTuple):
    """From where a worker can be imported once more."""

    name: str
    """Such as `shop.worker:worker`."""
    folder: str
    """The working directory in which that was so."""


class Child(ChildProcess):
    """A worker in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: socket.socket, worker_id: UUID) -> None:
        super().__init__(process, pipe)
        self.worker_id = worker_id
        self.has_begun = False
        """Whether its row has been seen."""

    @classmethod
    async def start(cls, target: Target) -> Self:
        worker_id = uuid4()
        return cls(*await spawn("solo", target.name, str(worker_id), folder=target.folder), worker_id)


class Solo:
    """
    Looks for runs in the solo lanes and has them executed; one child at a time.

    Args:
        store: Of the worker that this belongs to.
        queues: Its queues, by the names that people know.
        workflows: What it has handlers for.
        target: From where a child can import this worker; None: runs are executed here.
        work_alone: Executes here what is in the solo lanes, with nothing beside it.
        crashed: Called when a child has died with a run: that can be taken back at once.
    """

    def __init__(
        self,
        store: Store,
        *,
        queues: Sequence[str],
        workflows: Sequence[str],
        target: Target | None,
        work_alone: Callable[[], Awaitable[None]],
        crashed: Callable[[], None],
    ) -> None:
        self._store = store
        self._queues = queues
        self._workflows = workflows
        self._target = target
        self._work_alone = work_alone
        self._crashed = crashed
        self._child: Child | None = None
        self.orphan: UUID | None = None
        """A child that was stopped while the database was away: to be abandoned by the next life."""
        self._failed_starts = 0
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """There is something in a solo lane."""
        self._bell.set()

    async def run(self) -> None:
        while True:
            await self._bell.wait()
            self._bell.clear()
            try:
                if await self._store.has_solo_runs(self._queues, self._workflows):
                    await self._execute()
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                _log.warning("solo: %s", error)

    async def stop(self, grace_s: float, *, hurry: asyncio.Event | None = None) -> None:
        """
        End the child, if there is one; its run goes back and nobody is charged. `run` must have been cancelled.

        Args:
            grace_s: How long the child's handler may go on, in seconds; what comes after it takes 15 more at most.
            hurry: Skips the grace when it is set.
        """
        child, self._child = self._child, None
        if child is None:
            return
        if grace_s > 0:
            child.ask_to_end()
            await child.ended(grace_s, hurry=hurry)
        child.let_go()
        self.orphan = child.worker_id
        await self._end(child, _UNWINDING_S)
        await self._store.abandon(child.worker_id)
        self.orphan = None

    async def _execute(self) -> None:
        if self._target is None or self._failed_starts >= _MAX_FAILED_STARTS:
            _log.warning("solo: this worker executes alone what workers have died with")
            await self._work_alone()
            return
        self._child = child = await Child.start(self._target)
        _log.warning("solo: process %d executes alone what workers have died with", child.pid)
        await self._attend(child)
        child.let_go()
        await self._settle(child)
        self._child = None

    async def _attend(self, child: Child) -> None:
        """Return when the child has ended; end it when it has lost its lease, or does not come to have one."""
        starting_s = _START_S
        while not await child.ended(period_s := random.uniform(*_PERIOD_S)):  # noqa: S311  # jitter
            starting_s -= period_s
            try:
                stands = await self._store.has_worker(child.worker_id)
            except PostgresError as error:
                _log.warning("solo: %s", error)
                continue
            if not stands and (child.has_begun or starting_s < 0):
                await self._end(child, _LOST_S)
                return
            child.has_begun |= stands

    async def _end(self, child: Child, within_s: float) -> None:
        if not await child.ended(within_s):
            child.kill()
            await child.ended(within_s)

    async def _settle(self, child: Child) -> None:
        """Free what a child has held that has ended; repeated until the database is there."""
        has_died: bool | None = None
        while has_died is None:
            try:
                has_died = await self._free(child)
            except PostgresError as error:
                if does_not_fit(error):
                    raise
                _log.warning("solo: %s", error)
                await asyncio.sleep(1)
        if has_died:
            _log.error("solo: process %d died with a run: exit code %s", child.pid, child.code)
            self._failed_starts = 0
            self._crashed()
        elif child.code != 0 and not child.has_begun:
            self._failed_starts += 1
            _log.error("solo: process %d did not come to work: exit code %s", child.pid, child.code)
        else:
            self._failed_starts = 0

    async def _free(self, child: Child) -> bool:
        """Let its lease be over; answers whether it has died with it."""
        if child.code == LAPSED:
            await self._store.abandon(child.worker_id)
            return False
        return await self._store.lapse(child.worker_id)
