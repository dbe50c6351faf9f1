"""The sync and the async client under one roof, so that each promise is tested on both with one text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import anyio.to_thread
import psycopg

from kedge_client import AsyncClient, AsyncRunHandle, Client, RunHandle

T = TypeVar("T")

AnyClient: TypeAlias = Client
"""Typed as the sync one; `do` awaits what the async one answers."""
AnyConnection: TypeAlias = psycopg.Connection[Any]
AnyHandle: TypeAlias = RunHandle[Any]


class Twin(Protocol):
    """One of the two."""

    name: str
    handle_class: type[Any]

    async def do(self, function: Callable[..., T], /, *arguments: Any, **keywords: Any) -> T:
        """Call a method of a client, a handle or a connection, and wait for its answer."""
        ...

    def connect(self, url: str | None = None, /, **options: Any) -> AnyClient:
        """Make a client of its own connections."""
        ...

    def around(self, pool: Any, /, **options: Any) -> AnyClient:
        """Make a client of a pool."""
        ...

    async def close(self, client: AnyClient) -> None:
        """Close it."""
        ...

    async def listed(self, iterator: Any) -> list[Any]:
        """Walk to the end."""
        ...

    async def some(self, iterator: Any, number: int) -> list[Any]:
        """Take that many steps, or fewer where it ends."""
        ...

    async def stop(self, iterator: Any) -> None:
        """Close an iterator that is a generator."""
        ...

    async def open(self, url: str, *, autocommit: bool = False, **options: Any) -> AnyConnection:
        """Open a connection as an application has one."""
        ...


class _Sync:
    name = "sync"
    handle_class: type[Any] = RunHandle

    async def do(self, function: Callable[..., T], /, *arguments: Any, **keywords: Any) -> T:
        return await anyio.to_thread.run_sync(partial(function, *arguments, **keywords), abandon_on_cancel=True)

    def connect(self, url: str | None = None, /, **options: Any) -> AnyClient:
        return Client.connect(url, **options)

    def around(self, pool: Any, /, **options: Any) -> AnyClient:
        return Client(pool, **options)

    async def close(self, client: AnyClient) -> None:
        await self.do(client.close)

    async def listed(self, iterator: Any) -> list[Any]:
        found: list[Any] = await self.do(lambda: list(iterator))
        return found

    async def some(self, iterator: Any, number: int) -> list[Any]:
        found: list[Any] = await self.do(lambda: list(islice(iterator, number)))
        return found

    async def stop(self, iterator: Any) -> None:
        await self.do(iterator.close)

    async def open(self, url: str, *, autocommit: bool = False, **options: Any) -> AnyConnection:
        return psycopg.connect(url, autocommit=autocommit, **options)


class _Async:
    name = "async"
    handle_class: type[Any] = AsyncRunHandle

    async def do(self, function: Callable[..., T], /, *arguments: Any, **keywords: Any) -> T:
        return await cast("Coroutine[Any, Any, T]", function(*arguments, **keywords))

    def connect(self, url: str | None = None, /, **options: Any) -> AnyClient:
        return cast("AnyClient", AsyncClient.connect(url, **options))

    def around(self, pool: Any, /, **options: Any) -> AnyClient:
        return cast("AnyClient", AsyncClient(pool, **options))

    async def close(self, client: AnyClient) -> None:
        await cast("AsyncClient", client).aclose()

    async def listed(self, iterator: Any) -> list[Any]:
        return [item async for item in iterator]

    async def some(self, iterator: Any, number: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < number:
            try:
                found.append(await anext(iterator))
            except StopAsyncIteration:
                break
        return found

    async def stop(self, iterator: Any) -> None:
        await iterator.aclose()

    async def open(self, url: str, *, autocommit: bool = False, **options: Any) -> AnyConnection:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=autocommit, **options)
        return cast("AnyConnection", connection)


SYNC: Final[Twin] = _Sync()
ASYNC: Final[Twin] = _Async()
TWINS: Final = (SYNC, ASYNC)


@asynccontextmanager
async def opened(twin: Twin, url: str | None, **options: Any) -> AsyncGenerator[AnyClient]:
    """A client of its own connections, closed in the end."""
    client = twin.connect(url, **options)
    try:
        yield client
    finally:
        await twin.close(client)


@asynccontextmanager
async def connected(twin: Twin, url: str, *, autocommit: bool = False, **options: Any) -> AsyncGenerator[AnyConnection]:
    """A connection as an application has one, closed in the end."""
    connection = await twin.open(url, autocommit=autocommit, **options)
    try:
        yield connection
    finally:
        await twin.do(connection.close)
