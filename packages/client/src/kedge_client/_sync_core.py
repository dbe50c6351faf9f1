"""Executes calls for the sync client: tries, other people's transactions, waits. Its twin is _async_core."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable
from typing import TypeVar

import psycopg
from psycopg.rows import tuple_row

import kedge_client._calls as calls
from kedge.errors import ClosedClientError, OutcomeUnknownError, UnavailableError
from kedge_client._attempts import Attempts
from kedge_client._calls import Call, Explain, Posting, Rows
from kedge_client._failures import Fate, fate, harmless, refusal_in_transaction
from kedge_client._forks import begin_anew_after_fork
from kedge_client._lent import check_callers, encoded, is_in_transaction, send_as_encoded
from kedge_client._requests import Start, Started
from kedge_client._results import ResultRow, Wait
from kedge_client._round_trip import Answer, Command, Row, rows_of
from kedge_client._settings import ClientSettings
from kedge_client._sync_connections import SyncConnection, SyncConnections
from kedge_client._waiting_thread import WaitingThread
from kedge_client._watching import REST_S, RunEvent, Watching

T = TypeVar("T")


class SyncCore:
    """What a client and its scoped views share."""

    def __init__(self, connections: SyncConnections, settings: ClientSettings) -> None:
        self.settings = settings
        self._connections = connections
        self._lock = threading.Lock()
        self._thread: WaitingThread | None = None
        self._closed = False
        begin_anew_after_fork(self)

    def call(self, call: Call[T]) -> T:
        """
        Execute a call on a connection of the client's, as often as it takes and is allowed.

        Raises:
            UnavailableError: Nothing was done.
            OutcomeUnknownError: A write may have been done.
            KedgeError: What the database refused.
        """
        attempts = Attempts(timeout_s=self.settings.timeout_s, writes=call.writes, schema=self.settings.schema)
        while True:
            until = attempts.answer_by()
            try:
                link = self._connections.take(until)
            except (psycopg.OperationalError, UnavailableError) as error:
                time.sleep(attempts.not_sent(error))
                continue
            answers: list[Answer] = []
            cut: psycopg.OperationalError | None = None
            try:
                link.exchange(call.transactions(), answers, until)
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
                self._connections.put(link)
            failure = attempts.error_of(answers, cut, unreplicated=link.unreplicated)
            if failure is None:
                return call.read(answers[0].rows)
            time.sleep(attempts.failed(failure, call.explain))

    def start(self, one: Start) -> Started:
        """Start one run."""
        return self.call(calls.start(one, wake=self.settings.wake))

    def post(self, posting: Posting[T], conn: SyncConnection | None) -> T:
        """Put a letter into the inbox, or start a run anew; in the caller's transaction if there is one."""
        wake = self.settings.wake
        if conn is None:
            return self.call(posting.call(wake=wake))
        return posting.call(wake=False).read(self.execute_in(conn, posting.here(wake=wake)))

    def execute_in(
        self, conn: SyncConnection, commands: Iterable[Command], *, explain: Explain | None = None
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
        check_callers(conn, psycopg.Connection)
        # From here on the server may have committed on its own.
        commits = autonomous = conn.autocommit and not is_in_transaction(conn)
        try:
            with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
                send_as_encoded(cursor)
                if explain is None:
                    return [self._rows(cursor, command) for command in commands]
                if not conn.autocommit and not is_in_transaction(conn):
                    # Opens the caller's transaction, as any first statement does: the block below must not commit it.
                    cursor.execute(b"select 1")
                commits = False
                with conn.transaction():
                    rows = [self._rows(cursor, command) for command in commands]
                    commits = autonomous
                return rows
        except psycopg.Error as error:
            if commits and fate(error) is Fate.UNKNOWN:
                raise OutcomeUnknownError("the connection of conn= broke before the database answered") from error
            explained = explain(error) if explain is not None else None
            raise explained or refusal_in_transaction(error, self.settings.schema) from harmless(error)

    def _rows(self, cursor: psycopg.Cursor[Row], command: Command) -> Rows:
        statement, values = command
        text = statement.pyformat(self.settings.schema).encode()
        cursor.execute(text, encoded(statement, values), binary=True)
        # In a pipeline this brings the answer; the values are taken from behind the caller's adapters.
        cursor.fetchall()
        return rows_of(statement, cursor.pgresult) if cursor.pgresult is not None else []

    def result(self, wait: Wait[T]) -> T:
        """Wait for a run's end."""
        if wait.looks_first:
            must_exist = wait.must_exist()
            found = self.call(calls.results([wait.run_id]))
            row = found[0] if found else None
            if wait.is_over(row, must_exist=must_exist) and row is not None:
                return wait.value(row)
        return wait.value(self._waiting_thread().wait(wait))

    def watch(self, watching: Watching) -> Generator[RunEvent]:
        """Look at a run whenever something may have happened to it, until it has ended. Holds nothing between looks."""
        bell = threading.Event()
        thread: WaitingThread | None = None
        try:
            while not watching.has_ended:
                bell.clear()
                yield from self._news(watching)
                if watching.has_more or watching.has_ended:
                    continue
                if thread is None and self.settings.listen:
                    thread = self._waiting_thread()
                    thread.observe(watching.run_id, bell.set)
                time.sleep(REST_S)
                bell.wait(watching.pause_s)
        finally:
            if thread is not None:
                thread.unobserve(watching.run_id, bell.set)

    def _news(self, watching: Watching) -> list[RunEvent]:
        if self._closed:
            raise ClosedClientError("the client is closed")
        try:
            return self.call(watching.look())
        except UnavailableError:
            # An outage ends no watch that has begun: the run goes on when it is over.
            if not watching.has_begun:
                raise
            watching.failed()
            return []

    def close(self) -> None:
        """Close what the client has opened."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()
        self._connections.close()

    def after_fork(self) -> None:
        """Forget the thread, which was not forked along, and the lock, which it may have held."""
        self._lock = threading.Lock()
        self._thread = None

    def _waiting_thread(self) -> WaitingThread:
        with self._lock:
            if self._closed:
                raise ClosedClientError("the client is closed")
            if self._thread is None:
                self._thread = WaitingThread(self.settings, self._look, self._connections.conninfo)
            return self._thread

    def _look(self, ids: list[bytes]) -> list[ResultRow]:
        return self.call(calls.results(ids))
