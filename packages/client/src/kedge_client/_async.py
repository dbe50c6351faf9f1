"""The async client: the public face of what the core executes. Its twin is _sync, which has the same names."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar
from uuid import UUID

import kedge_client._calls as calls
from kedge.codecs import PayloadCodec
from kedge.durations import Duration
from kedge.errors import InvalidOptionError, KedgeError
from kedge.ids import parse_run_id
from kedge.names import check_key
from kedge.refs import RunRequest, WorkflowRef
from kedge_client._async_connections import AsyncConnection, AsyncPool, LentAsyncConnections, OwnAsyncConnections
from kedge_client._async_control import AsyncControl
from kedge_client._async_core import AsyncCore
from kedge_client._async_seeing import AsyncSeeing
from kedge_client._calls import ManyStarts
from kedge_client._handles import AsyncRunHandle
from kedge_client._requests import Start, Started, each_of, new_start, new_starts, started
from kedge_client._reruns import Rerun
from kedge_client._run_refs import RunRef
from kedge_client._settings import check_max_connections, client_settings, own_conninfo, resolve_dsn
from kedge_client._start_statement import StartStatement
from kedge_client._streams import Ready, StartStream

Out = TypeVar("Out")


class AsyncClient(AsyncControl, AsyncSeeing):
    """
    Starts runs, speaks to them, reads what became of them. Belongs to the loop of its first use; its twin is `Client`.

    `AsyncClient(pool)` borrows connections and never opens or closes the pool; `AsyncClient.connect()` has its own.
    """

    def __init__(
        self,
        pool: AsyncPool | Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        /,
        *,
        schema: str | None = None,
        timeout: Duration = "10s",
        listen: bool = True,
        wake: bool = True,
        codec: PayloadCodec | None = None,
    ) -> None:
        """
        Use connections of a pool, for one round trip each.

        Args:
            pool: Anything with `connection()`, such as psycopg_pool.AsyncConnectionPool, or a function that answers
                such a context manager.
            schema: Of kedge's tables; KEDGE_SCHEMA, else "kedge".
            timeout: How long a call may wait for an answer of the database, before it is tried again or given up.
            listen: Whether results are pushed, on one more connection; else polled. Off behind a transaction pooler.
            wake: Whether starts and letters wake a sleeping worker; else it finds them at its next poll.
            codec: Encrypts payloads, such as `kedge.encryption.AesGcmCodec`; workers need it too. None: they are sent
                as they are, and encrypted ones cannot be read.
        """
        settings = client_settings(schema=schema, timeout=timeout, listen=listen, wake=wake, codec=codec)
        self._core = AsyncCore(LentAsyncConnections(pool, settings.schema), settings)
        self._resource: str | None = None

    @classmethod
    def connect(
        cls,
        dsn: str | None = None,
        /,
        *,
        max_connections: int = 4,
        schema: str | None = None,
        timeout: Duration = "10s",
        listen: bool = True,
        wake: bool = True,
        codec: PayloadCodec | None = None,
    ) -> AsyncClient:
        """
        Make a client with connections of its own, which are opened when they are needed.

        Args:
            dsn: Where the database is; KEDGE_DATABASE_URL, DATABASE_URL, or libpq's own variables.
            max_connections: 1 to 100, without the one that listens.
            schema: Of kedge's tables; KEDGE_SCHEMA, else "kedge".
            timeout: How long a statement may take (statement_timeout); two seconds later the socket is closed.
            listen: Whether results are pushed, on one more connection; else polled. Off behind a transaction pooler:
                then nothing is prepared either, and no option is set.
            wake: Whether starts and letters wake a sleeping worker; else it finds them at its next poll.
            codec: Encrypts payloads, such as `kedge.encryption.AesGcmCodec`; workers need it too. None: they are sent
                as they are, and encrypted ones cannot be read.

        Raises:
            UsageError: The DSN cannot be read, or an option is out of range.
        """
        settings = client_settings(schema=schema, timeout=timeout, listen=listen, wake=wake, codec=codec)
        connections = OwnAsyncConnections(
            own_conninfo(resolve_dsn(dsn), settings),
            settings.schema,
            maximum=check_max_connections(max_connections),
            prepares=listen,
        )
        return cls._of(AsyncCore(connections, settings), None)

    @classmethod
    def _of(cls, core: AsyncCore, resource: str | None) -> AsyncClient:
        client = cls.__new__(cls)
        client._core = core  # noqa: SLF001  # our own, not made by __init__
        client._resource = resource  # noqa: SLF001
        return client

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client's own connections and its listener. A scoped view has none: closing it does nothing."""
        if self._resource is None:
            await self._core.close()

    def scoped(self, resource: str, /) -> AsyncClient:
        """
        Return a view of the client that sees and starts only runs of this resource.

        What is of another one looks exactly like what does not exist.

        Raises:
            InvalidNameError: It cannot be a resource's id.
            InvalidOptionError: This client is scoped to another one.
        """
        if self._resource not in {None, check_key("resource", resource)}:
            raise InvalidOptionError("the client is scoped to another resource: scope the one that it was made from")
        return self._of(self._core, resource)

    async def start(self, request: RunRequest[Out], /, *, conn: AsyncConnection | None = None) -> AsyncRunHandle[Out]:
        """
        Start a run.

        Args:
            request: ref(input, ...).
            conn: A psycopg connection: the run exists if and only if its transaction commits. For other drivers see
                `start_statement`.

        Raises:
            InputConflictError: The key is taken by a run with another input.
            RunExistsError: The key is taken, and on_conflict says "raise".
            RunActiveError: Another run of the singleton is active, and singleton says "raise".
            UsageError: The request or `conn` cannot be used; nothing was sent.
            TransactionStateError: The transaction of `conn` is lost.
            UnavailableError: The database was not reached: nothing was started.
            OutcomeUnknownError: The database did not answer: the run may have been started.
        """
        one = new_start(request, self._resource, self._core.settings.codec)
        if conn is None:
            found = await self._core.start(one)
        else:
            wake = self._core.settings.wake
            found = started(one, (await self._core.execute_in(conn, calls.start_here(one, wake=wake)))[0][0])
        return AsyncRunHandle(
            self._core, request.ref, found.run_id, resource=self._resource, created=found.created, conn=conn
        )

    async def start_many(
        self, requests: Iterable[RunRequest[Out]], /, *, conn: AsyncConnection | None = None
    ) -> list[AsyncRunHandle[Out]]:
        """
        Start many runs in one transaction: all or none.

        Args:
            requests: Of any workflows; the handles come in their order.
            conn: As for `start`.

        Raises:
            KedgeError: As `start`.
        """
        starts = new_starts(requests, self._resource, self._core.settings.codec)
        if not starts:
            return []
        many = ManyStarts(starts, wake=self._core.settings.wake)
        if conn is None:
            found = await self._core.call(many.call())
        else:
            found = many.read(await self._core.execute_in(conn, many.here(), explain=many.explain))
        return self._handles(starts, found, conn)

    async def start_stream(
        self, requests: Iterable[RunRequest[Out]] | AsyncIterable[RunRequest[Out]], /
    ) -> AsyncIterator[AsyncRunHandle[Out]]:
        """
        Start runs of any number of requests, in bounded memory. Nothing happens until it is iterated.

        Requests are read in chunks: 1,000, or 1 MiB of encoded inputs and metadata, at most; one that is larger is a
        chunk of its own. Each chunk is one transaction; then its handles come, in the order of the requests. The next
        chunk is read when its first handle is asked for; until then no connection is held. Nothing is sent before
        a chunk is full or the requests end: what comes rarely is better started one by one.

        An error comes in its place: the requests before it are started and their handles have come, it and those
        behind it are not started. A kedge error's `request_place` is that place, counted from 0; what `requests` itself
        raises comes as it is. Whoever stops iterating has started the chunk of the last handle and nothing behind it. A
        call that is cancelled while it stores a chunk leaves all of that or none. Give requests keys and they can be
        repeated: those that are there answer with created=False.

        There is no `conn=`: a transaction of yours is all or none, which is `start_many`.

        Args:
            requests: Of any workflows; an async iterable is read as it comes, any other on the event loop.

        Raises:
            InputConflictError: As `start`.
            RunExistsError: As `start`.
            RunActiveError: As `start`.
            UsageError: A request cannot be used, or it is nothing that holds requests.
            UnavailableError: The database was not reached: of this chunk nothing is started.
            OutcomeUnknownError: The database did not answer: of this chunk all is started, or nothing.
        """
        if isinstance(requests, AsyncIterable):
            source = aiter(requests)
        else:
            source = Ready(each_of(requests, method="start_stream"))
        stream = StartStream(self._resource, self._core.settings)
        while True:
            while stream.wants_more:
                try:
                    stream.add(await anext(source))
                except StopAsyncIteration:
                    stream.end()
                except Exception as error:  # noqa: BLE001  # raised when what was read before it is stored
                    stream.end(error)
            chunk = stream.next_chunk()
            if chunk is None:
                return
            try:
                found = await self._core.call(chunk.call())
            except KedgeError as error:
                if not stream.goes_on(chunk, error):
                    raise
                continue
            stream.stored(chunk)
            for handle in self._handles(chunk.starts, found):
                yield handle

    def _handles(
        self, starts: Iterable[Start], found: Iterable[Started], conn: AsyncConnection | None = None
    ) -> list[AsyncRunHandle[Any]]:
        return [
            AsyncRunHandle(
                self._core, start.request.ref, one.run_id, resource=self._resource, created=one.created, conn=conn
            )
            for start, one in zip(starts, found, strict=True)
        ]

    def start_statement(self, request: RunRequest[Out], /) -> StartStatement[Out]:
        """
        Return the start as text and values, for connections of SQLAlchemy, Django or asyncpg.

        Raises:
            UsageError: The request cannot be used.
        """
        return StartStatement(new_start(request, self._resource, self._core.settings.codec), self._core.settings)

    async def rerun_from(
        self, run: RunRef, step_id: str, /, *, conn: AsyncConnection | None = None
    ) -> AsyncRunHandle[Any]:
        """
        Start a new run from a step of one that has ended, and return the new one.

        The new run has the old one's input, options, tags and resource, and takes over what was kept before that step's
        first outcome; failures and interruptions are not kept, so that what they ended is done anew. Its timeout begins
        anew; an idempotency key stays with the old run. Its view names the old one as its origin.

        Args:
            run: A handle, a view or an id.
            step_id: The step's key, as `steps` shows it.
            conn: As for `start`.

        Raises:
            InvalidRunStateError: It has not ended.
            StepNotFoundError: Nothing is kept of such a step; `.keys` are some that there are.
            RunActiveError: It is one of a singleton, of which another run is active.
            RunNotFoundError: There is no such run.
        """
        found = await self._core.post(Rerun(run, step_id, resource=self._resource), conn)
        return AsyncRunHandle(self._core, found.ref, found.run_id, resource=self._resource, created=True, conn=conn)

    def handle(self, ref: WorkflowRef[Any, Out], run: UUID | str, /) -> AsyncRunHandle[Out]:
        """
        Return a handle of a run that was started elsewhere. Whether it exists is not looked at.

        Raises:
            InvalidOptionError: It is no id of a run.
        """
        return AsyncRunHandle(self._core, ref, parse_run_id(run), resource=self._resource)

    async def result(
        self,
        ref: WorkflowRef[Any, Out],
        run: UUID | str,
        /,
        *,
        timeout: Duration | None = None,  # noqa: ASYNC109  # as its twin
    ) -> Out:
        """Wait for a run that was started elsewhere, as a handle's `result` does."""
        return await self.handle(ref, run).result(timeout)
