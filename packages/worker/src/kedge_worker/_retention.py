"""How long ended runs are kept, as whoever writes workflows or starts a worker says it. Deletes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Final, TypeAlias

from kedge.durations import Duration, parse_duration
from kedge.errors import InvalidOptionError
from kedge.shown import shown

SHORTEST: Final = timedelta(hours=2)
"""What is kept of a run guards repeats of its start, and of what was sent to it. The database holds to it as well."""


@dataclass(frozen=True, slots=True, init=False)
class Retention:
    """
    How long a run is kept after its end, by the status that it has ended with; None: for ever.

    What is deleted is deleted with all that belongs to it: the run is then as unknown as one that never was, and its
    idempotency key starts a new one.
    """

    FOREVER: ClassVar[Retention]
    """Nothing is deleted, whatever the worker's default is."""

    completed: timedelta | None
    failed: timedelta | None
    cancelled: timedelta | None

    def __init__(
        self,
        *,
        completed: Duration | None = None,
        failed: Duration | None = None,
        cancelled: Duration | None = None,
    ) -> None:
        """
        Check and keep the durations, each from two hours to ten years.

        Args:
            completed: For runs that returned.
            failed: For runs that failed; until then they may be retried, and their children are kept as well.
            cancelled: For runs that were cancelled.

        Raises:
            InvalidOptionError: One is shorter than two hours.
            InvalidDurationError: One is no duration.
        """
        for name, value in (("completed", completed), ("failed", failed), ("cancelled", cancelled)):
            object.__setattr__(self, name, None if value is None else _checked(value, f"retention.{name}"))

    @property
    def seconds(self) -> tuple[float | None, float | None, float | None]:
        """Of completed, failed and cancelled runs."""
        completed, failed, cancelled = (
            None if kept is None else kept.total_seconds() for kept in (self.completed, self.failed, self.cancelled)
        )
        return completed, failed, cancelled


Retention.FOREVER = Retention()

AnyRetention: TypeAlias = Retention | Duration
"""A duration holds for every status."""


def check_retention(given: AnyRetention | None) -> Retention | None:
    """
    Return what is given as `retention=`, or refuse it.

    Raises:
        InvalidOptionError: It is shorter than two hours.
        InvalidDurationError: It is neither a Retention nor a duration.
    """
    if given is None or isinstance(given, Retention):
        return given
    kept = _checked(given, "retention")
    return Retention(completed=kept, failed=kept, cancelled=kept)


def read_retention(text: str) -> Retention:
    """
    Read `30d`, or `completed=7d,failed=90d`: what is not named is kept for ever.

    Raises:
        InvalidOptionError: It names another status, or the same one twice, or a time shorter than two hours.
        InvalidDurationError: A part of it is no duration.
    """
    if "=" not in text:
        return check_retention(text) or Retention.FOREVER
    kept: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = (one.strip() for one in part.partition("="))
        if name not in ("completed", "failed", "cancelled") or name in kept:
            raise InvalidOptionError(
                f"retention={shown(text)}: write a duration, such as 30d, or completed=7d,failed=90d,cancelled=30d"
            )
        kept[name] = value
    return Retention(**kept)


def _checked(value: object, option: str) -> timedelta:
    kept = parse_duration(value, option=option)
    if kept < SHORTEST:
        raise InvalidOptionError(f"{option}={shown(value)} is too short: two hours is the least, and None is for ever")
    return kept
