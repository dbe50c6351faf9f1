"""
Random handlers, executed by several workers while events come, clocks move, wires are cut and operators pause and
resume: whatever happened, a run has gone one way, the one that its journal tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from kedge import InvalidRunStateError, WorkflowRef
from kedge_client import AsyncClient, AsyncRunHandle
from kedge_worker import Context, Worker, workflow
from kedge_worker._signals import LeaseLostError
from kedge_worker.testing import Clock
from tests.fault_proxy import Fault, FaultProxy, answers_commit, asks_commit, executes, nth
from tests.scenarios.programs import EVENTS, TOPIC, Player, Told, program

RUNS: Final = 5
DISTURBANCES: Final = 60
_MOST_ROUNDS: Final = 120

_FLUSHES: Final = (
    "open_waits",
    "close_waits",
    "consume_mail",
    "send_letters",
    "keep",
    "park",
    "release",
    "end",
    "claim",
)

# A run that has ended, executed again with all that its journal holds.
_REOPEN: Final = """
    with gone as (delete from kedge.finished where id = %s returning *)
    insert into kedge.runs (id, since, started_at, deadline_at, epoch, next_seq, rank, attempt, crashes, state, queue,
                            workflow, resource, key, timeout_s, has_waits)
    select id, kedge.instant(), started_at, deadline_at, epoch + 1, next_seq, rank, attempt, 0, 'p', queue, workflow,
           resource, key, timeout_s, kedge.waits_or_mail(id)
      from gone
"""


class Crowd:
    """Runs of random programs, workers, and everything that can happen to them, out of one seed."""

    def __init__(self, url: str, seed: int, client: AsyncClient, proxy: FaultProxy) -> None:
        self.conn = psycopg.connect(url, autocommit=True)
        self.conn.execute("create table if not exists ledger (name text)")
        self._url = url
        self._chance = random.Random(seed)
        self._client = client
        self._proxy = proxy
        self._clock = Clock(url)
        self._sent = 0
        self._stop = False
        self.lives: dict[UUID, list[Told]] = {}
        self.bodies: list[tuple[UUID, str]] = []
        self.runs: dict[UUID, AsyncRunHandle[Any]] = {}
        self.ref = WorkflowRef("programmed", int, int)
        self._workflow = workflow(self.ref)(self._handler)

    async def start(self, first: int) -> None:
        for seed in range(first, first + RUNS):
            run = await self._client.start(self.ref(seed))
            self.runs[run.id] = run

    async def live_through(self) -> None:
        """Let everything happen at once."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._chance.randint(1, 3))]
        for _ in range(DISTURBANCES):
            await asyncio.sleep(self._chance.random() * 0.03)
            with contextlib.suppress(InvalidRunStateError):
                await self._disturb(self._chance.choice(list(self.runs.values())))
        self._stop = True
        async with asyncio.timeout(60):
            await asyncio.gather(*workers)

    async def go_to_the_end(self) -> None:
        """Give every run what it may be waiting for."""
        left: list[AsyncRunHandle[Any]] = []
        for _ in range(_MOST_ROUNDS):
            left = [run for run in self.runs.values() if await run.status() not in ("completed", "failed")]
            if not left:
                return
            for run in left:
                with contextlib.suppress(InvalidRunStateError):
                    for _ in range(2):
                        await self._send(run)
                    await run.resume()
            await asyncio.to_thread(self._clock.advance, "11m")
            await self.execute()
        raise AssertionError(f"stuck: {[await self._client.get(run) for run in left]}")

    async def execute(self) -> None:
        async with asyncio.timeout(60):
            await Worker(self._url, workflows=[self._workflow]).run_until_idle()

    async def repeat(self, run_id: UUID) -> Told:
        """Execute a run that has ended once more; answers what its handler is told now."""
        self.conn.execute(_REOPEN, (run_id,))
        await self.execute()
        return self.lives[run_id][-1]

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.conn.execute(query.encode(), values).fetchall()

    # ---- inside

    async def _handler(self, ctx: Context, seed: int) -> int:
        player = Player(ctx, lambda run, name: self.bodies.append((run, name)))
        self.lives.setdefault(ctx.run_id, []).append(player.told)
        await player.play(program(seed))
        await player.end()
        return seed

    async def _work(self) -> None:
        """One worker after the other; each may lose its wire at any moment."""
        chance = self._chance
        while not self._stop:
            options: dict[str, Any] = {"workflows": [self._workflow], "concurrency": chance.choice([1, 2, 10])}
            with contextlib.suppress(psycopg.Error, TimeoutError, OSError, LeaseLostError):
                if chance.random() < 0.5:
                    await Worker(self._proxy.url, lease="1s", **options).run_until_idle()
                    await asyncio.sleep(0.01)
                    continue
                listen = chance.random() < 0.5
                worker = Worker(self._proxy.url, lease="1s", poll="1s", grace="50ms", listen=listen, **options)
                working = asyncio.create_task(worker.run(signals=False))
                await asyncio.wait([working], timeout=chance.random())
                await worker.stop()
                await working

    async def _disturb(self, run: AsyncRunHandle[Any]) -> None:
        doings: dict[Callable[[], Any], int] = {
            lambda: self._send(run): 60,
            lambda: asyncio.to_thread(self._clock.advance, self._chance.randint(1, 90)): 15,
            run.pause: 5,
            run.resume: 10,
            run.fast_forward: 3,
            self._break_something: 7,
        }
        await self._chance.choices(list(doings), list(doings.values()))[0]()

    async def _send(self, run: AsyncRunHandle[Any]) -> None:
        self._sent += 1
        message = self._chance.choice(list(EVENTS.values()))(self._sent)
        if self._chance.random() < 0.1:
            await self._client.send(message, topic=TOPIC)
        else:
            await run.send(message)

    async def _break_something(self) -> None:
        chance, proxy = self._chance, self._proxy
        side = chance.choice([Fault.CUT, Fault.CUT_BEHIND])
        chance.choice(
            [
                lambda: proxy.set_trap(nth(chance.randint(1, 5), "server", answers_commit), Fault.CUT),
                lambda: proxy.set_trap(nth(chance.randint(1, 60), "client"), Fault.CUT),
                lambda: proxy.set_trap(nth(chance.randint(1, 60), "server"), Fault.CUT),
                lambda: proxy.set_trap(nth(chance.randint(1, 3), "client", asks_commit), Fault.CUT_BEHIND),
                lambda: proxy.set_trap(executes(chance.choice(_FLUSHES)), side),
                proxy.cut,
            ]
        )()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_a_run_goes_the_way_that_its_journal_tells(database_url: str, seed: int) -> None:
    async with AsyncClient.connect(database_url) as client, FaultProxy(database_url) as proxy:
        crowd = Crowd(database_url, seed, client, proxy)
        await crowd.start(100 * seed)
        await crowd.live_through()
        await crowd.go_to_the_end()
        for run_id, run in crowd.runs.items():
            assert await run.status() == "completed", (await client.get(run)).error
            events_are_read_once_and_in_order(crowd, run_id)
            lives = list(crowd.lives[run_id])
            kept = crowd.rows("select seq, kind, key, value from kedge.journal where run_id = %s order by seq", run_id)
            bodies = len(crowd.bodies)

            assert await crowd.repeat(run_id) == lives[-1]
            assert crowd.bodies[bodies:] == []
            assert await run.status() == "completed"
            behind = crowd.rows(
                "select key from kedge.journal where run_id = %s and seq > %s and kind <> 'x'", run_id, kept[-1][0]
            )
            assert behind == []
            lives_go_the_same_way(crowd, run_id, lives)
        assert crowd.rows("select name from ledger group by name having count(*) > 1") == []
        crowd.conn.close()


