"""A whole worker whose journal is cut at each statement in turn: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import UUID

import pytest

from kedge import WorkflowRef
from kedge_worker import Context, Worker, workflow
from tests import moves
from tests.fault_proxy import Fault, FaultProxy, Message, Sender, binds
from tests.sessions import Session

STEPS = ("reserve", "charge")


class Shop:
    """A workflow whose steps' bodies are counted."""

    def __init__(self) -> None:
        self.bodies: Counter[tuple[UUID, str]] = Counter()

        @workflow(WorkflowRef(moves.WORKFLOW))
        async def order(ctx: Context) -> None:
            for name in STEPS:
                await ctx.step(name, self.body, ctx.run_id, name)

        self.order = order

    async def body(self, run: UUID, name: str) -> None:
        self.bodies[run, name] += 1


class NthOfTheJournal:
    """Matches the n-th statement that the journal sends, or the n-th that is answered, from its first claim on."""

    def __init__(self, number: int, sender: Sender) -> None:
        self._left = number
        self._sender = sender
        self._journal: int | None = None

    def __call__(self, message: Message) -> bool:
        if self._journal is None and message.kind == b"B" and message.sender == "client" and binds(message) == b"claim":
            self._journal = message.connection
        kind = b"B" if self._sender == "client" else b"C"
        if message.connection != self._journal or message.sender != self._sender or message.kind != kind:
            return False
        self._left -= 1
        return self._left == 0


@pytest.mark.parametrize("sender", ["client", "server"], ids=["before a statement arrives", "before it is answered"])
async def test_wherever_the_journal_is_cut_every_body_runs_once_and_every_row_stands_once(
    database_url: str, db: Session, sender: Sender
) -> None:
    shop = Shop()
    place = 0
    sprung = True
    while sprung:
        place += 1
        runs = moves.started(db, 2)
        async with FaultProxy(database_url) as proxy:
            trap = proxy.set_trap(NthOfTheJournal(place, sender), Fault.CUT)
            worker = Worker(proxy.url, workflows=[shop.order], lease="1m", listen=False)
            async with asyncio.timeout(20):
                await worker.run_until_idle()
            sprung = trap.has_sprung

        assert moves.statuses(db, runs) == dict.fromkeys(runs, "completed"), f"cut at {place}"
        assert {shop.bodies[run, name] for run in runs for name in STEPS} == {1}, f"cut at {place}"
        assert [len(moves.journal(db, run)) for run in runs] == [len(STEPS)] * 2, f"cut at {place}"
        assert db.value("select max(crashes) from kedge.finished") == 0

    assert place > 15


async def test_a_claim_whose_answer_is_lost_runs_each_of_its_runs_once_and_charges_nobody(
    database_url: str, db: Session
) -> None:
    shop = Shop()
    runs = moves.started(db, 20)
    async with FaultProxy(database_url) as proxy:
        proxy.set_trap(NthOfTheJournal(3, "server"), Fault.CUT)  # the CLAIM itself, behind begin and hold
        worker = Worker(proxy.url, workflows=[shop.order], lease="1m", concurrency=5, listen=False)
        async with asyncio.timeout(20):
            await worker.run_until_idle()

    assert set(shop.bodies.values()) == {1}
    assert moves.statuses(db) == dict.fromkeys(runs, "completed")
    assert db.value("select max(crashes) from kedge.finished") == 0
