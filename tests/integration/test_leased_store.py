"""The journal's connection: what one flush and one claim say and answer, and that only one of them ever lives."""

from __future__ import annotations

import asyncio
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from kedge_worker._claims import ClaimRequest
from kedge_worker._outcomes import GiveBack
from kedge_worker._pipeline import CutError
from kedge_worker._runs import Batch, LiveRun
from kedge_worker._signals import LeaseLostError
from kedge_worker.testing import PostgresServer
from tests import moves
from tests.fault_proxy import Fault, FaultProxy, answers_commit, asks_commit
from tests.sessions import Session, Sessions, open_sessions
from tests.writer import CANCELLED, COMPLETED, FAILED, GIVEN_BACK, Writer, batch, lanes, live, open_store

NOTHING = Batch()


async def claimed(writer: Writer, limit: int = 100) -> list[LiveRun]:
    answer = await writer.store.flush(NOTHING, ClaimRequest(limit, lanes(), {}))
    assert answer.claim is not None
    return [live(run) for run in answer.claim.runs]


# ---- claim --------------------------------------------------------------------------------------------------------


async def test_a_claim_brings_input_and_memo_in_the_order_of_the_journal(database_url: str, db: Session) -> None:
    runs = moves.started(db, 3, data=b"\x01[1, 2]")
    async with open_store(database_url) as first:
        before = await claimed(first)
        await first.store.flush(
            batch((before[0], 3, GIVEN_BACK), (before[1], 0, GIVEN_BACK), (before[2], 1, GIVEN_BACK)), None
        )

    async with open_store(database_url) as second:
        after = await claimed(second)

    assert [run.claimed.id for run in after] == runs
    assert {run.claimed.input for run in after} == {b"\x01[1, 2]"}
    assert [[(row.seq, row.key, row.value) for row in run.claimed.memo] for run in after] == [
        [(1, "step1", b"\x011"), (2, "step2", b"\x012"), (3, "step3", b"\x013")],
        [],
        [(1, "step1", b"\x011")],
    ]
    assert [run.next_seq for run in after] == [4, 1, 2]
    assert {run.claimed.epoch for run in after} == {2}


async def test_a_claim_says_who_wants_the_run_ended_and_whether_there_is_mail(database_url: str, db: Session) -> None:
    (first,) = moves.started(db)
    async with open_store(database_url) as writer:
        without = await writer.store.flush(NOTHING, ClaimRequest(1, lanes(), {}))
        moves.cancel(db, first)
        beside = await writer.store.flush(NOTHING, ClaimRequest(1, lanes(), {}))

    assert without.claim is not None
    assert beside.claim is not None
    assert (without.claim.has_mail, beside.claim.has_mail) == (False, True)


async def test_a_claim_answers_the_highest_place_of_each_lane_but_not_beside_due_runs(
    database_url: str, db: Session
) -> None:
    moves.started(db, 2, priority=1)
    moves.started(db, 2)
    moves.started(db, 1, workflow="other")
    async with open_store(database_url) as writer:
        answer = await writer.store.flush(NOTHING, ClaimRequest(4, lanes(moves.WORKFLOW, "other"), {}))
        assert answer.claim is not None
        last = answer.claim.runs[-1]
        moves.started(db, 2)
        moves.started(db, 1, delay_s=0)
        db.rows("update kedge.runs set state = 'w', due_at = now() where state = 'p' and workflow = 'other'")
        beside = await writer.store.flush(NOTHING, ClaimRequest(1, lanes(moves.WORKFLOW, "other"), {}))

    places = dict(db.rows("select id, seq from kedge.runs"))
    assert answer.claim.highest == {moves.LANE: (0, places[last.id])}
    assert beside.claim is not None
    assert (len(beside.claim.runs), beside.claim.highest) == (1, {})


