"""A client may die, or be cut off, at any call: what was acknowledged is there, and repeating settles the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.clients import SCRIPTS, ClientCase, ClientOutcome, tell
from tests.proof.crash_points.fates import Call, Fate, Point
from tests.proof.crash_points.runner import CUTS, DEATHS, amidst, assert_met, assert_well, play_all
from tests.proof.kit.lanes import thinned
from tests.proof.kit.plugin import Figure

FATES = (*DEATHS, Fate.DIES_AMIDST, *CUTS)


def cases_of(script: str, calls: Sequence[Call]) -> list[ClientCase]:
    """Each call of a script with each fate."""
    whole = [ClientCase(script, fate, Point(call.role, call.number)) for fate in (*DEATHS, *CUTS) for call in calls]
    parts = [
        ClientCase(script, Fate.DIES_AMIDST, Point(call.role, call.number, amidst=place))
        for call in calls
        for place in amidst(call)
    ]
    return whole + parts


async def undisturbed(names: Sequence[str], databases: Databases, folder: Path) -> list[ClientOutcome]:
    """Play scripts without any fault."""
    folder.mkdir()
    outcomes = await play_all([ClientCase(name) for name in names], tell, databases, folder)
    assert_well(outcomes)
    return outcomes


async def test_a_client_may_die_or_be_cut_off_at_a_few_calls(
    databases: Databases, tmp_path: Path, figure: Figure
) -> None:
    scripts = await undisturbed(list(SCRIPTS), databases, tmp_path / "before")
    cases = [case for one in scripts for case in cases_of(one.case.script, one.calls)]
    assert len(cases) > 100

    outcomes = await play_all(thinned(cases, of=12)[:12], tell, databases, tmp_path)

    assert_well(outcomes)
    figure("crash points of clients tried", len(outcomes))


@pytest.mark.full
@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_client_may_die_or_be_cut_off_at_any_call(
    databases: Databases, tmp_path: Path, figure: Figure, name: str
) -> None:
    (one,) = await undisturbed([name], databases, tmp_path / "before")
    cases = cases_of(name, one.calls)

    outcomes = await play_all(cases, tell, databases, tmp_path)

    assert_well(outcomes)
    assert_met(outcomes)
    figure("crash points of clients", len(cases))
    figure("crash points of clients met", sum(bool(one.met) for one in outcomes), goal=len(cases), at_least=True)
    figure("outcomes that the client called unknown", sum(one.unknown for one in outcomes))
