"""A family whose worker is cut at each statement in turn: each child is started once, and each end is told once."""

from __future__ import annotations

import asyncio

import pytest

from kedge import WorkflowRef
from kedge_client import Client
from kedge_worker import Context, Worker, workflow
from tests.fault_proxy import Fault, FaultProxy, Message, Sender
from tests.integration.test_interleavings_worker import NthOfTheJournal
from tests.sessions import Session

parent = WorkflowRef("parent", int, list[int])
child = WorkflowRef("child", int, int)
keyed = WorkflowRef("keyed", int, int, key=lambda number: f"k:{number}")


@workflow(parent)
async def handle_parent(ctx: Context, number: int) -> list[int]:
    started = await ctx.start("started", child(number))
    called = await ctx.call("called", child(number + 1), on_parent_end="cancel")
    mapped = await ctx.map("mapped", child, [number + 2, number + 3, number + 4], limit=2)
    alone = await ctx.call("alone", keyed(number))
    return [called, *mapped, alone, await started.result()]


@workflow(child)
async def handle_child(_: Context, number: int) -> int:
    return 10 * number


@workflow(keyed)
async def handle_keyed(_: Context, number: int) -> int:
    return 100 * number


STRIDE = 8
"""Each statement in turn takes minutes; there are some two hundred and fifty, and they differ little."""

HANDLERS = (handle_parent, handle_child, handle_keyed)


class NthAboutStarts:
    """Matches what the connection for children that start alone sends or is answered, the n-th message of a round."""

    def __init__(self, number: int, sender: Sender) -> None:
        self._left = number
        self._sender = sender
        self._starts: int | None = None

    def __call__(self, message: Message) -> bool:
        if self._starts is None and message.sender == "client" and b"start_run" in message.body:
            self._starts = message.connection
        if message.connection != self._starts or message.sender != self._sender:
            return False
        self._left -= 1
        return self._left == 0


async def lived_through(database_url: str, proxy: FaultProxy, number: int) -> list[int]:
    """The result of a family whose worker stands behind the proxy."""
    with Client.connect(database_url) as client:
        run = client.start(parent(number))
        worker = Worker(proxy.url, workflows=HANDLERS, lease="1m", listen=False)
        async with asyncio.timeout(30):
            while run.status() != "completed":
                await worker.run_until_idle()
        return run.result(timeout=0)


def check(db: Session, number: int, result: list[int], where: str) -> None:
    """One of each, with the right answers; the next family has other inputs."""
    expected = [10 * (number + 1), *(10 * (number + n) for n in (2, 3, 4)), 100 * number, 10 * number]
    assert result == expected, where
    counts = dict(db.rows("select workflow, count(*) from kedge.finished group by workflow"))
    assert counts == {"parent": 1, "child": 5, "keyed": 1}, where
    assert db.value("select count(*) from kedge.runs") == 0, where
    assert db.value("select max(crashes) from kedge.finished") == 0, where
    db.rows("truncate kedge.finished, kedge.journal, kedge.run_keys, kedge.events")


@pytest.mark.parametrize(
    ("sender", "number"),
    [("client", 1), ("server", 5)],
    ids=["before a statement arrives", "before it is answered"],
)
async def test_wherever_the_journal_is_cut_each_child_is_started_once(
    database_url: str, db: Session, sender: Sender, number: int
) -> None:
    sprung = True
    while sprung:
        number += STRIDE
        async with FaultProxy(database_url) as proxy:
            trap = proxy.set_trap(NthOfTheJournal(number, sender), Fault.CUT)
            result = await lived_through(database_url, proxy, number)
            sprung = trap.has_sprung
        check(db, number, result, f"cut at {number}")

    assert number > 100


@pytest.mark.parametrize("sender", ["client", "server"], ids=["before it arrives", "before it is answered"])
async def test_wherever_a_start_alone_is_cut_it_is_started_once(database_url: str, db: Session, sender: Sender) -> None:
    number = 0
    sprung = True
    while sprung:
        number += 1
        async with FaultProxy(database_url) as proxy:
            trap = proxy.set_trap(NthAboutStarts(number, sender), Fault.CUT)
            result = await lived_through(database_url, proxy, number)
            sprung = trap.has_sprung
        check(db, number, result, f"cut at {number}")

    assert number > 3
