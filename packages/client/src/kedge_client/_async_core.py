"""Executes calls for the async client: tries, other people's transactions, waits. Its twin is _sync_core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from typing import TypeVar

import psycopg
from psycopg.rows import tuple_row

import kedge_client._calls as calls
from kedge.errors import ClosedClientError, OutcomeUnknownError, UnavailableError
from kedge.start_terms import starts_alone
from kedge_client._async_connections import AsyncConnection, AsyncConnections
from kedge_client._attempts import Attempts
from kedge_client._calls import Call, Explain, Posting, Rows
from kedge_client._failures import Fate, fate, harmless, refusal_in_transaction
from kedge_client._lent import check_callers, encoded, is_in_transaction, send_as_encoded
from kedge_client._requests import Start, Started
from kedge_client._results import ResultRow, Wait
from kedge_client._round_trip import Answer, Command, Row, rows_of
from kedge_client._settings import ClientSettings
from kedge_client._shared_starts import SharedStarts
from kedge_client._waiters import Waiter
from kedge_client._waiting_room import WaitingRoom
from kedge_client._watching import REST_S, RunEvent, Watching

T = TypeVar("T")


class AsyncCore:
    """What a client and its scoped views share. Belongs to the event loop of its first use."""

    def __init__(self, connections: AsyncConnections, settings: ClientSettings) -> None:
        self.settings = settings
        self._connections = connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room: WaitingRoom | None = None
        self._closed = False
        self._shared = SharedStarts(self.call, wake=settings.wake)

    async def call(self, call: Call[T]) -> T:
        """
        Execute a call on a connection of the client's, as often as it takes and is allowed.

        Raises:
            UnavailableError: Nothing was done.
            OutcomeUnknownError: A write may have been done.
            KedgeError: What the database refused.
        """
        self._check_loop()
        attempts = Attempts(timeout_s=self.settings.timeout_s, writes=call.writes, schema=self.settings.schema)
        while True:
            until = attempts.answer_by()
            try:
                link = await self._connections.take(until)
            except (psycopg.OperationalError, UnavailableError) as error:
                await asyncio.sleep(attempts.not_sent(error))
                continue
            answers: list[Answer] = []
            cut: psycopg.OperationalError | None = None
            try:
                await link.exchange(call.transactions(), answers, until)
            except psycopg.OperationalError as error:
                link.cut()
                cut = error
            except BaseException:
                # An answer on its way would be taken for that of the next call.
                link.cut()
                raise
            else:
                if answers[0].error is not None and fate(answers[0].error) in {Fate.NOT_DONE, Fate.UNKNOWN}:
                    link.cut()
            finally:
                await self._connections.put(link)
            failure = attempts.error_of(answers, cut, unreplicated=link.unreplicated)
            if failure is None:
                return call.read(answers[0].rows)
            await asyncio.sleep(attempts.failed(failure, call.explain))

    async def start(self, one: Start) -> Started:
        """Start one run; with others in one transaction, where many come at once."""
        self._check_loop()
        if not starts_alone(one.request):
            return await self._shared.start(one)
        return await self.call(calls.start(one, wake=self.settings.wake))

    async def post(self, posting: Posting[T], conn: AsyncConnection | None) -> T:
        """Put a letter into the inbox, or start a run anew; in the caller's transaction if there is one."""
        wake = self.settings.wake
        if conn is None:
            return await self.call(posting.call(wake=wake))
        return posting.call(wake=False).read(await self.execute_in(conn, posting.here(wake=wake)))

    async def execute_in(
        self, conn: AsyncConnection, commands: Iterable[Command], *, explain: Explain | None = None
    ) -> list[Rows]:
        """
        Execute statements in a caller's transaction: no commit, no rollback of it, no second try.

        Args:
            conn: The caller's.
            commands: What to execute.
            explain: Knows errors that only this call can have. If given, the statements are all or nothing, and the
                caller's transaction survives such an error; else there must be only one.

        Raises:
            InvalidOptionError: No psycopg connection.
            TransactionStateError: The transaction is lost.
            OutcomeUnknownError: The connection is in autocommit mode, in no transaction, and broke.
            KedgeError: What the database refused.
        """
        check_callers(conn, psycopg.AsyncConnection)
        # From here on the server may have committed on its own.
        commits = autonomous = conn.autocommit and not is_in_transaction(conn)
        try:
            async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
                send_as_encoded(cursor)
                if explain is None:
                    return [await self._rows(cursor, command) for command in commands]
                if not conn.autocommit and not is_in_transaction(conn):
                    # Opens the caller's transaction, as any first statement does: the block below must not commit it.
                    await cursor.execute(b"select 1")
                commits = False
                async with conn.transaction():
                    rows = [await self._rows(cursor, command) for command in commands]
                    commits = autonomous
                return rows
        except psycopg.Error as error:
            if commits and fate(error) is Fate.UNKNOWN:
                raise OutcomeUnknownError("the connection of conn= broke before the database answered") from error
            explained = explain(error) if explain is not None else None
            raise explained or refusal_in_transaction(error, self.settings.schema) from harmless(error)

    async def _rows(self, cursor: psycopg.AsyncCursor[Row], command: Command) -> Rows:
        statement, values = command
        text = statement.pyformat(self.settings.schema).encode()
        await cursor.execute(text, encoded(statement, values), binary=True)
        # In a pipeline this brings the answer; the values are taken from behind the caller's adapters.
        await cursor.fetchall()
        return rows_of(statement, cursor.pgresult) if cursor.pgresult is not None else []

    async def result(self, wait: Wait[T]) -> T:
        """Wait for a run's end."""
        self._check_loop()
        if wait.looks_first:
            must_exist = wait.must_exist()
            found = await self.call(calls.results([wait.run_id]))
            row = found[0] if found else None
            if wait.is_over(row, must_exist=must_exist) and row is not None:
                return wait.value(row)
        waiter = Waiter(wait.run_id, must_exist=wait.must_exist())
        limit_s = wait.remaining_s()
        if limit_s is None:
            return wait.value(await self._waiting_room().wait(waiter))
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                row = await self._waiting_room().wait(waiter)
        except TimeoutError:
            if not limit.expired():
                raise
            raise wait.time_is_up(waiter.status) from None
        return wait.value(row)

    async def watch(self, watching: Watching) -> AsyncGenerator[RunEvent]:
        """Look at a run whenever something may have happened to it, until it has ended. Holds nothing between looks."""
        self._check_loop()
        bell = asyncio.Event()
        room: WaitingRoom | None = None
        try:
            while not watching.has_ended:
                bell.clear()
                for event in await self._news(watching):
                    yield event
                if watching.has_more or watching.has_ended:
                    continue
                if room is None and self.settings.listen:
                    room = self._waiting_room()
                    room.observe(watching.run_id, bell.set)
                await asyncio.sleep(REST_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), watching.pause_s)
        finally:
            if room is not None:
                room.unobserve(watching.run_id, bell.set)

    async def _news(self, watching: Watching) -> list[RunEvent]:
        if self._closed:
            raise ClosedClientError("the client is closed")
        try:
            return await self.call(watching.look())
        except UnavailableError:
            # An outage ends no watch that has begun: the run goes on when it is over.
            if not watching.has_begun:
                raise
            watching.failed()
            return []

    async def close(self) -> None:
        """Close what the client has opened."""
        self._closed = True
        if self._room is not None:
            await self._room.close()
        await self._connections.close()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ClosedClientError("the client belongs to another event loop: make one in each")

    def _waiting_room(self) -> WaitingRoom:
        if self._closed:
            raise ClosedClientError("the client is closed")
        if self._room is None:
            self._room = WaitingRoom(
                schema=self.settings.schema,
                look=self._look,
                conninfo=self._connections.conninfo if self.settings.listen else None,
                timeout_s=self.settings.timeout_s,
                wake=self.settings.wake,
            )
        return self._room

    async def _look(self, ids: list[bytes]) -> list[ResultRow]:
        return await self.call(calls.results(ids))
