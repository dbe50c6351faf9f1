"""How many runs a worker asks for, by what those that came before weighed."""

import pytest

from kedge_worker._claimer import MAX_CLAIM, fitting
from kedge_worker._claims import ClaimAnswer
from kedge_worker._context import Context
from kedge_worker._statements import CLAIM_BYTES
from tests.unit.worker.journal import bound, claim

KIB = 1024


async def handler(_: Context) -> None: ...


def answer(*sizes: int, limit: int = 100, was_cut: bool = False) -> ClaimAnswer:
    runs = [claim(bound(handler), input=b"0" * size) for size in sizes]
    return ClaimAnswer(limit, runs, {}, has_mail=False, was_cut=was_cut)


def test_small_inputs_set_no_limit() -> None:
    assert fitting(answer(*[40] * 100)) == MAX_CLAIM
    assert fitting(answer()) == MAX_CLAIM


@pytest.mark.parametrize("size", [128 * KIB, 256 * KIB, 1024 * KIB])
def test_of_large_inputs_as_many_are_asked_for_as_fit_into_one_answer(size: int) -> None:
    most = fitting(answer(*[size] * 100))

    assert most * size == CLAIM_BYTES


def test_one_run_is_always_asked_for() -> None:
    assert fitting(answer(3 * CLAIM_BYTES)) == 1
    assert fitting(answer(40, was_cut=True)) == 1


def test_behind_an_answer_that_was_cut_the_next_one_is_for_as_many_as_came() -> None:
    found = answer(40, 40, 40, was_cut=True)

    assert (fitting(found), found.is_full) == (3, True)


def test_an_answer_is_full_when_there_may_be_more() -> None:
    assert answer(40, 40, limit=2).is_full
    assert not answer(40, limit=2).is_full
