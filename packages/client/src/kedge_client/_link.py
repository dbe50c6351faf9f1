"""A connection as a client uses it: round trips, whether it lives, and how it is cut. The twin is in _async_link."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from os import dup
from typing import Any, Final, Generic, TypeVar

import psycopg
from psycopg import errors, pq

from kedge_client._driving import READ, Readiness, Waiting, drive
from kedge_client._round_trip import Answer, Transaction, round_trip

C_co = TypeVar("C_co", bound=psycopg.Connection[Any] | psycopg.AsyncConnection[Any], covariant=True)

# The server has committed, but it stopped waiting for the standby that would survive its loss.
_UNREPLICATED: Final = "canceling wait for synchronous replication"


class Link(Generic[C_co]):
    """
    One connection in autocommit mode, used by one call at a time.

    Args:
        conn: Its owner opens and closes it.
        schema: The schema's name.
        prepares: Whether statements may be prepared; not on connections that are lent or stand behind a pooler.
    """

    __slots__ = ("_prepared", "_readiness", "_schema", "conn", "fileno", "unreplicated")

    def __init__(self, conn: C_co, schema: str, *, prepares: bool) -> None:
        self.conn: Final = conn
        self.fileno = conn.fileno()
        self.unreplicated = False
        """A commit of the last round trip is on this server only."""
        self._schema = schema
        self._prepared: set[bytes] | None = set() if prepares else None
        self._readiness = Readiness(self.fileno)
        conn.add_notice_handler(self._notice)

    def is_alive(self) -> bool:
        """
        Tell whether the connection still stands, as far as this machine has been told.

        Asked before each use: what was closed while it lay idle must not make the outcome of a start unknown.
        """
        pgconn = self.conn.pgconn
        if pgconn.status != pq.ConnStatus.OK:
            return False
        try:
            # The server says something of its own accord when it changes a setting or says goodbye.
            while self._readiness.wait(READ, 0):
                pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        return True

    def cut(self) -> None:
        """Close the socket at once, whatever is under way."""
        # Shut down first: libpq wants to say goodbye, and a silent server must not keep us waiting for that.
        with suppress(OSError), socket.socket(fileno=dup(self.fileno)) as sock:
            sock.shutdown(socket.SHUT_RDWR)
        self.conn.pgconn.finish()

    def let_go(self) -> None:
        """Leave the connection as it was lent."""
        self.conn.remove_notice_handler(self._notice)

    def _round_trip(self, transactions: Sequence[Transaction], answers: list[Answer]) -> Waiting:
        self.unreplicated = False
        return round_trip(self.conn.pgconn, self._schema, transactions, answers, self._prepared)

    def _notice(self, diagnostic: errors.Diagnostic) -> None:
        if _UNREPLICATED in (diagnostic.message_primary or ""):
            self.unreplicated = True


class SyncLink(Link["psycopg.Connection[Any]"]):
    """A connection of the sync client."""

    __slots__ = ()

    def exchange(self, transactions: Sequence[Transaction], answers: list[Answer], until: float) -> None:
        """
        Make one round trip: send all transactions, then read their answers, as far as they come.

        Raises:
            psycopg.OperationalError: The connection broke, or the server was silent until this time of the monotonic
                clock; it must be cut.
        """
        drive(self._round_trip(transactions, answers), self._readiness, until)