async def test_a_claim_of_nothing_answers_nothing_though_the_claim_before_took_something(
    database_url: str, db: Session
) -> None:
    moves.started(db, 2)
    async with open_store(database_url) as writer:
        first = await claimed(writer)
        second = await claimed(writer)

    assert (len(first), second) == (2, [])


# ---- flush --------------------------------------------------------------------------------------------------------


async def test_one_flush_keeps_ends_gives_back_and_claims_in_one_round_trip_and_one_commit(
    database_url: str, db: Session
) -> None:
    moves.started(db, 5)
    async with FaultProxy(database_url) as proxy, open_store(proxy.url) as writer:
        keeping, ending, failing, released = await claimed(writer, 4)
        before = proxy.commits

        answer = await writer.store.flush(
            batch((keeping, 2, None), (ending, 1, COMPLETED), (failing, 0, FAILED), (released, 1, GiveBack(60, "why"))),
            ClaimRequest(10, lanes(), {}),
        )

        commits = proxy.commits - before
    assert (answer.kept, answer.moved) == (4, 3)
    assert answer.claim is not None
    assert len(answer.claim.runs) == 1
    assert commits == 1
    statuses = moves.statuses(db)
    assert [statuses[run.claimed.id] for run in (keeping, ending, failing, released)] == [
        "running",
        "completed",
        "failed",
        "waiting",
    ]
    assert moves.run_row(db, released.claimed.id)["reason"] == "why"


async def test_a_step_that_took_longer_than_its_column_can_tell_is_stored(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with open_store(database_url) as writer:
        (run,) = await claimed(writer)
        flush = batch((run, 1, COMPLETED))
        flush.rows[0].took_ms = 2**31

        answer = await writer.store.flush(flush, None)

    assert (answer.kept, answer.moved) == (1, 1)


async def test_a_flush_of_a_worker_whose_row_is_gone_stores_nothing(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with open_store(database_url) as writer:
        (run,) = await claimed(writer)
        moves.lapse(db, writer.id)
        moves.take_back(db)

        with pytest.raises(psycopg.Error) as lost:
            await writer.store.flush(batch((run, 1, COMPLETED)), ClaimRequest(1, lanes(), {}))

        assert lost.value.sqlstate == "KE001"
        assert moves.status(db, run.claimed.id) == "pending"
        assert moves.journal(db, run.claimed.id) == []


async def test_a_refused_statement_leaves_no_open_transaction_behind(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with open_store(database_url) as writer:
        (run,) = await claimed(writer)
        db.rows("alter table kedge.finished add check (workflow <> 'order')")

        with pytest.raises(errors.CheckViolation):
            await writer.store.flush(batch((run, 1, COMPLETED)), None)

        assert in_transaction(db) == []
        assert moves.journal(db, run.claimed.id) == []


async def test_the_careful_form_writes_what_it_has_locked_and_what_does_not_move(
    database_url: str, sessions: Sessions
) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 3)
    async with open_store(database_url) as writer:
        locked, free, keeping = await claimed(writer)
        holder.begin()
        holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.claimed.id,))
        flush = batch((locked, 1, COMPLETED), (free, 1, COMPLETED), (keeping, 1, None))

        with pytest.raises(errors.LockNotAvailable):
            await writer.store.flush(flush, None)
        obtained = await writer.store.lock_moving(flush)
        now = Batch()
        now.rows = [row for row in flush.rows if row.run is not locked]
        now.moves = [(run, move) for run, move in flush.moves if run is not locked]
        answer = await writer.store.flush(now, None, only=obtained)
        holder.rollback()

    assert obtained == {free.claimed.id}
    assert (answer.kept, answer.moved) == (2, 1)
    assert moves.status(db, free.claimed.id) == "completed"
    assert moves.journal(db, locked.claimed.id) == []
    assert moves.journal(db, keeping.claimed.id) == [(1, 1)]


