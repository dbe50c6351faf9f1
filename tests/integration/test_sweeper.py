"""What a sweeper does beside taking back: ends runs whose time is up, forgets clients that have died."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import pytest

from kedge import RunDeadlineError, WorkflowRef
from kedge_client import AsyncClient
from kedge_worker import Context, Worker, workflow
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Store
from kedge_worker._sweeper import Sweeper
from kedge_worker.testing import Clock
from tests import moves
from tests.sessions import Session


class Bench:
    """A sweeper without a worker."""

    def __init__(self, url: str) -> None:
        settings = WorkerSettings(database_url=url)
        self.store = Store(settings.control_conninfo(), worker_id=uuid4(), schema="kedge", timeout_s=10)
        self.told: list[str] = []
        self.sweeper = Sweeper(
            self.store,
            may_take_back=lambda: True,
            found=lambda: self.told.append("found"),
            found_solo=lambda: self.told.append("found solo"),
            sent=lambda: self.told.append("sent"),
        )


@pytest.fixture
async def bench(database_url: str) -> AsyncGenerator[Bench]:
    made = Bench(database_url)
    yield made
    await made.store.aclose()


def set_deadline(db: Session, run: UUID, seconds: float) -> None:
    db.rows(
        "update kedge.runs set deadline_at = kedge.clock() + make_interval(secs => $2) where id = $1", (run, seconds)
    )


async def test_more_runs_than_a_batch_holds_end_when_their_time_is_up_and_their_letters_are_sorted_at_once(
    bench: Bench, db: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge_worker._sweeper._EXPIRE_BATCH", 2)
    late = moves.started(db, 5, delay_s=3600)
    (early,) = moves.started(db, 1)
    for run in late:
        set_deadline(db, run, -1)
    set_deadline(db, early, 60)

    ended = await bench.sweeper.expire()

    assert ended == 5
    assert moves.statuses(db) == {**dict.fromkeys(late, "failed"), early: "pending"}
    assert set(bench.told) == {"sent"}


async def test_a_run_whose_end_is_refused_keeps_nobody_else_from_meeting_its_deadline(
    bench: Bench, db: Session
) -> None:
    bad, *good = moves.started(db, 4)
    for run in (bad, *good):
        set_deadline(db, run, -1)
    db.rows("create function refuse() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$")
    db.rows(
        f"create trigger refuse before insert on kedge.finished for each row when (new.id = '{bad}')"
        " execute function refuse()"
    )

    ended = [await bench.sweeper.expire() for _ in range(2)]

    assert ended == [3, 0]
    assert moves.statuses(db) == {bad: "pending", **dict.fromkeys(good, "failed")}


async def test_a_worker_rings_whoever_waits_for_a_run_whose_time_is_up(bench: Bench, db: Session) -> None:
    (run,) = moves.started(db)
    set_deadline(db, run, -1)
    db.rows("insert into kedge.watchers (run_id, channel) values ($1, 'someone')", (run,))

    await bench.sweeper.expire()

    assert db.value("select count(*) from kedge.watchers") == 0


async def test_a_run_that_waits_fails_by_its_deadline_in_a_worker_that_is_run_until_it_is_idle(
    database_url: str, clock: Clock
) -> None:
    patient = WorkflowRef("patient", timeout="1h")

    @workflow(patient)
    async def wait(ctx: Context) -> None:
        await ctx.sleep("long", "2 days")

    worker = Worker(database_url, workflows=[wait])
    async with AsyncClient.connect(database_url) as client:
        run = await client.start(patient())
        await worker.run_until_idle()
        clock.advance("61 minutes")
        await Worker(database_url, workflows=[wait]).run_until_idle()

        with pytest.raises(RunDeadlineError):
            await run.result(timeout=0)


async def test_a_run_that_a_taker_makes_solo_is_looked_for_at_once(bench: Bench, db: Session) -> None:
    moves.started(db)
    for _ in range(2):
        worker = moves.register(db)
        moves.claim_alone(db, worker)
        moves.lapse(db, worker)
        bench.told.clear()

        await bench.sweeper.sweep()

    assert bench.told == ["found", "found solo"]


async def test_registrations_of_dead_clients_are_forgotten_and_those_of_living_ones_are_kept(
    bench: Bench, db: Session
) -> None:
    (live,) = moves.started(db)
    gone = uuid4()
    for table, run, age in [
        ("watchers", live, "11 minutes"),
        ("watchers", live, "25 hours"),
        ("watchers", gone, "9 minutes"),
        ("watchers", gone, "11 minutes"),
        ("observers", live, "1 minute"),
        ("observers", live, "3 minutes"),
    ]:
        db.rows(
            f"insert into kedge.{table} (run_id, channel, at) values ($1, $2, now() - $3::interval)", (run, age, age)
        )

    most = await bench.store.forget_watchers()

    assert most == 2
    left = "select run_id, channel from kedge.{} order by channel"
    assert set(db.rows(left.format("watchers"))) == {(live, "11 minutes"), (gone, "9 minutes")}
    assert db.rows(left.format("observers")) == [(live, "1 minute")]
