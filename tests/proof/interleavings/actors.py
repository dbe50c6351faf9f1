"""A session that goes on by one statement only when it is let: by its own statements, and by those of functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Semaphore
from typing import Any, Final, Literal, LiteralString, NamedTuple, cast

import psycopg
from psycopg import errors, pq
from psycopg.pq.abc import PGresult

from kedge_worker._pipeline import Call
from tests.proof.interleavings.breakpoints import ARMED, touched_at, toucher
from tests.proof.interleavings.touches import ALL, Touch
from tests.sessions import Session

_NOTICE: Final = re.compile(r"kedge_proof (\w+) (\d+) (\d+)")
_OK: Final = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)

Isolation = Literal["read committed", "repeatable read"]
READ_COMMITTED: Final = "read committed"
REPEATABLE_READ: Final = "repeatable read"


class Place(NamedTuple):
    """Where an actor stands: in front of which statement, and what that touches."""

    name: str
    touch: Touch
    turn: int | None = None
    """Of a stop inside a function: it waits for the lock of this turn. None: it waits in Python."""
    rests: bool = False
    """It has tried in vain, and tries again only when nobody else can go on: else there would be no end of orders."""


class Ended(NamedTuple):
    """An actor's program is over."""

    value: Any
    error: BaseException | None


class Actor(Session):
    """
    One connection that executes a program in a thread of its own, statement by statement.

    Args:
        number: From 1; of the sequence and the locks of its stops.
        lock_timeout_ms: 0: it waits for a lock until the other one has gone on.
    """

    def __init__(self, url: str, number: int, *, lock_timeout_ms: int = 0) -> None:
        super().__init__(
            url,
            **{
                ARMED: str(number),
                "lock_timeout": str(lock_timeout_ms),
                "plan_cache_mode": "force_generic_plan",
                "deadlock_timeout": "30s",
            },
        )
        self.number: Final = number
        self.reports: SimpleQueue[Place | Ended] = SimpleQueue()
        self._allowed: Final = Semaphore(0)
        self._isolation: str | None = None
        self._is_repeatable = False
        self._written: set[str] = set()
        self._prepared: set[bytes] = set()
        self.conn.prepare_threshold = 0
        self.conn.add_notice_handler(self._noticed)

    # ---- the tester's side

    def start(self, program: Callable[[Actor], object]) -> Future[None]:
        """Begin the program: it reports the place in front of its first statement."""
        return self._thread.submit(self._perform, program)

    def allow(self) -> None:
        """Let it go on from a place in Python."""
        self._allowed.release()

    def passed(self, touch: Touch) -> None:
        """It goes on with a statement that touches this."""
        self._written |= touch.writes

    # ---- the program's side

    def rows(self, query: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        self._wait(query)
        return super().rows(query, parameters)

    def count(self, query: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> int:
        self._wait(query)
        return super().count(query, parameters)

    def begin(self, isolation: str = READ_COMMITTED) -> None:
        """The BEGIN goes along with the next statement: by itself it sees and locks nothing."""
        self._isolation = isolation

    def commit(self) -> None:
        self._end("commit")
        super().commit()
        self._written.clear()

    def rollback(self) -> None:
        self._end("rollback")
        self._undo()

    def execute_script(self, script: str) -> None:
        """Several statements as one step."""
        self._wait_at(Place("script", ALL))
        if self._isolation is not None:
            isolation, self._isolation = self._isolation, None
            super().rows(f"begin isolation level {isolation}")
        # Not psycopg's own, as below: there is a DROP in it.
        _checked(self.conn.pgconn.exec_(script.encode()))

    def execute_ahead(self, query: str, parameters: Sequence[object]) -> None:
        """Something that has happened before the first step: the transaction is open already."""
        super().rows("begin")
        super().rows(query, parameters)
        self._written |= toucher().of(query).writes

    def rest(self, why: str) -> None:
        """Let all others go on until they have ended, or rest as well."""
        self._wait_at(Place(f"rests: {why}", Touch(), rests=True))

    def execute(self, call: Call) -> PGresult:
        """One call of the journal's pipeline, by itself; raises as the pipeline does."""
        text = call.statement.sql.decode()
        if text == "begin":
            self.begin()
            return cast("PGresult", _NOTHING)
        if text in ("commit", "rollback"):
            self._end(text)
            self._written.clear()
        else:
            self._wait(text)
        pg = self.conn.pgconn
        if call.statement.name not in self._prepared:
            _checked(pg.prepare(call.statement.name, call.statement.sql))
            self._prepared.add(call.statement.name)
        formats = [1] * len(call.parameters)
        return _checked(pg.exec_prepared(call.statement.name, cast("list[bytes]", call.parameters), formats, 1))

    # ---- inside

    def _perform(self, program: Callable[[Actor], object]) -> None:
        try:
            ended = Ended(program(self), None)
        except BaseException as error:  # noqa: BLE001  # the tester judges it
            ended = Ended(None, error)
        self._isolation, self._is_repeatable = None, False
        self._written.clear()
        if self.conn.info.transaction_status is not pq.TransactionStatus.IDLE and not self.conn.closed:
            self._undo()
        self.reports.put(ended)

    def _undo(self) -> None:
        # Not psycopg's own: that forgets everything that is prepared.
        _checked(self.conn.pgconn.exec_(b"rollback"))
        self._written.clear()

    def _wait(self, query: str) -> None:
        touch = toucher().of(query)
        isolation, self._isolation = self._isolation, None
        if isolation is not None:
            self._is_repeatable = isolation == REPEATABLE_READ
        if self._is_repeatable:
            touch = touch.with_snapshot() if isolation is not None else touch.within_snapshot()
        self._wait_at(Place(" ".join(query.split())[:60], touch))
        if isolation is not None:
            super().rows(f"begin isolation level {isolation}")

    def _end(self, verb: LiteralString) -> None:
        self._wait_at(Place(verb, Touch(frozenset(self._written), frozenset(self._written), commits=True)))
        self._is_repeatable = False

    def _wait_at(self, place: Place) -> None:
        self.reports.put(place)
        self._allowed.acquire()

    def _noticed(self, diagnostic: errors.Diagnostic) -> None:
        if match := _NOTICE.match(diagnostic.message_primary or ""):
            function, number = match[1], int(match[2])
            touch = touched_at(function, number)
            if self._is_repeatable:
                touch = touch.within_snapshot()
            self.reports.put(Place(f"{function} {number}", touch, int(match[3])))


class _Nothing:
    """The answer to a BEGIN that has not been sent yet."""

    status: Final = pq.ExecStatus.COMMAND_OK
    command_status: Final = b"BEGIN"
    ntuples: Final = 0


_NOTHING: Final = _Nothing()


def _checked(result: PGresult) -> PGresult:
    if result.status not in _OK:
        raise errors.error_from_result(result, encoding="utf-8")
    return result


def sqlstate(error: BaseException | None) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None
