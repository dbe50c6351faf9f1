"""One connection, one round trip at a time, many prepared statements in it: libpq's pipeline mode, no cursor layer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg import errors, pq
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq.abc import PGconn, PGresult
from psycopg.types.string import TextBinaryLoader

from kedge_worker._binary import to_int

Rows: TypeAlias = list[tuple[Any, ...]]

_OK: Final = frozenset((pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK))

# The server counts the transaction as committed, but no standby has confirmed it.
UNREPLICATED: Final = "canceling wait for synchronous replication"


def _nothing() -> None:
    pass


class Statement:
    """A statement with numbered parameters, prepared once a connection under its own name."""

    __slots__ = ("name", "sql")

    def __init__(self, name: str, sql: str) -> None:
        self.name = name.encode()
        self.sql = sql.encode()


class Call(NamedTuple):
    """One execution of a statement; parameters and results are in binary format."""

    statement: Statement
    parameters: Sequence[bytes | None] = ()


class CutError(psycopg.OperationalError):
    """The connection is gone in the middle of a round trip: what it asked for may or may not have happened."""


class Pipeline:
    """
    A connection that does one round trip after the other. Not to be shared between tasks.

    A silent server answers nothing and cancelling does not help, so every round trip has a watchdog that closes the
    socket.
    """

    def __init__(self, conn: psycopg.AsyncConnection[tuple[object, ...]], loop: asyncio.AbstractEventLoop) -> None:
        self._conn = conn
        self._pg = conn.pgconn
        self._loop = loop
        self._done: asyncio.Future[None] | None = None
        self._results: list[PGresult] = []
        self._unreplicated = False
        self._fd = conn.fileno()
        conn.add_notice_handler(self._notice)
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        loop.add_reader(self._fd, self._readable)

    @classmethod
    async def connect(cls, conninfo: str, *, timeout_s: float) -> Pipeline:
        """Open a connection; the caller's conninfo says all settings."""
        conn = await asyncio.wait_for(psycopg.AsyncConnection.connect(conninfo, autocommit=True), timeout_s)
        return cls(conn, asyncio.get_running_loop())

    @property
    def closed(self) -> bool:
        return self._conn.closed

    async def roundtrip(
        self, calls: Sequence[Call], *, timeout_s: float, meanwhile: Callable[[], None] = _nothing
    ) -> list[PGresult]:
        """
        Send all calls with one Sync behind them and answer their results, in order.

        The calls share a transaction unless they say otherwise. After an error nothing behind it was executed.

        Args:
            calls: What to send.
            timeout_s: How long to wait for the last answer.
            meanwhile: Called when all is on its way, and before anything else can happen here.

        Raises:
            psycopg.Error: The first statement that failed, with its SQLSTATE; an open BEGIN is still open.
            CutError: No answer: the outcome is unknown, and this connection is closed.
        """
        if self._done is not None:
            raise RuntimeError("a round trip is under way on this connection")
        pg = self._pg
        try:
            for statement, parameters in calls:
                pg.send_query_prepared(statement.name, parameters, _BINARY[len(parameters)], 1)
        except psycopg.OperationalError as error:
            self.abort()
            raise CutError(f"the connection to Postgres broke: {error}") from error
        return await self._sync(timeout_s, meanwhile)

    async def prepare(self, statements: Iterable[Statement], *, timeout_s: float) -> None:
        """Prepare all statements that this connection will execute; raises as `roundtrip` does."""
        for statement in statements:
            self._pg.send_prepare(statement.name, statement.sql)
        await self._sync(timeout_s)

    def abort(self) -> None:
        """Close the socket at once, whatever is under way."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            shut_down(self._pg)
            self._fd = -1
        self._pg.finish()
        if self._done is not None and not self._done.done():
            self._done.set_exception(CutError("the connection to Postgres was closed in the middle of a round trip"))

    async def aclose(self) -> None:
        """Close an idle connection."""
        self.abort()

    async def _sync(self, timeout_s: float, meanwhile: Callable[[], None] = _nothing) -> list[PGresult]:
        if self._done is not None:
            raise RuntimeError("a round trip is under way on this connection")
        results: list[PGresult] = []
        self._results = results
        self._unreplicated = False
        done = self._done = self._loop.create_future()
        watchdog = self._loop.call_later(timeout_s, self._time_up, timeout_s)
        try:
            self._pg.pipeline_sync()
            if self._pg.flush():
                self._loop.add_writer(self._fd, self._writable)
            meanwhile()
            await done
        except asyncio.CancelledError:
            self.abort()  # an answer on its way would be taken for that of the next round trip
            raise
        except psycopg.OperationalError as error:
            self.abort()
            raise (
                error if isinstance(error, CutError) else CutError(f"the connection to Postgres broke: {error}")
            ) from error
        finally:
            watchdog.cancel()
            self._done = None
            self._results = []  # the next round trip may be far, and payloads are in them
        for result in results:
            if result.status not in _OK:
                raise errors.error_from_result(result, encoding="utf-8")
        if self._unreplicated:
            self.abort()
            raise CutError("Postgres stopped waiting for its synchronous standby: the commit may be lost in a failover")
        return results

    def _readable(self) -> None:
        pg = self._pg
        try:
            pg.consume_input()
            empty = False
            while not pg.is_busy():
                result = pg.get_result()
                if result is None:
                    # One separates the answers of two statements, two in a row mean that nothing is there.
                    if empty:
                        return
                    empty = True
                elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                    if self._done is not None and not self._done.done():
                        self._done.set_result(None)
                    return
                else:
                    empty = False
                    self._results.append(result)
        except psycopg.OperationalError as error:
            self._broken(f"the connection to Postgres broke: {error}")

    def _writable(self) -> None:
        try:
            if not self._pg.flush():
                self._loop.remove_writer(self._fd)
        except psycopg.OperationalError as error:
            self._broken(f"the connection to Postgres broke: {error}")

    def _time_up(self, timeout_s: float) -> None:
        self._broken(f"Postgres did not answer within {timeout_s:g} s")

    def _broken(self, message: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(CutError(message))
        self.abort()

    def _notice(self, diagnostic: errors.Diagnostic) -> None:
        if UNREPLICATED in (diagnostic.message_primary or ""):
            self._unreplicated = True


def shut_down(pgconn: PGconn) -> None:
    """End a connection's socket from outside: whoever waits on it wakes up with an error, in any thread."""
    # Before PQfinish: it wants to say goodbye, and a silent server must not keep us waiting for that.
    with contextlib.suppress(OSError, psycopg.OperationalError), socket.socket(fileno=os.dup(pgconn.socket)) as sock:
        sock.shutdown(socket.SHUT_RDWR)


def rows_of(result: PGresult) -> Rows:
    """All values of an answer, as Python's own."""
    reader = Transformer(_ADAPTERS)
    reader.set_pgresult(result, format=pq.Format.BINARY)
    return reader.load_rows(0, result.ntuples, tuple)


def value_of(result: PGresult, row: int, column: int) -> bytes:
    """A value that cannot be null."""
    value = result.get_value(row, column)
    if value is None:
        raise TypeError(f"null in column {column} of {result.command_status!r}")
    return value


def int_of(result: PGresult, row: int, column: int) -> int:
    return to_int(value_of(result, row, column))


_ADAPTERS: Final = AdaptersMap(psycopg.adapters)
_ADAPTERS.register_loader('"char"', TextBinaryLoader)
_BINARY: Final = [[1] * n for n in range(20)]
