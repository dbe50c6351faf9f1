"""The sync client's waiting room: one daemon thread with an event loop of its own, from the first wait to close()."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from kedge_client._results import ResultRow, Wait
from kedge_client._settings import ClientSettings
from kedge_client._waiters import Waiter
from kedge_client._waiting_room import WaitingRoom

CLOSE_S: Final = 5.0
"""How long close() waits for a look that is under way."""


class WaitingThread:
    """
    Waits for results on behalf of other threads.

    Args:
        settings: The client's.
        look: One query for results; may block, since nothing else runs on this loop.
        conninfo: How the listener gets its connection.
    """

    def __init__(
        self, settings: ClientSettings, look: Callable[[list[bytes]], list[ResultRow]], conninfo: Callable[[], str]
    ) -> None:
        async def look_async(ids: list[bytes]) -> list[ResultRow]:
            return look(ids)

        async def conninfo_async() -> str:
            return conninfo()

        # Not the platform's choice: psycopg works on no proactor.
        self._loop = asyncio.SelectorEventLoop()
        self._room = WaitingRoom(
            schema=settings.schema,
            look=look_async,
            conninfo=conninfo_async if settings.listen else None,
            timeout_s=settings.timeout_s,
            wake=settings.wake,
        )
        self._thread = threading.Thread(target=self._run, name="kedge results", daemon=True)
        self._thread.start()

    def wait(self, wait: Wait[Any]) -> ResultRow:
        """
        Block until the run has ended.

        Raises:
            ResultTimeoutError: The time was up.
            KedgeError: As the waiting room's `wait`.
        """
        waiters: list[Waiter] = []

        async def waited() -> ResultRow:
            waiter = Waiter(wait.run_id, must_exist=wait.must_exist())
            waiters.append(waiter)
            return await self._room.wait(waiter)

        future = asyncio.run_coroutine_threadsafe(waited(), self._loop)
        try:
            return future.result(wait.remaining_s())
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise
            raise wait.time_is_up(waiters[0].status if waiters else None) from None
        finally:
            future.cancel()

    def observe(self, run_id: UUID, ring: Callable[[], None]) -> None:
        """Ring, from the thread, whenever something may have happened to a run."""
        try:
            self._loop.call_soon_threadsafe(self._room.observe, run_id, ring)
        except RuntimeError:  # the thread has ended: the next look will say that the client is closed
            ring()

    def unobserve(self, run_id: UUID, ring: Callable[[], None]) -> None:
        """Ring no longer."""
        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(self._room.unobserve, run_id, ring)

    def close(self) -> None:
        """End the thread; whoever waits in it gets ClosedClientError."""
        asyncio.run_coroutine_threadsafe(self._room.close(), self._loop).add_done_callback(
            lambda _: self._loop.call_soon_threadsafe(self._loop.stop)
        )
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
