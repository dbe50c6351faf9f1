"""How far a run is: the arithmetic that clients and workers share. Knows no clock and no database."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

import msgspec

from kedge.errors import InvalidOptionError
from kedge.run_state import RunStatus
from kedge.shown import shown

MAX_UNFINISHED: Final = 99.0
"""Only a completed run is at 100 percent."""

ProgressSource: TypeAlias = Literal["handler", "definition", "last_run"]
"""
Who knows the whole: the handler says it (`ctx.progress`), the definition declares so many steps, or the last run of the
same workflow and version that had completed before this one began needed so many.
"""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is. `percent` never goes down while its source stays the same."""

    done: int
    """As the handler says; else the steps, waits and children that are done."""
    total: int | None = None
    percent: float | None = None
    """0 to 99, with one decimal; 100 when the run has completed, and only then. None: nobody knows the whole."""
    message: str | None = None
    """Of the handler's."""
    source: ProgressSource | None = None
    """Of the total; None: nobody knows it."""


class ProgressParts(msgspec.Struct, frozen=True, kw_only=True):
    """What the database knows of a run's progress."""

    status: RunStatus
    steps: int = 0
    """Completed."""
    declared: int | None = None
    """Steps, by the definition."""
    learned: int | None = None
    """Steps that the last completed run needed."""
    is_said: bool = False
    """Whether the handler has said something; then `steps` and what follows need not be known."""
    done: int = 0
    total: int | None = None
    percent: float | None = None
    """The highest so far."""
    message: str | None = None


def percent_of(done: int, total: int | None) -> float | None:
    """
    Return how much is done of a whole, 0 to 99, rounded down to one decimal.

    None when the whole is not known, or nothing. Whether the run has completed is not asked here.
    """
    if total is None or total <= 0:
        return None
    return min(math.floor(1000 * max(done, 0) / total) / 10, MAX_UNFINISHED)


def check_progress(done: object, total: object) -> float | None:
    """
    Return the percent of what a handler says, or refuse it.

    Raises:
        InvalidOptionError: A number is negative or no whole number, or there is more done than there is.
    """
    for name, value in (("done", done), ("total", total)):
        is_given = name == "done" or value is not None
        if is_given and (type(value) is not int or not 0 <= value < 2**63):
            raise InvalidOptionError(f"progress: {name}={shown(value)}: give a whole number, 0 or more")
    assert isinstance(done, int)  # noqa: S101  # just looked at
    if isinstance(total, int) and done > total:
        raise InvalidOptionError(f"progress: {done} done of {total}: there cannot be more done than there is")
    return percent_of(done, total if isinstance(total, int) else None)


def progress_of(parts: ProgressParts) -> Progress:
    """Decide whom to believe: the handler before the definition before the last run."""
    source: ProgressSource | None
    if parts.is_said:
        done, total, percent = parts.done, parts.total, parts.percent
        source = "handler"
    else:
        done = parts.steps
        total, source = (parts.declared, "definition") if parts.declared else (parts.learned or None, "last_run")
        source = source if total else None
        percent = percent_of(done, total)
    if parts.status == "completed":
        percent = 100.0
    elif percent is not None:
        percent = min(percent, MAX_UNFINISHED)
    return Progress(done=done, total=total, percent=percent, message=parts.message, source=source)
