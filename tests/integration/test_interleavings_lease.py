"""A lease meets silent servers, blocked loops and its own loss; a sweep meets workers that it cannot free at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from kedge_worker._lease_keeper import LeaseKeeper
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Store
from kedge_worker._sweeper import Sweeper
from tests import moves
from tests.fault_proxy import FaultProxy
from tests.sessions import Session, Sessions

LEASE_S = 0.6


class Lease:
    """A keeper that keeps a registered worker's lease, and what it has said."""

    def __init__(self, url: str, worker: UUID) -> None:
        self.worker = worker
        self.losses: list[str] = []
        self.asked: list[tuple[UUID, str | None]] = []
        self._news = asyncio.Event()
        self.keeper = LeaseKeeper(
            WorkerSettings(database_url=url, lease_s=LEASE_S).beat_conninfo(),
            worker_id=worker,
            schema="kedge",
            lease_s=LEASE_S,
            lost=self._lost,
            asked=self._asked,
        )

    async def news(self) -> None:
        """Return when it has said something."""
        async with asyncio.timeout(10):
            await self._news.wait()

    def _lost(self, why: str) -> None:
        self.losses.append(why)
        self._news.set()

    def _asked(self, run: UUID, request: str, reason: str | None) -> None:  # noqa: ARG002  # the only one is x
        self.asked.append((run, reason))
        self._news.set()


@asynccontextmanager
async def kept(url: str, db: Session) -> AsyncGenerator[Lease]:
    registered_at = time.monotonic()
    lease = Lease(url, moves.register(db, lease=timedelta(seconds=LEASE_S)))
    lease.keeper.start(registered_at)
    try:
        yield lease
    finally:
        await lease.keeper.stop()


def left_s(db: Session, worker: UUID) -> float:
    """How much of its lease the database sees."""
    seconds: float = db.value(
        "select extract(epoch from lease_until - clock_timestamp())::float8 from kedge.workers where id = $1", (worker,)
    )
    return seconds


async def next_beat(sessions: Sessions, db: Session) -> None:
    until = db.value("select lease_until from kedge.workers")
    await asyncio.to_thread(
        sessions.wait_until,
        "select lease_until > %(until)s from kedge.workers",
        {"until": until},
        what="the next beat",
    )


# ---- the lease ----------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_before_it_ends(database_url: str, sessions: Sessions, db: Session) -> None:
    async with kept(database_url, db) as lease:
        for _ in range(4):  # longer than the lease
            await next_beat(sessions, db)

        assert lease.losses == []
        assert lease.keeper.may_take_back


async def test_a_beat_brings_the_requests_for_the_workers_own_runs(database_url: str, db: Session) -> None:
    moves.started(db, 2)
    async with kept(database_url, db) as lease:
        (mine,) = moves.claim_alone(db, lease.worker, 1)
        (theirs,) = moves.claim_alone(db, moves.register(db), 1)
        for run in (mine, theirs):
            moves.cancel(db, run.id, reason="enough")
        moves.sort_inbox(db)

        await lease.news()

        assert lease.asked[0] == (mine.id, "enough")
        assert {run for run, _ in lease.asked} == {mine.id}


async def test_a_worker_whose_row_is_gone_hears_it_once(database_url: str, db: Session) -> None:
    async with kept(database_url, db) as lease:
        db.rows("delete from kedge.workers")

        await lease.news()

    (why,) = lease.losses
    assert "taken" in why or "took" in why


async def test_a_silent_server_costs_the_lease_before_the_database_sees_its_end(database_url: str, db: Session) -> None:
    async with FaultProxy(database_url) as proxy, kept(proxy.url, db) as lease:
        proxy.freeze()

        await lease.news()
        late_s = time.monotonic() - lease.keeper.valid_until
        left_when_lost_s = left_s(db, lease.worker) + late_s

        assert late_s > 0
        assert left_when_lost_s > 0
        assert not lease.keeper.may_take_back
        (why,) = lease.losses
        assert "no beat" in why
        proxy.thaw()


async def test_a_short_outage_costs_nothing_but_the_right_to_take_back(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    async with FaultProxy(database_url) as proxy, kept(proxy.url, db) as lease:
        await next_beat(sessions, db)
        proxy.cut()
        await next_beat(sessions, db)

        assert lease.losses == []
        assert not lease.keeper.may_take_back


async def test_a_loop_that_does_not_answer_for_two_leases_is_beaten_for_no_more(database_url: str, db: Session) -> None:
    async with kept(database_url, db) as lease:
        beating = threading.Event()
        threading.Timer(4 * LEASE_S, beating.set).start()
        beating.wait()  # as a handler does that blocks the loop
        left = left_s(db, lease.worker)

        await lease.news()

    assert left < 0
    assert len(lease.losses) == 1


# ---- the sweep ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def sweeper(url: str, found: list[None]) -> AsyncGenerator[Sweeper]:
    worker = UUID(int=1)
    store = Store(WorkerSettings(database_url=url).control_conninfo(), worker_id=worker, schema="kedge", timeout_s=5)
    try:
        yield Sweeper(
            store,
            may_take_back=lambda: True,
            found=lambda: found.append(None),
            found_solo=lambda: None,
            sent=lambda: None,
        )
    finally:
        await store.aclose()


async def test_a_sweep_frees_all_dead_workers(database_url: str, db: Session) -> None:
    moves.started(db, 6)
    for _ in range(3):
        worker = moves.register(db)
        moves.claim_alone(db, worker, 2)
        moves.lapse(db, worker)
    found: list[None] = []

    async with sweeper(database_url, found) as own:
        freed = await own.sweep()

    assert (freed, len(found)) == (6, 3)
    assert db.value("select count(*) from kedge.workers") == 0


async def test_a_dead_worker_with_a_locked_run_does_not_keep_the_next_one_waiting(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    moves.started(db, 4)
    for _ in range(2):
        worker = moves.register(db)
        moves.claim_alone(db, worker, 2)
        moves.lapse(db, worker)
    holder = sessions.open()
    holder.begin()
    holder.rows(
        "select 1 from kedge.runs where id = (select r.id from kedge.runs r join kedge.workers w on w.id = r.worker_id"
        " order by w.lease_until limit 1) for no key update"
    )

    async with sweeper(database_url, []) as own:
        first = await own.sweep()
        second = await own.sweep()
        holder.rollback()
        third = await own.sweep()

    assert (first, second, third) == (3, 0, 1)
    assert set(moves.statuses(db).values()) == {"pending"}


async def test_a_sweep_that_the_database_refuses_is_tried_again_when_somebody_rings_and_stops_no_worker(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    moves.started(db)
    worker = moves.register(db)
    moves.claim_alone(db, worker)
    moves.lapse(db, worker)
    db.rows("create sequence tries")
    db.rows(
        "create function refuse() returns trigger language plpgsql as $$ begin if nextval('public.tries') < 3 then"
        " raise exception using errcode = '23514'; end if; return new; end $$"
    )
    db.rows("create trigger refuse before update on kedge.runs for each row execute function refuse()")

    async with sweeper(database_url, []) as own:
        sweeping = asyncio.create_task(own.run())
        for tries in (1, 2):
            own.ring()
            refused = "select last_value >= %(n)s and is_called from tries"
            await asyncio.to_thread(sessions.wait_until, refused, {"n": tries}, what="the refusal")
            await asyncio.sleep(0)
        own.ring()
        await asyncio.to_thread(
            sessions.wait_until, "select count(*) = 0 from kedge.workers", what="the worker to be taken back"
        )
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

    assert set(moves.statuses(db).values()) == {"pending"}
