"""The arithmetic of attempts and delays. Knows no clock and never sleeps."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Final, TypeAlias, cast

from kedge.durations import Duration, parse_duration
from kedge.errors import InvalidOptionError, KedgeError
from kedge.shown import shown

MAX_ATTEMPTS: Final = 1000
"""More is a mistake, or an outage that no number of attempts cures; `None` means no limit."""

ErrorTypes: TypeAlias = tuple[type[Exception], ...]


class NonRetryable(KedgeError):
    """Raised by a step or handler: do not try again, whatever the retry policy says."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class RetryAfter(KedgeError):
    """Raised by a step or handler: try again after this delay, if the policy has an attempt left."""

    def __init__(self, delay: Duration, message: str = "") -> None:
        super().__init__(delay, message)
        self.delay = parse_duration(delay, option="RetryAfter")
        self.message = message

    def __str__(self) -> str:
        return self.message or f"again after {self.delay}"


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """
    How often to try, and how long to wait in between.

    The n-th delay is `initial * factor ** (n - 1)`, at most `maximum`. With `jitter` it is a random part of that, from
    nothing to all of it, so that many runs that failed together do not come back together.
    """

    NEVER: ClassVar[Retry]
    """One attempt."""

    max_attempts: int | None
    initial: timedelta
    factor: float
    maximum: timedelta
    jitter: bool
    retry_on: ErrorTypes
    give_up_on: ErrorTypes

    def __init__(
        self,
        max_attempts: int | None = 5,
        *,
        initial: Duration = "1s",
        factor: float = 2,
        maximum: Duration = "1m",
        jitter: bool = True,
        retry_on: ErrorTypes = (Exception,),
        give_up_on: ErrorTypes = (),
    ) -> None:
        """
        Check and keep the policy.

        Args:
            max_attempts: 1 to 1,000, the first one included; None for no limit.
            initial: The delay after the first failure.
            factor: 1 to 100.
            maximum: No delay is longer; but one that `RetryAfter` asks for may be.
            jitter: Whether delays are random.
            retry_on: Only these errors are worth another attempt.
            give_up_on: These are not; stronger than `retry_on`.

        Raises:
            InvalidOptionError: A number is out of its range, or a tuple holds something else than exception classes.
            InvalidDurationError: A delay is not a duration.
        """
        if max_attempts is not None and not (_is_int(max_attempts) and 1 <= max_attempts <= MAX_ATTEMPTS):
            raise InvalidOptionError(
                f"max_attempts={shown(max_attempts)}: give 1 to {MAX_ATTEMPTS}, or None for no limit"
            )
        if not _is_number(factor) or not 1 <= factor <= 100:
            raise InvalidOptionError(f"factor={shown(factor)}: give a number from 1 to 100")
        first, longest = parse_duration(initial, option="initial"), parse_duration(maximum, option="maximum")
        if longest < first:
            raise InvalidOptionError(f"maximum={longest} is shorter than initial={first}")
        keep = object.__setattr__
        keep(self, "max_attempts", max_attempts)
        keep(self, "initial", first)
        keep(self, "factor", float(factor))
        keep(self, "maximum", longest)
        keep(self, "jitter", bool(jitter))
        keep(self, "retry_on", _error_types("retry_on", retry_on))
        keep(self, "give_up_on", _error_types("give_up_on", give_up_on))

    def gives_up(self, error: BaseException, attempt: int) -> bool:
        """Tell whether the failure of this attempt, counted from 1, is final."""
        # Its type, as `except` does: isinstance would also ask the error, which may say anything of its class.
        kind = type(error)
        return (
            issubclass(kind, NonRetryable)
            or (self.max_attempts is not None and attempt >= self.max_attempts)
            or issubclass(kind, self.give_up_on)
            or not issubclass(kind, (*self.retry_on, RetryAfter))
        )

    def delay_after(
        self, attempt: int, error: BaseException | None = None, *, rng: Callable[[], float] = random.random
    ) -> timedelta:
        """
        How long to wait after the failure of this attempt, counted from 1.

        Args:
            attempt: The one that has failed.
            error: What it raised; a `RetryAfter` says its own delay.
            rng: Answers 0 to 1; for jitter.
        """
        if issubclass(type(error), RetryAfter):
            return cast("RetryAfter", error).delay
        try:
            delay = min(self.initial * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            delay = self.maximum if self.initial else self.initial
        return delay * rng() if self.jitter else delay


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _error_types(option: str, types: object) -> ErrorTypes:
    given = cast("tuple[object, ...]", types) if isinstance(types, tuple) else (types,)
    classes = tuple(cls for cls in given if isinstance(cls, type) and issubclass(cls, Exception))
    if given is not types or len(classes) < len(given):
        raise InvalidOptionError(f"{option}={shown(given)}: give a tuple of exception classes, as (ConnectionError,)")
    return classes


Retry.NEVER = Retry(1)
