"""LISTENs on the worker's channel, rings, reconnects. A notification says only "look"; losing one costs a poll."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.pq.abc import PGconn

from kedge_worker._pipeline import shut_down

_log: Final = logging.getLogger("kedge.worker")

_HEALTH_PERIOD_S: Final = 10.0
_HEALTH_DEADLINE_S: Final = 5.0


def channel_of(worker_id: UUID) -> str:
    """The channel that `kedge.worker_channel` names for this worker."""
    return f"kedge_w_{worker_id.hex}"


class Listener:
    """A dedicated autocommit connection that reads nothing but notifications."""

    def __init__(self, conninfo: str, *, worker_id: UUID, ring: Callable[[str], None]) -> None:
        self._conninfo = conninfo
        self._channel = channel_of(worker_id)
        self._ring = ring
        self.listening = asyncio.Event()

    async def run(self) -> None:
        pause_s = 0.05
        while True:
            try:
                async with asyncio.timeout(_HEALTH_DEADLINE_S):
                    conn = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
                async with conn:
                    conn.add_notify_handler(lambda notify: self._ring(notify.payload))  # beside an answer
                    await self._ask(conn, sql.SQL("listen {}").format(sql.Identifier(self._channel)))
                    self.listening.set()
                    self._ring("mail")  # what was said while nobody listened
                    self._ring("")
                    pause_s = 0.05
                    await self._listen(conn)
            except (psycopg.Error, TimeoutError, OSError) as error:
                _log.warning("listener: %s; reconnecting in %.2g s", error, pause_s)
            self.listening.clear()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  # jitter
            pause_s = min(pause_s * 2, 2.0)

    async def _listen(self, conn: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        loop = asyncio.get_running_loop()
        # Asked for now: a connection that has gone does not tell any more, and the next one may get the same number.
        number = conn.fileno()
        while True:
            broken: asyncio.Future[None] = loop.create_future()
            # Not psycopg's generator: that looks at the clock ten times a second. Whom it rings is rung in this turn.
            loop.add_reader(number, self._hear, conn.pgconn, number, broken)
            try:
                self._hear(conn.pgconn, number, broken)  # what came along with an answer
                async with asyncio.timeout(_HEALTH_PERIOD_S):
                    await broken
            except TimeoutError:
                pass
            finally:
                if broken.cancelled() or not broken.done():
                    loop.remove_reader(number)
            # A half-open socket shows neither an end nor an error: ask.
            await self._ask(conn, sql.SQL("select 1"))

    def _hear(self, pgconn: PGconn, number: int, broken: asyncio.Future[None]) -> None:
        try:
            pgconn.consume_input()
            while notify := pgconn.notifies():
                self._ring(notify.extra.decode())
        except psycopg.Error as error:
            # In this very turn: libpq has closed the socket, and in the next one its number may be somebody else's.
            asyncio.get_running_loop().remove_reader(number)
            if not broken.done():
                broken.set_exception(error)

    async def _ask(self, conn: psycopg.AsyncConnection[tuple[object, ...]], query: sql.SQL | sql.Composed) -> None:
        watchdog = asyncio.get_running_loop().call_later(_HEALTH_DEADLINE_S, shut_down, conn.pgconn)
        try:
            await conn.execute(query)
        finally:
            watchdog.cancel()
