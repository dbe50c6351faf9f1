"""The part of an async handler's context that calls functions: steps, transactions, polls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, overload

from kedge.durations import Duration
from kedge.result_types import MISSING
from kedge.retry import Retry
from kedge_worker._calling import Calls
from kedge_worker._definitions import definition_of, transaction_definition
from kedge_worker._not_yet import NotYet
from kedge_worker._polling import Polling, poll_terms
from kedge_worker._transaction_body import AsyncConn, SyncConn

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


# What they return is typed Coroutine[object, None, T] and not [Any, Any, T]: with Any in it, mypy cannot choose between
# the overloads of asyncio.gather, and answers Any.


class Bodies(Calls):
    """Calls functions once, or until they answer, and keeps what they answer."""

    __slots__ = ()

    @overload
    def step(
        self,
        step_id: str,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = ...,
        output: TypeForm[T] = ...,
    ) -> Coroutine[object, None, T]: ...
    @overload
    def step(
        self,
        step_id: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = ...,
        output: TypeForm[T] = ...,
    ) -> Coroutine[object, None, T]: ...
    def step(  # type: ignore[misc]
        self,
        step_id: Any,
        fn: Any,
        /,
        *args: Any,
        retry: Retry | None = None,
        timeout: Any = MISSING,
        output: Any = MISSING,
    ) -> Any:
        """
        Run the function once, keep its value, and answer what was kept, now and on replay.

        Keyword arguments go through `functools.partial`, as in anyio.

        Args:
            step_id: Names the step within its branch; a repeat gets `#2`, `#3`, ... Not one of ~ / # [ ].
            fn: Async functions are awaited, others get a thread, which cannot be stopped.
            args: Its positional arguments.
            retry: How often to try, with which delays: what of it is used up survives crashes and deploys, and a long
                delay is spent out of memory. Else what `@step` says of the function, else the worker's `step_retry`,
                else one attempt. Only failures of the function count.
            timeout: How long an attempt may take; then it is cancelled, and has failed. What a function in a thread
                answers after that is dropped, and its thread stays taken until it ends. None: no timeout, whatever
                `@step` says.
            output: The type of the value, where the function's annotation does not say it.

        Raises:
            StepFailedError: The function raised in its last attempt; `.error` says what. Kept like a value.
            StepTimedOutError: The last attempt took too long; a StepFailedError.
            DomainError: It raised one of the errors that are declared with `@step(raises=...)`.
            PayloadError: It returned what cannot be kept. It is not called again.
            HandlerUseError: A mistake at this call: a context inside a step, in a foreign task, or not a function.
            InvalidNameError: The id cannot be one.
            InvalidOptionError: `retry` is no Retry.
            InvalidDurationError: The timeout is no duration, or zero.
            DefinitionError: The function's annotation cannot be resolved.

        Source: docs/how-to/retry-and-time-out.md.
        """
        branch = self._here()
        definition = definition_of(fn)
        if output is not MISSING:
            definition = definition.with_output(output)
        if retry is not None or timeout is not MISSING:
            definition = definition.with_terms(retry, timeout)
        return self._operations.step(branch.key(step_id), branch, definition, fn, args)

    @overload
    def transaction(
        self,
        step_id: str,
        fn: Callable[[AsyncConn, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        output: TypeForm[T] = ...,
    ) -> Coroutine[object, None, T]: ...
    @overload
    def transaction(
        self,
        step_id: str,
        fn: Callable[[SyncConn, *Ts], T],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        output: TypeForm[T] = ...,
    ) -> Coroutine[object, None, T]: ...
    def transaction(  # type: ignore[misc]
        self, step_id: Any, fn: Any, /, *args: Any, retry: Retry | None = None, output: Any = MISSING
    ) -> Any:
        """
        Run the function with a connection: its SQL and its kept value commit together, or not at all.

        The function must not commit, and does SQL only: it is repeated when the database rolled it back. It has no
        timeout: PostgreSQL's `statement_timeout` does that better.

        Args:
            step_id: As in `step`.
            fn: Gets an `AsyncConnection` of psycopg if it is async; others get a `Connection`, in a thread.
            args: Its arguments behind the connection.
            retry: As in `step`. A race that the database lost for it (40001, 40P01) is repeated anyway, and uses up
                nothing.
            output: As in `step`.

        Raises:
            TransactionFailedError: The database refused for good; `.sqlstate` says why.
            StepFailedError: The function raised something else.
            DomainError: It raised one of the errors that are declared with `@step(raises=...)`.
            PayloadError: It returned what cannot be kept; nothing was committed.
            HandlerUseError: As in `step`; or the function has a timeout.
            InvalidOptionError: `retry` is no Retry.
        """
        branch = self._here()
        definition = transaction_definition(fn)
        if output is not MISSING:
            definition = definition.with_output(output)
        if retry is not None:
            definition = definition.with_terms(retry, MISSING)
        return self._operations.transaction(branch.key(step_id), branch, definition, fn, args)

    @overload
    def poll(
        self,
        step_id: str,
        fn: Callable[[*Ts], Awaitable[T | NotYet]],
        /,
        *args: *Ts,
        every: Duration,
        timeout: Duration | None = None,
        max_attempts: int | None = None,
        backoff: float = 1,
        retry: Retry | None = None,
        output: TypeForm[T] = ...,
    ) -> Coroutine[object, None, T]: ...
    @overload
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
        output: TypeForm[T] = ...,
    ) -> Coroutine[object, None, T]: ...
    def poll(  # type: ignore[misc]
        self,
        step_id: Any,
        fn: Any,
        /,
        *args: Any,
        every: Duration,
        timeout: Duration | None = None,
        max_attempts: int | None = None,
        backoff: float = 1,
        retry: Retry | None = None,
        output: Any = MISSING,
    ) -> Any:
        """
        Call the function again and again until it answers something else than `NotYet`, and keep that.

        The first check is made at once. Between checks the run waits durably: it need not be in memory, and how often
        it has looked, what it carries, and when its time is up survive crashes and deploys. `client.fast_forward`
        answers in the place of the function.

        Args:
            step_id: As in `step`.
            fn: As in `step`. Returns `NotYet()` or `NotYet(state)` to go on; the state comes back as the keyword
                `state` of its next call, if it has a parameter of that name. Anything else is the answer, None too.
            args: Its positional arguments.
            every: How long to wait between two checks, at least 100 ms.
            timeout: After this time, counted from the first check, the last one is made; zero makes one check. None:
                as long as it takes.
            max_attempts: So many checks may answer `NotYet`. None: as many as it takes.
            backoff: Each pause is so many times as long as the one before, up to a day; 1 to 100.
            retry: What happens when a check raises, or takes longer than the timeout that `@step` gives the function:
                as in `step`, for each check anew. It is no `NotYet`.
            output: The type of the answer, where the function's annotation does not say it.

        Raises:
            WaitTimeoutError: The time or the checks are up.
            StepFailedError: A check has failed, as in `step`.
            DomainError: As in `step`.
            PayloadError: The answer or the state cannot be kept.
            InvalidDurationError: `every` or the timeout is no duration, or `every` is too short.
            InvalidOptionError: A number is out of its range, or `retry` is no Retry.
            HandlerUseError: As in `step`.

        Source: docs/how-to/retry-and-time-out.md.
        """
        terms = poll_terms(every=every, timeout=timeout, max_attempts=max_attempts, backoff=backoff)
        branch = self._here()
        definition = definition_of(fn)
        if output is not MISSING:
            definition = definition.with_output(output)
        if retry is not None:
            definition = definition.with_terms(retry, MISSING)
        key = branch.key(step_id)
        polling = Polling(self._execution, key, definition, fn, args, terms)
        return self._operations.step(key, branch, definition, fn, args, polling)
