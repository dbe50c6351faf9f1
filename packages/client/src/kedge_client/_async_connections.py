"""Where the async client gets connections from: a few of its own, or its owner's pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any, Protocol, TypeAlias, runtime_checkable

import psycopg

from kedge.errors import ClosedClientError, InvalidOptionError, UnavailableError
from kedge_client._async_link import AsyncLink
from kedge_client._lent import check_lent, conninfo_of

AsyncConnection: TypeAlias = "psycopg.AsyncConnection[Any]"


@runtime_checkable
class AsyncPool(Protocol):
    """What lends connections: psycopg_pool.AsyncConnectionPool, or anything with the same method."""

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Lend a connection for an async with block."""
        ...


class AsyncConnections(Protocol):
    """What the client asks for connections."""

    async def take(self, until: float) -> AsyncLink:
        """
        Answer a connection that nobody else uses until it is put back.

        Raises:
            psycopg.OperationalError: None could be opened.
            UnavailableError: None became free before `until` of the monotonic clock.
            ClosedClientError: The client is closed.
        """
        ...

    async def put(self, link: AsyncLink) -> None:
        """Take a connection back, closed or not."""
        ...

    async def close(self) -> None:
        """Close what is not in use, and what is in use once it comes back."""
        ...

    async def conninfo(self) -> str:
        """Return how to open one more connection to the same database."""
        ...


class OwnAsyncConnections:
    """Opens up to `maximum` connections as they are needed, and keeps them."""

    def __init__(self, conninfo: str, schema: str, *, maximum: int, prepares: bool) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._maximum = maximum
        self._prepares = prepares
        self._closed = False
        self._idle: list[AsyncLink] = []
        self._free = asyncio.Semaphore(maximum)

    async def take(self, until: float) -> AsyncLink:
        if self._closed:
            raise ClosedClientError("the client is closed")
        if self._free.locked():
            try:
                async with asyncio.timeout(until - monotonic()):
                    await self._free.acquire()
            except TimeoutError:
                raise UnavailableError(
                    f"all {self._maximum} connections of the client were busy; give it max_connections="
                ) from None
        else:
            await self._free.acquire()
        try:
            return self._alive() or await self._opened()
        except BaseException:
            self._free.release()
            raise

    async def put(self, link: AsyncLink) -> None:
        if self._closed:
            link.cut()
        elif not link.conn.closed:
            self._idle.append(link)
        self._free.release()

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            link = self._idle.pop()
            link.let_go()
            await link.conn.close()

    async def conninfo(self) -> str:
        return self._conninfo

    def _alive(self) -> AsyncLink | None:
        # The latest first: what is not needed any more grows old at the other end.
        while self._idle:
            link = self._idle.pop()
            if link.is_alive():
                return link
            link.cut()
        return None

    async def _opened(self) -> AsyncLink:
        conn = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        return AsyncLink(conn, self._schema, prepares=self._prepares)


class LentAsyncConnections:
    """Borrows each connection from the owner's pool, for one round trip, and leaves it as it was."""

    def __init__(
        self, pool: AsyncPool | Callable[[], AbstractAsyncContextManager[AsyncConnection]], schema: str
    ) -> None:
        self._lend: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
        if isinstance(pool, AsyncPool):
            self._lend = pool.connection
        elif callable(pool):
            self._lend = pool
        else:
            raise InvalidOptionError(
                f"AsyncClient() takes a pool with .connection(), or a function that lends a connection, not a"
                f" {type(pool).__name__}; for a DSN use AsyncClient.connect()"
            )
        self._schema = schema
        self._closed = False
        self._lent: dict[int, tuple[AbstractAsyncContextManager[AsyncConnection], bool]] = {}

    async def take(self, until: float) -> AsyncLink:
        # A pool may hold many connections that died together; it replaces each that comes back closed.
        while True:
            link = await self._borrowed()
            if link.is_alive():
                return link
            link.cut()
            await self.put(link)
            if monotonic() >= until:
                raise UnavailableError("the pool lends only broken connections")

    async def put(self, link: AsyncLink) -> None:
        loan, autocommit = self._lent.pop(id(link))
        link.let_go()
        if not link.conn.closed:
            await link.conn.set_autocommit(autocommit)
        await loan.__aexit__(None, None, None)

    async def close(self) -> None:
        self._closed = True

    async def conninfo(self) -> str:
        async with self._lend() as conn:
            return conninfo_of(conn)

    async def _borrowed(self) -> AsyncLink:
        if self._closed:
            raise ClosedClientError("the client is closed")
        loan = self._lend()
        if not hasattr(loan, "__aenter__"):
            raise InvalidOptionError(
                f"AsyncClient() needs an async pool; this one lends a {type(loan).__name__}: use Client"
            )
        conn = await loan.__aenter__()
        try:
            autocommit = check_lent(conn, psycopg.AsyncConnection)
            await conn.set_autocommit(True)
            link = AsyncLink(conn, self._schema, prepares=False)
            self._lent[id(link)] = (loan, autocommit)
        except BaseException as error:
            await loan.__aexit__(type(error), error, error.__traceback__)
            raise
        return link
