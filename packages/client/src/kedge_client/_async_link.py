"""A connection as the async client uses it, registered with the event loop for many round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import psycopg

from kedge_client._driving import READ, WRITE, NoAnswerError, Waiting
from kedge_client._link import Link
from kedge_client._round_trip import Answer, Transaction


class AsyncLink(Link["psycopg.AsyncConnection[Any]"]):
    """
    A connection of the async client.

    It is attached to its loop, by a reader of its socket and one timer, from its first round trip until it has not been
    used for as long as the server may be silent: to register and to forget both for each round trip was a good part of
    what a start cost.
    """

    __slots__ = ("_done", "_generator", "_looks_at", "_loop", "_until", "_watchdog", "_writes", "on_words")

    def __init__(self, conn: psycopg.AsyncConnection[Any], schema: str, *, prepares: bool) -> None:
        super().__init__(conn, schema, prepares=prepares)
        self.on_words: Callable[[], None] | None = None
        """What to call when the server says something of its own accord; then it stays attached until it is cut."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._looks_at = 0.0
        self._until = 0.0
        self._generator: Waiting | None = None
        self._done: asyncio.Future[None] | None = None
        self._writes = False

    async def exchange(self, transactions: Sequence[Transaction], answers: list[Answer], until: float) -> None:
        """
        Make one round trip: send all transactions, then read their answers, as far as they come.

        Raises:
            psycopg.OperationalError: The connection broke, or the server was silent until this time of the monotonic
                clock; it must be cut.
        """
        loop = asyncio.get_running_loop()
        self._until = until
        self._generator = self._round_trip(transactions, answers)
        self._done = loop.create_future()
        try:
            self.attach(loop)
            self._watch(loop)
            self._go_on(0)
            await self._done
        finally:
            self._generator = self._done = None
            self._wait_to_write(wanted=False)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read what comes from now on."""
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self.fileno, self._readable)

    def detach(self) -> None:
        """Leave the loop alone. Before the socket is closed: the loop would take the next one of its number for it."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.fileno)
            if self._writes:
                loop.remove_writer(self.fileno)
        self._writes = False
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def cut(self) -> None:
        """Close the socket at once, whatever is under way."""
        self.detach()
        super().cut()

    def let_go(self) -> None:
        """Leave the connection as it was lent."""
        self.detach()
        super().let_go()

    def _readable(self) -> None:
        if self._generator is not None:
            self._go_on(READ)
        elif self.on_words is not None:
            self.on_words()
        else:
            # Whoever uses it next asks whether it lives, and reads this.
            self.detach()

    def _writable(self) -> None:
        self._go_on(WRITE)

    def _go_on(self, ready: int) -> None:
        """Let the round trip do what it can, here and not in its task: that is woken once, by the last answer."""
        generator, done = self._generator, self._done
        if generator is None or done is None or done.done():
            return
        try:
            # A generator that has not begun takes only None.
            wanted = generator.send(ready or None)
            # A socket can nearly always be written to, and asking it is cheaper than a turn of the loop.
            while wanted & WRITE and (ready := self._readiness.wait(wanted, 0)):
                wanted = generator.send(ready)
        except StopIteration:
            done.set_result(None)
        except Exception as error:  # noqa: BLE001  # raised where it is awaited
            self.detach()  # in this very turn: libpq may have closed the socket
            done.set_exception(error)
        else:
            self._wait_to_write(wanted=bool(wanted & WRITE))

    def _wait_to_write(self, *, wanted: bool) -> None:
        if wanted != self._writes and self._loop is not None:
            self._writes = wanted
            if wanted:
                self._loop.add_writer(self.fileno, self._writable)
            else:
                self._loop.remove_writer(self.fileno)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that somebody looks when the time is up; a look that comes too early costs less than each timer."""
        if self._watchdog is not None:
            if self._looks_at <= self._until:
                return
            self._watchdog.cancel()
        self._looks_at = self._until
        self._watchdog = loop.call_later(self._until - monotonic(), self._look)

    def _look(self) -> None:
        self._watchdog = None
        if self._done is None:
            if self.on_words is None:
                self.detach()
        elif monotonic() < self._until:
            if self._loop is not None:
                self._watch(self._loop)
        elif not self._done.done():
            self._done.set_exception(NoAnswerError())
