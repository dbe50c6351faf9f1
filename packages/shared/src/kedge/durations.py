"""Durations as people write them: timedelta, seconds, "2 days 12 hours", "1h30m", "500ms" or ISO 8601."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final, TypeAlias

from kedge.errors import InvalidDurationError
from kedge.shown import shown

Duration: TypeAlias = timedelta | str | int | float
"""A number is seconds."""

MAX_DURATION: Final = timedelta(days=3653)
"""Ten years: far from the end of the database's time, and nobody means more."""

_ZERO: Final = timedelta()

_MICROSECONDS: Final[dict[str, int]] = {
    unit: microseconds
    for units, microseconds in (
        (("ms", "millisecond", "milliseconds"), 1_000),
        (("s", "sec", "secs", "second", "seconds"), 1_000_000),
        (("m", "min", "mins", "minute", "minutes"), 60_000_000),
        (("h", "hr", "hrs", "hour", "hours"), 3_600_000_000),
        (("d", "day", "days"), 86_400_000_000),
        (("w", "week", "weeks"), 604_800_000_000),
    )
    for unit in units
}

# Twelve digits hold ten years in milliseconds; ASCII, because \d also means digits of other scripts.
_NUMBER: Final = r"([0-9]{1,12}(?:\.[0-9]{1,9})?)"
_PART: Final = re.compile(rf"{_NUMBER}\s*([A-Za-z]+)(?:\s*,\s*|\s*)")
_ISO: Final = re.compile(
    rf"P(?=[0-9T])(?:{_NUMBER}W)?(?:{_NUMBER}D)?(?:T(?=[0-9])(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?"
)
_ISO_UNITS: Final = ("w", "d", "h", "m", "s")


def parse_duration(value: object, *, option: str) -> timedelta:
    """
    Turn what somebody wrote into a timedelta of 0 to 10 years.

    Args:
        value: A `Duration`; anything else is refused. A number is seconds, "1m" is a minute. Months and years have
            no fixed length and are refused.
        option: The name to blame in the error, such as "timeout".

    Raises:
        InvalidDurationError: It is no duration, negative, longer than 10 years, or too short to be told from zero.
    """
    if isinstance(value, timedelta):
        duration = value
    elif isinstance(value, str):
        duration = _of_text(value, option)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        duration = _of_seconds(value, option)
    else:
        raise InvalidDurationError(option, shown(value), f"is a {type(value).__name__}, no duration")
    if duration > MAX_DURATION:
        raise InvalidDurationError(option, shown(value), "is too long")
    if duration < _ZERO:
        raise InvalidDurationError(option, shown(value), "is negative")
    return duration


def parse_positive_duration(value: object, *, option: str) -> timedelta:
    """
    Do the same where zero makes no sense.

    Raises:
        InvalidDurationError: As `parse_duration`, and for zero.
    """
    duration = parse_duration(value, option=option)
    if not duration:
        raise InvalidDurationError(option, shown(value), "must be longer than zero")
    return duration


def _of_seconds(value: float, option: str) -> timedelta:
    # Beyond it timedelta overflows; NaN fails every comparison.
    if not -1e12 < value < 1e12:
        raise InvalidDurationError(option, shown(value), "is out of range")
    duration = timedelta(seconds=value)
    if value and not duration:
        raise InvalidDurationError(option, shown(value), "is shorter than a microsecond")
    return duration


def _of_text(text: str, option: str) -> timedelta:
    if iso := _ISO.fullmatch(text):
        parts = [(number, unit) for number, unit in zip(iso.groups(), _ISO_UNITS, strict=True) if number]
    else:
        parts = _parts(text, option)
    microseconds = sum(round(float(number) * _MICROSECONDS[unit]) for number, unit in parts)
    if not microseconds and any(float(number) for number, _ in parts):
        raise InvalidDurationError(option, shown(text), "is shorter than a microsecond")
    return timedelta(microseconds=microseconds)


def _parts(text: str, option: str) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    stripped, position = text.strip(), 0
    while found := _PART.match(stripped, position):
        # One letter must be small, since "M" could be a month; words may be written as one likes.
        number, unit = found[1], found[2] if len(found[2]) == 1 else found[2].lower()
        if unit not in _MICROSECONDS:
            raise InvalidDurationError(option, shown(text), f"has the unknown unit {shown(found[2])}{_about(unit)}")
        if parts and _MICROSECONDS[unit] >= _MICROSECONDS[parts[-1][1]]:
            raise InvalidDurationError(option, shown(text), "has its units not from large to small")
        parts.append((number, unit))
        position = found.end()
    if not parts or position < len(stripped):
        raise InvalidDurationError(option, shown(text), "cannot be read")
    return parts


def _about(unit: str) -> str:
    if unit in ("M", "mo", "mon", "month", "months", "y", "Y", "yr", "year", "years"):
        return ", for months and years have no fixed length"
    return ""
