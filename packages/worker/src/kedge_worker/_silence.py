"""
Finds the connections of transactional steps on which nobody will ever answer.

How long the application's SQL may take nobody knows, so no deadline fits. But a connection that waits for an answer
while the server says, twice in a row, that this session has long answered, was never asked, or is gone, waits for
ever: something between the two has swallowed the question or the answer. It is closed, and its session ended, so that
what it has locked is free and its transaction is settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Generator, Sequence
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from kedge_worker._pipeline import shut_down

_log: Final = logging.getLogger("kedge.worker")

_PERIOD_S: Final = 4.0
_ASK_S: Final = 5.0
_WORKING: Final = ("active", "fastpath function call", "disabled", None)
"""States of which nothing follows; None is what this role may not see."""

# By its start as well: the number of a session that is gone may be another's.
_STATES: Final = "select pid, state, backend_start, state_change from pg_stat_activity where pid = any(%s)"
_END: Final = """
    select pg_terminate_backend(pid) from pg_stat_activity
     where pid = %s and (state, backend_start, state_change) = (%s, %s, %s)
"""

Connection: TypeAlias = "psycopg.AsyncConnection[Any] | psycopg.Connection[Any]"
_Seen: TypeAlias = tuple[object, ...]
"""What the server says of a session: state, begin, when the state began; nothing if it is gone."""


class _Use:
    """A connection in a step's hands."""

    __slots__ = ("conn", "seen", "since")

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.since = time.monotonic()
        self.seen: _Seen | None = None


class Silence:
    """
    Looks after connections in use; `start` it in the loop.

    Args:
        conninfo: As theirs: the one that asks must reach the same server.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._uses: dict[int, _Use] = {}
        self._answered: weakref.WeakKeyDictionary[Connection, float] = weakref.WeakKeyDictionary()
        self._silent_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, if that has not begun yet."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="kedge-silence")

    async def aclose(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def is_suspect(self, conn: Connection) -> bool:
        """Whether others have fallen silent since this one was last used: what swallowed them may have this one too."""
        return self._answered.get(conn, self._silent_at) < self._silent_at

    @contextlib.contextmanager
    def watch(self, conn: Connection) -> Generator[None]:
        """Look after a connection as long as this lasts; in any thread."""
        use = _Use(conn)
        self._uses[id(use)] = use
        try:
            yield
        finally:
            del self._uses[id(use)]
            self._answered[conn] = time.monotonic()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            before = time.monotonic() - _PERIOD_S
            waiting: list[_Use] = []
            for use in list(self._uses.values()):
                if use.since <= before and _is_waiting(use.conn):
                    waiting.append(use)
                else:
                    use.seen = None
            if not waiting:
                continue
            try:
                async with asyncio.timeout(_ASK_S):
                    asking = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
                watchdog = asyncio.get_running_loop().call_later(_ASK_S, shut_down, asking.pgconn)
                try:
                    async with asking:
                        await self._look(asking, waiting)
                finally:
                    watchdog.cancel()
            except (psycopg.Error, TimeoutError, OSError) as error:
                _log.warning("transactions: cannot ask the server whether it is at work: %s", error)

    async def _look(self, asking: psycopg.AsyncConnection[Any], waiting: Sequence[_Use]) -> None:
        pids = [use.conn.info.backend_pid for use in waiting if not use.conn.closed]
        found = {int(pid): seen for pid, *seen in await (await asking.execute(_STATES, (pids,))).fetchall()}
        for use in waiting:
            if not _is_waiting(use.conn):
                use.seen = None
                continue
            pid = use.conn.info.backend_pid
            seen: _Seen = tuple(found.get(pid, ()))
            if seen and seen[0] in _WORKING:
                use.seen = None
            elif seen != use.seen:
                use.seen = seen
            else:
                _log.warning("transactions: the connection to session %d has gone silent: closed", pid)
                self._silent_at = time.monotonic()
                shut_down(use.conn.pgconn)
                if seen:
                    await asking.execute(_END, (pid, *seen))


def _is_waiting(conn: Connection) -> bool:
    return not conn.closed and conn.pgconn.transaction_status == TransactionStatus.ACTIVE
