"""
A proxy before Postgres, for one process, that counts its calls and lets one of them meet its fate.

A call is what a client sends up to a Sync or a simple Query, with its answer up to ReadyForQuery; so is the opening of
a connection. Calls are numbered by the role of their connection (its application_name), for these go side by side.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.proof.crash_points.fates import KILLING, PATIENCE_S, Call, Fault
from tests.proof.crash_points.link import Link, ServerSide
from tests.proof.crash_points.messages import CLAIM

TIMED: Final = frozenset({"BEAT", "LOOK", "take_back", "expire_runs", "HAS_SOLO_RUNS", "TIMES_UP", "FORGET_WATCHERS"})
"""Calls that come with time, not with a run: they are not numbered."""


class Tollgate:
    """
    Any number of connections of one process; `url` is what that connects to, `pid` must be said before a fault.

    Args:
        url: The database's.
        end_session: Ends a backend, by pid, and returns when it is gone.
        died: Returns when the process is gone.
    """

    def __init__(
        self, url: str, *, end_session: Callable[[int], Awaitable[None]], died: Callable[[], Awaitable[object]]
    ) -> None:
        self._target = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
        self._url = url
        self.end_session = end_session
        self.died = died
        self.pid = 0
        self.url = ""
        self.calls: list[Call] = []
        """Those since `count` was called."""
        self._numbers: Counter[str] = Counter()
        self._is_counting = False
        self._faults: list[Fault] = []
        self._links: set[Link] = set()
        self.backends: set[int] = set()
        """The pids of all sessions that there were."""
        self.lingering: set[int] = set()
        """Those of them that outlive their process."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors: list[BaseException] = []
        self.touched_at = 0.0
        self.is_shut = False
        """The process stands still: nothing new is numbered."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Link(self), "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        # Encryption would hide the messages.
        self.url = make_conninfo(self._url, host=host, port=port, sslmode="disable", gssencmode="disable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in list(self._links):
            link.close()

    def count(self, *faults: Fault) -> None:
        """Number calls from 1 on, from now on; the faults come in this order, numbered from the one before."""
        self.calls.clear()
        self._numbers.clear()
        self._faults = list(faults)
        self._is_counting = True

    def disarm(self) -> None:
        """No fault meets a call any more."""
        self._faults = []

    def count_no_more(self) -> None:
        """What comes now meets no fault."""
        self.calls, self._faults = [], []
        self._is_counting = False

    async def quiet(self, seconds: float) -> None:
        """Return when no call was under way for so long."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                left = self.touched_at + seconds - loop.time()
                if left <= 0 and not any(link.pending for link in self._links):
                    return
                await asyncio.sleep(max(left, 0.005))

    async def answered(self) -> None:
        """Return when all calls have their answers but those that meet a fault: a process that stands still."""
        async with asyncio.timeout(PATIENCE_S):
            while any(link.pending and not link.meets for link in self._links):
                await asyncio.sleep(0.005)

    # ---- what links use

    async def open(self, link: Link) -> None:
        """Connect to the server."""
        host, port = self._target.get("host", "127.0.0.1"), self._target.get("port", "5432")
        loop = asyncio.get_running_loop()
        try:
            if host.startswith("/"):
                await loop.create_unix_connection(lambda: ServerSide(link), f"{host}/.s.PGSQL.{port}")
            else:
                await loop.create_connection(lambda: ServerSide(link), host, int(port))
        except OSError:
            link.close()

    def join(self, link: Link) -> None:
        self._links.add(link)
        self.spawn(self.open(link))

    def part(self, link: Link) -> None:
        self._links.discard(link)

    def spawn(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001  # told with the case
                self.errors.append(error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def touch(self) -> None:
        self.touched_at = asyncio.get_running_loop().time()

    def fault_at(self, role: str, label: str, statements: int) -> Fault | None:
        """Number a call; answers the fault whose turn it is."""
        if not self._is_counting or self.is_shut:
            return None
        number = 0
        if label == CLAIM:
            role = "claims"  # they come when they are rung for; what is written has an order of its own
        if label not in TIMED:
            self._numbers[role] += 1
            number = self._numbers[role]
        call = Call(role, number, label, statements)
        self.calls.append(call)
        if not self._faults or not self._faults[0].point.is_at(call):
            return None
        fault = self._faults.pop(0)
        self._numbers.clear()
        fault.call = call
        self.is_shut = fault.fate in KILLING
        return fault

    def stop(self) -> None:
        self.is_shut = True
        os.kill(self.pid, signal.SIGSTOP)

    async def kill(self) -> None:
        self.is_shut = True
        os.kill(self.pid, signal.SIGKILL)
        await self.died()

    async def is_known(self) -> None:
        """Return when `pid` was said: a process may speak before we have heard of its birth."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.pid:
                await asyncio.sleep(0.001)
