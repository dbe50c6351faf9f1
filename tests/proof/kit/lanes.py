"""
Which share of the proof runs: by `KEDGE_PROOF`.

thin (unset): with every build. full: all but chaos and soak. chaos, soak: alone on the machine.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, TypeVar

Lane: TypeAlias = Literal["thin", "full", "chaos", "soak"]
T = TypeVar("T")

LANES: Final[dict[str, Lane]] = {"thin": "thin", "full": "full", "chaos": "chaos", "soak": "soak"}

LANE_VARIABLE: Final = "KEDGE_PROOF"
TURN_VARIABLE: Final = "KEDGE_PROOF_TURN"


def lane() -> Lane:
    """Answer the lane of this process."""
    asked = os.environ.get(LANE_VARIABLE) or "thin"
    if asked not in LANES:
        raise ValueError(f"{LANE_VARIABLE} is {asked!r}; it may be {', '.join(LANES)}")
    return LANES[asked]


def turn() -> int:
    """Which of the thin selections it is today; `KEDGE_PROOF_TURN` repeats one."""
    # The date of the machine: all processes of a build agree on it, and tomorrow's build looks elsewhere.
    return int(os.environ.get(TURN_VARIABLE) or datetime.datetime.now(datetime.UTC).date().toordinal())


def thinned(cases: Sequence[T], *, of: int) -> list[T]:
    """Every `of`-th case, beginning somewhere else each day; in the full lane all of them."""
    return list(cases) if lane() == "full" else list(cases[turn() % min(of, max(len(cases), 1)) :: of])


def amount(*, thin: int, full: int) -> int:
    """How many: examples, cases, rounds."""
    return full if lane() == "full" else thin


def setting(name: str, default: float) -> float:
    """Read a number of the environment, such as `KEDGE_PROOF_SECONDS`, for a smaller or larger form of a test."""
    return float(os.environ.get(f"KEDGE_PROOF_{name.upper()}") or default)
