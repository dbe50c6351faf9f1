"""Group commit under faults: what is locked, refused, cut or silent costs only whom it must; nothing is done twice."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

import psycopg
import pytest

from kedge_worker._errors import PostgresError
from kedge_worker._flusher import MAX_BYTES, MAX_ROWS
from kedge_worker._outcomes import End, GiveBack
from kedge_worker._runs import LiveRun
from kedge_worker._signals import ClosedError, LeaseLostError
from kedge_worker.testing import PostgresServer
from tests import moves
from tests.fault_proxy import Fault, FaultProxy, Match, Trap, answers_commit, asks_commit, executes
from tests.sessions import Session, Sessions, open_sessions
from tests.writer import COMPLETED, FAILED, GIVEN_BACK, Writer, open_writer

Move = End | GiveBack


def keep(writer: Writer, run: LiveRun, value: bytes = b"\x011") -> int:
    return writer.flusher.keep(run, "s", f"step{run.next_seq}", value)


async def durable(writer: Writer, *runs: LiveRun) -> None:
    async with asyncio.timeout(10):
        for run in runs:
            await writer.flusher.durable(run)


def refuse(db: Session, condition: str, *, on: str = "insert on kedge.journal", errcode: str = "23514") -> None:
    """Let a trigger of the test's own refuse rows, as somebody's own trigger or a full disk might."""
    db.rows(
        f"create function refuse() returns trigger language plpgsql as $$ begin if {condition} then"
        f" raise exception using errcode = '{errcode}', message = 'refused by the test'; end if; return new; end $$"
    )
    db.rows(f"create trigger refuse before {on} for each row execute function refuse()")


async def full_claim_before_a_flush(
    proxy: FaultProxy, writer: Writer, fault: Fault
) -> tuple[LiveRun, list[UUID], Trap]:
    """A run whose end is to be written when a full claim is answered, what that has brought, and the flush's fault."""
    (first,) = await writer.claim(1)
    trap = proxy.set_trap(asks_commit, Fault.FREEZE)
    claiming = asyncio.create_task(writer.claim(2))
    await trap.sprung()
    keep(writer, first)
    writer.flusher.move(first, COMPLETED)
    trap = proxy.set_trap(asks_commit, fault)
    proxy.thaw()
    return first, [run.claimed.id for run in await claiming], trap


# ---- gathering ----------------------------------------------------------------------------------------------------


async def test_what_a_full_claim_has_brought_begins_while_the_flush_behind_it_is_under_way(
    database_url: str, db: Session
) -> None:
    moves.started(db, 4)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        first, brought, trap = await full_claim_before_a_flush(proxy, writer, Fault.FREEZE)
        await trap.sprung()

        await writer.until(lambda: len(writer.begun) == 3)
        assert writer.begun == [first.claimed.id, *brought]
        assert writer.moved == []

        proxy.thaw()
        await writer.settled_all([first])


async def test_what_a_claim_has_brought_begins_though_nothing_is_to_be_written(database_url: str, db: Session) -> None:
    moves.started(db, 3)
    async with open_writer(database_url) as writer:
        full = await writer.claim(2)
        rest = await writer.claim(2)

        await writer.until(lambda: len(writer.begun) == 3)
        assert writer.begun == [run.claimed.id for run in full + rest]


async def test_what_a_claim_has_brought_begins_though_the_flush_behind_it_is_lost(
    database_url: str, db: Session
) -> None:
    moves.started(db, 4)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        first, brought, _ = await full_claim_before_a_flush(proxy, writer, Fault.CUT)
        await writer.settled_all([first])

        assert writer.begun == [first.claimed.id, *brought]
        assert writer.given_back == {}
        assert moves.status(db, first.claimed.id) == "completed"


