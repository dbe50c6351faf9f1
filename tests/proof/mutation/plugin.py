"""For pytest's `-p`: the tests of this process meet the engine without one guard, by `KEDGE_MUTANT`, its name."""

from __future__ import annotations

import os
from typing import Final

import kedge.schema
from kedge_worker import _statements
from tests.proof.mutation.mutants import mutants

VARIABLE: Final = "KEDGE_MUTANT"

if name := os.environ.get(VARIABLE):
    (mutant,) = [one for one in mutants() if one.name == name]
    if mutant.is_file:
        _mutated = tuple((n, mutant.text if n == mutant.where else text) for n, text in kedge.schema.functions())
        kedge.schema.functions = lambda: _mutated  # type: ignore[assignment]
    else:
        setattr(_statements, mutant.where, mutant.text)
