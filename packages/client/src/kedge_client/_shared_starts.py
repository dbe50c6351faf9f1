"""
Lets single starts share a transaction when many are asked for at once: while one is under way, the next ones gather.

A commit costs more than an insert, so fifty starters on one event loop get several times as much done. Nobody waits
for company: the first start goes at once and alone. Nor does anybody wait for long: behind a round trip that hangs
goes another one. Two as a rule would get fifty starters a twentieth more, in smaller transactions, which would cost a
server that has other work a tenth more for each.
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

SLOW_S: Final = 0.02
"""A round trip that takes longer hangs, for all that the next ones know. A commit takes a millisecond or two."""

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
        self._begun_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._gathered: list[Waiting] = []
        # The event loop itself holds tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, one: Start) -> Started:
        """Start one run, alone or with others."""
        loop = asyncio.get_running_loop()
        if not self._under_way:
            self._under_way += 1
            self._begun_at = loop.time()
            try:
                return await self._alone(one)
            finally:
                self._next()
        answer: asyncio.Future[Started] = loop.create_future()
        self._gathered.append((one, answer))
        if self._alarm is None:
            self._alarm = loop.call_later(SLOW_S, self._look)
        return await answer

    def _look(self) -> None:
        """Send those who have gathered, if what they wait for has begun long ago."""
        self._alarm = None
        if not self._gathered:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._begun_at >= SLOW_S:
            self._under_way += 1
            self._next()
        if self._gathered:
            self._alarm = loop.call_at(self._begun_at + SLOW_S, self._look)

    def _next(self) -> None:
        """The round trip is over: the next one is of those who have gathered."""
        # Who was cancelled meanwhile starts nothing.
        waiting = [(one, answer) for one, answer in self._gathered if not answer.done()]
        if not waiting:
            self._gathered = []
            self._under_way -= 1
            return
        self._gathered = waiting[BATCH:]
        self._begun_at = asyncio.get_running_loop().time()
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