async def test_what_comes_while_one_flush_is_in_flight_goes_out_together_in_the_next(
    database_url: str, db: Session
) -> None:
    moves.started(db, 50)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        first, *others = await writer.claim()
        commits = proxy.commits
        trap = proxy.set_trap(asks_commit, Fault.FREEZE)
        keep(writer, first)
        await trap.sprung()
        for run in others:
            keep(writer, run)
            writer.flusher.move(run, COMPLETED)
        proxy.thaw()
        await durable(writer, first)
        await writer.settled_all(others)

        assert proxy.commits - commits == 2
    assert list(moves.statuses(db).values()).count("completed") == 49


async def test_a_row_is_durable_when_its_commit_is_answered_and_not_before(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        (run,) = await writer.claim()
        trap = proxy.set_trap(answers_commit, Fault.FREEZE)
        keep(writer, run)
        waiting = asyncio.create_task(writer.flusher.durable(run))
        await trap.sprung()
        early = waiting.done()
        proxy.thaw()
        await waiting

        assert not early
        assert moves.journal(db, run.claimed.id) == [(1, 1)]


async def test_a_run_with_nothing_queued_is_durable_at_once(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    async with open_writer(database_url) as writer:
        (run,) = await writer.claim()

        await durable(writer, run)


async def test_more_rows_than_a_flush_takes_go_out_in_order_in_several_and_the_end_with_the_last(
    database_url: str, db: Session
) -> None:
    moves.started(db, 2)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        busy, other = await writer.claim()
        commits = proxy.commits
        for _ in range(MAX_ROWS + MAX_ROWS // 2):
            keep(writer, busy)
        keep(writer, other)
        for run in (busy, other):
            writer.flusher.move(run, COMPLETED)
        await writer.settled_all([busy, other])

        assert proxy.commits - commits == 2
    assert writer.lost == []
    assert [seq for seq, _ in moves.journal(db, busy.claimed.id)] == list(range(1, MAX_ROWS + MAX_ROWS // 2 + 1))


async def test_outputs_count_towards_the_size_of_a_flush(database_url: str, db: Session) -> None:
    moves.started(db, 4)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        runs = await writer.claim()
        commits = proxy.commits
        for run in runs:
            writer.flusher.move(run, End("c", output=b"\x01" + b"1" * (MAX_BYTES // 2)))
        await writer.settled_all(runs)

        assert proxy.commits - commits == 2


async def test_drained_returns_when_all_that_was_queued_is_written(database_url: str, db: Session) -> None:
    moves.started(db, 2)
    async with open_writer(database_url) as writer:
        one, other = await writer.claim()
        keep(writer, one)
        writer.flusher.move(other, GIVEN_BACK)

        async with asyncio.timeout(10):
            await writer.flusher.drained()

        assert moves.journal(db, one.claimed.id) == [(1, 1)]
        assert moves.status(db, other.claimed.id) == "pending"


# ---- locked rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [COMPLETED, FAILED, GIVEN_BACK], ids=["complete", "fail", "give back"])
async def test_one_locked_run_of_a_hundred_waits_whole_and_the_others_are_stored(
    database_url: str, sessions: Sessions, move: Move
) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 100)
    async with open_writer(database_url) as writer:
        runs = await writer.claim()
        locked, *others = runs
        holder.begin()
        holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.claimed.id,))

        for run in runs:
            keep(writer, run)
            keep(writer, run)
            writer.flusher.move(run, move)
        await writer.settled_all(others)
        while_locked = (moves.status(db, locked.claimed.id), moves.journal(db, locked.claimed.id))
        holder.rollback()
        await writer.settled_all([locked])

        assert while_locked == ("running", [])
        assert writer.lost == []
        assert "running" not in moves.statuses(db).values()
        assert moves.journal(db, locked.claimed.id) == [(1, 1), (2, 1)]


async def test_while_a_run_is_locked_everything_else_goes_on(database_url: str, sessions: Sessions) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 4)
    async with open_writer(database_url) as writer:
        locked, first, second, third = await writer.claim()
        holder.begin()
        holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.claimed.id,))
        keep(writer, locked)
        writer.flusher.move(locked, COMPLETED)
        writer.flusher.move(first, COMPLETED)
        await writer.settled_all([first])

        # All of this comes after the locked run was put off for the first time.
        keep(writer, second)
        await durable(writer, second)
        writer.flusher.move(second, COMPLETED)
        await writer.settled_all([second])
        (new,) = moves.started(db, 1)
        claimed = await writer.claim(1)
        keep(writer, third)
        writer.flusher.move(third, GIVEN_BACK)
        await writer.settled_all([third])
        still_locked = moves.journal(db, locked.claimed.id)
        holder.rollback()
        await writer.settled_all([locked])

        assert still_locked == []
        assert [run.claimed.id for run in claimed] == [new]
        assert moves.status(db, locked.claimed.id) == "completed"


async def test_a_put_off_run_holds_up_what_waits_for_the_journal_to_drain(
    database_url: str, sessions: Sessions
) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 2)
    async with open_writer(database_url) as writer:
        locked, other = await writer.claim()
        holder.begin()
        holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.claimed.id,))
        writer.flusher.move(locked, COMPLETED)
        writer.flusher.move(other, COMPLETED)
        await writer.settled_all([other])

        drained = asyncio.create_task(writer.flusher.drained())
        await asyncio.sleep(0)
        early = drained.done()
        holder.rollback()
        async with asyncio.timeout(10):
            await drained

        assert not early
        assert moves.status(db, locked.claimed.id) == "completed"


