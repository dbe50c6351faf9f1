"""What looks for faults finds them: planted ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.cases import Case, perform
from tests.proof.crash_points.clients import ClientCase, tell
from tests.proof.crash_points.runner import play_all
from tests.proof.crash_points.scenes import SCENES
from tests.proof.crash_points.tollgate import Fate, Point
from tests.proof.crash_points.zombies import haunt

BEHIND_A_STEP = (Fate.DIES_SENT, Point("journal", 2))
BEHIND_A_CHARGE = (Fate.DIES_SENT, Point("transaction", 5))
STANDS_STILL = (Fate.STOPS_SENT, Point("journal", 2))
ANOTHER_VALUE = """
    update kedge.journal set value = substr(value, 1, 1) || convert_to('"else"', 'utf8') where seq > 0
"""
STALE_ROW = """
    insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
    select run_id, clock_timestamp(), 99, 1, 0, 'p', 'stale', value, '' from kedge.journal where seq = 1 and kind = 's'
"""


@pytest.mark.parametrize(
    ("sabotage", "noticed"),
    [
        ("delete from kedge.journal where seq > 0", "began 2 times, not 1"),
        ("delete from kedge.journal where seq > 0", "row (UUID("),
        (ANOTHER_VALUE, "nobody has answered else"),
        ("insert into kedge.idle values (gen_random_uuid(), '{}', '{}')", "left in idle"),
    ],
)
async def test_what_is_planted_behind_a_death_is_noticed(
    databases: Databases, tmp_path: Path, sabotage: str, noticed: str
) -> None:
    case = Case(SCENES["steps"], (BEHIND_A_STEP,), sabotage)

    (outcome,) = await play_all([case], perform, databases, tmp_path)

    assert outcome.met
    assert any(noticed in problem for problem in outcome.problems), outcome


async def test_an_effect_that_is_there_twice_is_noticed(databases: Databases, tmp_path: Path) -> None:
    twice = "insert into effects (run, step, value) select run, step, value from effects"
    case = Case(SCENES["charge"], (BEHIND_A_CHARGE,), twice)

    (outcome,) = await play_all([case], perform, databases, tmp_path)

    assert outcome.met
    assert any("effects are" in problem for problem in outcome.problems), outcome


async def test_a_row_that_a_zombie_has_written_is_noticed(databases: Databases, tmp_path: Path) -> None:
    case = Case(SCENES["steps"], (STANDS_STILL,), STALE_ROW)

    (outcome,) = await play_all([case], haunt, databases, tmp_path)

    assert outcome.stale == 1
    assert any("stale write" in problem for problem in outcome.problems), outcome


@pytest.mark.parametrize(
    ("sabotage", "noticed"),
    [
        ("delete from kedge.runs", "an acknowledged start is lost"),
        ("update kedge.run_keys set run_id = gen_random_uuid()", "the key is of another run"),
    ],
)
async def test_what_is_planted_behind_a_client_is_noticed(
    databases: Databases, tmp_path: Path, sabotage: str, noticed: str
) -> None:
    case = ClientCase("sends", Fate.DIES_SENT, Point("kedge-client", 4), sabotage)

    (outcome,) = await play_all([case], tell, databases, tmp_path)

    assert outcome.met
    assert any(noticed in problem for problem in outcome.problems), outcome
