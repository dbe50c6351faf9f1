"""Other people's connections: lent by a pool, or given with conn= in the middle of a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.adapt import Dumper
from psycopg.conninfo import make_conninfo
from psycopg.pq import Format, TransactionStatus

from kedge.errors import InvalidOptionError, TransactionStateError
from kedge_client._statements import Statement

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_OPEN: Final = frozenset((TransactionStatus.INTRANS, TransactionStatus.INERROR, TransactionStatus.ACTIVE))


def check_lent(conn: object, wanted: type[AnyConnection]) -> bool:
    """
    Refuse what a pool should not lend, before anything is sent on it.

    Returns:
        Whether it is in autocommit mode.
    """
    if not isinstance(conn, wanted):
        raise InvalidOptionError(f"the pool lends a {_named(conn)}, not a psycopg {wanted.__name__}")
    if (status := conn.info.transaction_status) in _OPEN:
        raise TransactionStateError(
            f"the pool lends a connection that is {status.name}: for your own transaction give conn= to the call"
        )
    return conn.autocommit


def check_callers(conn: object, wanted: type[AnyConnection]) -> None:
    """
    Refuse what conn= cannot be, before anything is sent on it.

    Duck typing would not do: a Session of an ORM has execute() too, and would commit in the wrong place.

    Raises:
        InvalidOptionError: No psycopg connection, or the other client's.
        TransactionStateError: Its transaction has failed already, or it is closed.
    """
    if not isinstance(conn, wanted):
        if isinstance(conn, psycopg.AsyncConnection):
            raise InvalidOptionError("conn= is a psycopg AsyncConnection; that is for AsyncClient")
        if isinstance(conn, psycopg.Connection):
            raise InvalidOptionError("conn= is a psycopg Connection; that is for Client")
        raise InvalidOptionError(
            f"conn= takes a psycopg {wanted.__name__}, not a {_named(conn)}: execute client.start_statement(request)"
            " on it, in the form that suits"
        )
    if conn.closed:
        raise TransactionStateError("conn= is closed: repeat the transaction on another connection")
    if conn.info.transaction_status == TransactionStatus.INERROR:
        raise TransactionStateError("conn= is in a failed transaction: roll it back and repeat it")


class Encoded(bytes):
    """A value that is in Postgres' binary format already."""


class _EncodedDumper(Dumper):
    format = Format.BINARY
    # The statement casts each of its parameters.
    oid = 0

    def dump(self, obj: bytes) -> bytes:
        return obj


def send_as_encoded(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> None:
    """Let a cursor pass on what is encoded, whatever adapters its connection has."""
    cursor.adapters.register_dumper(Encoded, _EncodedDumper)


def encoded(statement: Statement, values: Sequence[Any]) -> dict[str, Encoded | None]:
    """Encode values for a cursor's named parameters."""
    sent = (None if value is None else Encoded(value) for value in statement.encode(values))
    return dict(zip(statement.parameters, sent, strict=True))


def is_in_transaction(conn: AnyConnection) -> bool:
    """Tell whether something is open on the connection that its owner may still commit."""
    return not conn.closed and conn.info.transaction_status in _OPEN


def is_idle(conn: AnyConnection) -> bool:
    """Tell whether the connection stands, and nothing is open on it."""
    return not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE


def conninfo_of(conn: AnyConnection) -> str:
    """Return what opens one more connection like this one."""
    info = conn.info
    return make_conninfo("", **info.get_parameters(), password=info.password or None)


def _named(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
