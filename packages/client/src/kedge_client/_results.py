"""What a run's end means to the one who waits for it. Pure."""

from __future__ import annotations

import weakref
from time import monotonic
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from kedge.codecs import PayloadCodec
from kedge.durations import Duration, parse_duration
from kedge.errors import (
    ResultTimeoutError,
    RunCancelledError,
    RunCrashedError,
    RunDeadlineError,
    RunFailedError,
    RunNotFoundError,
    TransactionStateError,
)
from kedge.failures import decode_error, kind_of
from kedge.refs import WorkflowRef
from kedge.run_state import TERMINAL, RunStatus
from kedge.sealing import error_place, output_place, unseal, unseal_error
from kedge_client._lent import AnyConnection, is_idle, is_in_transaction

T = TypeVar("T")

# What the engine ends runs with, and not their handlers.
_FAILURES: Final[dict[str, type[RunFailedError]]] = {kind_of(cls): cls for cls in (RunDeadlineError, RunCrashedError)}


class ResultRow(NamedTuple):
    """What a look says of one run; output and error only once it has ended."""

    id: bytes
    status: RunStatus
    resource: str | None
    reason: str | None
    output: bytes | None
    error: bytes | None


class Wait(Generic[T]):
    """One call of `result()`: what to do first, and what each look means."""

    __slots__ = ("_codec", "_conn", "_created", "_ref", "_resource", "_until", "run_id", "timeout_s")

    def __init__(
        self,
        ref: WorkflowRef[Any, T],
        run_id: UUID,
        timeout: Duration | None,
        *,
        resource: str | None = None,
        created: bool | None = None,
        conn: weakref.ref[AnyConnection] | None = None,
        codec: PayloadCodec | None = None,
    ) -> None:
        self.run_id = run_id
        self.timeout_s = None if timeout is None else parse_duration(timeout, option="timeout").total_seconds()
        self._until = None if self.timeout_s is None else monotonic() + self.timeout_s
        self._ref = ref
        self._resource = resource
        self._created = created
        self._conn = conn
        self._codec = codec

    @property
    def looks_first(self) -> bool:
        """Whether there may be news already: a run that was just started is registered for at once."""
        return self._conn is not None or not self._created or self.timeout_s == 0

    def remaining_s(self) -> float | None:
        """Return how much longer to wait; None: for ever."""
        return None if self._until is None else max(0.0, self._until - monotonic())

    def must_exist(self) -> bool:
        """
        Tell whether a look that begins now must find the run.

        Not while the transaction that starts it may be open; nor when that connection is gone, perhaps in the middle of
        its commit.
        """
        if self._conn is None:
            return True
        conn = self._conn()
        return conn is not None and is_idle(conn)

    def is_over(self, row: ResultRow | None, *, must_exist: bool) -> bool:
        """
        Read a first look.

        Raises:
            TransactionStateError: The run cannot be seen, and the connection that started it is in a transaction.
            RunNotFoundError: It cannot be seen, and should be; or it is of another resource.
            ResultTimeoutError: It has not ended, and there was to be only one look.
        """
        if row is None and not must_exist:
            conn = None if self._conn is None else self._conn()
            if conn is not None and is_in_transaction(conn):
                raise TransactionStateError(
                    f"run {self.run_id} exists only when the transaction that starts it is committed:"
                    " leave the transaction, then wait for the result"
                )
        elif row is None or (self._resource is not None and row.resource != self._resource):
            raise RunNotFoundError(self.run_id)
        elif row.status in TERMINAL:
            return True
        if self.timeout_s == 0:
            raise self.time_is_up(None if row is None else row.status)
        return False

    def time_is_up(self, status: RunStatus | None) -> ResultTimeoutError:
        """Make the error of a wait that was too short."""
        return ResultTimeoutError(self.run_id, self.timeout_s or 0, status)

    def value(self, row: ResultRow) -> T:
        """
        Return what an ended run returned, or raise what it ended with.

        Raises:
            DomainError: One that the ref declares, as its class.
            RunFailedError: Any other error; RunDeadlineError and RunCrashedError are such.
            RunCancelledError: It was cancelled.
            NotDecodableError: The ref's type does not fit what is stored, or it cannot be decrypted.
        """
        if row.status == "completed":
            output = row.output or b""
            if self._codec is not None:
                output = unseal(self._codec, output, output_place(self.run_id))
            return self._ref.decode_output(output)
        if row.status == "cancelled":
            raise RunCancelledError(self.run_id, row.reason)
        if self._codec is None:
            error = decode_error(row.error)
        else:
            error = unseal_error(self._codec, row.error or b"", error_place(self.run_id))
        failure = _FAILURES.get(error.kind, RunFailedError)(self.run_id, error)
        declared = self._ref.domain_error(failure.error)
        if declared is not None:
            raise declared from failure
        raise failure
