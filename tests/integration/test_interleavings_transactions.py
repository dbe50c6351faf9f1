"""A transactional step meets cut connections, take backs, queued rows, and clients that stop before the COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from kedge_worker._runs import LiveRun
from kedge_worker._settings import WorkerSettings
from kedge_worker._signals import LeaseLostError
from kedge_worker._threads import Threads
from kedge_worker._transactions import TransactionRunner
from kedge_worker.testing import PostgresServer
from tests import moves
from tests.fault_proxy import Fault, FaultProxy, Match, answers_commit, asks_commit
from tests.sessions import Session, Sessions, open_sessions
from tests.writer import COMPLETED, GIVEN_BACK, Writer, open_writer

SYNC = [False, True]


@dataclass
class Step:
    """A body that writes one row into a ledger, and counts how often it was called."""

    calls: int = 0
    before: Callable[[], Awaitable[None]] | None = None
    """In the middle of the body."""
    blocking: Callable[[], None] | None = None
    pids: list[int] = field(default_factory=list[int])

    async def in_loop(self, conn: psycopg.AsyncConnection[Any]) -> bytes:
        self.calls += 1
        self.pids.append(conn.info.backend_pid)
        await conn.execute("insert into ledger default values")
        if self.before is not None:
            await self.before()
        if self.blocking is not None:
            self.blocking()
            await conn.execute("select 1")
        return b"\x01%d" % self.calls

    def in_thread(self, conn: psycopg.Connection[Any]) -> bytes:
        self.calls += 1
        self.pids.append(conn.info.backend_pid)
        conn.execute("insert into ledger default values")
        if self.blocking is not None:
            self.blocking()
            conn.execute("select 1")
        return b"\x01%d" % self.calls


class Bench:
    """A writer with one claimed run, and a runner of transactional steps whose connections go through a proxy."""

    def __init__(self, writer: Writer, runner: TransactionRunner, proxy: FaultProxy, run: LiveRun) -> None:
        self.writer = writer
        self.runner = runner
        self.proxy = proxy
        self.run = run

    async def transact(self, step: Step, *, sync: bool = False) -> int:
        """Answers the memo's seq."""
        async with asyncio.timeout(10):
            return await self.runner.run(self.run, "charge", step.in_thread if sync else step.in_loop, sync=sync)


def kept(db: Session, seq: int) -> bytes:
    """What the journal holds under this number."""
    ((value,),) = db.rows("select value from kedge.journal where seq = $1 and kind = 't'", (seq,))
    return bytes(value)


