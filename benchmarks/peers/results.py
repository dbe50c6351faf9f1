"""What was measured of all engines: one file that a run in parts adds to, and the table of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import Machine
from benchmarks.peers.engines import ENGINES, Engine
from benchmarks.report import spread

COMMAND: Final = "make bench-peers"
PERCENTILES: Final = ("p50", "p99")

Line = dict[str, Any]
"""Engine, workload, repetition, commit, and in `values` the numbers of each line of the table."""


class Results:
    """The lines of one file. A line that is measured again takes the place of the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[Line] = json.loads(path.read_text("utf-8"))["measured"] if path.exists() else []

    def has(self, engine: Engine, workload: str, repetition: int, commit: str) -> bool:
        """Whether it need not be measured again: of kedge only what is of this commit counts."""
        return any(
            _key(line) == (engine.name, workload, repetition) and (not engine.is_ours or line["commit"] == commit)
            for line in self.lines
        )

    def add(self, line: Line, machine: Machine) -> None:
        """Keep it, in the file too: an hour's work must not hang on its last minute."""
        self.lines = [other for other in self.lines if _key(other) != _key(line)] + [line]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "command": COMMAND,
            **machine.as_json(),
            "engines": {engine.name: engine.settings for engine in ENGINES},
            "measured": self.lines,
        }
        self._path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def table(lines: Iterable[Line]) -> dict[str, dict[str, list[float]]]:
    """Turn the lines into title -> engine -> one value a repetition, in the order of the engines."""
    found: dict[str, dict[str, list[float]]] = {}
    places = [engine.name for engine in ENGINES]
    for line in sorted(lines, key=lambda line: (places.index(line["engine"]), line["repetition"])):
        for what, values in line["values"].items():
            for title, value in _titled(what, values):
                found.setdefault(title, {}).setdefault(line["engine"], []).append(value)
    return found


def engines_of(lines: Iterable[Line]) -> list[str]:
    """Names of those that have been measured, in their order."""
    named = {line["engine"] for line in lines}
    return [engine.name for engine in ENGINES if engine.name in named]


def cell(values: Sequence[float]) -> str:
    """One cell: median and range, or a dash."""
    return spread(values, 1 if statistics.median(values) < 1000 else 0) if values else "-"


def _titled(what: str, values: Mapping[str, Any]) -> list[tuple[str, float]]:
    if what.endswith(", ms"):
        return [(f"{what.removesuffix(', ms')}, {at}, ms", float(values[at])) for at in PERCENTILES]
    return [(what, float(values["rate"]))]


def _key(line: Line) -> tuple[str, str, int]:
    return line["engine"], line["workload"], line["repetition"]