async def test_the_workers_own_row_locked_by_somebody_holds_the_flush_up_and_loses_nothing(
    database_url: str, sessions: Sessions
) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 2)
    async with open_writer(database_url) as writer:
        keeping, ending = await writer.claim()
        holder.begin()
        holder.rows("select 1 from kedge.workers where id = $1 for update", (writer.id,))
        keep(writer, keeping)
        writer.flusher.move(ending, COMPLETED)
        await asyncio.to_thread(
            sessions.wait_until,
            "select exists (select 1 from pg_stat_activity where application_name = 'kedge journal'"
            " and cardinality(pg_blocking_pids(pid)) > 0)",
            what="the flush to wait for the worker's row",
        )
        holder.rollback()
        await durable(writer, keeping)
        await writer.settled_all([ending])

        assert writer.lost == []
        assert moves.journal(db, keeping.claimed.id) == [(1, 1)]


# ---- lost answers -------------------------------------------------------------------------------------------------

ANSWERS: list[tuple[str, Match, Fault]] = [
    ("before the COMMIT", asks_commit, Fault.CUT),
    ("between the COMMIT and its answer", answers_commit, Fault.CUT),
    ("behind the COMMIT's answer", answers_commit, Fault.CUT_BEHIND),
    ("before the rows", executes("keep"), Fault.CUT),
    ("behind the end", executes("end"), Fault.CUT_BEHIND),
]


@pytest.mark.parametrize("move", [COMPLETED, FAILED, GIVEN_BACK, None], ids=["complete", "fail", "give back", "none"])
@pytest.mark.parametrize(("match", "fault"), [(m, f) for _, m, f in ANSWERS], ids=[name for name, _, _ in ANSWERS])
async def test_a_flush_whose_connection_is_cut_is_stored_once_and_loses_no_run_that_is_still_mine(
    database_url: str, db: Session, match: Match, fault: Fault, move: Move | None
) -> None:
    moves.started(db, 3)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        runs = await writer.claim()
        first, second, keeping = runs
        trap = proxy.set_trap(match, fault)
        for run in (first, second):
            keep(writer, run)
            if move is not None:
                writer.flusher.move(run, move)
        keep(writer, keeping)
        if match.__qualname__.startswith("executes") and move is not COMPLETED:
            writer.flusher.move(keeping, COMPLETED)  # so that there is an END to be cut at
            await writer.settled_all([keeping])
        await trap.sprung()
        await durable(writer, *(run for run in runs if run not in writer.moved))
        if move is not None:
            await writer.settled_all([first, second])
        # It works on.
        (new,) = moves.started(db, 1)
        assert new in {run.claimed.id for run in await writer.claim()}

    assert writer.lost == []
    assert writer.refusals == []
    for run in runs:
        assert [seq for seq, _ in moves.journal(db, run.claimed.id)] == [1]
    expected = {COMPLETED: "completed", FAILED: "failed", None: "running"}
    if move in expected:
        assert moves.status(db, first.claimed.id) == expected[move]


