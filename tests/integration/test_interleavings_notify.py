"""Doorbells and watchers: rung after the commit, one worker at a time, and nothing lost that arrives together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from kedge import WorkflowRef
from kedge_worker import Context, Worker, _listener, workflow
from kedge_worker._claims import ClaimRequest
from kedge_worker._listener import Listener, channel_of
from kedge_worker._outcomes import GiveBack
from kedge_worker._runs import Batch
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Store
from kedge_worker._sweeper import Sweeper
from tests import moves
from tests.fault_proxy import Fault, FaultProxy, answers_commit, asks_commit
from tests.sessions import Session, Sessions
from tests.writer import COMPLETED, GIVEN_BACK, batch, lanes, live, open_store, open_writer

CHANNEL = "kedge_c_test"


def heard(session: Session) -> list[tuple[str, str]]:
    """(channel, payload) of everything that has arrived at a listening session."""
    session.rows("select 1")
    return [(notify.channel, notify.payload) for notify in session.conn.notifies(timeout=0)]


def watch(session: Session, runs: list[UUID], channel: str = CHANNEL) -> None:
    session.rows("select kedge.watch_v1($1::uuid[], $2)", (runs, channel))


# ---- watchers -----------------------------------------------------------------------------------------------------


async def test_a_watcher_is_notified_after_the_ends_commit_and_not_before(
    database_url: str, sessions: Sessions
) -> None:
    db, client = sessions.open(), sessions.open()
    (run,) = moves.started(db)
    client.rows(f"listen {CHANNEL}")
    async with FaultProxy(database_url) as proxy, open_store(proxy.url) as writer:
        claim = await writer.store.flush(Batch(), ClaimRequest(1, lanes(), {}))
        assert claim.claim is not None
        trap = proxy.set_trap(asks_commit, Fault.FREEZE)
        ending = asyncio.create_task(writer.store.flush(batch((live(claim.claim.runs[0]), 0, COMPLETED)), None))
        await trap.sprung()
        # Behind the exit door, before the commit: the client registers and still sees the run running.
        watch(client, [run])
        looked = moves.status(client, run)
        early = heard(client)
        proxy.thaw()
        await ending

    assert (looked, early) == ("running", [])
    assert heard(client) == [(CHANNEL, str(run))]
    assert db.value("select count(*) from kedge.watchers") == 0


async def test_a_watcher_is_notified_in_a_transaction_of_its_own_behind_that_of_the_end_and_the_claim(
    database_url: str, sessions: Sessions
) -> None:
    db, client = sessions.open(), sessions.open()
    runs = moves.started(db, 2)
    watch(client, runs)
    db.rows("create table seen (what text, xid xid8 default pg_current_xact_id())")
    db.rows(
        "create function note() returns trigger language plpgsql as $$ begin"
        " insert into public.seen (what) values (tg_table_name); return null; end $$"
    )
    for table, event in (("watchers", "delete"), ("runs", "update"), ("finished", "insert")):
        db.rows(f"create trigger note after {event} on kedge.{table} for each row execute function note()")
    async with open_store(database_url) as writer:
        first = await writer.store.flush(Batch(), ClaimRequest(1, lanes(), {}))
        assert first.claim is not None
        await writer.store.flush(batch((live(first.claim.runs[0]), 0, COMPLETED)), ClaimRequest(1, lanes(), {}))

    ended, notified, claimed = (
        db.value("select max(xid::text::bigint) from seen where what = $1", (table,))
        for table in ("finished", "watchers", "runs")
    )
    # NOTIFY holds one lock of the whole server across its commit: no data may wait for the disk under it.
    assert notified not in (ended, claimed)
    assert ended == claimed


async def test_a_watcher_is_notified_though_the_claim_behind_the_end_fails(
    database_url: str, sessions: Sessions
) -> None:
    db, client = sessions.open(), sessions.open()
    (run,) = moves.started(db)
    watch(client, [run])
    client.rows(f"listen {CHANNEL}")
    async with open_writer(database_url) as writer:
        (ending,) = await writer.claim()
        moves.started(db)
        db.rows(
            "create function refuse() returns trigger language plpgsql as $$ begin"
            " raise exception using errcode = '23514'; end $$"
        )
        db.rows("create trigger refuse before update on kedge.runs for each row execute function refuse()")
        claiming = asyncio.create_task(writer.claim())
        writer.flusher.move(ending, COMPLETED)
        await writer.settled_all([ending])
        async with asyncio.timeout(10):
            while not heard(client):
                await asyncio.sleep(0.001)
        claiming.cancel()


async def test_an_end_whose_commit_was_not_answered_is_told_to_its_watchers(
    database_url: str, sessions: Sessions
) -> None:
    db, client = sessions.open(), sessions.open()
    (run,) = moves.started(db)
    watch(client, [run])
    client.rows(f"listen {CHANNEL}")
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        (ending,) = await writer.claim()
        proxy.set_trap(answers_commit, Fault.CUT)
        writer.flusher.move(ending, COMPLETED)
        await writer.settled_all([ending])
        async with asyncio.timeout(10):
            await writer.flusher.drained()

    assert heard(client) == [(CHANNEL, str(run))]


async def test_a_run_that_ends_by_being_given_back_is_told_to_its_watchers_and_another_is_not(
    database_url: str, sessions: Sessions
) -> None:
    db, client = sessions.open(), sessions.open()
    runs = moves.started(db, 2)
    watch(client, runs)
    client.rows(f"listen {CHANNEL}")
    async with open_writer(database_url) as writer:
        cancelled, other = await writer.claim()
        moves.cancel(db, cancelled.claimed.id)
        moves.sort_inbox(db)
        for run in (cancelled, other):
            writer.flusher.move(run, GIVEN_BACK)
        await writer.settled_all([cancelled, other])

    assert heard(client) == [(CHANNEL, str(cancelled.claimed.id))]
    assert db.rows("select run_id from kedge.watchers") == [(other.claimed.id,)]


async def test_an_end_is_stored_and_nobody_is_blamed_when_nobody_can_be_notified(
    database_url: str, db: Session
) -> None:
    moves.started(db, 3)
    db.rows(  # as Postgres does when a listener that never reads has filled the queue
        "create or replace function kedge.notify_watchers(p_runs uuid[]) returns void language plpgsql as"
        " $$ begin raise exception using errcode = '54000', message = 'too many notifications'; end $$"
    )
    async with open_writer(database_url) as writer:
        runs = await writer.claim()
        for run in runs:
            writer.flusher.keep(run, "s", "step", b"\x011")
            writer.flusher.move(run, COMPLETED)
        await writer.settled_all(runs)

    assert (writer.refusals, writer.lost) == ([], [])
    assert set(moves.statuses(db).values()) == {"completed"}


def test_ids_are_notified_in_pages_that_a_payload_can_hold(sessions: Sessions) -> None:
    db, client, other = sessions.open(), sessions.open(), sessions.open()
    runs = [uuid4() for _ in range(450)]
    watch(client, runs)
    watch(other, runs[:3], "kedge_c_other")
    client.rows(f"listen {CHANNEL}")
    other.rows("listen kedge_c_other")

    db.rows("select kedge.notify_watchers($1::uuid[])", (runs,))

    pages = [payload.split(",") for _, payload in heard(client)]
    assert sorted(len(page) for page in pages) == [50, 200, 200]
    assert {UUID(run) for page in pages for run in page} == set(runs)
    ((_, payload),) = heard(other)
    assert {UUID(run) for run in payload.split(",")} == set(runs[:3])


def test_only_the_ended_runs_watchers_are_taken(db: Session) -> None:
    ended, running = uuid4(), uuid4()
    watch(db, [ended, running])

    db.rows("select kedge.notify_watchers($1::uuid[])", ([ended],))

    assert db.rows("select run_id from kedge.watchers") == [(running,)]


def test_a_watcher_that_is_just_being_removed_holds_nobody_up(sessions: Sessions) -> None:
    db, client = sessions.open(lock_timeout="50ms"), sessions.open()
    leaving, staying = uuid4(), uuid4()
    watch(client, [leaving, staying])
    client.begin()
    client.rows("select kedge.unwatch_v1($1::uuid[], $2)", ([leaving], CHANNEL))
    db.rows(f"listen {CHANNEL}")

    db.rows("select kedge.notify_watchers($1::uuid[])", ([leaving, staying],))
    client.commit()

    assert heard(db) == [(CHANNEL, str(staying))]


def test_watching_twice_is_watching_once(db: Session) -> None:
    run = uuid4()

    for _ in range(2):
        watch(db, [run])

    assert db.value("select count(*) from kedge.watchers") == 1


# ---- the doorbell -------------------------------------------------------------------------------------------------


def sleeper(db: Session, *, queues: list[str] | None = None, workflows: list[str] | None = None) -> UUID:
    """A worker that sleeps; `db` hears its bell."""
    worker = moves.register(db)
    db.rows(
        moves.statement("GO_IDLE"),
        {"worker": worker, "queues": queues or [moves.QUEUE], "workflows": workflows or [moves.WORKFLOW]},
    )
    db.rows(f"listen {channel_of(worker)}")
    return worker


def ring(session: Session, queue: str | None = moves.QUEUE, workflow: str | None = moves.WORKFLOW) -> None:
    session.rows("select kedge.ring_v1($1, $2)", (queue, workflow))


def sleepers(session: Session) -> set[UUID]:
    return {worker for (worker,) in session.rows("select worker_id from kedge.idle")}


def test_a_ring_wakes_one_worker_that_suits_and_no_other(db: Session) -> None:
    others = {sleeper(db, queues=["slow"]), sleeper(db, workflows=["invoice"])}
    suitable = {sleeper(db), sleeper(db, queues=["slow", moves.QUEUE], workflows=["invoice", moves.WORKFLOW])}

    ring(db)

    ((channel, payload),) = heard(db)
    left = sleepers(db)
    (woken,) = suitable - left
    assert others < left
    assert (channel, payload) == (channel_of(woken), "")


def test_a_ring_for_which_nobody_suits_wakes_nobody(db: Session) -> None:
    worker = sleeper(db)

    ring(db, "slow")
    ring(db, workflow="invoice")

    assert heard(db) == []
    assert sleepers(db) == {worker}


def test_mail_wakes_any_worker_and_says_so(db: Session) -> None:
    worker = sleeper(db, queues=["slow"], workflows=["invoice"])

    ring(db, None, None)

    assert heard(db) == [(channel_of(worker), "mail")]


def test_two_rings_at_once_wake_two_workers_and_do_not_wait(sessions: Sessions) -> None:
    db, one, other = sessions.open(), sessions.open(), sessions.open(lock_timeout="50ms")
    workers = {sleeper(db), sleeper(db)}
    one.begin()
    ring(one)

    ring(other)
    ring(other)
    one.commit()

    assert {channel for channel, _ in heard(db)} == {channel_of(worker) for worker in workers}
    assert sleepers(db) == set()


def test_a_worker_that_falls_asleep_or_wakes_is_not_held_up_by_a_ring(sessions: Sessions) -> None:
    db, caller = sessions.open(lock_timeout="50ms"), sessions.open()
    worker = sleeper(db)
    caller.begin("repeatable read")
    caller.rows("select kedge.ring_on_commit_v1($1, $2)", (moves.QUEUE, moves.WORKFLOW))

    db.rows(moves.statement("WAKE_UP"), {"worker": worker})
    again = sleeper(db)
    before = heard(db)
    caller.commit()

    assert before == []
    assert heard(db) == [(channel_of(worker), "")]
    assert sleepers(db) == {again}


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_a_ring_in_a_callers_transaction_cannot_fail_it(sessions: Sessions, level: str) -> None:
    db, caller = sessions.open(), sessions.open()
    sleeper(db)
    caller.begin(level)
    caller.rows("select 1 from kedge.idle")
    ring(db)  # popped since the caller's snapshot

    moves.start(caller)
    caller.rows("select kedge.ring_on_commit_v1($1, $2)", (moves.QUEUE, moves.WORKFLOW))

    caller.commit()
    assert len(moves.statuses(db)) == 1


async def test_what_is_given_back_wakes_a_sleeper_of_its_lane(database_url: str, db: Session) -> None:
    moves.started(db, 2)
    moves.started(db, 1, workflow="invoice")
    async with open_store(database_url) as writer:
        claim = await writer.store.flush(Batch(), ClaimRequest(3, lanes(moves.WORKFLOW, "invoice"), {}))
        assert claim.claim is not None
        runs = [live(run) for run in claim.claim.runs]
        suitable = {sleeper(db), sleeper(db, workflows=["invoice"])}
        other = sleeper(db, workflows=["report"])

        await writer.store.flush(batch(*((run, 0, GIVEN_BACK) for run in runs)), None)

    assert {channel for channel, _ in heard(db)} == {channel_of(worker) for worker in suitable}
    assert sleepers(db) == {other}


async def test_what_will_be_due_later_wakes_nobody_now(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with open_store(database_url) as writer:
        claim = await writer.store.flush(Batch(), ClaimRequest(3, lanes(), {}))
        assert claim.claim is not None
        worker = sleeper(db)

        await writer.store.flush(batch((live(claim.claim.runs[0]), 0, GiveBack(60, "later"))), None)

    assert heard(db) == []
    assert sleepers(db) == {worker}


async def test_what_is_taken_back_wakes_a_sleeper_of_its_lane(database_url: str, db: Session) -> None:
    moves.started(db, 2, workflow="invoice")
    dead = moves.register(db)
    moves.claim(db, dead, floors=lanes("invoice"))
    moves.lapse(db, dead)
    other, suitable = sleeper(db), sleeper(db, workflows=["invoice"])
    control = WorkerSettings(database_url=database_url).control_conninfo()
    store = Store(control, worker_id=uuid4(), schema="kedge", timeout_s=5)

    await Sweeper(
        store, may_take_back=lambda: True, found=lambda: None, found_solo=lambda: None, sent=lambda: None
    ).sweep()
    await store.aclose()

    assert heard(db) == [(channel_of(suitable), "")]
    assert sleepers(db) == {other}


async def test_a_worker_that_stops_hands_its_runs_to_a_sleeper_and_not_to_itself(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    begun = asyncio.Event()

    @workflow(WorkflowRef(moves.WORKFLOW))
    async def order(ctx: Context) -> None:
        begun.set()
        await ctx.step("wait", asyncio.Event().wait)

    worker = Worker(database_url, workflows=[order], concurrency=2)
    async with asyncio.timeout(20):
        async with worker:
            moves.started(db)
            db.rows("select kedge.ring_v1($1, $2)", (moves.QUEUE, moves.WORKFLOW))
            await begun.wait()
            # It has another slot and sleeps again.
            await asyncio.to_thread(
                sessions.wait_until, "select count(*) = 1 from kedge.idle", what="the worker to fall asleep"
            )
            other = sleeper(db)
            await worker.stop(grace=0)

    assert heard(db) == [(channel_of(other), "")]


def test_the_owners_of_asked_runs_are_rung_on_their_own_channels(db: Session) -> None:
    one, other = moves.register(db), moves.register(db)
    for worker in (one, other):
        db.rows(f"listen {channel_of(worker)}")

    db.rows(moves.statement("RING_WORKERS"), {"workers": [one, other]})

    assert sorted(heard(db)) == sorted([(channel_of(one), "mail"), (channel_of(other), "mail")])


def test_the_schema_and_the_worker_agree_on_the_name_of_a_channel(db: Session) -> None:
    worker = uuid4()

    assert db.value("select kedge.worker_channel($1)", (worker,)) == channel_of(worker)


# ---- the listener -------------------------------------------------------------------------------------------------


class Bell:
    """What a listener has rung."""

    def __init__(self) -> None:
        self.payloads: list[str] = []
        self._rang = asyncio.Event()

    def ring(self, payload: str) -> None:
        self.payloads.append(payload)
        self._rang.set()

    async def until(self, *payloads: str) -> None:
        """Return when all of these were rung."""
        async with asyncio.timeout(10):
            while not set(payloads) <= set(self.payloads):
                self._rang.clear()
                await self._rang.wait()


@asynccontextmanager
async def listening(url: str, worker: UUID) -> AsyncGenerator[tuple[Listener, Bell]]:
    bell = Bell()
    listener = Listener(WorkerSettings(database_url=url).listen_conninfo(), worker_id=worker, ring=bell.ring)
    task = asyncio.create_task(listener.run())
    try:
        async with asyncio.timeout(10):
            await listener.listening.wait()
        bell.payloads.clear()
        yield listener, bell
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_notifications_that_arrive_together_are_all_heard(database_url: str, db: Session) -> None:
    worker = uuid4()
    async with listening(database_url, worker) as (_, bell):
        db.rows(
            "select pg_notify($1, 'mail'), pg_notify($1, ''), pg_notify($1, 'more'), pg_notify($1, 'last')",
            (channel_of(worker),),
        )

        await bell.until("mail", "", "more", "last")


async def test_a_listener_whose_session_ends_comes_back_and_looks_for_what_it_missed(
    database_url: str, db: Session
) -> None:
    worker = uuid4()
    async with listening(database_url, worker) as (_, bell):
        db.rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'kedge listener'")

        await bell.until("mail", "")
        bell.payloads.clear()
        db.rows("select pg_notify($1, 'x')", (channel_of(worker),))
        await bell.until("x")


async def test_a_listener_behind_a_black_hole_notices_it_and_comes_back(
    database_url: str, db: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_listener, "_HEALTH_PERIOD_S", 0.05)
    monkeypatch.setattr(_listener, "_HEALTH_DEADLINE_S", 0.2)
    worker = uuid4()
    async with FaultProxy(database_url) as proxy, listening(proxy.url, worker) as (_, bell):
        proxy.freeze()
        db.rows("select pg_notify($1, 'lost in the hole')", (channel_of(worker),))
        await proxy.knock()
        bell.payloads.clear()
        proxy.thaw()

        await bell.until("mail", "")


async def test_a_listener_outlasts_a_server_that_refuses_connections(database_url: str) -> None:
    worker = uuid4()
    async with FaultProxy(database_url) as proxy, listening(proxy.url, worker) as (listener, bell):
        proxy.refusing = True
        proxy.cut()
        await proxy.knock()
        await proxy.knock()
        away = listener.listening.is_set()
        proxy.refusing = False
        await bell.until("mail", "")

    assert not away
