"""
What `make bench-quick` found before: one line of JSON a run in history.jsonl, compared on machines of the same kind.

Every ratio is a share of what the plain loop does in the same minute, so more is better. Kept are commit, kind of
machine and ratios; no name of a host, no path.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import Machine

FILE: Final = Path(__file__).parent / "history.jsonl"
LAST: Final = 5
"""Entries of this kind of machine that a new one is compared with."""
LEAST_NOISE: Final = 0.1
"""No fall below a tenth is worth a word: with few entries the spread is luck."""

Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One ratio, now and before."""

    name: str
    now: float
    before: float | None
    """Median of the last entries; None if there is none."""
    noise: float
    """Share of `before` that says nothing."""

    @property
    def change(self) -> float | None:
        return None if self.before is None else self.now / self.before - 1

    @property
    def has_fallen(self) -> bool:
        return self.change is not None and self.change < -self.noise


def entry(machine: Machine, ratios: Mapping[str, Sequence[float]], *, now: datetime | None = None) -> Entry:
    """Make one line: each ratio with its median and range over the rounds."""
    return {
        "at": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        **machine.as_json(),
        "ratios": {
            name: {
                "median": round(statistics.median(values), 4),
                "low": round(min(values), 4),
                "high": round(max(values), 4),
            }
            for name, values in ratios.items()
        },
    }


def kind(one: Entry) -> tuple[object, ...]:
    """What must be equal for two entries to be compared: not the disk, whose commits vary from hour to hour."""
    machine = one["machine"]
    return (
        machine["cpu"],
        machine["cores"],
        machine["memory_gib"],
        machine["settings"],
        str(machine["postgres"]).split(".")[0],
        str(machine["python"]).split(".")[:2],
    )


def read(path: Path = FILE) -> list[Entry]:
    """All entries, oldest first."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text("utf-8").splitlines() if text.strip()]


def append(one: Entry, path: Path = FILE) -> None:
    """Keep an entry."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(one) + "\n")


def compare(one: Entry, before: Sequence[Entry]) -> list[Comparison]:
    """
    Compare an entry with the last ones of its kind of machine.

    The noise is half of the widest range that the rounds of any of them had, or that the medians of the last ones have
    among themselves: what the machine does by itself says nothing about the code.
    """
    last = [other for other in before if kind(other) == kind(one)][-LAST:]
    return [_compared(name, found, last) for name, found in one["ratios"].items()]


def _compared(name: str, found: Mapping[str, float], last: Sequence[Entry]) -> Comparison:
    known = [other["ratios"][name] for other in last if name in other["ratios"]]
    if not known:
        return Comparison(name=name, now=found["median"], before=None, noise=LEAST_NOISE)
    medians = [other["median"] for other in known]
    before = statistics.median(medians)
    rounds = [(other["high"] - other["low"]) / 2 / other["median"] for other in [*known, found] if other["median"]]
    return Comparison(
        name=name,
        now=found["median"],
        before=before,
        noise=max(LEAST_NOISE, *rounds, (max(medians) - min(medians)) / 2 / before),
    )