@asynccontextmanager
async def bench(url: str, *, lease_s: float = 60.0) -> AsyncGenerator[Bench]:
    """The journal goes its own way, straight to the server."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("create table ledger (at timestamptz default clock_timestamp())")
    threads = Threads(2, name="test")
    async with FaultProxy(url) as proxy, open_writer(url, lease_s=lease_s) as writer:
        runner = TransactionRunner(
            WorkerSettings(database_url=proxy.url, lease_s=lease_s).transaction_conninfo(),
            worker_id=writer.id,
            schema="kedge",
            journal=writer.flusher,
            connections=3,
            in_thread=threads.run,
        )
        (run,) = await writer.claim(1)
        try:
            yield Bench(writer, runner, proxy, run)
        finally:
            await runner.aclose()
            threads.close()


@pytest.fixture
def db(sessions: Sessions) -> Session:
    """With one run to claim."""
    session = sessions.open()
    moves.started(session)
    return session


def ledger(db: Session) -> int:
    count: int = db.value("select count(*) from ledger")
    return count


# ---- together or not at all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNC)
async def test_the_effect_and_its_memo_are_committed_together(database_url: str, db: Session, sync: bool) -> None:
    async with bench(database_url) as own:
        step = Step()

        seq = await own.transact(step, sync=sync)

        assert (kept(db, seq), step.calls, ledger(db)) == (b"\x011", 1, 1)
        assert db.rows("select seq, epoch, kind::text, key, value from kedge.journal where seq > 0") == [
            (1, 1, "t", "charge", b"\x011")
        ]
        assert own.run.gate is None
        own.writer.flusher.move(own.run, COMPLETED)
        await own.writer.settled_all([own.run])
    assert own.writer.lost == []


@pytest.mark.parametrize("sync", SYNC)
async def test_what_the_applications_sql_raises_is_passed_on_and_nothing_is_kept(
    database_url: str, db: Session, sync: bool
) -> None:
    def fail() -> None:
        raise errors.UniqueViolation("taken")

    async with bench(database_url) as own:
        step = Step(blocking=fail)

        with pytest.raises(errors.UniqueViolation):
            await own.transact(step, sync=sync)

        assert (step.calls, ledger(db)) == (1, 0)
        assert moves.journal(db, own.run.claimed.id) == []
        assert own.run.gate is None


@pytest.mark.parametrize("sync", SYNC)
@pytest.mark.parametrize("errcode", ["55000", "25006", "08001", "57014", "53200"])
async def test_an_error_that_the_sql_itself_raises_is_not_taken_for_a_lost_connection(
    database_url: str, db: Session, sync: bool, errcode: str
) -> None:
    db.rows(
        "create function raise_it() returns trigger language plpgsql as $$ begin"
        f" raise exception using errcode = '{errcode}'; end $$"
    )
    async with bench(database_url) as own:
        db.rows("create trigger raise_it before insert on ledger execute function raise_it()")
        step = Step()

        with pytest.raises(psycopg.Error) as raised:
            await own.transact(step, sync=sync)

        assert (raised.value.sqlstate, step.calls) == (errcode, 1)


@pytest.mark.parametrize("sync", SYNC)
@pytest.mark.parametrize("error", [errors.SerializationFailure, errors.DeadlockDetected])
async def test_a_lost_race_is_repeated_whole(
    database_url: str, db: Session, sync: bool, error: type[psycopg.Error]
) -> None:
    tries = iter(range(10))

    def race() -> None:
        if next(tries) < 2:
            raise error("lost")

    async with bench(database_url) as own:
        step = Step(blocking=race)

        seq = await own.transact(step, sync=sync)

        assert (kept(db, seq), ledger(db)) == (b"\x013", 1)


async def test_what_the_run_has_queued_before_is_durable_before_the_memo(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    async with bench(database_url) as own:
        holder = sessions.open()
        holder.begin()
        holder.rows("select 1 from kedge.workers for update")  # the flush waits for it
        own.writer.flusher.keep(own.run, "s", "before", b"\x011")
        step = asyncio.create_task(own.transact(Step()))
        await asyncio.to_thread(
            sessions.wait_until,
            "select count(*) = 1 from pg_stat_activity"
            " where application_name = 'kedge transaction' and state = 'idle in transaction'",
            what="the body to be done",
        )
        early = moves.journal(db, own.run.claimed.id)
        holder.rollback()
        await step

        assert early == []
        assert moves.journal(db, own.run.claimed.id) == [(1, 1), (2, 1)]


async def test_no_other_outcome_of_the_run_gets_a_seq_until_the_commit_is_answered(
    database_url: str, db: Session
) -> None:
    async with bench(database_url) as own:
        trap = own.proxy.set_trap(answers_commit, Fault.FREEZE)
        step = asyncio.create_task(own.transact(Step()))
        await trap.sprung()
        gate = own.run.gate
        second = asyncio.create_task(own.transact(Step()))
        await asyncio.sleep(0)
        shut = gate is not None and not gate.is_set()
        own.proxy.thaw()
        await asyncio.gather(step, second)

        assert shut
        assert own.run.gate is None
        assert moves.journal(db, own.run.claimed.id) == [(1, 1), (2, 1)]


# ---- the commit's outcome is not known ----------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNC)
@pytest.mark.parametrize(
    ("match", "fault", "calls"),
    [(answers_commit, Fault.CUT, 1), (answers_commit, Fault.CUT_BEHIND, 1), (asks_commit, Fault.CUT, 2)],
    ids=["its answer is lost", "it is answered, then cut", "it does not arrive"],
)
async def test_a_commit_that_is_cut_has_its_effect_once_and_its_body_is_not_repeated_if_it_was_done(
    database_url: str, db: Session, sync: bool, match: Match, fault: Fault, calls: int
) -> None:
    async with bench(database_url) as own:
        own.proxy.set_trap(match, fault)
        step = Step()

        seq = await own.transact(step, sync=sync)

        assert (kept(db, seq), step.calls, ledger(db)) == (b"\x01%d" % calls, calls, 1)
        assert len(moves.journal(db, own.run.claimed.id)) == 1


@pytest.mark.parametrize("sync", SYNC)
@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_a_commit_that_arrives_while_it_is_being_settled_counts(
    database_url: str, sessions: Sessions, db: Session, level: str, sync: bool
) -> None:
    name = conninfo_to_dict(database_url)["dbname"]
    db.rows(f"alter database {name} set default_transaction_isolation = '{level}'")
    async with bench(database_url) as own:
        trap = own.proxy.set_trap(asks_commit, Fault.ABANDON)
        step = Step()
        running = asyncio.create_task(own.transact(step, sync=sync))
        await trap.sprung()
        await asyncio.to_thread(
            sessions.wait_until,
            "select exists (select 1 from pg_stat_activity where application_name = 'kedge transaction'"
            " and %(pid)s = any (pg_blocking_pids(pid)))",
            {"pid": step.pids[0]},
            what="the settling session to wait for the run's row",
        )
        await trap.release()

        seq = await running

        assert (kept(db, seq), step.calls, ledger(db)) == (b"\x011", 1, 1)


async def test_a_client_that_stops_before_its_commit_does_not_hold_its_run_for_ever(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    async with bench(database_url, lease_s=0.6) as own:
        trap = own.proxy.set_trap(asks_commit, Fault.FREEZE)
        step = Step()
        running = asyncio.create_task(own.transact(step))
        await trap.sprung()
        moves.lapse(db, own.writer.id)
        first = moves.take_back(db)

        await asyncio.to_thread(
            sessions.wait_until,
            "select not exists (select 1 from pg_stat_activity where pid = %(pid)s)",
            {"pid": step.pids[0]},
            what="the server to end the stopped session",
        )
        second = moves.take_back(db)
        own.proxy.thaw()
        with pytest.raises(LeaseLostError):
            await running

        assert first is None or first.remaining
        assert second is not None
        assert (second.freed, second.remaining) == (1, False)
        assert ledger(db) == 0


# ---- connections that end in the body -----------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNC)
async def test_a_session_that_an_administrator_ends_in_the_body_is_repeated_and_fails_no_run(
    database_url: str, sessions: Sessions, db: Session, sync: bool
) -> None:
    async with bench(database_url) as own:
        step = Step()

        def end_it() -> None:
            if step.calls == 1:
                db.rows("select pg_terminate_backend($1, 5000)", (step.pids[0],))

        step.blocking = end_it
        seq = await own.transact(step, sync=sync)

        assert (kept(db, seq), ledger(db)) == (b"\x012", 1)


async def test_connections_that_a_restart_has_broken_cost_no_step(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with open_sessions(server.url) as sessions:
        moves.started(sessions.open())
    async with bench(server.url) as own:
        await asyncio.gather(*(own.transact(Step()) for _ in range(3)))  # three connections in the pool
        await asyncio.to_thread(server.restart)
        step = Step()

        await own.transact(step)

        with psycopg.connect(server.url) as conn:
            assert conn.execute("select count(*) from ledger").fetchone() == (4,)
        own.writer.flusher.move(own.run, GIVEN_BACK)
        await own.writer.settled_all([own.run])


# ---- take back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNC)
async def test_a_run_that_was_taken_back_during_the_body_keeps_nothing_of_it(
    database_url: str, db: Session, sync: bool
) -> None:
    async with bench(database_url) as own:

        def lose() -> None:
            moves.lapse(db, own.writer.id)
            moves.take_back(db)

        step = Step(blocking=lose)

        with pytest.raises(LeaseLostError):
            await own.transact(step, sync=sync)

        assert (step.calls, ledger(db)) == (1, 0)
        assert moves.journal(db, own.run.claimed.id) == []


async def test_a_memo_waits_its_turn_behind_an_open_take_back_and_is_refused(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    async with bench(database_url) as own:
        moves.lapse(db, own.writer.id)
        taker = sessions.open()
        taker.begin()
        moves.take_back(taker)

        step = Step()
        running = asyncio.create_task(own.transact(step))
        await asyncio.to_thread(
            sessions.wait_until,
            "select exists (select 1 from pg_stat_activity where application_name = 'kedge transaction'"
            " and %(pid)s = any (pg_blocking_pids(pid)))",
            {"pid": taker.pid},
            what="the memo to wait for the run's row",
        )
        taker.commit()

        with pytest.raises(LeaseLostError):
            await running
        assert ledger(db) == 0


async def test_a_take_back_passes_by_a_run_whose_memo_is_being_committed_and_counts_it_as_progress(
    database_url: str, db: Session
) -> None:
    async with bench(database_url) as own:
        trap = own.proxy.set_trap(asks_commit, Fault.FREEZE)
        running = asyncio.create_task(own.transact(Step()))
        await trap.sprung()
        moves.lapse(db, own.writer.id)

        first = moves.take_back(db)
        own.proxy.thaw()
        seq = await running
        second = moves.take_back(db)

        assert first is not None
        assert second is not None
        assert (first.freed, first.remaining) == (0, True)
        assert (second.freed, second.remaining) == (1, False)
        assert (kept(db, seq), ledger(db)) == (b"\x011", 1)
        assert moves.run_row(db, own.run.claimed.id)["crashes"] == 0
        assert moves.run_row(db, own.run.claimed.id)["next_seq"] == 2


# ---- cancellation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", [asks_commit, answers_commit], ids=["before the COMMIT", "before its answer"])
async def test_a_step_that_is_cancelled_at_its_commit_leaves_the_gate_open_and_its_seq_to_nobody(
    database_url: str, db: Session, match: Match
) -> None:
    async with bench(database_url) as own:
        trap = own.proxy.set_trap(match, Fault.FREEZE)
        running = asyncio.create_task(own.transact(Step()))
        await trap.sprung()

        running.cancel()
        own.proxy.thaw()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert own.run.gate is None
        seq = own.writer.flusher.keep(own.run, "x", "charge", b"")
        await own.writer.flusher.durable(own.run)
        kept = moves.journal(db, own.run.claimed.id)
        assert seq == 2
        assert kept in ([(1, 1), (2, 1)], [(2, 1)])
        assert len(kept) == ledger(db) + 1


async def test_a_sync_body_that_is_cancelled_before_its_commit_commits_nothing(database_url: str, db: Session) -> None:
    async with bench(database_url) as own:
        loop = asyncio.get_running_loop()
        begun, cancelled = asyncio.Event(), asyncio.Event()

        def wait() -> None:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(cancelled.wait(), loop).result(10)

        running = asyncio.create_task(own.transact(Step(blocking=wait), sync=True))
        await begun.wait()
        running.cancel()
        await asyncio.sleep(0)
        cancelled.set()

        with pytest.raises(asyncio.CancelledError):
            await running
        assert ledger(db) == 0
        assert moves.journal(db, own.run.claimed.id) == []
