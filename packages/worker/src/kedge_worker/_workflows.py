"""Handlers bound to their refs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeGuard, TypeVar, overload

from kedge.durations import Duration, parse_positive_duration
from kedge.errors import DefinitionError, InvalidOptionError
from kedge.refs import WorkflowRef
from kedge.result_types import MISSING, type_of_result
from kedge.retry import Retry
from kedge.shown import shown
from kedge_worker._context import Context
from kedge_worker._definitions import check_retry
from kedge_worker._retention import AnyRetention, Retention, check_retention
from kedge_worker._sync_context import SyncContext

In = TypeVar("In")
Out = TypeVar("Out")
Out_co = TypeVar("Out_co", covariant=True)

Handler: TypeAlias = "Callable[[Context, In], Awaitable[Out]] | Callable[[SyncContext, In], Out]"
HandlerWithoutInput: TypeAlias = "Callable[[Context], Awaitable[Out]] | Callable[[SyncContext], Out]"


class Workflow(Generic[In, Out_co]):
    """A handler with its ref, for `Worker(workflows=...)`. Not to be called: tests call `.fn`."""

    __slots__ = ("_fn", "_is_async", "_ref", "_takes_input", "retention", "retry", "timeout", "total_steps")

    def __init__(
        self,
        ref: WorkflowRef[In, Out_co],
        fn: Callable[..., Any],
        *,
        retry: Retry = Retry.NEVER,
        timeout: timedelta | None = None,
        total_steps: int | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.retry: Final = retry
        """The policy of runs whose start and ref say nothing."""
        self.timeout: Final = timeout
        """Of runs whose start and ref say nothing; from when a run is due."""
        self.total_steps: Final = total_steps
        """How many steps a run is expected to have, for progress."""
        self.retention: Final = retention
        """How long a run is kept after its end; None: as the worker says."""
        self._ref = ref
        self._fn = fn
        self._is_async = inspect.iscoroutinefunction(inspect.unwrap(fn))
        self._takes_input = ref.input_type is not None

    @property
    def ref(self) -> WorkflowRef[In, Out_co]:
        """The name and types that clients know."""
        return self._ref

    @property
    def fn(self) -> Callable[..., Any]:
        """The handler itself, as it was written."""
        return self._fn

    @property
    def is_async(self) -> bool:
        """False: it gets a `SyncContext` and one of the worker's threads."""
        return self._is_async

    @property
    def takes_input(self) -> bool:
        """Whether the handler has a second parameter."""
        return self._takes_input

    def __repr__(self) -> str:
        return f"<Workflow {self._ref.qualified_name}>"


class _Bind(Protocol[In, Out]):
    def __call__(self, handler: Handler[In, Out], /) -> Workflow[In, Out]: ...


class _BindWithoutInput(Protocol[Out]):
    def __call__(self, handler: HandlerWithoutInput[Out], /) -> Workflow[None, Out]: ...


