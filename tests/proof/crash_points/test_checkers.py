"""What looks for faults finds them: planted ones."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeAlias

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.cases import Case, Outcome, perform
from tests.proof.crash_points.clients import ClientCase, ClientOutcome, tell
from tests.proof.crash_points.fates import Fate, Point
from tests.proof.crash_points.nursery import Nursery
from tests.proof.crash_points.runner import play_all
from tests.proof.crash_points.scenes import SCENES
from tests.proof.crash_points.stage import Stage
from tests.proof.crash_points.zombies import haunt

Planted: TypeAlias = tuple[Case | ClientCase, str]
"""With SQL that brings a fault about, and what must be said of it."""

ANOTHER_VALUE: Final = """
    update kedge.journal set value = substr(value, 1, 1) || convert_to('"else"', 'utf8') where seq > 0
"""
STALE_ROW: Final = """
    insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
    select run_id, clock_timestamp(), 99, 1, 0, 'p', 'stale', value, '' from kedge.journal where seq = 1 and kind = 's'
"""


def behind_a_step(sabotage: str, fate: Fate = Fate.DIES_SENT) -> Case:
    """The first step is kept by then."""
    return Case(SCENES["steps"], ((fate, Point("journal", 1)),), sabotage)


def behind_a_charge(sabotage: str) -> Case:
    """The first effect is committed by then."""
    return Case(SCENES["charge"], ((Fate.DIES_SENT, Point("transaction", 5)),), sabotage)


def behind_a_start(sabotage: str) -> ClientCase:
    """The start is acknowledged by then."""
    return ClientCase("sends", Fate.DIES_SENT, Point("kedge-client", 4), sabotage)


PLANTED: Final[list[Planted]] = [
    (behind_a_step("delete from kedge.journal where seq > 0"), "the body of 'one' began 2 times, not 1"),
    (behind_a_step("delete from kedge.journal where seq > 0"), "was (1, 's', 'one'"),
    (behind_a_step(ANOTHER_VALUE), "nobody has answered else of 'one'"),
    (behind_a_step("insert into kedge.idle values (gen_random_uuid(), '{}', '{}')"), "left in idle"),
    (behind_a_charge("insert into effects (run, step, value) select run, step, value from effects"), "effects are"),
    (behind_a_charge("delete from effects"), "effects are"),
    (behind_a_step(STALE_ROW, Fate.STOPS_SENT), "stale write"),
    (behind_a_start("delete from kedge.runs"), "an acknowledged start is lost"),
    (behind_a_start("update kedge.run_keys set run_id = gen_random_uuid()"), "the key is of another run"),
]


async def test_planted_faults_are_noticed(databases: Databases, tmp_path: Path) -> None:
    async def play(planted: Planted, on: Stage, nursery: Nursery, folder: Path) -> tuple[Outcome | ClientOutcome, str]:
        case, noticed = planted
        if isinstance(case, ClientCase):
            return await tell(case, on, nursery, folder), noticed
        player = haunt if case.fates[0][0] is Fate.STOPS_SENT else perform
        return await player(case, on, nursery, folder), noticed

    outcomes = await play_all(PLANTED, play, databases, tmp_path)

    for outcome, noticed in outcomes:
        assert outcome.met, outcome
        assert any(noticed in problem for problem in outcome.problems), f"not noticed: {noticed}\n{outcome}"
