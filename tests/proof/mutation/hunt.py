"""Lets mutants loose on the tests that are quick to judge, and says who is still alive."""

from __future__ import annotations

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
