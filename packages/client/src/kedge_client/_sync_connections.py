"""Where the sync client gets connections from: a few of its own, or its owner's pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import psycopg

from kedge.errors import ClosedClientError, InvalidOptionError, UnavailableError
from kedge_client._forks import begin_anew_after_fork
from kedge_client._lent import check_lent, conninfo_of
from kedge_client._link import SyncLink

SyncConnection: TypeAlias = "psycopg.Connection[Any]"

# What a forked child must neither use nor close, for its parent does.
_of_the_parent: Final[list[SyncLink]] = []


@runtime_checkable
class SyncPool(Protocol):
    """What lends connections: psycopg_pool.ConnectionPool, or anything with the same method."""

    def connection(self) -> AbstractContextManager[SyncConnection]:
        """Lend a connection for a with block."""
        ...


class SyncConnections(Protocol):
    """What the client asks for connections."""

    def take(self, until: float) -> SyncLink:
        """
        Answer a connection that nobody else uses until it is put back.

        Raises:
            psycopg.OperationalError: None could be opened.
            UnavailableError: None became free before `until` of the monotonic clock.
            ClosedClientError: The client is closed.
        """
        ...

    def put(self, link: SyncLink) -> None:
        """Take a connection back, closed or not."""
        ...

    def close(self) -> None:
        """Close what is not in use, and what is in use once it comes back."""
        ...

    def conninfo(self) -> str:
        """Return how to open one more connection to the same database."""
        ...


class OwnSyncConnections:
    """Opens up to `maximum` connections as they are needed and keeps them; safe in threads and after a fork."""

    def __init__(self, conninfo: str, schema: str, *, maximum: int, prepares: bool) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._maximum = maximum
        self._prepares = prepares
        self._closed = False
        self._idle: list[SyncLink] = []
        self._free = _permits(maximum)
        begin_anew_after_fork(self)

    def take(self, until: float) -> SyncLink:
        if self._closed:
            raise ClosedClientError("the client is closed")
        free = self._free
        try:
            free.get(timeout=max(0.0, until - monotonic()))
        except Empty:
            raise UnavailableError(
                f"all {self._maximum} connections of the client were busy; give it max_connections="
            ) from None
        try:
            return self._alive() or self._opened()
        except BaseException:
            free.put(None)
            raise

    def put(self, link: SyncLink) -> None:
        if self._closed:
            link.cut()
        elif not link.conn.closed:
            self._idle.append(link)
        self._free.put(None)

    def close(self) -> None:
        self._closed = True
        while self._idle:
            link = self._idle.pop()
            link.let_go()
            link.conn.close()

    def conninfo(self) -> str:
        return self._conninfo

    def after_fork(self) -> None:
        # Two processes on one socket would read each other's answers.
        _of_the_parent.extend(self._idle)
        self._idle = []
        # The old one may have been held by a thread that does not exist here.
        self._free = _permits(self._maximum)

    def _alive(self) -> SyncLink | None:
        # The latest first: what is not needed any more grows old at the other end.
        while self._idle:
            try:
                link = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            if link.is_alive():
                return link
            link.cut()
        return None

    def _opened(self) -> SyncLink:
        conn = psycopg.Connection.connect(self._conninfo, autocommit=True)
        return SyncLink(conn, self._schema, prepares=self._prepares)


def _permits(number: int) -> SimpleQueue[None]:
    # A semaphore written in C; threading's is Python, around a condition.
    permits: SimpleQueue[None] = SimpleQueue()
    for _ in range(number):
        permits.put(None)
    return permits


class LentSyncConnections:
    """Borrows each connection from the owner's pool, for one round trip, and leaves it as it was."""

    def __init__(self, pool: SyncPool | Callable[[], AbstractContextManager[SyncConnection]], schema: str) -> None:
        self._lend: Callable[[], AbstractContextManager[SyncConnection]]
        if isinstance(pool, SyncPool):
            self._lend = pool.connection
        elif callable(pool):
            self._lend = pool
        else:
            raise InvalidOptionError(
                f"Client() takes a pool with .connection(), or a function that lends a connection, not a"
                f" {type(pool).__name__}; for a DSN use Client.connect()"
            )
        self._schema = schema
        self._closed = False
        self._lent: dict[int, tuple[AbstractContextManager[SyncConnection], bool]] = {}

    def take(self, until: float) -> SyncLink:
        # A pool may hold many connections that died together; it replaces each that comes back closed.
        while True:
            link = self._borrowed()
            if link.is_alive():
                return link
            link.cut()
            self.put(link)
            if monotonic() >= until:
                raise UnavailableError("the pool lends only broken connections")

    def put(self, link: SyncLink) -> None:
        loan, autocommit = self._lent.pop(id(link))
        link.let_go()
        if not link.conn.closed:
            link.conn.autocommit = autocommit
        loan.__exit__(None, None, None)

    def close(self) -> None:
        self._closed = True

    def conninfo(self) -> str:
        with self._lend() as conn:
            return conninfo_of(conn)

    def _borrowed(self) -> SyncLink:
        if self._closed:
            raise ClosedClientError("the client is closed")
        loan = self._lend()
        if not hasattr(loan, "__enter__"):
            raise InvalidOptionError(
                f"Client() needs a sync pool; this one lends a {type(loan).__name__}: use AsyncClient"
            )
        conn = loan.__enter__()
        try:
            autocommit = check_lent(conn, psycopg.Connection)
            conn.autocommit = True
            link = SyncLink(conn, self._schema, prepares=False)
            self._lent[id(link)] = (loan, autocommit)
        except BaseException as error:
            loan.__exit__(type(error), error, error.__traceback__)
            raise
        return link
