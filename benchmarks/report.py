"""Says what goes on, and prints what was found: medians with their range, in one table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


class Report:
    """Collects the lines of a table."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, ...]] = []

    def note(self, text: str) -> None:
        """Say what goes on."""
        print(text, flush=True)

    def row(self, *cells: str) -> None:
        """Add a line to the table."""
        self._rows.append(cells)

    def table(self, *heads: str) -> None:
        """Print the table, and begin a new one."""
        lines = [heads, tuple("-" * len(head) for head in heads), *self._rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        self._rows = []


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (lowest-highest), or the one value."""
    median = f"{statistics.median(values):,.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"