@overload
def workflow(  # pyright: ignore[reportOverlappingOverload]
    ref: WorkflowRef[None, Out],
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    total_steps: int | None = None,
    retention: AnyRetention | None = None,
) -> _BindWithoutInput[Out]: ...
@overload
def workflow(
    ref: WorkflowRef[In, Out],
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    total_steps: int | None = None,
    retention: AnyRetention | None = None,
) -> _Bind[In, Out]: ...
def workflow(
    ref: Any,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    total_steps: int | None = None,
    retention: AnyRetention | None = None,
) -> Any:
    """
    Bind a handler to its ref.

    The handler takes a `Context` and the input if it is async, a `SyncContext` and the input if it is not; without an
    input in the ref only the context. Its annotations may be absent: the ref's types count.

    What is said here holds for every run whose start and whose ref say nothing else.

    Args:
        ref: What clients know of the workflow.
        retry: Attempts of the run as a whole, when its handler raises; one if nothing is said. Kept steps stay kept.
        timeout: How long a run may take from when it is due, waits included; then it is cancelled, and fails.
        total_steps: How many steps a run is expected to have, for `client.progress`.
        retention: How long a run is kept after its end: one duration, or a `Retention` by status; two hours at least.
            None: as `Worker(retention=)` says. Of this name and version: each version says its own.

    Raises:
        InvalidOptionError: `retry` is no Retry, `total_steps` no positive number, or the retention too short.
        InvalidDurationError: The timeout is no duration, or zero; or the retention is none.
        DefinitionError: The handler's parameters or annotations do not fit the ref.
    """
    if not _is_ref(ref):
        raise DefinitionError(f"@workflow needs the ref: write @workflow(my_ref), not @workflow over {ref!r:.60}")

    policy = check_retry(retry) or Retry.NEVER
    limit = None if timeout is None else parse_positive_duration(timeout, option="timeout")
    if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
        raise InvalidOptionError(f"total_steps={shown(total_steps)}: give how many steps a run has, 1 or more")
    kept = check_retention(retention)

    def bind(handler: Callable[..., Any]) -> Workflow[Any, Any]:
        made = Workflow(ref, handler, retry=policy, timeout=limit, total_steps=total_steps, retention=kept)
        _check_handler(made)
        return made

    return bind


def _is_ref(given: object) -> TypeGuard[WorkflowRef[Any, Any]]:
    return isinstance(given, WorkflowRef)


def _check_handler(made: Workflow[Any, Any]) -> None:
    whose = f"workflow {made.ref.qualified_name!r}: the handler"
    handler = made.fn
    if not inspect.isroutine(handler):
        raise DefinitionError(f"{whose} {handler!r:.60} is no function")
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise DefinitionError(f"{whose} yields: a handler returns its result once")
    signature = inspect.signature(handler)
    given = (None, None) if made.takes_input else (None,)
    try:
        signature.bind(*given)
    except TypeError as error:
        wanted = "(ctx, input)" if made.takes_input else "(ctx): its ref has no input"
        raise DefinitionError(f"{whose} has the parameters {signature}, the ref wants {wanted}") from error
    hints = _hints(handler, whose)
    names = list(signature.parameters)
    wanted_context = Context if made.is_async else SyncContext
    found_context = hints.get(names[0], wanted_context)
    says_little = any(found_context is one for one in _ANY)
    if isinstance(found_context, type) and not says_little and not issubclass(wanted_context, found_context):
        kind = "an async handler gets a Context" if made.is_async else "a sync handler gets a SyncContext"
        raise DefinitionError(f"{whose} takes a {found_context.__qualname__}, but {kind}")
    if made.takes_input and len(names) > 1:
        _check_type(hints.get(names[1], MISSING), made.ref.input_type, f"{whose} takes")
    _check_type(_result(handler, hints), made.ref.output_type, f"{whose} returns")


def _hints(handler: Callable[..., Any], whose: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(handler, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"{whose} is annotated with a name that is unknown at run time ({error}): move its import out of "
            "`if TYPE_CHECKING:`, or leave the annotation out, since the ref's types count"
        ) from error


def _result(handler: Callable[..., Any], hints: dict[str, Any]) -> Any:
    return type_of_result(handler) if "return" in hints else MISSING


_ANY: Final = (MISSING, Any, object)


def _check_type(found: Any, wanted: Any, whose: str) -> None:
    """Refuse two classes of which neither derives from the other: everything else is left to type checkers."""
    if any(found is one or wanted is one for one in _ANY) or found == wanted:
        return
    found, wanted = (type(None) if one is None else one for one in (found, wanted))
    if not (isinstance(found, type) and isinstance(wanted, type)):
        return
    numbers = {found, wanted} <= {int, float}
    if not (numbers or issubclass(found, wanted) or issubclass(wanted, found)):
        raise DefinitionError(f"{whose} {found.__qualname__}, the ref says {wanted.__qualname__}")
