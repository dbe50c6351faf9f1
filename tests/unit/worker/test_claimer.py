"""How much is claimed at a time."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from kedge_worker._claimer import Claimer
from kedge_worker._claims import ClaimAnswer
from kedge_worker._context import Context
from kedge_worker._store import Store
from tests.unit.worker.journal import bound, claim


async def _nothing(_: Context) -> None:
    pass


class Slots:
    """A claimer, and whose slots it fills."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self._run = claim(bound(_nothing))
        self.claimer = Claimer(
            cast("Store", None),  # nobody goes to sleep here
            queues=["default"],
            workflows=["order"],
            free=lambda ending: self.free + ending,
            poke=lambda: None,
            timeouts={},
            slots=slots,
        )

    async def claims(self, ending: int = 0) -> int:
        """What the next claim asks for; it is answered in full."""
        looking = asyncio.create_task(self.claimer.look())
        await asyncio.sleep(0)
        request = self.claimer.wanted(ending)
        assert request is not None
        self.claimer.answered(ClaimAnswer(request.limit, [self._run] * request.limit, {}, has_mail=False))
        await looking
        return request.limit


async def test_a_claim_looks_at_more_after_others_had_what_it_looked_at_until_the_queue_is_empty() -> None:
    claimer = Slots(10).claimer
    asked: list[int] = []
    looking = asyncio.create_task(claimer.look())
    for was_contended in (True, True, False):
        await asyncio.sleep(0)
        asked.append(answered(claimer, was_contended=was_contended))
        await asyncio.sleep(0)
    assert (await looking).runs == 0

    again = asyncio.create_task(claimer.look())
    await asyncio.sleep(0)
    asked.append(answered(claimer, was_contended=False))
    assert (await again).runs == 0
    assert asked == [10, 20, 40, 10]


def answered(claimer: Claimer, *, was_contended: bool) -> int:
    """How many runs the claim looks at that is answered with none."""
    request = claimer.wanted(0)
    assert request is not None
    claimer.answered(ClaimAnswer(request.limit, [], {}, has_mail=False, was_contended=was_contended))
    return request.candidates


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (10, 10), (20, 10), (21, 11), (100, 50), (2000, 500)])
async def test_a_claim_asks_for_half_of_many_slots_at_most_so_that_postgres_and_python_work_side_by_side(
    slots: int, most: int
) -> None:
    assert await Slots(slots).claims() == most


async def test_a_claim_never_asks_for_more_than_the_free_slots_and_those_that_leave_with_its_flush() -> None:
    slots = Slots(100)
    slots.free = 3

    assert await slots.claims(ending=4) == 7


async def test_after_a_run_that_cannot_be_read_claims_of_one_grow_to_half_of_the_slots_again() -> None:
    slots = Slots(20)
    slots.claimer.narrow()

    assert [await slots.claims() for _ in range(5)] == [1, 2, 4, 8, 10]
