"""
Drives a round trip to its end, in a thread, and gives up on a silent server; on an event loop a link does so itself.

psycopg's own `waiting` would do, but that some of its releases never look up while a server says nothing; and
cancelling the statement is no remedy, since a server that does not answer does not answer that either.
"""

from __future__ import annotations

import select
from collections.abc import Generator
from time import monotonic
from typing import Any, Final, TypeAlias

import psycopg

Waiting: TypeAlias = Generator[int, Any, None]
"""Yields whether it waits to read, to write or for both; is sent what is ready, which may be nothing."""

# The values of psycopg's enums Wait and Ready, in all its releases.
READ: Final = 1
WRITE: Final = 2


class NoAnswerError(psycopg.OperationalError):
    """The server was silent for too long; the connection is in the middle of something and must be closed."""

    def __init__(self) -> None:
        super().__init__("the server did not answer in time")


class Readiness:
    """Asks the system what a socket is ready for. Of one thread at a time."""

    __slots__ = ("_asked", "_fileno", "_poll")

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        # Made once: the object costs more than the call.
        self._poll = select.poll() if hasattr(select, "poll") else None
        self._asked = 0

    def wait(self, wanted: int, timeout_s: float) -> int:
        """Wait for what is wanted, and return what is ready; 0 when the time is up."""
        if timeout_s < 0:
            timeout_s = 0
        poll = self._poll
        if poll is None:
            return self._select(wanted, timeout_s)
        if wanted != self._asked:
            events = (select.POLLIN if wanted & READ else 0) | (select.POLLOUT if wanted & WRITE else 0)
            poll.register(self._fileno, events)
            self._asked = wanted
        ready = 0
        for _, event in poll.poll(timeout_s * 1000):
            if event & select.POLLOUT:
                ready |= WRITE
            # An error or a hang-up shows itself by reading, or by writing to one who only writes.
            if event & ~select.POLLOUT:
                ready |= wanted
        return ready

    def _select(self, wanted: int, timeout_s: float) -> int:
        mine = (self._fileno,)
        readable, writable, _ = select.select(
            mine if wanted & READ else (), mine if wanted & WRITE else (), (), timeout_s
        )
        return (READ if readable else 0) | (WRITE if writable else 0)


def drive(generator: Waiting, readiness: Readiness, until: float) -> None:
    """
    Block until the generator has ended.

    Raises:
        NoAnswerError: The server was silent until this time of the monotonic clock.
    """
    try:
        wanted = next(generator)
        while True:
            ready = readiness.wait(wanted, until - monotonic())
            # Looked at after the wait, so that what has come is taken, however late it is.
            if not ready and monotonic() >= until:
                raise NoAnswerError
            wanted = generator.send(ready)
    except StopIteration:
        return
