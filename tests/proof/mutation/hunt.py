"""Lets mutants loose on the tests that are quick to judge, and says who is still alive."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

import psycopg
import pytest

from kedge.schema import render
from kedge_worker import _statements
from kedge_worker.testing._databases import Databases
from tests.proof.model.machine import Machine
from tests.proof.model.system import System
from tests.proof.model.walks import walk
from tests.proof.mutation.mutants import Mutant
from tests.sessions import Session, open_sessions

Verdict = Literal["killed", "alive", "mistaken"]

STEPS: Final = 100

_FOLDER: Final = "tests/integration/test_"
_MOVES: Final = (
    "interleavings_take_back", "interleavings_inbox", "moves_waits", "moves_control", "moves_children", "moves_topics",
    "moves_deadlines", "moves_groups", "interleavings_singletons", "interleavings_children",
)  # fmt: skip
_KILLERS: Final[dict[str, tuple[str, ...]]] = {
    "api/start_run_v1.sql": ("interleavings_start", "interleavings_singletons", "interleavings_singletons_at_once"),
    "api/start_runs_v1.sql": ("interleavings_start", "interleavings_singletons"),
    "api/rerun_run_v1.sql": ("interleavings_rerun", "client/test_rerun_from"),
    "api/send_v1.sql": ("interleavings_letters", "client/test_send"),
    "engine/letters.sql": ("interleavings_letters", "client/test_control", *_MOVES),
    "engine/start_children.sql": ("interleavings_children", "moves_children"),
    "engine/singletons.sql": ("interleavings_singletons", "interleavings_singletons_at_once", "interleavings_children"),
    "engine/delete_ended.sql": ("retention", "interleavings_retention"),
    "engine/pick_letters.sql": ("interleavings_inbox", "interleavings_retention", *_MOVES),
    "CLAIM": ("interleavings_claim", *_MOVES),
    "engine/leave.sql": ("interleavings_claim", "interleavings_take_back"),
    "engine/hold_worker.sql": ("interleavings_claim", "interleavings_take_back"),
    "engine/take_over_journal.sql": ("leased_store", "flusher"),
    "KEEP_TRANSACTION": ("interleavings_transactions",),
    "LOCK_MOVING": ("flusher", "leased_store"),
    "MIND_DEPENDENT": ("child_starts", "interleavings_children"),
    "START_ALONE": ("child_starts", "interleavings_children"),
    "SET_PROGRESS": ("sayings",), "SET_METADATA": ("sayings",), "WRITE_LOG": ("sayings",),
}  # fmt: skip


@contextmanager
def loose(mutant: Mutant, db: Session) -> Generator[None]:
    """The mutant in the place of the function or statement."""
    with pytest.MonkeyPatch.context() as patch:
        if mutant.is_file:
            db.rows(render(mutant.text, "kedge"))
        else:
            patch.setattr(_statements, mutant.where, mutant.text)
        yield


def walked(mutant: Mutant, databases: Databases, seeds: Sequence[int]) -> Verdict:
    """Whether walks against the specification find it; mistaken: without the guard it is no SQL."""
    url = databases.create()
    try:
        with open_sessions(url) as sessions:
            db = sessions.open(statement_timeout="5s")
            with loose(mutant, db):
                system = System(db)
                machine = type("Walker", (Machine,), {"system": system, "seen": Counter()})
                for seed in seeds:
                    walk(machine, seed, STEPS)
    except psycopg.Error as error:
        return "mistaken" if (error.sqlstate or "").startswith("42") else "killed"
    except Exception:  # noqa: BLE001  # whatever it is that a broken statement brings about
        return "killed"
    finally:
        databases.drop(url)
    return "alive"


def met_by_tests(mutant: Mutant) -> Verdict:
    """Whether the tests that are about it find it."""
    files = [
        f"{_FOLDER.removesuffix('test_')}{name}.py" if "/" in name else f"{_FOLDER}{name}.py"
        for name in _KILLERS.get(mutant.where, _MOVES)
    ]
    plugins = ("-p", "no:cacheprovider", "-p", "tests.proof.mutation.plugin")
    done = subprocess.run(  # this interpreter, our tests
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", *plugins, *files],
        env={**os.environ, "KEDGE_MUTANT": mutant.name},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == pytest.ExitCode.TESTS_FAILED:
        return "killed"
    assert done.returncode == pytest.ExitCode.OK, done.stdout[-3000:] + done.stderr[-3000:]
    return "alive"