async def test_the_careful_form_that_obtains_nothing_holds_no_lock_and_no_transaction_afterwards(
    database_url: str, sessions: Sessions
) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 1)
    async with open_store(database_url) as writer:
        (locked,) = await claimed(writer)
        holder.begin()
        holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.claimed.id,))

        obtained = await writer.store.lock_moving(batch((locked, 1, COMPLETED)))
        await writer.store.flush(Batch(), None, only=obtained)

        assert obtained == frozenset()
        assert in_transaction(db) == []
        holder.rollback()


# ---- settling -----------------------------------------------------------------------------------------------------


async def test_settling_tells_mine_ended_released_taken_and_foreign_rows_apart(database_url: str, db: Session) -> None:
    moves.started(db, 5)
    async with open_store(database_url) as writer:
        mine, ended, released, taken, foreign = await claimed(writer)
        flush = batch((mine, 2, None), (ended, 1, COMPLETED), (released, 0, GIVEN_BACK), (taken, 1, None))
        await writer.store.flush(flush, None)
        db.rows(
            "update kedge.runs set state = 'p', worker_id = null, epoch = epoch + 1, next_seq = 2 where id = $1",
            (taken.claimed.id,),
        )
        db.rows(
            "insert into kedge.journal select run_id, at, 1, 0, 0, 's', 'x', '', '' from kedge.journal"
            " where run_id = $1",
            (foreign.claimed.id,),
        )
        late = batch((foreign, 1, None))

        standing = await writer.store.settle([mine, ended, released, taken, foreign], flush.rows + late.rows)

    answers = {name: standing[run.claimed.id] for name, run in [
        ("mine", mine), ("ended", ended), ("released", released), ("taken", taken), ("foreign", foreign)
    ]}  # fmt: skip
    assert {name: (one.epoch, one.mine, one.live) for name, one in answers.items()} == {
        "mine": (1, True, True),
        "ended": (1, False, False),
        "released": (1, False, True),
        "taken": (2, False, True),
        "foreign": (1, True, True),
    }
    assert (answers["mine"].rows, answers["taken"].rows) == ({1: 1, 2: 1}, {1: 1})
    assert answers["foreign"].rows == {1: 0}
    db.rows("delete from kedge.journal where run_id = $1 and seq > 0", (foreign.claimed.id,))


async def test_what_the_database_holds_for_a_worker_can_be_compared_and_given_back(
    database_url: str, db: Session
) -> None:
    runs = moves.started(db, 2)
    async with open_store(database_url) as writer:
        first, _ = await claimed(writer)
        await writer.store.flush(batch((first, 2, None)), None)

        owned = await writer.store.owned()
        await writer.store.give_back(owned)
        left = await writer.store.owned()

    assert owned == dict.fromkeys(runs, 1)
    assert left == {}
    assert moves.statuses(db) == dict.fromkeys(runs, "pending")
    assert {moves.run_row(db, run)["crashes"] for run in runs} == {0}
    assert moves.run_row(db, runs[0])["next_seq"] == 3


# ---- one journal connection ---------------------------------------------------------------------------------------


async def test_no_transaction_of_an_earlier_connection_commits_once_the_next_one_stands(
    database_url: str, sessions: Sessions
) -> None:
    db = sessions.open()
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_store(proxy.url) as writer:
        (run,) = await claimed(writer)
        trap = proxy.set_trap(asks_commit, Fault.ABANDON)
        with pytest.raises(CutError):
            await writer.store.flush(batch((run, 1, None)), None)
        await trap.sprung()
        # In the server, the row is inserted and not committed, and nobody knows that the client is gone.
        sessions.wait_until(
            "select exists (select 1 from pg_locks where relation = 'kedge.journal'::regclass"
            " and mode = 'RowExclusiveLock')",
            what="the row to be inserted",
        )

        await writer.store.connect()
        standing = await writer.store.settle([run], batch((run, 0, None)).rows)
        await writer.store.give_back({run.claimed.id: run.claimed.epoch})
        other = moves.register(db)
        (again,) = moves.claim_alone(db, other)
        await trap.release()
        kept = moves.keep(db, other, again, 1)

    assert standing[run.claimed.id].mine
    assert kept == 1
    assert moves.journal(db, again.id) == [(1, 2)]


