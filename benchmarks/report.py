"""Numbers for people, medians with their range in one table, and for machines, one line of JSON each."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Report:
    """Collects what is measured. As JSON every measurement is printed at once, else only said to be under way."""

    as_json: bool
    rows: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])

    def note(self, text: str) -> None:
        """Say what goes on; for people only."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def measured(self, what: str, repetition: int, values: Mapping[str, object]) -> None:
        """Print one measurement for machines."""
        if self.as_json:
            print(json.dumps({"what": what, "repetition": repetition, **values}), flush=True)

    def row(self, *cells: str) -> None:
        """Add a line to the table."""
        self.rows.append(cells)

    def table(self, *heads: str) -> None:
        """Print the table, and begin a new one."""
        if not self.as_json:
            lines = [heads, tuple("-" * len(head) for head in heads), *self.rows]
            widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
            for line in lines:
                print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        self.rows = []


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (lowest-highest)."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def share(values: Iterable[float | None]) -> str:
    """Median of CPU shares of one core, in percent; a dash where they are unknown."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.0%}" if known else "-"
