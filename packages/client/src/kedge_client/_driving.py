"""
Drives a round trip to its end, in a thread or on an event loop, and gives up on a silent server.

psycopg's own `waiting` would do, but that some of its releases never look up while a server says nothing; and
cancelling the statement is no remedy, since a server that does not answer does not answer that either.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Generator
from time import monotonic
from typing import Any, Final, TypeAlias

import psycopg

Waiting: TypeAlias = Generator[Any, Any, None]
"""What psycopg's generators are: yields whether it waits to read, to write or for both, is sent what is ready."""

# The values of psycopg's enums Wait and Ready, in all its releases.
READ: Final = 1
WRITE: Final = 2


class NoAnswerError(psycopg.OperationalError):
    """The server was silent for too long; the connection is in the middle of something and must be closed."""

    def __init__(self) -> None:
        super().__init__("the server did not answer in time")


def drive(generator: Waiting, fileno: int, until: float) -> None:
    """
    Block until the generator has ended.

    Raises:
        NoAnswerError: The server was silent until this time of the monotonic clock.
    """
    try:
        wanted = next(generator)
        while True:
            ready = ready_in(fileno, wanted, until - monotonic())
            # Looked at after the wait, so that what has come is taken, however late it is.
            if not ready and monotonic() >= until:
                raise NoAnswerError
            wanted = generator.send(ready)
    except StopIteration:
        return


async def drive_async(generator: Waiting, fileno: int, until: float) -> None:
    """
    Wait until the generator has ended.

    Raises:
        NoAnswerError: The server was silent until this time of the monotonic clock.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[int] | None = None

    def resolve(ready: int) -> None:
        if answer is not None and not answer.done():
            answer.set_result(ready)

    silence = loop.call_later(until - monotonic(), resolve, 0)
    reads = False
    try:
        wanted = next(generator)
        while True:
            # A socket can nearly always be written to, and asking it is cheaper than a turn of the loop.
            if wanted & WRITE and (ready := ready_in(fileno, wanted, 0)):
                wanted = generator.send(ready)
                continue
            answer = loop.create_future()
            if wanted & READ and not reads:
                loop.add_reader(fileno, resolve, READ)
                reads = True
            if wanted & WRITE:
                loop.add_writer(fileno, resolve, WRITE)
            try:
                ready = await answer
            finally:
                if wanted & WRITE:
                    loop.remove_writer(fileno)
            if not ready:
                raise NoAnswerError
            wanted = generator.send(ready)
    except StopIteration:
        return
    finally:
        silence.cancel()
        if reads:
            loop.remove_reader(fileno)


def ready_in(fileno: int, wanted: int, timeout_s: float) -> int:
    """Wait for what is wanted of a socket, and return what is ready; 0 when the time is up."""
    if timeout_s < 0:
        timeout_s = 0
    if not hasattr(select, "poll"):
        readable, writable, _ = select.select(
            (fileno,) if wanted & READ else (), (fileno,) if wanted & WRITE else (), (), timeout_s
        )
        return (READ if readable else 0) | (WRITE if writable else 0)
    poll = select.poll()
    poll.register(fileno, (select.POLLIN if wanted & READ else 0) | (select.POLLOUT if wanted & WRITE else 0))
    ready = 0
    for _, event in poll.poll(timeout_s * 1000):
        if event & select.POLLOUT:
            ready |= WRITE
        # An error or a hang-up shows itself by reading, or by writing to one who only writes.
        if event & ~select.POLLOUT:
            ready |= wanted
    return ready
