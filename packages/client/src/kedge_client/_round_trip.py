"""
One round trip on a connection of libpq: transactions out, each closed by its own Sync, answers back.

A generator, so that the sync and the async client drive the same text. libpq's pipeline mode is used directly, because
psycopg's pipeline costs three times the processor time and hides which of several transactions an error belongs to; its
generators would be one inside of the other for each of a start's four results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg import errors, pq
from psycopg.pq.abc import PGconn, PGresult

from kedge_client._driving import READ, WRITE, Waiting
from kedge_client._statements import Statement

_DONE: Final = frozenset((pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK))
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC

Row: TypeAlias = tuple[Any, ...]


class Command(NamedTuple):
    """One execution of a statement with its values."""

    statement: Statement
    values: Sequence[Any]


Transaction: TypeAlias = Iterable[Command]
"""Commands that commit together. A generator's work overlaps with the server's: libpq sends as soon as it has 8 KiB."""


class Answer:
    """What a transaction was answered: rows of each of its commands, or the first error. Complete once `closed`."""

    __slots__ = ("closed", "error", "rows")

    def __init__(self) -> None:
        self.rows: list[list[Row]] = []
        self.error: psycopg.Error | None = None
        self.closed = False


def round_trip(
    pgconn: PGconn, schema: str, transactions: Sequence[Transaction], answers: list[Answer], prepared: set[bytes] | None
) -> Waiting:
    """
    Send all transactions, then read their answers, in order.

    A transaction that fails says so in its answer and stops none of the others. When the connection breaks, this raises
    psycopg.OperationalError, and `answers` holds what had come: a closed answer without error has been committed.

    Args:
        pgconn: Idle, and of nobody else meanwhile.
        schema: The schema's name.
        transactions: What to send.
        answers: Where the answers go.
        prepared: Names of the statements that this connection has prepared; grows. None prepares nothing, for
            connections that are not ours or stand behind a pooler.
    """
    pgconn.enter_pipeline_mode()
    expected: list[list[Statement | None]] = []
    for transaction in transactions:
        statements: list[Statement | None] = []
        for statement, values in transaction:
            if prepared is None:
                pgconn.send_query_params(
                    statement.libpq(schema), statement.encode(values), None, statement.formats, result_format=1
                )
            else:
                if statement.name not in prepared:
                    pgconn.send_prepare(statement.name, statement.libpq(schema))
                    prepared.add(statement.name)
                    statements.append(None)
                pgconn.send_query_prepared(statement.name, statement.encode(values), statement.formats, result_format=1)
            statements.append(statement)
        pgconn.pipeline_sync()
        expected.append(statements)
    while pgconn.flush():
        if (yield READ | WRITE) & READ:
            pgconn.consume_input()
    for statements in expected:
        answer = Answer()
        answers.append(answer)
        yield from _receive(pgconn, statements, answer, prepared)
    # A connection that is lent may be one that its owner listens on.
    while notify := pgconn.notifies():
        if pgconn.notify_handler is not None:
            pgconn.notify_handler(notify)
    pgconn.exit_pipeline_mode()


def _receive(
    pgconn: PGconn, statements: list[Statement | None], answer: Answer, prepared: set[bytes] | None
) -> Waiting:
    position = 0
    is_at_end = False
    while True:
        while pgconn.is_busy():
            yield READ
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            # One is behind the answer to each statement; after a second one nothing comes any more.
            if is_at_end:
                raise psycopg.OperationalError("the server's answers do not match what it was asked")
            is_at_end = True
            continue
        is_at_end = False
        status = result.status
        if status == _SYNC:
            # Only now has it been committed: an error can still come between the last command and this.
            answer.closed = True
            return
        statement = statements[position] if position < len(statements) else None
        if status in _DONE:
            if statement is not None:
                answer.rows.append(rows_of(statement, result))
        else:
            if answer.error is None and status == pq.ExecStatus.FATAL_ERROR:
                answer.error = errors.error_from_result(result, encoding="utf-8")
            if prepared is not None and statement is None and position + 1 < len(statements):
                follower = statements[position + 1]
                if follower is not None:
                    prepared.discard(follower.name)
        position += 1


def rows_of(statement: Statement, result: PGresult) -> list[Row]:
    """Read the rows of a result in binary format."""
    value, columns = result.get_value, statement.columns
    return [
        tuple([None if (data := value(row, column)) is None else decode(data) for column, decode in columns])
        for row in range(result.ntuples)
    ]
