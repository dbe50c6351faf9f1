"""A worker may die, or be cut off, at any call of its to the database: what was promised holds, to the last body."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.cases import Case, perform
from tests.proof.crash_points.farewells import take_leave
from tests.proof.crash_points.fates import Fate
from tests.proof.crash_points.runner import (
    CUTS,
    DEATHS,
    assert_met,
    assert_well,
    cases_of,
    play_all,
    undisturbed,
    until_met,
)
from tests.proof.crash_points.scenes import FAREWELLS, SCENES
from tests.proof.kit.lanes import setting, thinned, turn
from tests.proof.kit.plugin import Figure

FATES = (*DEATHS, Fate.DIES_AMIDST, *CUTS)
PAIRS = int(setting("pairs", 10))
"""Of each scene, by KEDGE_PROOF_PAIRS."""


async def test_a_worker_may_die_or_be_cut_off_at_a_few_calls_of_a_few_scenes(
    databases: Databases, tmp_path: Path, figure: Figure
) -> None:
    names = thinned(list(SCENES), of=4)[:6]  # each scene has its turn within four days
    scenes = await undisturbed(names, databases, tmp_path / "before")
    cases = [case for one in scenes for case in cases_of(one.case.scene, one.calls, FATES)]
    assert len(cases) > 10 * len(names)

    outcomes = await play_all(thinned(cases, of=max(len(cases) // 20, 1))[:20], perform, databases, tmp_path)

    assert_well(outcomes)
    figure("crash points tried", len(outcomes))
    figure("crash points met", sum(bool(outcome.met) for outcome in outcomes))


@pytest.mark.full
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("name", SCENES)
async def test_a_worker_may_die_or_be_cut_off_at_any_call(
    databases: Databases, tmp_path: Path, figure: Figure, name: str, fate: Fate
) -> None:
    (one,) = await undisturbed([name], databases, tmp_path / "before")
    cases = list(cases_of(one.case.scene, one.calls, [fate]))

    outcomes = await play_all(cases, until_met(perform), databases, tmp_path)

    assert_well(outcomes)
    assert_met(outcomes)
    figure("crash points", len(cases))
    figure("crash points met", sum(bool(one.met) for one in outcomes), goal=len(cases), at_least=True)
    figure("extra bodies predicted", sum(one.predicted for one in outcomes))
    figure("extra bodies seen", sum(one.extra for one in outcomes))
    figure("violations", sum(len(one.problems) for one in outcomes), goal=0)


@pytest.mark.full
@pytest.mark.parametrize("name", SCENES)
async def test_the_next_worker_may_die_as_well(databases: Databases, tmp_path: Path, figure: Figure, name: str) -> None:
    (one,) = await undisturbed([name], databases, tmp_path / "before")
    chance = random.Random(f"{name} {turn()}")
    # What is on its way still arrives when the next worker has taken over: that one must live so long.
    first = list(cases_of(one.case.scene, one.calls, [fate for fate in FATES if fate is not Fate.DIES_LATE]))
    second = list(cases_of(one.case.scene, one.calls, FATES))
    cases = [Case(one.case.scene, (*chance.choice(first).fates, *chance.choice(second).fates)) for _ in range(PAIRS)]

    outcomes = await play_all(cases, perform, databases, tmp_path)

    assert_well(outcomes)
    figure("pairs of crash points", len(cases))
    figure("pairs of which both were met", sum(len(one.met) == 2 for one in outcomes))


@pytest.mark.full
@pytest.mark.parametrize("name", FAREWELLS)
async def test_a_worker_that_was_asked_to_end_may_die_or_be_cut_off_at_any_call(
    databases: Databases, tmp_path: Path, figure: Figure, name: str
) -> None:
    (tmp_path / "before").mkdir()
    (one,) = await play_all([Case(FAREWELLS[name])], take_leave, databases, tmp_path / "before")
    assert_well([one])
    cases = list(cases_of(one.case.scene, one.calls, FATES))
    assert cases

    outcomes = await play_all(cases, until_met(take_leave), databases, tmp_path)

    assert_well(outcomes)
    assert_met(outcomes)
    figure("crash points of farewells", len(cases))
    figure("crash points of farewells met", sum(bool(one.met) for one in outcomes), goal=len(cases), at_least=True)
