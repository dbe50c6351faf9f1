"""Children that start alone: behind their parent's fence, as often as asked for, and once."""

from __future__ import annotations

import asyncio
import dataclasses
from uuid import UUID

import psycopg
import pytest
from msgspec.structs import replace

from kedge.ids import new_run_id
from kedge.refs import WorkflowRef
from kedge.start_terms import StartTerms, child_start_terms
from kedge_worker._child_starts import Starter
from kedge_worker._runs import ClaimedRun, LiveRun, Started
from kedge_worker._settings import WorkerSettings
from kedge_worker._signals import LeaseLostError
from kedge_worker._store import Store
from tests import letters, moves
from tests.sessions import Session, Sessions
from tests.unit.worker.journal import bound, claim

keyed = WorkflowRef("keyed", int, int, key=lambda number: f"k:{number}")


async def nothing(_: object) -> None:
    """The handler of a run that nobody executes here."""


def terms(number: int = 7) -> StartTerms:
    return child_start_terms(keyed(number), resource=None, priority=0)


def live(run: moves.Claimed) -> LiveRun:
    claimed: ClaimedRun = replace(claim(bound(nothing)), id=run.id, epoch=run.epoch)
    return LiveRun(claimed, 1)


class Starts:
    """A starter with a store of its own, and the lanes that it rings."""

    def __init__(self, url: str, worker: UUID) -> None:
        self.rung: list[tuple[str, str]] = []
        store = Store(
            WorkerSettings(database_url=url).starts_conninfo(), worker_id=worker, schema="kedge", timeout_s=5.0
        )
        self.starter = Starter(store, lambda queue, workflow: self.rung.append((queue, workflow)))


async def test_a_start_that_is_repeated_is_one_child_that_knows_its_parent(database_url: str, db: Session) -> None:
    worker, run = letters.running(db)
    starts = Starts(database_url, worker)
    child = new_run_id()

    for _ in range(2):
        answer = await starts.starter.start(live(run), child, terms(), is_dependent=True)
        assert answer == Started(child, None)
    await starts.starter.aclose()

    assert db.rows("select parent_id, is_dependent from kedge.runs where id = $1", (child,)) == [(run.id, True)]
    assert db.value("select has_dependents from kedge.runs where id = $1", (run.id,)) is True
    assert starts.rung[0] == ("default", "keyed")


async def test_a_parent_that_somebody_else_owns_starts_nothing(database_url: str, db: Session) -> None:
    worker, run = letters.running(db)
    for owner, epoch in ((worker, run.epoch + 1), (moves.register(db), run.epoch)):
        starts = Starts(database_url, owner)
        with pytest.raises(LeaseLostError):
            await starts.starter.start(live(replace_epoch(run, epoch)), new_run_id(), terms(), is_dependent=True)
        await starts.starter.aclose()
        assert starts.rung == []

    assert db.value("select count(*) from kedge.runs where parent_id = $1", (run.id,)) == 0
    assert db.value("select has_dependents from kedge.runs where id = $1", (run.id,)) is False


async def test_a_server_that_was_promoted_meanwhile_starts_nothing(database_url: str, db: Session) -> None:
    """It may know the parent, and not the memos that the child was asked for behind."""
    worker, run = letters.running(db)
    here = str(db.value("select left(pg_walfile_name(pg_current_wal_lsn()), 8)"))
    store = Store(
        WorkerSettings(database_url=database_url).starts_conninfo(), worker_id=worker, schema="kedge", timeout_s=5.0
    )
    timelines = iter(("000000FF", here))
    starter = Starter(store, lambda _queue, _workflow: None, timeline=lambda: next(timelines))
    child = new_run_id()

    with pytest.raises(LeaseLostError):
        await starter.start(live(run), child, terms(), is_dependent=False)
    assert db.value("select count(*) from kedge.runs where parent_id = $1", (run.id,)) == 0
    assert await starter.start(live(run), child, terms(), is_dependent=False) == Started(child, None)
    await starter.aclose()


