"""What is known of a step's function before it is called: how it runs, how its value comes back, what it raises."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Final, NamedTuple, TypeVar, cast, overload

from kedge.durations import Duration, parse_positive_duration
from kedge.errors import DefinitionError, DomainError, HandlerUseError, InvalidOptionError
from kedge.failures import check_domain_errors
from kedge.result_types import MISSING, type_of_result
from kedge.retry import Retry
from kedge.shown import shown
from kedge.wire import Decode, decoder
from kedge_worker._not_yet import without_not_yet

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE: Final = "__kedge_step__"
_decode_plain: Final[Decode[Any]] = decoder(Any)

# Values of these types come back as themselves, so a function that is annotated with one needs no decoding.
_SAME: Final = frozenset({type(None), bool, int, str})


class Declared(NamedTuple):
    """What `@step` says of a function."""

    raises: tuple[type[DomainError], ...] = ()
    retry: Retry | None = None
    timeout_s: float | None = None
    check_input: bool = False


_NOTHING: Final = Declared()


class StepDefinition:
    """Made once a function, and kept on it."""

    __slots__ = (
        "check_input",
        "declared",
        "decode",
        "function",
        "is_async",
        "is_typed",
        "raises",
        "retry",
        "same",
        "timeout_s",
    )

    def __init__(self, function: object, type_: Any, *, is_async: bool, declared: Declared) -> None:
        type_ = without_not_yet(type_)
        self.function = function
        self.is_async = is_async
        """Called in the event loop; other functions get a thread."""
        self.declared = declared
        self.raises, self.retry, self.timeout_s, self.check_input = declared
        self.is_typed = type_ is not MISSING
        """False: only values that are the same without a type can be kept."""
        self.decode: Decode[Any] = decoder(type_) if self.is_typed else _decode_plain
        self.same: type[Any] | None = type_ if _is_one_of(type_, _SAME) else None
        """A value of exactly this type needs no decoding."""

    def with_output(self, type_: Any) -> StepDefinition:
        """The same function, its value read by another type."""
        return StepDefinition(self.function, type_, is_async=self.is_async, declared=self.declared)

    def with_terms(self, retry: object, timeout: object) -> StepDefinition:
        """
        The same function on the terms of one call: what is given there replaces the function's own.

        Args:
            retry: None: nothing is given.
            timeout: MISSING: nothing is given; None: none, whatever the function says.

        Raises:
            InvalidOptionError: `retry` is no Retry.
            InvalidDurationError: The timeout is no duration, or zero.
        """
        made = copy.copy(self)
        made.retry = check_retry(retry) or self.retry
        if timeout is not MISSING:
            made.timeout_s = check_timeout(timeout)
        return made


def definition_of(function: Any) -> StepDefinition:
    """
    Answer what is known of a function.

    Raises:
        HandlerUseError: It is no function; most often its result instead of itself.
        DefinitionError: Its annotations cannot be resolved, or its result cannot be kept.
    """
    holder = function.__func__ if type(function) is MethodType else function
    known = getattr(holder, _ATTRIBUTE, None)
    # functools.wraps copies attributes: a wrapper is another function, of which the same is said.
    if known is not None and known.function is holder:
        return cast("StepDefinition", known)
    return _define(function, holder, known.declared if isinstance(known, StepDefinition) else _NOTHING)


def transaction_definition(function: Any) -> StepDefinition:
    """
    Answer what is known of a function that runs in a transaction.

    Raises:
        HandlerUseError: As in `definition_of`; or it has a timeout, which a transaction cannot keep.
        DefinitionError: As in `definition_of`.
    """
    definition = definition_of(function)
    if definition.timeout_s is not None:
        raise HandlerUseError(
            "a transaction has no timeout, for its commit cannot be taken back: "
            "take it out of @step, and let the function set statement_timeout"
        )
    return definition


def _define(function: Any, holder: Any, declared: Declared) -> StepDefinition:
    if not callable(function):
        if inspect.iscoroutine(function):
            function.close()
        raise HandlerUseError(
            f"a {type(function).__name__} is no function: pass the function and its arguments, not its result"
        )
    if isinstance(function, functools.partial):
        return definition_of(function.func)
    if not inspect.isroutine(function) and not isinstance(function, type):
        return definition_of(MethodType(type(function).__call__, function))
    definition = StepDefinition(holder, type_of_result(function), is_async=_is_async(function), declared=declared)
    try:
        setattr(holder, _ATTRIBUTE, definition)
    except (AttributeError, TypeError):
        pass  # builtins take no attributes; theirs is made each time
    return definition


def check_retry(retry: object) -> Retry | None:
    """
    Return what is given as `retry=`, or refuse it.

    Raises:
        InvalidOptionError: It is no Retry.
    """
    if retry is None or isinstance(retry, Retry):
        return retry
    raise InvalidOptionError(f"retry={shown(retry)}: give a Retry, as Retry(3), or Retry.NEVER for one attempt")


def check_timeout(timeout: object) -> float | None:
    """
    Return what is given as `timeout=` of a step, in seconds, or refuse it.

    Raises:
        InvalidDurationError: It is no duration, or zero.
    """
    return None if timeout is None else parse_positive_duration(timeout, option="timeout").total_seconds()


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function)


def _is_one_of(type_: Any, types: frozenset[type[Any]]) -> bool:
    return isinstance(type_, type) and type_ in types


@overload
def step(function: F, /) -> F: ...
@overload
def step(
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    raises: tuple[type[DomainError], ...] = (),
    check_input: bool = False,
) -> Callable[[F], F]: ...
def step(
    function: Any = None,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    raises: tuple[type[DomainError], ...] = (),
    check_input: bool = False,
) -> Any:
    """
    Say of a function what all its steps have in common. The function stays what it is.

    A function needs this only where there is something to say. What a call of `ctx.step` says goes before it, and it
    goes before `Worker(step_retry=)`; whole values replace one another.

    Args:
        function: What runs as a step; async, or plain and then in a thread.
        retry: How often it is tried; else the worker's `step_retry`, else once. Declared errors are tried again like
            any others: name them in the policy's `give_up_on` where that is wrong.
        timeout: How long an attempt may take before it is cancelled and counts as failed.
        raises: Errors that handlers get rebuilt as their class instead of as `StepFailedError`.
        check_input: Keep a hash of each argument with the value, and compare on replay: a run whose code now passes
            something else than it did then waits with that reason, instead of going on with a value that belongs to
            other arguments. Off unless given, for a deploy may rightly change the arguments of a step that is done,
            and a hash is paid for with each call. Arguments that cannot be encoded are not compared.

    Raises:
        InvalidOptionError: `retry` is no Retry.
        InvalidDurationError: The timeout is no duration, or zero.
        DefinitionError: Its annotations cannot be resolved, its result cannot be kept, or `raises` holds something else
            than subclasses of DomainError.
    """
    declared = Declared(check_domain_errors(raises), check_retry(retry), check_timeout(timeout), bool(check_input))

    def declare(function: F) -> F:
        if not isinstance(function, FunctionType):
            raise DefinitionError(f"@step stands before a function, not before {function!r:.100}")
        _define(function, function, declared)
        return cast("F", function)

    return declare if function is None else declare(function)