def test_taking_over_waits_for_a_predecessor_that_it_cannot_end(sessions: Sessions) -> None:
    db, old, new = sessions.open(), sessions.open(), sessions.open()
    worker = moves.register(db)
    moves.started(db)
    (run,) = moves.claim_alone(db, worker)
    old.begin()
    moves.hold(old, worker)
    moves.keep(old, worker, run)

    taken_over = new.later(Session.rows, "select kedge.take_over_journal($1, 0, null)", (worker,))
    sessions.wait_until_blocked(new, old)
    old.commit()
    taken_over.result()

    # What is read now is final.
    assert moves.journal(new, run.id) == [(1, 1)]


def test_taking_over_ends_only_the_session_that_it_was_told_of(sessions: Sessions) -> None:
    db, innocent = sessions.open(), sessions.open()
    worker = moves.register(db)

    db.rows("select kedge.take_over_journal($1, $2, now() - interval '1 day')", (worker, innocent.pid))

    assert innocent.value("select 1") == 1
    assert db.rows("select pids from kedge.workers") == [([db.pid],)]


async def test_a_new_connection_of_a_worker_without_a_row_is_told_so(database_url: str, db: Session) -> None:
    async with open_store(database_url) as writer:
        moves.lapse(db, writer.id)
        moves.take_back(db)

        with pytest.raises(psycopg.Error) as lost:
            await writer.store.connect()

    assert lost.value.sqlstate == "KE001"


async def test_every_new_connection_is_noted_so_that_a_taker_can_end_it(database_url: str, db: Session) -> None:
    async with open_store(database_url) as writer:
        await writer.store.connect()
        await writer.store.connect()

        noted = db.rows(
            "select a.application_name from kedge.workers w join pg_stat_activity a on a.pid = w.pids[1]"
            " and a.backend_start = w.pids_started[1] and cardinality(w.pids) = 1"
        )
        alive = db.value("select count(*) from pg_stat_activity where application_name = 'kedge journal'")

    assert noted == [("kedge journal",)]
    assert alive == 1


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.CUT_BEHIND])
async def test_a_connection_that_breaks_at_the_commits_answer_says_unknown(
    database_url: str, db: Session, fault: Fault
) -> None:
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_store(proxy.url) as writer:
        (run,) = await claimed(writer)
        proxy.set_trap(answers_commit, fault)

        with pytest.raises(CutError):
            await writer.store.flush(batch((run, 1, CANCELLED)), None)
        with pytest.raises(CutError):
            await writer.store.owned()

    assert moves.status(db, run.claimed.id) == "cancelled"


