"""What was measured, repetition by repetition, as one table for people and one file for machines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import Machine
from benchmarks.measures import Measure
from benchmarks.report import Report, spread

FOLDER: Final = Path(".bench")
"""Where the commands leave their files, and `benchmarks.publish` finds them."""

REACHED: Final = "reached"
MISSED: Final = "NOT REACHED"


class Figures:
    """Values by measure, in the order in which they came; goals are held against medians."""

    def __init__(self) -> None:
        self._values: dict[Measure, list[float]] = {}
        self.series: dict[str, list[tuple[float, float]]] = {}
        """Curves for the plots: name -> points."""

    def add(self, measure: Measure, value: float) -> None:
        self._values.setdefault(measure, []).append(value)

    def add_all(self, measures: Mapping[str, Measure], values: Mapping[str, float | None]) -> None:
        """One value for each measure, by its key; what is not known here is left out."""
        for key, measure in measures.items():
            value = values.get(key)
            if value is not None:
                self.add(measure, value)

    def last(self, measure: Measure) -> float | None:
        """The value of the present repetition."""
        values = self._values.get(measure)
        return values[-1] if values else None

    def __iter__(self) -> Iterator[tuple[Measure, Sequence[float]]]:
        return iter(self._values.items())

    def as_json(self) -> list[dict[str, Any]]:
        """One line a measure."""
        return [line(measure, values) for measure, values in self]


def line(measure: Measure, values: Sequence[float]) -> dict[str, Any]:
    """What is kept of one measure."""
    median = statistics.median(values)
    return {
        "name": measure.name,
        "unit": measure.unit,
        "median": round(median, 4),
        "shown": spread(values, measure.digits),
        "goal": None if measure.goal is None else str(measure.goal),
        "reached": None if measure.goal is None else measure.goal.is_reached(median),
        "values": [round(value, 4) for value in values],
    }


def show(figures: Figures, report: Report) -> None:
    """Print the table."""
    for one in figures.as_json():
        said = "" if one["reached"] is None else REACHED if one["reached"] else MISSED
        report.row(one["name"], one["shown"], one["unit"], one["goal"] or "", said)
    report.table("what", "median (range)", "unit", "goal", "")


def write(path: Path, command: str, machine: Machine, figures: Figures) -> None:
    """Write the file for machines: what was measured, by which command, where, of which commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "command": command,
        **machine.as_json(),
        "figures": figures.as_json(),
        "series": figures.series,
    }
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
