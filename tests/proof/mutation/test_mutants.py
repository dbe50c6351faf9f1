"""
Mutants of the SQL by rule, let loose on walks against the specification, and then on the tests that are about them.

A sample in the full lane, another one each day: `KEDGE_PROOF_TURN` repeats one, `KEDGE_PROOF_MUTANTS` says how many.
"""

from __future__ import annotations

import random

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.kit.lanes import setting, turn
from tests.proof.kit.plugin import Figure
from tests.proof.mutation.hunt import met_by_tests, walked
from tests.proof.mutation.known import HARMLESS, HELD_ELSEWHERE
from tests.proof.mutation.mutants import Mutant, mutants


def sample() -> list[Mutant]:
    """Of those that nothing is known about."""
    unknown = [
        mutant
        for mutant in mutants()
        if mutant.where not in HELD_ELSEWHERE and mutant.guard not in HARMLESS.get(mutant.where, {})
    ]
    return random.Random(turn()).sample(unknown, min(len(unknown), int(setting("MUTANTS", 16))))


@pytest.mark.full
@pytest.mark.parametrize("mutant", sample(), ids=lambda mutant: mutant.name)
def test_a_mutant_is_found(
    mutant: Mutant, databases: Databases, figure: Figure, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = walked(mutant, databases, range(3))
    if verdict == "alive":
        verdict = met_by_tests(mutant)

    # No failure: nobody knows them all yet. Whoever meets one writes the test, or the reason in known.py.
    if verdict == "alive":
        figure("a mutant is still alive", 1, goal=0)
        with capsys.disabled():
            print(f"\nstill alive: {mutant.name}", end="")  # noqa: T201


def test_what_is_known_of_mutants_is_still_said_of_one() -> None:
    there = {(mutant.where, mutant.guard) for mutant in mutants()}
    gone = [(where, guard) for where, guards in HARMLESS.items() for guard in guards if (where, guard) not in there]
    assert not gone, "these guards read otherwise by now; look at them again"
