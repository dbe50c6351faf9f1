"""pytest's side of the proof: which tests a lane leaves out, said aloud, and the figures that tests measure."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, cast

import pytest

from tests.proof.kit.lanes import LANE_VARIABLE, TURN_VARIABLE, Lane, lane, turn

FOLDER: Final = "tests/proof"
FIGURES: Final = Path(".proof")
COMMANDS: Final = {"full": "make proof", "chaos": "make chaos", "soak": "make soak"}

figures: Final[list[dict[str, object]]] = []
"""Of this run."""


class Figure(Protocol):
    """Keeps a measured number for the table at the end; fails nothing."""

    def __call__(
        self, name: str, value: float, *, unit: str = "", goal: float | None = None, at_least: bool = False
    ) -> None:
        """With a goal, the table says whether it was reached: at most that, or at least."""
        ...


@pytest.fixture
def figure(record_property: Callable[[str, object], None], request: pytest.FixtureRequest) -> Figure:
    """Answer the function that keeps a measured number."""

    def keep(name: str, value: float, *, unit: str = "", goal: float | None = None, at_least: bool = False) -> None:
        record_property(
            "figure",
            {
                "test": request.node.name,
                "name": name,
                "value": round(value, 3),
                "unit": unit,
                "goal": goal,
                "reached": None if goal is None else (value >= goal if at_least else value <= goal),
            },
        )

    return keep


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not of this lane."""
    now, kept = lane(), list[pytest.Item]()
    for item in items:
        wanted = _wanted(item)
        if FOLDER not in item.path.as_posix() or wanted == now or (wanted is None and now in ("thin", "full")):
            kept.append(item)
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def _wanted(item: pytest.Item) -> Lane | None:
    marks: tuple[Lane, ...] = ("chaos", "soak", "full")
    return next((mark for mark in marks if item.get_closest_marker(mark)), None)


def note_figures(report: pytest.TestReport) -> None:
    """Take the figures of one test; with several processes they come through its report."""
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "figure":
                figures.append(cast("dict[str, object]", value))


def summarise(reporter: pytest.TerminalReporter) -> None:
    """Say what was left out, and print and write the figures."""
    now = lane()
    if now != "full":
        reporter.write_line(
            f"proof: the {now} lane, turn {turn()} ({LANE_VARIABLE}, {TURN_VARIABLE});"
            f" the rest is run by {', '.join(command for name, command in COMMANDS.items() if name != now)}"
        )
    if not figures:
        return
    for one in figures:
        goal = "" if one["goal"] is None else f"   goal {one['goal']:g}{'' if one['reached'] else '   NOT REACHED'}"
        reporter.write_line(f"  {one['name']:<58} {one['value']:>12,} {one['unit']:<6}{goal}   {one['test']}")
    FIGURES.mkdir(exist_ok=True)
    file = FIGURES / f"{now}.json"
    # A test that was run alone has its figures anew; those of the others stay, with the commit that they are of.
    measured = {one["test"] for one in figures}
    kept: list[dict[str, object]] = json.loads(file.read_text("utf-8")) if file.exists() else []
    commit = _commit()
    found = [one for one in kept if one["test"] not in measured] + [{**one, "commit": commit} for one in figures]
    # In one piece: tests run tests, which have figures too.
    whole = FIGURES / f"{now}.{os.getpid()}"
    whole.write_text(json.dumps(found, indent=1), "utf-8")
    whole.replace(file)


def _commit() -> str:
    """What is measured; empty where there is no git."""
    command = ["git", "describe", "--always", "--dirty=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
