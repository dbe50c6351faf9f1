"""What is known of a step's function before it is called: how it runs, how its value comes back, what it raises."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Final, TypeVar, cast, overload

from kedge.errors import DefinitionError, DomainError, HandlerUseError, InvalidOptionError
from kedge.failures import check_domain_errors
from kedge.result_types import MISSING, type_of_result
from kedge.retry import Retry
from kedge.shown import shown
from kedge.wire import Decode, decoder

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE: Final = "__kedge_step__"
_decode_plain: Final[Decode[Any]] = decoder(Any)

# Values of these types come back as themselves, so a function that is annotated with one needs no decoding.
_SAME: Final = frozenset({type(None), bool, int, str})


class StepDefinition:
    """Made once a function, and kept on it."""

    __slots__ = ("decode", "function", "is_async", "is_typed", "raises", "same")

    def __init__(self, function: object, type_: Any, *, is_async: bool, raises: tuple[type[DomainError], ...]) -> None:
        self.function = function
        self.is_async = is_async
        """Called in the event loop; other functions get a thread."""
        self.raises = raises
        self.is_typed = type_ is not MISSING
        """False: only values that are the same without a type can be kept."""
        self.decode: Decode[Any] = decoder(type_) if self.is_typed else _decode_plain
        self.same: type[Any] | None = type_ if _is_one_of(type_, _SAME) else None
        """A value of exactly this type needs no decoding."""

    def with_output(self, type_: Any) -> StepDefinition:
        """The same function, its value read by another type."""
        return StepDefinition(self.function, type_, is_async=self.is_async, raises=self.raises)


def definition_of(function: Any) -> StepDefinition:
    """
    Answer what is known of a function.

    Raises:
        HandlerUseError: It is no function; most often its result instead of itself.
        DefinitionError: Its annotations cannot be resolved, or its result cannot be kept.
    """
    holder = function.__func__ if type(function) is MethodType else function
    known = getattr(holder, _ATTRIBUTE, None)
    # functools.wraps copies attributes: a wrapper is another function, with the same declared errors.
    if known is not None and known.function is holder:
        return cast("StepDefinition", known)
    return _define(function, holder, known.raises if isinstance(known, StepDefinition) else ())


def _define(function: Any, holder: Any, raises: tuple[type[DomainError], ...]) -> StepDefinition:
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
    definition = StepDefinition(holder, type_of_result(function), is_async=_is_async(function), raises=raises)
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


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function)


def _is_one_of(type_: Any, types: frozenset[type[Any]]) -> bool:
    return isinstance(type_, type) and type_ in types


@overload
def step(function: F, /) -> F: ...
@overload
def step(*, raises: tuple[type[DomainError], ...] = ()) -> Callable[[F], F]: ...
def step(function: Any = None, /, *, raises: tuple[type[DomainError], ...] = ()) -> Any:
    """
    Say of a function what all its steps have in common. The function stays what it is.

    A function needs this only where there is something to say.

    Args:
        function: What runs as a step; async, or plain and then in a thread.
        raises: Errors that handlers get rebuilt as their class instead of as `StepFailedError`.

    Raises:
        DefinitionError: Its annotations cannot be resolved, its result cannot be kept, or `raises` holds something else
            than subclasses of DomainError.
    """
    declared = check_domain_errors(raises)

    def declare(function: F) -> F:
        if not isinstance(function, FunctionType):
            raise DefinitionError(f"@step stands before a function, not before {function!r:.100}")
        _define(function, function, declared)
        return cast("F", function)

    return declare if function is None else declare(function)
