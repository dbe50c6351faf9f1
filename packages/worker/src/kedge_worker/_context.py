"""What an async handler is given: operations, each of which is done once and then remembered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, overload

from kedge.result_types import MISSING
from kedge_worker._definitions import definition_of
from kedge_worker._facts import RunFacts
from kedge_worker._operations import Operations
from kedge_worker._transaction_body import AsyncConn, SyncConn

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from kedge_worker._branches import Branch
    from kedge_worker._execution import Execution

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


# What they return is typed Coroutine[object, None, T] and not [Any, Any, T]: with Any in it, mypy cannot choose between
# the overloads of asyncio.gather, and answers Any.


class Context(RunFacts):
    """
    The durable operations of an async handler.

    They are plain functions that return a coroutine: the key of an operation is taken when it is *called*, so that
    `gather(*(ctx.step("f", fetch, url) for url in urls))` numbers in the order of the program.

    Source: docs/explanation/concepts.md, keys and branches.
    """

    __slots__ = ("_operations",)

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self._operations = Operations(execution)

    @overload
    def step(
        self, step_id: str, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[object, None, T]: ...
    @overload
    def step(
        self, step_id: str, fn: Callable[[*Ts], T], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[object, None, T]: ...
    def step(self, step_id: Any, fn: Any, /, *args: Any, output: Any = MISSING) -> Any:  # type: ignore[misc]
        """
        Run the function once, keep its value, and answer what was kept, now and on replay.

        Keyword arguments go through `functools.partial`, as in anyio.

        Args:
            step_id: Names the step within its branch; a repeat gets `#2`, `#3`, ... Not one of ~ / # [ ].
            fn: Async functions are awaited, others get a thread, which cannot be stopped.
            args: Its positional arguments.
            output: The type of the value, where the function's annotation does not say it.

        Raises:
            StepFailedError: The function raised; `.error` says what. Kept like a value.
            DomainError: It raised one of the errors that are declared with `@step(raises=...)`.
            PayloadError: It returned what cannot be kept. It is not called again.
            HandlerUseError: A mistake at this call: a context inside a step, in a foreign task, or not a function.
            InvalidNameError: The id cannot be one.
            DefinitionError: The function's annotation cannot be resolved.
        """
        branch = self._here()
        definition = definition_of(fn)
        if output is not MISSING:
            definition = definition.with_output(output)
        return self._operations.step(branch.key(step_id), branch, definition, fn, args)

    @overload
    def transaction(
        self, step_id: str, fn: Callable[[AsyncConn, *Ts], Awaitable[T]], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[object, None, T]: ...
    @overload
    def transaction(
        self, step_id: str, fn: Callable[[SyncConn, *Ts], T], /, *args: *Ts, output: TypeForm[T] = ...
    ) -> Coroutine[object, None, T]: ...
    def transaction(self, step_id: Any, fn: Any, /, *args: Any, output: Any = MISSING) -> Any:  # type: ignore[misc]
        """
        Run the function with a connection: its SQL and its kept value commit together, or not at all.

        The function must not commit, and does SQL only: it is repeated when the database rolled it back.

        Args:
            step_id: As in `step`.
            fn: Gets an `AsyncConnection` of psycopg if it is async; others get a `Connection`, in a thread.
            args: Its arguments behind the connection.
            output: As in `step`.

        Raises:
            TransactionFailedError: The database refused for good; `.sqlstate` says why.
            StepFailedError: The function raised something else.
            DomainError: It raised one of the errors that are declared with `@step(raises=...)`.
            PayloadError: It returned what cannot be kept; nothing was committed.
            HandlerUseError: As in `step`.
        """
        branch = self._here()
        definition = definition_of(fn)
        if output is not MISSING:
            definition = definition.with_output(output)
        return self._operations.transaction(branch.key(step_id), branch, definition, fn, args)

    def branch(self, name: str, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts) -> Coroutine[object, None, T]:
        """
        Run a part of the handler as a branch with a name: its keys begin with `name/`, whatever tasks were made before.

        For what runs concurrently and must survive changes of the code around it::

            await asyncio.gather(ctx.branch("left", work, 1), ctx.branch("right", work, 2))

        Args:
            name: As a step's id.
            fn: An async function; it is the handler's code, not a step.
            args: Its positional arguments.

        Raises:
            HandlerUseError: As in `step`.
            InvalidNameError: The name cannot be one.
        """
        return self._operations.branch(self._here().named(name), fn, args)

    def _here(self) -> Branch:
        return self._execution.here()
