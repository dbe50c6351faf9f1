"""Ended runs are deleted in rounds and batches, with pauses, and where nothing is to be deleted nothing is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import uuid4

import pytest

from kedge import WorkflowRef
from kedge_worker import Context, Worker, Workflow, workflow
from kedge_worker import _life as life_module
from kedge_worker import _remover as remover_module
from kedge_worker._remover import Remover
from kedge_worker._settings import WorkerSettings
from kedge_worker._store import Store
from kedge_worker.testing import Clock
from tests import moves
from tests.retention import ended, is_known, keep
from tests.sessions import Session


class Bench:
    """A remover without a worker, and the pauses that it takes."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = WorkerSettings(database_url=url)
        self.stores: list[Store] = []
        self.pauses: list[float] = []

        def store() -> Store:
            self.stores.append(Store(settings.removal_conninfo(), worker_id=uuid4(), schema="kedge", timeout_s=10))
            return self.stores[-1]

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        monkeypatch.setattr(remover_module, "_sleep", sleep)
        self.remover = Remover(store)


@pytest.fixture
async def bench(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Bench]:
    made = Bench(database_url, monkeypatch)
    yield made
    assert not any(store.is_connected for store in made.stores)


async def test_a_round_deletes_all_that_is_old_in_batches_with_pauses_in_between(
    bench: Bench, db: Session, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remover_module, "_LARGEST_BATCH", 2)
    monkeypatch.setattr(bench.remover, "_limit", 2)
    for name in ("order", "report"):
        keep(db, name)
        for _ in range(5):
            ended(db, workflow=name)
    clock.advance("25 hours")
    young = ended(db)

    count = await bench.remover.round()

    assert count == 10
    assert moves.statuses(db) == {young: "completed"}
    assert len(bench.pauses) >= 4
    assert all(pause > 0 for pause in bench.pauses)


@pytest.mark.parametrize("workers", [1, 10])
def test_all_workers_together_take_a_fifth_of_the_time(workers: int) -> None:
    took_s = 0.04

    assert workers * took_s / (took_s + remover_module.pause_s(took_s, workers)) == pytest.approx(0.2)


async def test_a_pause_is_as_long_as_there_are_workers(
    bench: Bench, db: Session, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def no_pause(took_s: float, workers: int) -> float:
        asked.append(workers)
        return 0.0

    monkeypatch.setattr(remover_module, "pause_s", no_pause)
    monkeypatch.setattr(bench.remover, "_limit", 1)
    monkeypatch.setattr(remover_module, "_LARGEST_BATCH", 1)
    keep(db)
    for _ in range(3):
        ended(db)  # each by a worker of its own
    moves.lapse(db, moves.register(db))
    clock.advance("25 hours")

    await bench.remover.round()

    assert set(asked) == {3}


async def test_what_was_too_young_or_needed_when_it_was_passed_is_deleted_in_a_later_round(
    bench: Bench, db: Session, clock: Clock
) -> None:
    keep(db)
    worker = moves.register(db)
    moves.started(db)
    (long,) = moves.claim_alone(db, worker)
    short = ended(db)
    clock.advance("20 hours")
    moves.end(db, worker, long)
    clock.advance("5 hours")

    first = await bench.remover.round()
    clock.advance("20 hours")
    bench.remover._lap_s = 0
    second = await bench.remover.round()

    assert (first, second) == (1, 1)
    assert not is_known(db, short)
    assert not is_known(db, long.id)


async def test_where_much_is_kept_a_round_goes_on_from_where_the_last_one_stopped(
    bench: Bench, db: Session, clock: Clock
) -> None:
    keep(db)
    kept = ended(db)
    clock.advance("25 hours")
    db.rows("update kedge.finished set ended_at = kedge.instant()")
    await bench.remover.round()
    clock.advance("25 hours")
    bench.remover._lap_s = 3600

    beside = await bench.remover.round()
    bench.remover._lap_at -= 3601

    assert beside == 0
    assert await bench.remover.round() == 1
    assert not is_known(db, kept)


async def test_a_journal_of_thousands_is_deleted_in_pieces_of_one_round(
    bench: Bench, db: Session, clock: Clock
) -> None:
    keep(db)
    run = ended(db)
    db.rows(
        "insert into kedge.journal select $1, now(), s, 0, 0, 's', 'a', '', '' from generate_series(2, 10000) s", (run,)
    )
    db.rows("update kedge.finished set next_seq = 10001")
    clock.advance("25 hours")

    await bench.remover.round()

    assert db.value("select count(*) from kedge.journal") == 0
    assert db.value("select count(*) from kedge.removals") == 0
    assert len(bench.pauses) > 5


# ---- in a worker ---------------------------------------------------------------------------------------------------


@workflow(WorkflowRef("kept"))
async def kept(ctx: Context) -> None: ...


@workflow(WorkflowRef("forgotten"), retention="1d")
async def forgotten(ctx: Context) -> None: ...


@pytest.mark.parametrize(("handler", "count"), [(kept, 0), (forgotten, 1)])
async def test_only_a_worker_that_forgets_something_has_a_remover(
    database_url: str, db: Session, monkeypatch: pytest.MonkeyPatch, handler: Workflow[Any, Any], count: int
) -> None:
    made: list[object] = []

    class Counted(Remover):
        def __init__(self, store: Callable[[], Store]) -> None:
            made.append(self)
            super().__init__(store)

    monkeypatch.setattr(life_module, "Remover", Counted)

    async with Worker(database_url, workflows=[handler]):
        pass

    assert len(made) == count
    asked = db.value("select count(*) from kedge.definitions where keep_completed_s is not null")
    assert asked == count


async def test_a_worker_deletes_by_itself(
    database_url: str, db: Session, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remover_module, "_PERIOD_S", (0.01, 0.02))
    runs = [ended(db, workflow="forgotten"), ended(db, workflow="kept")]
    clock.advance("25 hours")

    async with Worker(database_url, workflows=[kept, forgotten]):
        while is_known(db, runs[0]):
            await asyncio.sleep(0.01)

    assert is_known(db, runs[1])


async def test_what_the_last_worker_of_a_workflow_said_holds_when_nobody_knows_it_any_more(
    bench: Bench, database_url: str, db: Session, clock: Clock
) -> None:
    async with Worker(database_url, workflows=[forgotten]):
        pass
    run = ended(db, workflow="forgotten")
    async with Worker(database_url, workflows=[kept]):
        pass
    clock.advance("25 hours")

    assert await bench.remover.round() == 1
    assert not is_known(db, run)


async def test_a_workflow_of_which_nobody_ever_said_anything_is_kept_beside_a_workers_default(
    bench: Bench, database_url: str, db: Session, clock: Clock
) -> None:
    stranger, known = ended(db, workflow="stranger"), ended(db, workflow="kept")
    async with Worker(database_url, workflows=[kept], retention="1d"):
        pass
    clock.advance("25 hours")

    assert await bench.remover.round() == 1
    assert is_known(db, stranger)
    assert not is_known(db, known)


async def test_a_worker_that_says_nothing_any_more_ends_the_deletion(
    bench: Bench, database_url: str, db: Session, clock: Clock
) -> None:
    for retention in ("1d", None):
        async with Worker(database_url, workflows=[kept], retention=retention):
            pass
    ended(db, workflow="kept")
    clock.advance("25 hours")

    assert await bench.remover.round() == 0
