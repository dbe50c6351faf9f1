"""What a handler did and what the journal must therefore write: two unions, and one pure function between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

EndStatus: TypeAlias = Literal["c", "f", "x"]
RowKind: TypeAlias = Literal["s", "t", "f", "x"]
"""Kinds of journal rows: step, transaction, failure handed to the handler, interrupted by the handler's own code."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned; the value is encoded."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Raised:
    """The handler raised; the error is encoded."""

    error: bytes


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for the run's end, and its handler has unwound."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class Released:
    """The run goes on elsewhere or later: this worker shuts down."""


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The handler's code does not fit the journal."""

    reason: str


Outcome: TypeAlias = Returned | Raised | Cancelled | Released | Mismatched


@dataclass(frozen=True, slots=True)
class End:
    """Through the exit door into `finished`."""

    status: EndStatus
    output: bytes | None = None
    error: bytes | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Back to the queue, charging nobody; with a delay it waits that long first, and says why."""

    delay_s: float = 0
    reason: str | None = None


Move: TypeAlias = End | GiveBack

MISMATCH_DELAY_S = 30.0


def next_move(outcome: Outcome) -> Move:
    """Turn what the handler did into the one move that the journal must write."""
    match outcome:
        case Returned(value):
            return End("c", output=value)
        case Raised(error):
            return End("f", error=error)
        case Cancelled(reason):
            return End("x", reason=reason)
        case Released():
            return GiveBack()
        case Mismatched(reason):
            return GiveBack(MISMATCH_DELAY_S, reason)
        case _:
            assert_never(outcome)