def events_are_read_once_and_in_order(crowd: Crowd, run_id: UUID) -> None:
    """What was sent stands in the journal once, or is still unread."""
    read = crowd.rows(
        "select m.slot, m.seq, m.consumed_seq from kedge.events m"
        " where m.run_id = %s and m.consumed_seq > 0 and m.slot like 'e:%%' order by m.slot, m.consumed_seq",
        run_id,
    )
    assert read == sorted(read)
    assert len({row for _, _, row in read}) == len(read)
    unheard_of = crowd.rows(
        "select j.key from kedge.journal j where j.run_id = %s and j.kind = 'e' and not exists ("
        "select 1 from kedge.events m where m.run_id = j.run_id and m.consumed_seq = j.seq)",
        run_id,
    )
    assert unheard_of == []


def lives_go_the_same_way(crowd: Crowd, run_id: UUID, lives: list[Told]) -> None:
    """Each life was told what the last one was told, up to something that did not come to be stored."""
    last = lives[-1]
    for told in lives:
        if told == last[: len(told)]:
            continue
        name = next(one for one, other in zip(told, [*last, ("", None)], strict=False) if one != other)[0]
        stored = [
            kind
            for key, kind in crowd.rows("select key, kind from kedge.journal where run_id = %s", run_id)
            if re.search(rf"(^|/){name}$", key)
        ]
        # A wait's outcome is told when it is stored; that of a step may be lost with its worker, and come again.
        assert not set(stored) & {"e", "d", "u", "c"}, f"{name}: {told} in one life, {last} in the last"
