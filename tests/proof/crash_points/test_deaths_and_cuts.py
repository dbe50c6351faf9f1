"""A worker may die, or be cut off, at any call of its to the database: what was promised holds, to the last body."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.cases import Case, Outcome, perform
from tests.proof.crash_points.runner import CUTS, DEATHS, cases_of, perform_until_met, play_all
from tests.proof.crash_points.scenes import SCENES
from tests.proof.crash_points.tollgate import Fate
from tests.proof.kit.lanes import thinned
from tests.proof.kit.plugin import Figure

FATES = (*DEATHS, Fate.DIES_AMIDST, *CUTS)


async def undisturbed(names: Sequence[str], databases: Databases, folder: Path) -> list[Outcome]:
    """Play scenes without any fault: the calls that there are, and that all is well then."""
    outcomes = await play_all([Case(SCENES[name]) for name in names], perform, databases, folder)
    assert_well(outcomes)
    assert all(outcome.extra == 0 for outcome in outcomes)
    return outcomes


def assert_well(outcomes: Sequence[Outcome]) -> None:
    """No case has left a problem."""
    bad = [outcome for outcome in outcomes if outcome.problems]
    told = "\n\n".join(map(str, bad[:5]))
    assert not bad, f"{len(bad)} of {len(outcomes)} cases are not well:\n{told}"


async def test_a_worker_may_die_or_be_cut_off_at_a_few_calls_of_every_scene(
    databases: Databases, tmp_path: Path, figure: Figure
) -> None:
    (tmp_path / "before").mkdir()
    scenes = await undisturbed(list(SCENES), databases, tmp_path / "before")
    cases = [case for one in scenes for case in cases_of(one.case.scene, one.calls, FATES)]
    assert len(cases) > 1500
    picked = thinned(cases, of=60)[:60]
    outcomes = await play_all(picked, perform, databases, tmp_path)
    assert_well(outcomes)
    figure("crash points tried", len(outcomes))
    figure("crash points met", sum(bool(outcome.met) for outcome in outcomes), at_least=True)


@pytest.mark.full
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("name", SCENES)
async def test_a_worker_may_die_or_be_cut_off_at_any_call(
    databases: Databases, tmp_path: Path, figure: Figure, name: str, fate: Fate
) -> None:
    (tmp_path / "before").mkdir()
    (one,) = await undisturbed([name], databases, tmp_path / "before")
    cases = list(cases_of(one.case.scene, one.calls, [fate]))

    outcomes = await play_all(cases, perform_until_met, databases, tmp_path)

    assert_well(outcomes)
    met = [outcome for outcome in outcomes if outcome.met]
    figure("crash points", len(cases))
    figure("crash points met", len(met), goal=len(cases), at_least=True)
    figure("extra bodies, all predicted", sum(outcome.extra for outcome in outcomes))
