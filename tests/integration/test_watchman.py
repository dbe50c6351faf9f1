"""What a worker finds by looking around, for whom it rings then, and what it sends while there is nothing to find."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

import pytest

from kedge import WorkflowRef
from kedge_worker import Context, Worker, _watchman, workflow
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Seen, Store
from kedge_worker._upkeep import LOOK
from kedge_worker._watchman import Watchman
from kedge_worker._workflows import Workflow
from tests import moves
from tests.letters import send
from tests.sessions import Session, Sessions

PATIENCE_S: Final = 10.0


class Bench:
    """A watchman without a worker, and what it has rung for since it was last told to look."""

    def __init__(self, url: str) -> None:
        self.worker = uuid4()
        self.store = Store(
            WorkerSettings(database_url=url).control_conninfo(), worker_id=self.worker, schema="kedge", timeout_s=10
        )
        self.sleeps = False
        self.rung: list[str] = []
        self._news = asyncio.Event()
        self.watchman = Watchman(
            self.store,
            queues=[moves.QUEUE],
            workflows=["another", moves.WORKFLOW],
            poll_s=60,
            sleeps=lambda: self.sleeps,
            letters=lambda: self._rang("letters"),
            sweep=lambda: self._rang("sweep"),
            solo=lambda: self._rang("solo"),
            claim=lambda: self._rang("claim"),
            cut_off=lambda: self._rang("cut off"),
        )

    async def look(self) -> set[str]:
        """Let it look once, and answer for what it has rung at once."""
        self.rung.clear()
        looked = asyncio.Event()
        look = self.store.look

        async def looking(queues: Sequence[str], workflows: Sequence[str], *, patience_s: float) -> Seen:
            try:
                return await look(queues, workflows, patience_s=patience_s)
            finally:
                looked.set()

        self.store.look = looking  # type: ignore[method-assign]  # as it is, and its end told
        watching = asyncio.create_task(self.watchman.run())
        async with asyncio.timeout(PATIENCE_S):
            await looked.wait()
            await asyncio.sleep(0)  # it heeds what it has seen
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        self.store.look = look  # type: ignore[method-assign]  # as it was
        return set(self.rung)

    async def hear(self, what: str) -> None:
        """Return when it has rung for this."""
        async with asyncio.timeout(PATIENCE_S):
            while what not in self.rung:
                self._news.clear()
                await self._news.wait()

    def _rang(self, what: str) -> None:
        self.rung.append(what)
        self._news.set()


@pytest.fixture
async def bench(database_url: str) -> AsyncGenerator[Bench]:
    made = Bench(database_url)
    yield made
    await made.store.aclose()


def dead_worker(db: Session) -> None:
    moves.lapse(db, moves.register(db))


def letter(db: Session) -> None:
    send(db, moves.started(db, queue="elsewhere")[0])


def ready(db: Session) -> None:
    moves.started(db)


def due(db: Session) -> None:
    moves.started(db, delay_s=3600)
    db.rows("update kedge.runs set due_at = kedge.clock()")


def out_of_time(db: Session) -> None:
    moves.started(db, queue="elsewhere", timeout_s=3600)
    db.rows("update kedge.runs set deadline_at = kedge.clock()")


def left_alone(db: Session) -> None:
    moves.started(db, queue="elsewhere")
    db.rows(
        "update kedge.runs set queue = kedge.solo_lane($1), since = kedge.clock() - interval '1 minute'",
        (moves.QUEUE,),
    )


FOUND: Final[Mapping[str, tuple[Callable[[Session], None], str]]] = {
    "a letter": (letter, "letters"),
    "a dead worker": (dead_worker, "sweep"),
    "a run whose time is up": (out_of_time, "sweep"),
    "a solo run that nobody has taken": (left_alone, "solo"),
    "a run that is ready": (ready, "claim"),
    "a run that is due": (due, "claim"),
}


@pytest.mark.parametrize("what", FOUND)
async def test_what_nobody_has_rung_for_is_found_by_looking_and_rung_for_alone(
    bench: Bench, db: Session, what: str
) -> None:
    make, whose = FOUND[what]
    before = await bench.look()

    make(db)

    assert before == set()
    assert await bench.look() == {whose}


def of_others(db: Session) -> None:
    moves.started(db, workflow="foreign")
    moves.started(db, queue="elsewhere")
    moves.started(db, queue="elsewhere", delay_s=3600)
    db.rows("update kedge.runs set due_at = kedge.clock() where due_at is not null")


def alive(db: Session) -> None:
    moves.register(db)


def newer(db: Session) -> None:
    moves.lapse(db, moves.register(db, protocol=moves.PROTOCOL + 1))


def asked_to_end(db: Session) -> None:
    out_of_time(db)
    (run,) = moves.claim(db, moves.register(db), floors={("elsewhere", moves.WORKFLOW): moves.LOWEST})
    db.rows("update kedge.runs set request = 'd' where id = $1", (run.id,))


def just_made_solo(db: Session) -> None:
    left_alone(db)
    db.rows("update kedge.runs set since = kedge.clock()")


@pytest.mark.parametrize("make", [of_others, alive, newer, asked_to_end, just_made_solo])
async def test_what_is_for_others_or_has_been_seen_to_is_not_rung_for(
    bench: Bench, db: Session, make: Callable[[Session], None]
) -> None:
    make(db)

    assert await bench.look() == set()


async def test_a_run_that_falls_due_before_the_next_look_is_rung_for_then_and_not_before(
    bench: Bench, db: Session
) -> None:
    moves.started(db, delay_s=0.3)

    at_once = await bench.look()
    await bench.hear("claim")

    assert at_once == set()
    assert db.value("select due_at <= kedge.clock() from kedge.runs")


async def test_a_lease_that_lapses_before_the_next_look_is_rung_for_then_and_not_before(
    bench: Bench, db: Session
) -> None:
    db.rows(
        "update kedge.workers set lease = $2, lease_until = clock_timestamp() + interval '0.3 s' where id = $1",
        (moves.register(db), moves.BLINK),
    )

    at_once = await bench.look()
    await bench.hear("sweep")

    assert at_once == set()
    assert db.value("select lease_until < clock_timestamp() from kedge.workers")


async def test_who_finds_the_database_gone_has_the_other_connections_looked_at(bench: Bench, db: Session) -> None:
    assert "cut off" not in await bench.look()
    db.rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'kedge control'")

    assert "cut off" in await bench.look()


async def test_a_sleeper_whom_no_doorbell_finds_is_registered_again(bench: Bench, db: Session) -> None:
    db.rows("update kedge.workers set id = $2 where id = $1", (moves.register(db), bench.worker))
    bench.sleeps = True

    lost = await bench.look()
    await bench.store.go_idle([moves.QUEUE], [moves.WORKFLOW])
    found = await bench.look()

    assert (lost, found) == ({"claim"}, set())


# ---- in a worker --------------------------------------------------------------------------------------------------


@workflow(WorkflowRef(moves.WORKFLOW))
async def order(ctx: Context) -> None:
    pass


def handler_of(name: str) -> Workflow[None, None]:
    @workflow(WorkflowRef(name))
    async def handle(ctx: Context) -> None:
        pass

    return handle


@asynccontextmanager
async def overheard(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[list[str]]:
    """What workers say outside of the journal and of their beats."""
    said: list[str] = []
    execute = Store._execute

    async def listening(self: Store, query: str, parameters: Mapping[str, object]) -> list[tuple[object, ...]]:
        said.append(query)
        return await execute(self, query, parameters)

    monkeypatch.setattr(Store, "_execute", listening)
    yield said


@pytest.mark.parametrize("listen", [True, False])
async def test_a_worker_that_sleeps_asks_one_thing_and_no_other(
    database_url: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, listen: bool
) -> None:
    monkeypatch.setattr(_watchman, "_PERIOD_S", 0.01)
    monkeypatch.setattr(_watchman, "_QUIET_PERIOD_S", 0.01)
    async with overheard(monkeypatch) as said, Worker(database_url, workflows=[order], listen=listen):
        await asyncio.to_thread(sessions.wait_until, "select count(*) = 1 from kedge.idle", what="a sleeper")
        async with asyncio.timeout(PATIENCE_S):
            before = len(said)
            while said[before:].count(LOOK) < 5:  # the round of the first ones may still be going on
                await asyncio.sleep(0.01)
            before = len(said)
            while said[before:].count(LOOK) < 20:
                await asyncio.sleep(0.01)
            meanwhile = set(said[before:])

    assert meanwhile == {LOOK}


async def test_a_start_is_found_though_nobody_rings_and_nobody_listens(database_url: str, sessions: Sessions) -> None:
    db = sessions.open()
    async with Worker(database_url, workflows=[order], listen=False):
        await asyncio.to_thread(sessions.wait_until, "select count(*) = 1 from kedge.idle", what="a sleeper")
        moves.started(db)

        await asyncio.to_thread(sessions.wait_until, "select count(*) = 1 from kedge.finished", what="the run's end")


async def test_a_worker_that_was_rung_in_a_callers_transaction_and_is_full_is_found_by_no_doorbell(
    database_url: str, sessions: Sessions
) -> None:
    db = sessions.open()
    may_end = asyncio.Event()

    @workflow(WorkflowRef(moves.WORKFLOW))
    async def long(ctx: Context) -> None:
        await may_end.wait()

    async with Worker(database_url, workflows=[long], concurrency=1, poll="60s"):
        await asyncio.to_thread(sessions.wait_until, "select count(*) = 1 from kedge.idle", what="a sleeper")
        db.begin()
        moves.started(db)
        db.rows("select kedge.ring_on_commit_v1($1, $2)", (moves.QUEUE, moves.WORKFLOW))
        db.commit()
        await asyncio.to_thread(sessions.wait_until, "select state = 'r' from kedge.runs", what="the worker to be full")

        await asyncio.to_thread(sessions.wait_until, "select count(*) = 0 from kedge.idle", what="its row to go")
        may_end.set()


async def test_a_worker_of_more_workflows_than_a_claim_has_lanes_finds_a_run_of_any(
    database_url: str, db: Session
) -> None:
    names = [f"workflow{n}" for n in range(120)]
    runs = [run for name in (names[0], names[60], names[119]) for run in moves.started(db, workflow=name)]

    worker = Worker(database_url, workflows=[handler_of(name) for name in names])

    assert await worker.run_until_idle() == len(runs)
