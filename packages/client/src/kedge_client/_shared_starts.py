"""
Lets single starts share a transaction when many are asked for at once: while some are under way, the next ones gather.

A commit costs more than an insert, so fifty starters on one event loop get several times as much done. Nobody waits
for company: the first start goes at once and alone.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import kedge_client._calls as calls
from kedge.errors import ClosedClientError, KedgeError, OutcomeUnknownError, UnavailableError
from kedge_client._calls import Call, ManyStarts
from kedge_client._requests import BATCH, Start, Started

T = TypeVar("T")

UNDER_WAY: Final = 2
"""Round trips at a time: while one waits for its commit, the server works on the other."""

Waiting = tuple[Start, "asyncio.Future[Started]"]


class SharedStarts:
    """
    The starts of one event loop that have no key and no singleton.

    Those may have to wait for another transaction, and must not make others wait with them.
    """

    def __init__(self, execute: Callable[[Call[Any]], Awaitable[Any]], *, wake: bool) -> None:
        self._execute = execute
        self._wake = wake
        self._under_way = 0
        self._gathered: list[Waiting] = []
        # The event loop itself holds tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, one: Start) -> Started:
        """Start one run, alone or with others."""
        if self._under_way < UNDER_WAY:
            self._under_way += 1
            try:
                return await self._alone(one)
            finally:
                self._next()
        answer: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._gathered.append((one, answer))
        return await answer

    def _next(self) -> None:
        """Hand the place that has become free to those who have gathered."""
        # Who was cancelled meanwhile starts nothing.
        waiting = [(one, answer) for one, answer in self._gathered if not answer.done()]
        if not waiting:
            self._gathered = []
            self._under_way -= 1
            return
        self._gathered = waiting[BATCH:]
        task = asyncio.create_task(self._together(waiting[:BATCH]), name="kedge starts")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _together(self, waiting: list[Waiting]) -> None:
        try:
            many = ManyStarts([one for one, _ in waiting], wake=self._wake)
            found: list[Started] = await self._execute(many.call())
        except (UnavailableError, OutcomeUnknownError, ClosedClientError) as error:
            for _, answer in waiting:
                if not answer.done():
                    # Each its own: raising adds to an exception's traceback.
                    own = copy.copy(error)
                    own.__cause__ = error.__cause__
                    answer.set_exception(own)
        except KedgeError:
            # One of them was refused. Apart, each hears what concerns it, and the others are started.
            for one, answer in waiting:
                await self._settle(one, answer)
        except BaseException:
            for _, answer in waiting:
                answer.cancel()
            raise
        else:
            for (_, answer), started in zip(waiting, found, strict=True):
                if not answer.done():
                    answer.set_result(started)
        finally:
            self._next()

    async def _settle(self, one: Start, answer: asyncio.Future[Started]) -> None:
        try:
            found = await self._alone(one)
        except KedgeError as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(found)

    async def _alone(self, one: Start) -> Started:
        found: Started = await self._execute(calls.start(one, wake=self._wake))
        return found