async def test_who_holds_the_key_is_answered_and_nobody_is_rung(database_url: str, db: Session) -> None:
    worker, run = letters.running(db)
    starts = Starts(database_url, worker)
    first, second = new_run_id(), new_run_id()

    await starts.starter.start(live(run), first, terms(), is_dependent=False)
    starts.rung.clear()
    answer = await starts.starter.start(live(run), second, terms(), is_dependent=False)
    refused = terms()._replace(on_conflict="raise")
    conflict = await starts.starter.start(live(run), second, refused, is_dependent=False)
    await starts.starter.aclose()

    assert answer == Started(first, None)
    assert conflict == Started(first, "exists")
    assert starts.rung == []


async def test_a_start_waits_for_an_open_transaction_with_its_key_and_locks_no_parent(
    database_url: str, db: Session
) -> None:
    worker, run = letters.running(db)
    starts = Starts(database_url, worker)
    async with await psycopg.AsyncConnection.connect(database_url) as caller:
        await caller.execute("insert into kedge.run_keys values ('keyed', 'k:7', gen_random_uuid(), '\\x00')")
        starting = asyncio.create_task(starts.starter.start(live(run), new_run_id(), terms(), is_dependent=True))
        await until_blocked(db)
        # Nobody who needs the parent's row has to wait for that caller.
        db.rows("select 1 from kedge.runs where id = $1 for update nowait", (run.id,))
        assert not starting.done()
        await caller.rollback()
    answer = await asyncio.wait_for(starting, 20)
    await starts.starter.aclose()

    assert answer.conflict is None
    assert starts.rung == [("default", "keyed")]


@pytest.mark.parametrize("slot", ["cascade", None])
async def test_a_parent_that_ends_while_its_childs_start_waits_leaves_no_child_behind(
    database_url: str, db: Session, sessions: Sessions, slot: str | None
) -> None:
    worker, run = letters.running(db)
    caller = sessions.open()
    # Patient: with the worker's own lock_timeout the start would be tried again, and the first look would refuse it.
    store = Store(database_url, worker_id=worker, schema="kedge", timeout_s=10.0)
    child = new_run_id()
    caller.begin()
    moves.start(caller, workflow="keyed", key="k:7")
    starting = asyncio.create_task(
        Starter(store, lambda _queue, _workflow: None).start(live(run), child, terms(), is_dependent=slot is None)
    )
    await asyncio.to_thread(
        sessions.wait_until,
        "select exists (select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%%start_run(%%')",
        what="the child's start to wait for its key",
    )

    letters.put(db, run.id, "x", slot=slot)
    moves.sort_inbox(db)
    moves.lapse(db, worker)
    moves.take_back(db)
    while moves.sort_inbox(db).letters:
        pass
    caller.rollback()
    with pytest.raises(LeaseLostError):
        await starting
    await store.aclose()

    assert moves.statuses(db) == {run.id: "cancelled"}
    assert db.value("select count(*) from kedge.run_keys") == 0


async def test_what_the_database_refuses_is_raised_and_not_repeated(database_url: str, db: Session) -> None:
    worker, run = letters.running(db)
    starts = Starts(database_url, worker)

    with pytest.raises(psycopg.Error, match="longer than zero"):
        await starts.starter.start(live(run), new_run_id(), terms()._replace(timeout_s=-1.0), is_dependent=False)
    await starts.starter.aclose()


def replace_epoch(run: moves.Claimed, epoch: int) -> moves.Claimed:
    return dataclasses.replace(run, epoch=epoch)


async def until_blocked(db: Session) -> None:
    query = "select count(*) from pg_stat_activity where application_name = 'kedge starts' and wait_event_type = 'Lock'"
    async with asyncio.timeout(20):
        while db.value(query) == 0:
            await asyncio.sleep(0.01)