async def test_a_commit_that_the_server_gets_after_the_next_connection_stands_stores_nothing(
    database_url: str, db: Session
) -> None:
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        (run,) = await writer.claim()
        trap = proxy.set_trap(asks_commit, Fault.ABANDON)
        keep(writer, run)
        writer.flusher.move(run, COMPLETED)
        await trap.sprung()
        await writer.settled_all([run])
        await trap.release()

    assert writer.lost == []
    assert moves.journal(db, run.claimed.id) == [(1, 1)]
    assert moves.status(db, run.claimed.id) == "completed"


async def test_a_run_that_was_given_back_before_the_cut_and_claimed_by_another_since_is_written_no_more(
    database_url: str, db: Session
) -> None:
    moves.started(db, 2)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        released, keeping = await writer.claim()
        trap = proxy.set_trap(answers_commit, Fault.CUT)
        proxy.refusing = True
        writer.flusher.move(released, GIVEN_BACK)
        keep(writer, keeping)
        await trap.sprung()
        other = moves.register(db)
        (again,) = moves.claim_alone(db, other)
        proxy.refusing = False
        await writer.settled_all([released])
        await durable(writer, keeping)

        assert again.id == released.claimed.id
        assert moves.keep(db, other, again) == 1
        assert moves.run_row(db, again.id)["epoch"] == 2


async def test_a_silent_server_is_given_up_and_the_flush_settled_on_a_new_connection(
    database_url: str, db: Session
) -> None:
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url, timeout_s=0.4) as writer:
        (run,) = await writer.claim()
        trap = proxy.set_trap(answers_commit, Fault.FREEZE)
        keep(writer, run)
        writer.flusher.move(run, COMPLETED)
        await trap.sprung()
        await proxy.knock()
        proxy.thaw()
        await writer.settled_all([run])

    assert writer.lost == []
    assert moves.status(db, run.claimed.id) == "completed"


async def test_a_claim_whose_answer_is_lost_is_given_back_and_charges_nobody(database_url: str, db: Session) -> None:
    runs = moves.started(db, 3)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        trap = proxy.set_trap(answers_commit, Fault.CUT)
        claimed = await writer.claim(2)
        await trap.sprung()

        assert sorted(writer.given_back) == runs[:2]
        assert len(claimed) == 2
        assert db.value("select count(*) from kedge.runs where state = 'r'") == 2
        assert {run.claimed.crashes for run in claimed} == {0}
        assert await writer.store.owned() == {run.claimed.id: run.claimed.epoch for run in claimed}


