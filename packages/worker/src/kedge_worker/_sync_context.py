"""What a sync handler is given: the operations of `Context` as plain calls, in the handler's own thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, cast, overload
from uuid import UUID

import kedge_worker._sending as letters
import kedge_worker._waiting as waiting
from kedge.durations import Duration
from kedge.errors import HandlerUseError
from kedge.event_refs import EventMessage, EventRef
from kedge.result_types import MISSING
from kedge.retry import Retry
from kedge_worker._definitions import definition_of, transaction_definition
from kedge_worker._not_yet import NotYet
from kedge_worker._polling import Polling, poll_terms
from kedge_worker._side_writes import SEND_LETTERS
from kedge_worker._sync_calling import SyncCalls
from kedge_worker._transaction_body import SyncConn

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from kedge_worker._definitions import StepDefinition

T = TypeVar("T")
P = TypeVar("P")
D = TypeVar("D")
Ts = TypeVarTuple("Ts")

# Typed as anything, for None is a type too.
_UNSET: Final[Any] = MISSING


class SyncContext(SyncCalls):
    """
    The durable operations of a sync handler, which holds one of the worker's threads until it ends.

    Steps run in that thread too, one after the other: a sync handler has one branch.
    """

    __slots__ = ()

    def step(
        self,
        step_id: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        timeout: None = _UNSET,
        output: TypeForm[T] = _UNSET,
    ) -> T:
        """
        Run the function once, keep its value, and answer what was kept, now and on replay.

        As `Context.step`, but in the handler's own thread, and async functions are refused. So are timeouts, for
        nothing stops a thread; `timeout=None` lets a function that `@step` has given one be called here without it.
        """
        branch = self._here()
        definition = definition_of(fn)
        if output is not _UNSET:
            definition = definition.with_output(output)
        if retry is not None or timeout is not _UNSET:
            definition = definition.with_terms(retry, timeout)
        return cast("T", self._step(branch.key(step_id), _checked(definition), fn, args))

    def transaction(
        self,
        step_id: str,
        fn: Callable[[SyncConn, *Ts], T],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        output: TypeForm[T] = _UNSET,
    ) -> T:
        """
        Run the function with a psycopg `Connection`: its SQL and its kept value commit together, or not at all.

        As `Context.transaction`; it runs in another thread of the worker's.
        """
        branch = self._here()
        definition = transaction_definition(fn)
        if output is not _UNSET:
            definition = definition.with_output(output)
        if retry is not None:
            definition = definition.with_terms(retry, MISSING)
        return cast("T", self._transaction(branch.key(step_id), _checked(definition), fn, args))

    def poll(
        self,
        step_id: str,
        fn: Callable[[*Ts], T | NotYet],
        /,
        *args: *Ts,
        every: Duration,
        timeout: Duration | None = None,
        max_attempts: int | None = None,
        backoff: float = 1,
        retry: Retry | None = None,
        output: TypeForm[T] = _UNSET,
    ) -> T:
        """
        Call the function again and again until it answers something else than `NotYet`; as `Context.poll`.

        Checks run in the handler's own thread. While the run is parked between them it holds no thread.
        """
        terms = poll_terms(every=every, timeout=timeout, max_attempts=max_attempts, backoff=backoff)
        branch = self._here()
        definition = definition_of(fn)
        if output is not _UNSET:
            definition = definition.with_output(output)
        if retry is not None:
            definition = definition.with_terms(retry, MISSING)
        key = branch.key(step_id)
        polling = Polling(self._execution, key, _checked(definition), fn, args, terms)
        return cast("T", self._step(key, definition, fn, args, polling))

    def sleep(self, step_id: str, duration: Duration, /) -> None:
        """
        Wait for a time that is counted and kept by the database.

        As `Context.sleep`. While the run is parked it holds no thread: the handler begins anew when its time has come.
        """
        self._wait(waiting.sleep(self._here().key(step_id), duration), "d", waiting.no_value)

    def sleep_until(self, step_id: str, when: datetime, /) -> None:
        """Wait until a moment of the database's clock; as `Context.sleep_until`."""
        self._wait(waiting.sleep_until(self._here().key(step_id), when), "d", waiting.no_value)

    @overload
    def wait_for(
        self, step_id: str, event: EventRef[P], /, *, topic: str | None = None, timeout: Duration | None = None
    ) -> P: ...
    @overload
    def wait_for(
        self, step_id: str, event: EventRef[P], /, *, topic: str | None = None, timeout: Duration | None, default: D
    ) -> P | D: ...
    def wait_for(
        self,
        step_id: str,
        event: EventRef[Any],
        /,
        *,
        topic: str | None = None,
        timeout: Duration | None = None,
        default: Any = MISSING,
    ) -> Any:
        """Wait for an event that is sent to this run, and answer its payload; as `Context.wait_for`."""
        execution = self._execution
        wait = waiting.event(execution, self._here().key(step_id), event, topic=topic, timeout=timeout)
        return self._wait(wait, "e", waiting.event_payload(execution, event, default))

    def pause(self, step_id: str, /) -> None:
        """Wait until somebody calls `client.resume`; as `Context.pause`."""
        self._wait(waiting.pause(self._here().key(step_id)), "u", waiting.no_value)

    def send(
        self, step_id: str, event: EventMessage, /, *, run: UUID | str | None = None, topic: str | None = None
    ) -> None:
        """Send an event to another run, or to a topic, once; as `Context.send`."""
        key = self._here().key(step_id)
        letter, size = letters.event_letter(self.run_id, key, event, run=run, topic=topic)
        row = self._kept(key)
        if row is not None:
            self._replay(row, "m", waiting.no_value)
            return
        execution = self._execution

        def let_go() -> None:
            execution.journal.add(execution.run, SEND_LETTERS, *letter, size=size)

        self._keep("m", "m", key, b"", time.monotonic(), beside=let_go)


def _checked(definition: StepDefinition) -> StepDefinition:
    if definition.is_async:
        raise HandlerUseError("a sync handler's steps are plain functions: make the handler async for this one")
    if definition.timeout_s is not None:
        raise HandlerUseError(
            "a sync handler's steps have no timeout, for they run in its own thread, which nothing can stop: "
            "make the handler async, give timeout=None, or let the function watch its time"
        )
    return definition
