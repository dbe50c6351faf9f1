"""What the benchmarks say of the numbers that they have measured."""

import json
from pathlib import Path
from typing import cast

import pytest

from benchmarks import measures
from benchmarks.figures import Figures, line, write
from benchmarks.machine import Machine
from benchmarks.measures import Goal, Measure
from benchmarks.percentiles import percentiles
from benchmarks.report import spread

MACHINE = Machine(
    commit="abc", cpu="a processor", cores=2, memory_gib=8, postgres="18.4", settings="", python="3.11.7", commit_ms=0.2
)


def test_a_percentile_is_a_duration_that_was_measured() -> None:
    took = [number / 1000 for number in range(100, 0, -1)]

    found = percentiles(took)

    assert found == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "samples": 100}


def test_a_single_duration_is_all_of_its_percentiles() -> None:
    assert percentiles([0.002]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0, "samples": 1}


@pytest.mark.parametrize(
    ("values", "digits", "said"),
    [([3.0, 1.0, 2000.0], 0, "3 (1-2,000)"), ([0.126, 0.1], 2, "0.11 (0.10-0.13)"), ([12345.6], 1, "12,345.6")],
)
def test_a_spread_shows_the_median_and_both_ends(values: list[float], digits: int, said: str) -> None:
    assert spread(values, digits) == said


@pytest.mark.parametrize(
    ("goal", "reached", "missed", "said"),
    [
        (Goal(least=0.9), 0.9, 0.899, "at least 0.9"),
        (Goal(most=10_000), 10_000, 10_001, "at most 10,000"),
        (Goal(least=0.9, most=1.1), 1.1, 1.2, "at least 0.9 and at most 1.1"),
    ],
)
def test_a_goal_is_reached_at_its_edge_and_not_beyond(goal: Goal, reached: float, missed: float, said: str) -> None:
    assert goal.is_reached(reached)
    assert not goal.is_reached(missed)
    assert str(goal) == said


def test_a_goal_is_held_against_the_median_and_not_against_the_best() -> None:
    found = line(Measure("latency", "ms", Goal(most=3), 1), [2.0, 4.0, 5.0])

    assert (found["median"], found["shown"], found["reached"]) == (4.0, "4.0 (2.0-5.0)", False)


def test_what_has_no_goal_is_neither_reached_nor_missed() -> None:
    assert line(Measure("WAL", "bytes"), [1.0])["reached"] is None


def test_what_is_not_known_here_is_left_out() -> None:
    figures, cpu = Figures(), {"python": Measure("Python"), "postgres": Measure("Postgres")}

    figures.add_all(cpu, {"python": 1.0, "postgres": None})

    assert [(measure.name, list(values)) for measure, values in figures] == [("Python", [1.0])]
    assert figures.last(cpu["postgres"]) is None


def test_the_file_for_machines_says_of_what_and_where(tmp_path: Path) -> None:
    figures = Figures()
    figures.add(measures.ONE_STEP, 9_000.0)
    figures.series["curve"] = [(0.0, 1.0)]

    write(tmp_path / "made" / "bench.json", "make bench", MACHINE, figures)

    found = json.loads((tmp_path / "made" / "bench.json").read_text("utf-8"))
    assert (found["command"], found["commit"], found["machine"]["cores"]) == ("make bench", "abc", 2)
    assert found["figures"][0]["values"] == [9000.0]
    assert found["series"] == {"curve": [[0.0, 1.0]]}


def test_no_two_lines_of_the_tables_have_one_name() -> None:
    values: list[object] = list(vars(measures).values())
    groups = [cast("dict[str, object]", value).values() if isinstance(value, dict) else [value] for value in values]
    names = [one.name for group in groups for one in group if isinstance(one, Measure)]

    assert len(names) > 50
    assert sorted(names) == sorted(set(names))
