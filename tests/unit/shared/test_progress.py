"""How far a run is: a hundred only when it has completed, and never a guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.progress import MAX_UNFINISHED, ProgressParts, percent_of, progress_of
from kedge.run_state import STATUSES, RunStatus

counts = st.integers(min_value=0, max_value=2**63 - 1)


@pytest.mark.parametrize(
    ("done", "total", "percent"),
    [(0, 3, 0.0), (1, 3, 33.3), (2, 3, 66.6), (3, 3, 99.0), (9, 3, 99.0), (999, 1000, 99.0), (1, 1000, 0.1)],
)
def test_percent_is_rounded_down_and_stays_below_a_hundred(done: int, total: int, percent: float) -> None:
    assert percent_of(done, total) == percent


@pytest.mark.parametrize("total", [None, 0, -1])
def test_of_an_unknown_whole_there_is_no_percent(total: int | None) -> None:
    assert percent_of(7, total) is None


@given(counts, counts, counts)
def test_percent_does_not_go_down_while_more_gets_done(first: int, second: int, total: int) -> None:
    less, more = sorted((first, second))

    before, after = percent_of(less, total), percent_of(more, total)

    assert (before is None) == (after is None)
    assert before is None or after is None or 0 <= before <= after <= MAX_UNFINISHED


def test_what_the_handler_says_counts_before_everything_else() -> None:
    said = ProgressParts(
        status="running",
        is_said=True,
        done=3,
        total=10,
        percent=30.0,
        message="reading",
        steps=9,
        declared=10,
        learned=10,
    )

    progress = progress_of(said)

    assert (progress.done, progress.total, progress.percent) == (3, 10, 30.0)
    assert (progress.message, progress.source) == ("reading", "handler")


def test_a_declared_number_of_steps_counts_before_a_learned_one() -> None:
    progress = progress_of(ProgressParts(status="waiting", steps=2, declared=5, learned=100))

    assert (progress.done, progress.total, progress.percent, progress.source) == (2, 5, 40.0, "definition")


def test_else_the_last_run_teaches() -> None:
    progress = progress_of(ProgressParts(status="running", steps=2, learned=4))

    assert (progress.done, progress.total, progress.percent, progress.source) == (2, 4, 50.0, "last_run")


@pytest.mark.parametrize("learned", [None, 0])
def test_nobody_knows_is_none(learned: int | None) -> None:
    progress = progress_of(ProgressParts(status="running", steps=2, learned=learned))

    assert (progress.done, progress.total, progress.percent, progress.source) == (2, None, None, None)


@pytest.mark.parametrize("status", sorted(STATUSES.values()))
def test_only_a_completed_run_is_at_a_hundred(status: RunStatus) -> None:
    for parts in (
        ProgressParts(status=status, is_said=True, done=5, total=5, percent=100.0),
        ProgressParts(status=status, steps=50, declared=5),
        ProgressParts(status=status, steps=50, learned=5),
    ):
        assert progress_of(parts).percent == (100.0 if status == "completed" else MAX_UNFINISHED)


def test_a_completed_run_of_which_nothing_is_known_is_at_a_hundred() -> None:
    assert progress_of(ProgressParts(status="completed")).percent == 100.0