async def test_a_claim_that_was_taken_but_could_not_be_read_is_given_back_before_the_next(
    database_url: str, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    db, holder = sessions.open(), sessions.open()
    runs = moves.started(db, 5)
    async with open_writer(database_url) as writer:
        # The claim commits; what is read behind its commit waits too long.
        holder.begin()
        holder.rows("lock table kedge.journal in access exclusive mode")
        with caplog.at_level(logging.WARNING, "kedge.worker"):
            claim = asyncio.create_task(writer.claim(2))
            await writer.until(lambda: writer.unanswered_claims > 0)
            await asyncio.to_thread(
                sessions.wait_until,
                "select count(*) = 2 from kedge.runs where state = 'r'",
                what="the claim to be committed",
            )
            # Giving them back waits for the same lock; no further claim is sent before that is done.
            await writer.until(lambda: "cannot compare" in caplog.text)
            await writer.until(lambda: caplog.text.count("cannot compare") > 1)
            owned = db.value("select count(*) from kedge.runs where state = 'r'")
            holder.rollback()
            claimed = await claim

        assert owned == 2
        assert sorted(writer.given_back) == runs[:2]
        assert len(claimed) == 2
        assert await writer.store.owned() == {run.claimed.id: run.claimed.epoch for run in claimed}
    assert "a claim was refused: canceling statement due to lock timeout" in caplog.text


async def test_a_lost_claims_run_that_somebody_locks_holds_up_nothing_else(
    database_url: str, sessions: Sessions
) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 1)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        (known,) = await writer.claim()
        (locked, free) = moves.started(db, 2)
        trap = proxy.set_trap(answers_commit, Fault.CUT)
        proxy.refusing = True
        claim = asyncio.create_task(writer.claim(2))
        await trap.sprung()
        holder.begin()
        holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked,))
        proxy.refusing = False
        keep(writer, known)
        await durable(writer, known)
        (claimed,) = await claim
        holder.rollback()
        writer.flusher.compare_soon()
        await writer.until(lambda: len(writer.compared) > 1)

        assert claimed.claimed.id == free
        assert await writer.store.owned() == {known.claimed.id: 1, free: claimed.claimed.epoch}


async def test_a_comparison_that_finds_its_connection_gone_is_made_on_a_new_one(database_url: str, db: Session) -> None:
    moves.started(db)
    async with open_writer(database_url) as writer:
        (known,) = await writer.claim()
        before = len(writer.compared)
        db.rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'kedge journal'")

        # Nothing is written, and nothing claimed: nobody else would find out.
        writer.flusher.compare_soon()
        await writer.until(lambda: len(writer.compared) > before)

        assert await writer.store.owned() == {known.claimed.id: known.claimed.epoch}


async def test_who_cannot_connect_again_is_owed_an_answer_until_it_can(database_url: str, db: Session) -> None:
    moves.started(db)
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        await writer.claim()
        before = len(writer.compared)
        trap = proxy.set_trap(executes("owned"), Fault.CUT)
        proxy.refusing = True

        writer.flusher.compare_soon()
        await trap.sprung()
        async with asyncio.timeout(10):
            while not writer.flusher.silent_s:
                await asyncio.sleep(0.01)
        proxy.refusing = False
        await writer.until(lambda: len(writer.compared) > before)

        assert writer.flusher.silent_s == 0


# ---- refused data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[0], [4], [9], [2, 7]])
async def test_data_that_the_database_refuses_costs_only_its_own_run(
    database_url: str, db: Session, bad: list[int]
) -> None:
    moves.started(db, 10)
    refuse(db, "new.value = 'bad'")
    async with open_writer(database_url) as writer:
        runs = await writer.claim()
        for place, run in enumerate(runs):
            keep(writer, run, b"bad" if place in bad else b"\x011")
            if place % 2:
                writer.flusher.move(run, COMPLETED)
        await writer.until(lambda: len(writer.refusals) == len(bad))
        good = [run for place, run in enumerate(runs) if place not in bad]
        await durable(writer, *(run for place, run in enumerate(runs) if place % 2 == 0 and place not in bad))
        await writer.settled_all([run for place, run in enumerate(runs) if place % 2 and place not in bad])

        assert {id(run) for run, _ in writer.refusals} == {id(runs[place]) for place in bad}
        assert {error.sqlstate for _, error in writer.refusals} == {"23514"}
        for run in good:
            assert len(moves.journal(db, run.claimed.id)) == 1
        for place in bad:
            assert moves.journal(db, runs[place].claimed.id) == []
            assert moves.status(db, runs[place].claimed.id) == "running"
        # The owner ends it failed; that can be stored.
        for place in bad:
            writer.flusher.move(runs[place], FAILED)
        await writer.settled_all([runs[place] for place in bad])


