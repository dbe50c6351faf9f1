"""Connections that may block while a test goes on, and the question who blocks them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, Final, LiteralString, ParamSpec, Self, TypeVar

import psycopg

PATIENCE_S: Final = 10.0
"""How long a test waits for something that must happen before it gives up and fails."""

P = ParamSpec("P")
T = TypeVar("T")


class Session:
    """
    One connection, in autocommit mode, with a thread of its own.

    `rows` executes in the caller's thread; `later` executes in the session's own, so that the test goes on while the
    statement waits for a lock.
    """

    def __init__(self, url: str, **settings: str) -> None:
        flags = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self.url = url
        self.conn = psycopg.connect(url, autocommit=True, options=flags)
        self.pid: Final = self.conn.info.backend_pid
        self._numbered = psycopg.RawCursor(self.conn)
        self._thread = ThreadPoolExecutor(1, "session")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rows(self, query: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement with $1 (a sequence) or %(name)s (a mapping) and answer its rows."""
        text = query.encode()
        cursor = (
            self.conn.execute(text, parameters)
            if isinstance(parameters, Mapping)
            else self._numbered.execute(text, parameters or None)
        )
        return cursor.fetchall() if cursor.description is not None else []

    def count(self, query: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> int:
        """Execute one statement and answer how many rows it touched."""
        text = query.encode()
        cursor = (
            self.conn.execute(text, parameters)
            if isinstance(parameters, Mapping)
            else self._numbered.execute(text, parameters or None)
        )
        return cursor.rowcount

    def value(self, query: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> Any:
        """The one value of the one row."""
        ((value,),) = self.rows(query, parameters)
        return value

    def begin(self, isolation: str = "read committed") -> None:
        self.rows(f"begin isolation level {isolation}")

    def commit(self) -> None:
        """Commit, or fail if the transaction had failed: Postgres answers ROLLBACK to the COMMIT of such a one."""
        status = self.conn.execute("commit").statusmessage
        assert status == "COMMIT", status

    def rollback(self) -> None:
        self.rows("rollback")

    def later(
        self, move: Callable[Concatenate[Session, P], T], /, *arguments: P.args, **keywords: P.kwargs
    ) -> Future[T]:
        """Do it in the session's own thread."""
        return self._thread.submit(move, self, *arguments, **keywords)

    def close(self) -> None:
        self.conn.close()
        self._thread.shutdown()


class Sessions:
    """Opens sessions of one database and closes all of them, whatever they wait for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._observer = psycopg.connect(url, autocommit=True)
        self._open: list[Session] = []

    def open(self, **settings: str) -> Session:
        session = Session(self.url, **settings)
        self._open.append(session)
        return session

    def wait_until_blocked(self, waiting: Session | int, by: Session | int | None = None) -> None:
        """Return when a session waits for a lock (of that other session)."""
        pid = waiting if isinstance(waiting, int) else waiting.pid
        blocker = by if by is None or isinstance(by, int) else by.pid
        self.wait_until(
            "select case when %(blocker)s::int is null then cardinality(pg_blocking_pids(%(pid)s)) > 0"
            " else %(blocker)s = any (pg_blocking_pids(%(pid)s)) end",
            {"pid": pid, "blocker": blocker},
            what=f"backend {pid} to wait for {blocker or 'a lock'}",
        )

    def wait_until(self, query: LiteralString, parameters: Mapping[str, object] | None = None, *, what: str) -> None:
        """Return when a query answers true."""
        deadline = time.monotonic() + PATIENCE_S
        while self._observer.execute(query, parameters).fetchone() != (True,):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {PATIENCE_S:g} s for {what}")

    def close(self) -> None:
        for session in self._open:
            # A statement that still waits would hold up the close.
            self._observer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid = %s and state = 'active'",
                (session.pid,),
            )
        for session in self._open:
            session.close()
        self._observer.close()


@contextmanager
def open_sessions(url: str) -> Generator[Sessions]:
    sessions = Sessions(url)
    try:
        yield sessions
    finally:
        sessions.close()
