"""
NOTIFY is a convenience: fifty sleepers are not all woken for one run, a sleeper that cannot hear holds nobody up, and
without it everything works, only slower.

That a full queue of notifications fails no start is shown in tests/integration/test_full_notify_queue.py.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final
from uuid import UUID, uuid4

import psycopg
import pytest

from kedge_client import Client
from kedge_worker.testing import PostgresServer
from tests.proof.chaos.network import Weather, network
from tests.proof.kit.fleet import fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, steps

pytestmark = pytest.mark.chaos

LISTENERS: Final = 50
RUNS: Final = int(setting("runs", 200))
POLL_S: Final = 1.0


def test_each_start_wakes_at_most_one_of_fifty_sleepers(database_url: str, figure: Figure) -> None:
    with ExitStack() as stack, Client.connect(database_url) as client:
        sleepers = {uuid4(): _listening(stack, database_url) for _ in range(LISTENERS)}
        for worker, conn in sleepers.items():
            conn.execute(f"listen kedge_w_{worker.hex}".encode())
            _sleep(conn, worker)
        heard: Counter[UUID] = Counter()
        for started in range(1, RUNS + 1):
            client.start(steps(Work(1)))
            rung = Counter({worker: len(list(conn.notifies(timeout=0))) for worker, conn in sleepers.items()})
            for worker in +rung:  # it looks, finds something, and sleeps again
                _sleep(sleepers[worker], worker)
            heard += rung
            # Not each by itself: what the one before said may arrive late.
            assert heard.total() <= started, "one start has woken several"

    figure(f"notifications for {RUNS} starts beside {LISTENERS} sleepers", heard.total(), goal=RUNS)
    assert heard.total() >= RUNS * 0.9, "the sleepers were not rung: this proves nothing"


def test_without_notify_a_run_waits_for_the_poll_at_most(database_url: str, tmp_path: Path, figure: Figure) -> None:
    with fleet(database_url, tmp_path, LISTEN="false", POLL=f"{POLL_S}s") as crew:
        crew.worker()
        crew.wait_until("select exists (select from kedge.workers)")
        took: list[float] = []
        with (
            Client.connect(database_url, wake=False, listen=False) as client,
            psycopg.connect(database_url, autocommit=True) as db,
        ):
            for _ in range(10):
                began = time.monotonic()
                run = client.start(steps(Work(1)))
                while not db.execute("select 1 from kedge.finished where id = %s", (run.id,)).fetchone():
                    assert time.monotonic() - began < 30, "it was not found"
                    time.sleep(0.01)
                took.append(time.monotonic() - began)
        crew.drain()
    figure("without NOTIFY: a run is done after, median", median(took), unit="s", goal=POLL_S)
    figure("without NOTIFY: a run is done after, longest", max(took), unit="s", goal=POLL_S + 0.2)


@pytest.mark.parametrize("how", ["stopped", "swallowed"])
def test_a_sleeper_that_cannot_hear_costs_a_poll_at_most(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure, how: str
) -> None:
    # The doorbell takes a sleeper's row out of `idle`: who rings for one that cannot hear has rung for nobody.
    url = breakable_postgres.url
    with network(url) as net, fleet(url, tmp_path, LEASE="60s", POLL=f"{POLL_S}s") as crew:
        deaf = crew.worker(url=net.url)
        crew.wait_until("select count(*) = 1 from kedge.idle")
        if how == "stopped":
            crew.worker()
            crew.wait_until("select count(*) = 2 from kedge.idle")
            crew.stop(deaf)
        else:
            net.set(Weather(is_deaf=True), "listener")
        took: list[float] = []
        with Client.connect(url, listen=False) as client:
            for _ in range(10):
                began = time.monotonic()
                client.start(steps(Work(1))).result(timeout="30s")
                took.append(time.monotonic() - began)
        crew.cont(deaf)
        crew.drain()

    report = check(url, tmp_path)
    # The client polls for the result as well.
    figure(f"one sleeper {how}: a run is done after, longest", max(took), unit="s", goal=2 * POLL_S)
    assert not report.violations, str(report)
    assert report.counts["crashes"] == 0


def _listening(stack: ExitStack, url: str) -> psycopg.Connection:
    return stack.enter_context(psycopg.connect(url, autocommit=True))


def _sleep(conn: psycopg.Connection, worker: UUID) -> None:
    conn.execute(
        "insert into kedge.idle (worker_id, queues, workflows) values (%s, '{default}', '{steps}')"
        " on conflict do nothing",
        (worker,),
    )