async def test_nothing_of_a_refused_run_counts_as_durable(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    refuse(db, "new.value = 'bad'")
    async with open_writer(database_url) as writer:
        (run,) = await writer.claim()
        keep(writer, run, b"bad")

        with pytest.raises(ClosedError):  # what waits for it must not go on to the next side effect
            await durable(writer, run)
        with pytest.raises(ClosedError):
            await durable(writer, run)

        assert [one for one, _ in writer.refusals] == [run]


@pytest.mark.parametrize("move", [COMPLETED, GIVEN_BACK, FAILED], ids=["complete", "give back", "fail"])
async def test_a_run_whose_row_was_refused_cannot_complete_with_the_next_flush(
    database_url: str, db: Session, move: Move
) -> None:
    moves.started(db, 2)
    refuse(db, "new.value = 'bad'")
    async with FaultProxy(database_url) as proxy, open_writer(proxy.url) as writer:
        run, other = await writer.claim()
        trap = proxy.set_trap(asks_commit, Fault.FREEZE)
        keep(writer, run, b"bad")
        await trap.sprung()
        # In flight is the row; what stands on it is queued behind.
        keep(writer, run)
        writer.flusher.move(run, move)
        writer.flusher.move(other, COMPLETED)
        proxy.thaw()
        await writer.settled_all([other])
        if move is not FAILED:
            writer.flusher.move(run, FAILED)
        await writer.settled_all([run])

        assert [one for one, _ in writer.refusals] == [run]
        assert moves.status(db, run.claimed.id) == "failed"
        assert moves.journal(db, run.claimed.id) == []


async def test_an_error_of_the_claim_is_not_charged_to_the_runs_of_the_flush(
    database_url: str, db: Session, caplog: pytest.LogCaptureFixture
) -> None:
    moves.started(db, 1)
    async with open_writer(database_url) as writer:
        (run,) = await writer.claim()
        (unclaimable,) = moves.started(db, 1)
        refuse(db, f"new.state = 'r' and new.id = '{unclaimable}'", on="update on kedge.runs")
        with caplog.at_level(logging.WARNING, "kedge.worker"):
            claim = asyncio.create_task(writer.claim(1))
            await asyncio.sleep(0)
            keep(writer, run)
            writer.flusher.move(run, COMPLETED)
            await writer.settled_all([run])
            db.rows("drop trigger refuse on kedge.runs")
            claimed = await claim

    assert writer.refusals == []
    assert moves.status(db, run.claimed.id) == "completed"
    assert [run.claimed.id for run in claimed] == [unclaimable]
    assert "refused by the test" in caplog.text


@pytest.mark.parametrize("errcode", ["40001", "40P01", "53200", "53100", "57014"])
async def test_an_error_that_is_nobodys_fault_is_repeated_until_it_passes(
    database_url: str, db: Session, errcode: str
) -> None:
    moves.started(db, 2)
    db.rows("create sequence tries")
    refuse(db, "nextval('public.tries') < 3", errcode=errcode)
    async with open_writer(database_url) as writer:
        keeping, ending = await writer.claim()
        keep(writer, keeping)
        keep(writer, ending)
        writer.flusher.move(ending, COMPLETED)
        await durable(writer, keeping)
        await writer.settled_all([ending])

    assert (writer.refusals, writer.lost) == ([], [])
    assert moves.journal(db, keeping.claimed.id) == [(1, 1)]


async def test_missing_privileges_and_schema_drift_stop_the_worker_and_fail_no_run(
    database_url: str, db: Session
) -> None:
    moves.started(db, 1)
    writer = Writer(database_url)
    try:
        await writer.connect()
        task = writer.run()
        (run,) = await writer.claim()
        db.rows("alter function kedge.end_runs rename to end_runs_of_another_release")
        writer.flusher.move(run, COMPLETED)

        async with asyncio.timeout(10):
            with pytest.raises(PostgresError) as drift:
                await task
    finally:
        await writer.aclose()

    assert drift.value.sqlstate == "42883"
    assert writer.refusals == []
    assert moves.status(db, run.claimed.id) == "running"


# ---- lost leases --------------------------------------------------------------------------------------------------


async def test_a_worker_whose_row_is_gone_hears_it_and_stores_nothing(database_url: str, db: Session) -> None:
    moves.started(db, 1)
    writer = Writer(database_url)
    try:
        await writer.connect()
        task = writer.run()
        (run,) = await writer.claim()
        moves.lapse(db, writer.id)
        moves.take_back(db)
        keep(writer, run)
        writer.flusher.move(run, COMPLETED)

        async with asyncio.timeout(10):
            with pytest.raises(LeaseLostError):
                await task
    finally:
        await writer.aclose()

    assert moves.status(db, run.claimed.id) == "pending"
    assert moves.journal(db, run.claimed.id) == []


async def test_only_the_run_that_somebody_else_owns_is_lost(database_url: str, sessions: Sessions) -> None:
    db, holder = sessions.open(), sessions.open()
    moves.started(db, 3)
    async with open_writer(database_url) as writer:
        lost, kept, ended = await writer.claim()
        # A take back that could not get all of them leaves the worker's row; it beats, and lives on.
        holder.begin()
        holder.rows("select 1 from kedge.runs where id = any ($1) for update", ([kept.claimed.id, ended.claimed.id],))
        moves.lapse(db, writer.id)
        moves.take_back(db)
        holder.rollback()
        moves.beat(db, writer.id)
        other = moves.register(db)
        (again,) = moves.claim_alone(db, other)

        keep(writer, lost)
        waiting = asyncio.create_task(writer.flusher.durable(lost))
        keep(writer, kept)
        keep(writer, ended)
        writer.flusher.move(ended, COMPLETED)
        await durable(writer, kept)
        await writer.settled_all([ended, lost])

        with pytest.raises(LeaseLostError):
            await waiting
        assert (writer.lost, writer.moved) == ([lost], [ended])
        assert moves.journal(db, lost.claimed.id) == []
        assert moves.journal(db, kept.claimed.id) == [(1, 1)]
        assert moves.end(db, other, again) == 1
        writer.flusher.move(lost, COMPLETED)  # an end that was under way: dropped
        assert writer.lost == [lost, lost]


async def test_a_seq_that_stands_there_with_another_epoch_is_never_taken_for_mine(
    database_url: str, db: Session
) -> None:
    moves.started(db, 2)
    async with open_writer(database_url) as writer:
        mine, other = await writer.claim()
        db.rows(
            "insert into kedge.journal select run_id, at, 1, 0, 0, 's', 'x', 'theirs', '' from kedge.journal"
            " where run_id = $1",
            (mine.claimed.id,),
        )
        keep(writer, mine)
        writer.flusher.move(mine, COMPLETED)
        keep(writer, other)
        writer.flusher.move(other, COMPLETED)
        await writer.settled_all([mine, other])

        assert writer.lost == [mine]
        assert moves.status(db, other.claimed.id) == "completed"
        assert (
            db.value("select value from kedge.journal where run_id = $1 and seq = 1", (mine.claimed.id,)) == b"theirs"
        )
        db.rows("update kedge.runs set next_seq = 2")


# ---- a server that goes and comes ---------------------------------------------------------------------------------


async def test_a_restarted_server_costs_no_row_and_no_run(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with open_sessions(server.url) as sessions:
        moves.started(sessions.open(), 3)
    async with open_writer(server.url) as writer:
        keeping, ending, idle = await writer.claim()
        keep(writer, keeping)
        await durable(writer, keeping)
        await asyncio.to_thread(server.kill)
        keep(writer, keeping)
        keep(writer, ending)
        writer.flusher.move(ending, COMPLETED)
        await asyncio.to_thread(server.start)
        await durable(writer, keeping)
        await writer.settled_all([ending])
        writer.flusher.move(idle, GIVEN_BACK)
        await writer.settled_all([idle])

    assert writer.lost == []
    with psycopg.connect(server.url) as conn:
        rows = conn.execute("select run_id, seq from kedge.journal where seq > 0 order by 1, 2").fetchall()
    assert rows == [(keeping.claimed.id, 1), (keeping.claimed.id, 2), (ending.claimed.id, 1)]
