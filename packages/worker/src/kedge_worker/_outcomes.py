"""What a handler did and what the journal must therefore write: two unions, and one pure function between them."""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias, assert_never

import msgspec

EndStatus: TypeAlias = Literal["c", "f", "x"]
RowKind: TypeAlias = Literal["s", "t", "f", "x", "e", "d", "p", "u", "c", "n", "m", "o", "k"]
"""
Kinds of journal rows: step, transaction, failure handed to the handler, interrupted by the handler's own code, event,
sleep, poll, pause, a child's outcome, a child's start, a send, the first of several, a patch.
"""

Operation: TypeAlias = Literal["s", "t", "e", "d", "p", "u", "c", "n", "m", "o"]
"""What a handler can ask for, by the kind of its success in the journal."""


class Returned(msgspec.Struct, frozen=True, gc=False):
    """The handler returned; the value is encoded."""

    value: bytes


class Raised(msgspec.Struct, frozen=True, gc=False):
    """The handler raised; the error is encoded. With a delay the run's policy has another attempt left."""

    error: bytes
    retry_s: float | None = None


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """Somebody asked for the run's end, and its handler has unwound."""

    reason: str | None


class Parked(msgspec.Struct, frozen=True, gc=False):
    """The run only waits: it leaves memory until something wakes it. Its code no longer asks for the stale waits."""

    stale: tuple[str, ...]


class Released(msgspec.Struct, frozen=True, gc=False):
    """The run goes on elsewhere or later: this worker shuts down, or somebody pauses the run."""


class Mismatched(msgspec.Struct, frozen=True, gc=False):
    """The handler's code does not fit the journal."""

    reason: str


Outcome: TypeAlias = Returned | Raised | Cancelled | Parked | Released | Mismatched


class End(msgspec.Struct, frozen=True, gc=False):
    """Through the exit door into `finished`."""

    status: EndStatus
    output: bytes | None = None
    error: bytes | None = None
    reason: str | None = None


class GiveBack(msgspec.Struct, frozen=True, gc=False):
    """Back to the queue, charging nobody; with a delay it waits that long first, and says why."""

    delay_s: float = 0
    reason: str | None = None


class Park(msgspec.Struct, frozen=True, gc=False):
    """To `waiting`, or back to the queue when what it waits for is there by now."""

    stale: tuple[str, ...]


class RetryLater(msgspec.Struct, frozen=True, gc=False):
    """To `waiting` until the next attempt of the run."""

    error: bytes
    delay_s: float


Move: TypeAlias = End | GiveBack | Park | RetryLater

FIRST_MISMATCH_S: Final = 30.0
LONGEST_MISMATCH_S: Final = 600.0

_TIMES: Final = re.compile(r"(.*) \(put off (\d+) times\)", re.DOTALL)


def next_move(outcome: Outcome, *, before: str | None = None) -> Move:
    """
    Turn what the handler did into the one move that the journal must write.

    Args:
        outcome: What it did.
        before: The run's reason at its claim: of a mismatch, if it has had one that nothing has come between.
    """
    match outcome:
        case Returned(value):
            return End("c", output=value)
        case Raised(error, retry_s):
            return End("f", error=error) if retry_s is None else RetryLater(error, retry_s)
        case Cancelled(reason):
            return End("x", reason=reason)
        case Parked(stale):
            return Park(stale)
        case Released():
            return GiveBack()
        case Mismatched(reason):
            return _put_off(reason, before)
        case _:
            assert_never(outcome)


def _put_off(reason: str, before: str | None) -> GiveBack:
    """
    For half a minute, doubling up to ten minutes while the reason stays the same.

    The reason itself says how often: whatever else happens to the run replaces it, and so does a deploy for which the
    code fits in another way no better.
    """
    times = 1
    if before is not None:
        counted = _TIMES.fullmatch(before)
        if (counted[1] if counted else before) == reason:
            times = 1 + (int(counted[2]) if counted else 1)
    delay_s = min(FIRST_MISMATCH_S * 2 ** min(times - 1, 10), LONGEST_MISMATCH_S)
    return GiveBack(delay_s, reason if times == 1 else f"{reason} (put off {times} times)")
