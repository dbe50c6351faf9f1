"""The moves of the engine, at random, against the specification in `spec.py`: on real Postgres, without a worker."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from kedge.schema import functions, render
from tests.proof.kit.lanes import amount, lane, setting, thinned, turn
from tests.proof.kit.plugin import Figure
from tests.proof.model.machine import Machine
from tests.proof.model.system import System
from tests.proof.model.walks import walk
from tests.sessions import open_sessions


@pytest.mark.parametrize("part", range(amount(thin=1, full=4)))
@pytest.mark.breaks_invariants  # it looks at them itself
def test_whatever_the_order_of_moves_the_database_stands_as_the_specification_says(
    part: int, database_url: str, figure: Figure
) -> None:
    seconds = setting("MODEL_SECONDS", 45 if lane() == "full" else 4)
    begun = time.monotonic()
    seen: Counter[tuple[str, str]] = Counter()
    first = number = (turn() * 10 + part) * 10_000
    with open_sessions(database_url) as sessions:
        machine = type("Walker", (Machine,), {"system": System(sessions.open()), "seen": seen})
        while time.monotonic() < begun + seconds:
            walk(machine, number, 100)
            number += 1

    figure("moves against the specification", 100 * (number - first))
    figure("pairs of a run's status and a move", len(seen))
    figure("how often the rarest of them came", min(seen.values()))


@pytest.mark.breaks_invariants
def test_hypothesis_finds_no_short_way_to_where_the_database_stands_otherwise(database_url: str) -> None:
    with open_sessions(database_url) as sessions:
        machine = seed(turn())(type("Machine", (Machine,), {"system": System(sessions.open()), "seen": Counter()}))
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=amount(thin=3, full=60),
                stateful_step_count=50,
                deadline=None,
                derandomize=False,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
                phases=(Phase.generate, Phase.shrink),
            ),
        )


FAULTS: Final = [
    ("engine/sort_controls.sql", "when v_run.state = 'r' then 'asked' else 'done' end;", "else 'done' end;"),
    ("engine/wake_runs.sql", "and r.state = 'w' and kedge.mail_wakes(r.id)", "and r.state = 'w' and false"),
    ("engine/free_runs.sql", "epoch = r.epoch + 1, since", "since"),
    ("engine/retry_run.sql", "v_run.epoch + 1, v_run.next_seq", "v_run.epoch + 1, 1"),
]


@pytest.mark.breaks_invariants
@pytest.mark.parametrize(("where", "before", "after"), thinned(FAULTS, of=len(FAULTS)))
def test_walks_find_a_fault(database_url: str, where: str, before: str, after: str) -> None:
    text = dict(functions())[where]
    assert before in text
    with open_sessions(database_url) as sessions:
        db = sessions.open()
        db.rows(render(text.replace(before, after), "kedge"))
        machine = type("Walker", (Machine,), {"system": System(db), "seen": Counter()})

        def walks() -> None:
            for number in range(20):
                walk(machine, number, 100)

        with pytest.raises((AssertionError, psycopg.Error)):
            walks()
