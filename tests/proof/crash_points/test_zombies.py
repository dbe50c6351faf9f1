"""A worker that stands still at any call, is taken for dead, and goes on: nothing that it writes is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.fates import STOPPING, Fate
from tests.proof.crash_points.runner import assert_met, assert_well, cases_of, play_all, undisturbed, until_met
from tests.proof.crash_points.scenes import SCENES
from tests.proof.crash_points.zombies import haunt, haunt_slowly
from tests.proof.kit.lanes import thinned
from tests.proof.kit.plugin import Figure

FATES = sorted(STOPPING, key=lambda fate: fate.name)
FEW = ("steps", "charge", "event", "parent")
LAPSING = ("parallel", "charge", "event")
THIRD = 3
"""Of calls at which a lease lapses, every third: each takes some seconds."""


async def test_nothing_is_accepted_of_a_worker_that_stood_still_at_a_few_calls(
    databases: Databases, tmp_path: Path, figure: Figure
) -> None:
    scenes = await undisturbed(thinned(FEW, of=4)[:1], databases, tmp_path / "before")
    cases = [case for one in scenes for case in cases_of(one.case.scene, one.calls, FATES)]

    outcomes = await play_all(thinned(cases, of=max(len(cases) // 8, 1))[:8], haunt, databases, tmp_path)

    assert_well(outcomes)
    figure("zombie points tried", len(outcomes))
    figure("stale writes accepted", sum(one.stale for one in outcomes), goal=0)


@pytest.mark.full
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("name", SCENES)
async def test_nothing_is_accepted_of_a_worker_that_stood_still_at_any_call(
    databases: Databases, tmp_path: Path, figure: Figure, name: str, fate: Fate
) -> None:
    (one,) = await undisturbed([name], databases, tmp_path / "before")
    cases = list(cases_of(one.case.scene, one.calls, [fate]))

    outcomes = await play_all(cases, until_met(haunt), databases, tmp_path)

    assert_well(outcomes)
    assert_met(outcomes)
    figure("zombie points", len(cases))
    figure("zombie points met", sum(bool(one.met) for one in outcomes), goal=len(cases), at_least=True)
    figure("stale writes accepted", sum(one.stale for one in outcomes), goal=0)
    figure("violations", sum(len(one.problems) for one in outcomes), goal=0)
    figure("bodies that zombies had begun before they noticed", sum(one.extra - one.predicted for one in outcomes))
    figure("a zombie's new life begins within", max((one.noticed_s for one in outcomes), default=0), unit="s")


@pytest.mark.full
@pytest.mark.parametrize("name", LAPSING)
async def test_nothing_is_accepted_of_a_worker_whose_lease_lapsed_while_it_stood_still(
    databases: Databases, tmp_path: Path, figure: Figure, name: str
) -> None:
    (one,) = await undisturbed([name], databases, tmp_path / "before")
    cases = list(cases_of(one.case.scene, one.calls, FATES))[::THIRD]

    outcomes = await play_all(cases, until_met(haunt_slowly), databases, tmp_path)

    assert_well(outcomes)
    assert_met(outcomes)
    figure("zombie points with a lease that lapsed", len(cases))
    figure("stale writes accepted", sum(one.stale for one in outcomes), goal=0)