async def test_a_server_that_falls_silent_is_given_up_and_its_socket_closed(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_store(proxy.url, timeout_s=0.3) as writer:
        proxy.freeze()

        with pytest.raises(CutError, match="did not answer within"):
            await claimed(writer)
        with pytest.raises(TimeoutError):
            await writer.store.connect()
        proxy.thaw()
        await writer.store.connect()

        assert len(await writer.store.owned()) <= 1


async def test_a_round_trip_that_is_cancelled_gives_its_connection_up(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_store(proxy.url) as writer:
        trap = proxy.set_trap(answers_commit, Fault.FREEZE)
        claim = asyncio.create_task(claimed(writer))
        await trap.sprung()

        claim.cancel()

        with pytest.raises(asyncio.CancelledError):
            await claim
        proxy.thaw()  # the answer of what was cancelled is on its way
        with pytest.raises(CutError):
            await writer.store.owned()


async def test_a_promoted_server_ends_the_life_of_a_worker(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with open_sessions(server.url) as sessions:
        moves.started(sessions.open(), 1)
        folder = sessions.open().value("show data_directory")
    async with open_store(server.url) as writer:
        await claimed(writer)
        # A standby of nobody: it comes up, is promoted, and goes on in a new timeline.
        server.stop()
        with open(f"{folder}/standby.signal", "w"):  # an empty file
            pass
        server.start()
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("select pg_promote(wait => true)")

        with pytest.raises(LeaseLostError, match="promoted"):
            await writer.store.connect()


async def test_a_commit_whose_wait_for_a_standby_was_cancelled_is_unknown_and_settled(
    breakable_postgres: PostgresServer,
) -> None:
    server = breakable_postgres
    with open_sessions(server.url) as sessions:
        db = sessions.open(synchronous_commit="local")
        moves.started(db, 1)
        async with open_store(server.url) as writer:
            (run,) = await claimed(writer)
            probe = sessions.open()
            db.rows("alter system set synchronous_standby_names = 'nobody'")
            db.rows("select pg_reload_conf()")
            probing = probe.later(commit_until_one_is_cancelled)
            await asyncio.to_thread(waits_for_a_standby, sessions, probe.pid)
            flush = batch((run, 1, COMPLETED))
            writing = asyncio.create_task(writer.store.flush(flush, None))
            (pid,) = db.rows("select pids[1] from kedge.workers")[0]
            await asyncio.to_thread(waits_for_a_standby, sessions, pid)
            db.rows("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
            probing.result()

            with pytest.raises(CutError, match="synchronous standby"):
                await writing
            db.rows("alter system reset synchronous_standby_names")
            db.rows("select pg_reload_conf()")
            await writer.store.connect()
            standing = await writer.store.settle([run], flush.rows)

    assert (standing[run.claimed.id].epoch, standing[run.claimed.id].live) == (1, False)
    assert standing[run.claimed.id].rows == {1: 1}


async def test_a_journal_that_waits_for_the_standby_keeps_nobody_from_its_workers_row(
    breakable_postgres: PostgresServer,
) -> None:
    """A standby that stays away stops the commits, and no lease: the beats need that row."""
    server = breakable_postgres
    with open_sessions(server.url) as sessions:
        db = sessions.open(synchronous_commit="local")
        async with open_store(server.url) as writer:
            probe = sessions.open()
            db.rows("alter system set synchronous_standby_names = 'nobody'")
            db.rows("select pg_reload_conf()")
            probing = probe.later(commit_until_one_is_cancelled)
            await asyncio.to_thread(waits_for_a_standby, sessions, probe.pid)
            connecting = asyncio.create_task(writer.store.connect())
            await asyncio.to_thread(
                sessions.wait_until,
                "select count(*) = 2 from pg_stat_activity where wait_event = 'SyncRep'",
                {},
                what="the new connection waits",
            )

            assert len(db.rows("select 1 from kedge.workers for no key update nowait")) == 1

            db.rows("select pg_cancel_backend($1)", (probe.pid,))
            probing.result()
            db.rows("alter system reset synchronous_standby_names")
            db.rows("select pg_reload_conf()")
            await connecting


def commit_until_one_is_cancelled(session: Session) -> None:
    """The setting counts when the server's checkpointer has read it, which nobody can see but who commits."""
    cancelled = False

    def notice(_: object) -> None:
        nonlocal cancelled
        cancelled = True

    session.conn.add_notice_handler(notice)
    while not cancelled:
        # Not just any commit: one with nothing but its own record in the WAL waits for nobody.
        session.rows("select pg_logical_emit_message(true, 'probe', '')")


def waits_for_a_standby(sessions: Sessions, pid: int) -> None:
    sessions.wait_until(
        "select wait_event is not distinct from 'SyncRep' from pg_stat_activity where pid = %(pid)s",
        {"pid": pid},
        what="a commit to wait for its standby",
    )


def in_transaction(db: Session) -> list[tuple[UUID]]:
    """Journal sessions that stand in an open transaction."""
    return db.rows(
        "select pid from pg_stat_activity where application_name = 'kedge journal' and state <> 'idle'"
        " and datname = current_database()"
    )
