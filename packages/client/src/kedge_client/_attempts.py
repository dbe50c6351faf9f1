"""How often a call is tried, and which error it ends with. Shared by the twins, which only wait and execute."""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic
from typing import Final

import psycopg

from kedge.errors import KedgeError, OutcomeUnknownError, UnavailableError
from kedge_client._failures import Fate, fate, first_line, harmless, refusal
from kedge_client._round_trip import Answer

MAX_TRIES: Final = 3
MAX_ROLLBACKS: Final = 5
GRACE_S: Final = 2.0
"""How much longer than statement_timeout we wait before we call the server silent."""

_BACKOFF_S: Final = (0.05, 0.25)


class Attempts:
    """
    The tries of one call.

    Repeating is safe whatever the outcome of a try was: ids of runs and letters are made before the first one. No try
    begins when the call has lasted for `timeout_s`.
    """

    __slots__ = ("_begun_at", "_maybe_done", "_rollbacks", "_schema", "_timeout_s", "_tries", "_writes")

    def __init__(self, *, timeout_s: float, writes: bool, schema: str) -> None:
        self._timeout_s = timeout_s
        self._writes = writes
        self._schema = schema
        self._begun_at = monotonic()
        self._tries = 0
        self._rollbacks = 0
        self._maybe_done = False

    def answer_by(self) -> float:
        """Return the time of the monotonic clock at which the present try has lasted too long."""
        return monotonic() + self._timeout_s + GRACE_S

    def not_sent(self, error: Exception) -> float:
        """
        Take note that no connection could be had.

        Returns:
            Seconds to wait before the next try.

        Raises:
            UnavailableError: It was the last try.
            OutcomeUnknownError: It was the last try, and an earlier one may have been executed.
        """
        self._tries += 1
        if self._may_go_on():
            return self._delay()
        raise self._given_up(error) from error

    def error_of(self, answers: list[Answer], cut: psycopg.Error | None, *, unreplicated: bool) -> psycopg.Error | None:
        """
        Find out what became of the transaction that counts.

        Args:
            answers: As far as they came.
            cut: What broke the connection.
            unreplicated: The server warned that a commit is on no standby.

        Returns:
            None when it has been committed, whatever happened behind it.

        Raises:
            OutcomeUnknownError: It has been committed, and may be lost with this server. Repeating it would only find
                what is here, and say that all is well.
        """
        first = answers[0] if answers else None
        if first is not None and first.error is not None:
            return first.error
        if first is None or not first.closed:
            return cut or psycopg.OperationalError("the server's answer is missing")
        if unreplicated and self._writes:
            raise OutcomeUnknownError("the server stopped waiting for its synchronous standby: the commit may get lost")
        return None

    def failed(self, error: psycopg.Error, explain: Callable[[psycopg.Error], KedgeError | None]) -> float:
        """
        Take note that a try failed after something was sent.

        Args:
            error: What went wrong.
            explain: Knows errors that only this call can have.

        Returns:
            Seconds to wait before the next try.

        Raises:
            KedgeError: What the server refused, or as `not_sent`.
        """
        kind = fate(error)
        if kind is Fate.REFUSED:
            raise explain(error) or refusal(error, self._schema) from harmless(error)
        if kind is Fate.ROLLED_BACK:
            self._rollbacks += 1
            if self._rollbacks < MAX_ROLLBACKS and self._in_time():
                return random.uniform(0.005, 0.05) * self._rollbacks  # noqa: S311  # jitter is no secret
            raise self._given_up(error) from error
        self._tries += 1
        if kind is Fate.UNKNOWN and self._writes:
            self._maybe_done = True
        if self._may_go_on():
            return self._delay()
        raise self._given_up(error) from error

    def _may_go_on(self) -> bool:
        return self._tries < MAX_TRIES and self._in_time()

    def _in_time(self) -> bool:
        return monotonic() - self._begun_at < self._timeout_s

    def _delay(self) -> float:
        return _BACKOFF_S[self._tries - 1] * random.uniform(0.5, 1.5)  # noqa: S311  # jitter is no secret

    def _given_up(self, error: Exception) -> KedgeError:
        if self._maybe_done:
            return OutcomeUnknownError(
                f"the database did not answer, and repeating did not settle what it has done: {first_line(error)}"
            )
        if isinstance(error, psycopg.Error):
            return refusal(error, self._schema)
        return UnavailableError(f"the database was not reached: {first_line(error)}")
