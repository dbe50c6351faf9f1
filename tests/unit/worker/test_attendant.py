"""Waits in memory: who looks at mail and at the clock, and what an answer that is late already may still say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from kedge_worker import _attendant
from kedge_worker._attendant import Attendant
from kedge_worker._runs import LiveRun, Mail
from kedge_worker._statements import CLAIM_BYTES
from kedge_worker._store import Store
from kedge_worker._waits import Kept, RunWaits, Wait
from tests.unit.worker.journal import MemoryJournal, bound, claim


class Inbox:
    """In the place of the store: answers when the test lets it, with what there was when it was asked."""

    def __init__(self) -> None:
        self.mail: dict[UUID, list[Mail]] = {}
        self.times: list[tuple[UUID, str, int, float]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = asyncio.Event()
        self.known: Sequence[UUID] = ()
        self.clock_looks = 0
        self.most = 1000
        """Letters in one answer; the real one counts bytes."""

    async def new_mail(self, _: Sequence[UUID], known: Sequence[UUID]) -> dict[UUID, list[Mail]]:
        self.known = list(known)
        answer = {run: [one for one in mail if one.id not in known][: self.most] for run, mail in self.mail.items()}
        self.asked.set()
        await self.may_answer.wait()
        return answer

    async def times_up(self, _: Sequence[UUID], *, within_s: float) -> list[tuple[UUID, str, int, float]]:
        del within_s
        self.clock_looks += 1
        answer = list(self.times)
        self.asked.set()
        await self.may_answer.wait()
        return answer


class Waiting:
    """A run that waits, and who attends to it."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.run = LiveRun(claim(bound(self._handler)), 1)
        self.run_id = self.run.claimed.id
        self.inbox = Inbox()
        self.runs: dict[UUID, RunWaits] = {}
        self.attendant = Attendant(cast("Store", self.inbox), self.runs)
        self.waits = RunWaits(
            self.run,
            self.journal,
            asyncio.get_running_loop(),
            self._keep,
            changed=lambda: None,
            look=self.attendant.ring,
            look_at_clock=self.attendant.ring_clock,
        )
        self.runs[self.run_id] = self.waits

    def begin(self, wait: Wait) -> Wait:
        self.waits.begin(wait)
        return wait

    def event(self, key: str = "paid") -> Wait:
        kept = Kept("f", b"too late", "e")
        return self.begin(
            Wait("e", key, slot="e:paid", read=lambda mail: Kept("e", mail.payload, "e"), time_up=lambda: kept)
        )

    def poll(self, attempt: int) -> Wait:
        return self.begin(Wait("p", "check", read=lambda _: None, time_up=lambda: None, attempt=attempt))

    def sends(self, payload: bytes) -> None:
        mail = self.inbox.mail.setdefault(self.run_id, [])
        mail.append(Mail(uuid4(), len(mail) + 1, "e:paid", payload))

    @staticmethod
    async def _handler(_: Any) -> None:
        pass

    def _keep(self, kept: Kept, key: str) -> int:
        return self.journal.keep(self.run, kept.kind, key, kept.value)


@contextlib.asynccontextmanager
async def attended(waiting: Waiting) -> AsyncGenerator[None]:
    task = asyncio.create_task(waiting.attendant.run())
    try:
        async with asyncio.timeout(10):
            yield
    finally:
        task.cancel()


def served(wait: Wait) -> bytes | None:
    """What the wait has ended with, as kept; None: not yet, or without a row."""
    assert wait.future is not None
    kept = wait.future.result().kept if wait.future.done() else None
    return None if kept is None else kept.value


async def test_an_event_that_was_there_before_the_time_was_up_counts_though_a_look_was_under_way() -> None:
    waiting = Waiting()
    waiting.inbox.may_answer.clear()
    wait = waiting.event()
    async with attended(waiting):
        await waiting.inbox.asked.wait()
        # The look that is under way cannot know of it any more.
        waiting.sends(b"in time")
        waiting.waits.come("paid", 0)
        waiting.inbox.may_answer.set()
        assert wait.future is not None
        await wait.future

    assert served(wait) == b"in time"


async def test_the_time_of_an_attempt_that_is_over_does_not_end_the_pause_before_the_next() -> None:
    waiting = Waiting()
    first = waiting.poll(1)
    waiting.inbox.times = [(waiting.run_id, "check", 1, 0.0)]
    waiting.inbox.may_answer.clear()
    looking = asyncio.create_task(waiting.attendant.look_at_clock())
    await waiting.inbox.asked.wait()
    # Meanwhile the loop's own timer ends the pause, the check is made, and the next pause begins.
    waiting.waits.come("check", 1)
    waiting.waits.end(first)
    second = waiting.poll(2)
    waiting.inbox.may_answer.set()
    await looking

    assert first.future is not None
    assert first.future.done()
    assert second.future is not None
    assert not second.future.done()


async def test_the_clock_is_looked_at_however_often_somebody_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_attendant, "_PERIOD_S", 0.05)
    waiting = Waiting()
    waiting.event()
    async with attended(waiting):
        while waiting.inbox.clock_looks < 2:
            waiting.attendant.ring()
            await asyncio.sleep(0)


async def test_mail_that_was_read_is_not_asked_for_for_ever() -> None:
    waiting = Waiting()
    for number in range(10):
        wait = waiting.event(f"paid#{number}")
        waiting.sends(b"%d" % number)
        await waiting.attendant.look()
        assert served(wait) == b"%d" % number
        waiting.waits.end(wait)
        assert waiting.inbox.mail[waiting.run_id][-1].id in waiting.waits.known_mail()
        await waiting.journal.durable(waiting.run)
        waiting.inbox.mail.clear()

    await waiting.attendant.look()
    assert waiting.inbox.known == []


async def test_a_time_that_has_come_by_this_machines_clock_ends_when_it_has_come_by_the_databases() -> None:
    waiting = Waiting()
    wait = waiting.poll(0)
    waiting.inbox.times = [(waiting.run_id, "check", 0, 0.01)]
    async with attended(waiting):
        waiting.waits.arm(wait, 0.0)
        await waiting.inbox.asked.wait()
        waiting.inbox.asked.clear()
        assert wait.future is not None
        # Asked again when it is said to have come.
        await waiting.inbox.asked.wait()
        assert not wait.future.done()
        waiting.inbox.times = [(waiting.run_id, "check", 0, -0.001)]
        await wait.future


async def test_a_look_ends_when_it_has_all_mail_however_large_and_only_then_a_time_is_up() -> None:
    waiting = Waiting()
    waiting.inbox.most = 1
    other = uuid4()
    waiting.inbox.mail[waiting.run_id] = [
        Mail(other, 1, "e:other", b"0" * CLAIM_BYTES),
        Mail(uuid4(), 2, "e:paid", b"in time"),
    ]
    wait = waiting.event()
    waiting.waits.come("paid", 0)

    await waiting.attendant.look()

    assert served(wait) == b"in time"
    assert waiting.inbox.known == [other]
