"""
Workers die by SIGKILL: one of three every two seconds under load, and all at once with thousands of runs in flight.

The first test measures the fault-free throughput, then the same load with the kills: no acknowledged start is lost,
nothing is stored twice, no transactional effect is doubled. Figures: how long it takes from a kill until a run that was
hit has an owner again or has gone on (goal: lease + 2 s), and the share of the fault-free throughput (goal: 70 %). A
machine that does not reach the rate is loaded with 60 % of what it reaches, which the figures say.

KEDGE_PROOF_SECONDS (60), KEDGE_PROOF_RATE (200 starts/s), KEDGE_PROOF_RUNS (5,000 in flight).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

import psycopg
import pytest

from kedge_client import Client
from kedge_worker.testing import PostgresServer
from tests.proof.chaos.watch import is_registered, name_of, number, quantile, rows, wait_until
from tests.proof.kit.fleet import Fleet, Process, fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, steps

LEASE_S: Final = setting("lease", 5.0)
SECONDS: Final = setting("seconds", 60.0)
RATE: Final = setting("rate", 200.0)
RUNS: Final = int(setting("runs", 5000))
EVERY_S: Final = 2.0
RESTART_S: Final = 0.5
MIX: Final = "steps:3,event:1,charge:1"
BODY_S: Final = 0.1
"""A body takes time, so that each kill hits runs in the middle of one."""
FINISHED: Final = "select count(*) from kedge.finished"


class Recoveries:
    """How long after its worker's death each run that was hit has an owner again, or has left `running`."""

    def __init__(self, url: str) -> None:
        self.took_s: list[float] = []
        self._url = url
        self._waiting: dict[UUID, tuple[UUID, float]] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def hit(self, process: Process, at: float) -> None:
        """This process has been killed just now."""
        query = """
            select r.id, w.id from kedge.workers w join kedge.runs r on r.worker_id = w.id
             where w.name = %s and r.state = 'r'
        """
        hit = rows(self._url, query, name_of(process))
        with self._lock:
            self._waiting.update({run: (worker, at) for run, worker in hit})

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        assert not self._waiting, f"{len(self._waiting)} runs were never taken up again"

    def _run(self) -> None:
        still = """
            select r.id from unnest(%s::uuid[], %s::uuid[]) as hit(id, worker) join kedge.runs r on r.id = hit.id
             where r.worker_id = hit.worker or r.state = 'p'
        """
        with psycopg.connect(self._url, autocommit=True) as conn:
            while not (self._over.wait(0.1) and not self._waiting):
                with self._lock:
                    asked = dict(self._waiting)
                if not asked:
                    continue
                hit = list(asked), [worker for worker, _ in asked.values()]
                left = {row[0] for row in conn.execute(still, hit)}
                now = time.monotonic()
                with self._lock:
                    for run in asked.keys() - left:
                        self.took_s.append(now - self._waiting.pop(run)[1])
                if self._over.is_set() and any(now - at > 60 for _, at in asked.values()):
                    return


@contextmanager
def recoveries(url: str) -> Generator[Recoveries]:
    made = Recoveries(url)
    try:
        yield made
    finally:
        made.close()


def throughput(processes: Fleet, rate: float, seconds: float) -> float:
    """Runs that end in a second while a client starts so many; returns when it is quiet again."""
    before = number(processes.url, FINISHED)
    load = processes.client(rate=rate, seconds=seconds, mix=MIX, n=3, pause=BODY_S, results=0.05)
    wait_until(lambda: number(processes.url, FINISHED) > before, "the first has ended")
    begin = time.monotonic()
    time.sleep(seconds)
    ended, took_s = number(processes.url, FINISHED) - before, time.monotonic() - begin
    assert load.wait(timeout=120) == 0, processes.log(load)
    processes.drain(120)
    return ended / took_s


def killing(processes: Fleet, workers: list[Process], found: Recoveries, over: threading.Event) -> None:
    """One after the other, and its successor half a second later."""
    turn = 0
    while not over.wait(EVERY_S - RESTART_S):
        victim = workers[turn % len(workers)]
        if not is_registered(processes.url, victim):
            continue  # a machine that is slow to start it: nobody ever worked if all died before
        at = time.monotonic()
        processes.kill(victim)
        with contextlib.suppress(psycopg.OperationalError):
            found.hit(victim, at)
        time.sleep(RESTART_S)
        workers[turn % len(workers)] = processes.worker()
        turn += 1


@pytest.mark.chaos
def test_nothing_is_lost_or_doubled_while_a_worker_is_killed_every_two_seconds(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure
) -> None:
    url = breakable_postgres.url
    with fleet(url, tmp_path, LEASE=f"{LEASE_S}s", POLL="1s") as processes:
        workers = [processes.worker() for _ in range(3)]
        wait_until(lambda: number(url, "select count(*) from kedge.workers") == 3, "all work")
        rate = RATE
        usual = throughput(processes, rate, max(SECONDS / 3, 5))
        if usual < 0.9 * rate:
            rate = max(1.0, 0.6 * usual)
            usual = throughput(processes, rate, max(SECONDS / 3, 5))
        over = threading.Event()
        with recoveries(url) as found:
            killer = threading.Thread(target=killing, args=(processes, workers, found, over))
            killer.start()
            try:
                disturbed = throughput(processes, rate, SECONDS)
            finally:
                over.set()
                killer.join()
        processes.drain(120)

    report = check(url, tmp_path)
    figure("kill -9: starts a second asked for", rate, unit="1/s", goal=RATE, at_least=True)
    figure("kill -9: runs", report.counts["runs"])
    figure("kill -9: kills", report.counts["faults"])
    figure("kill -9: runs hit", len(found.took_s))
    figure("kill -9: p99 recovery of a run that was hit", quantile(found.took_s, 0.99), unit="s", goal=LEASE_S + 2)
    figure("kill -9: share of the fault-free throughput", 100 * disturbed / usual, unit="%", goal=70, at_least=True)
    figure("kill -9: broken promises", len(report.violations), goal=0)
    assert found.took_s
    assert not report.violations, str(report)


@pytest.mark.chaos
def test_all_runs_have_an_owner_again_when_all_workers_were_killed_and_one_is_started(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure
) -> None:
    url = breakable_postgres.url
    with fleet(url, tmp_path, LEASE=f"{LEASE_S}s", POLL="1s", CONCURRENCY=str(RUNS // 2)) as processes:
        workers = [processes.worker() for _ in range(3)]
        with Client.connect(url) as client:
            for _ in range(0, RUNS, 500):
                client.start_many([steps(Work(2, 60.0)) for _ in range(min(500, RUNS))])
        in_flight = number(url, "select count(*) from kedge.runs")
        running = "select count(*) from kedge.runs where state = 'r'"
        wait_until(lambda: number(url, running) == in_flight, "all run", at_most_s=60)

        for worker in workers:
            processes.kill(worker)
        begin = time.monotonic()
        survivor = processes.worker(CONCURRENCY="10000")
        owned = """
            select count(*) from kedge.runs r join kedge.workers w on w.id = r.worker_id
             where r.state = 'r' and w.name = %s
        """
        wait_until(lambda: number(url, owned, name_of(survivor)) == in_flight, "all have an owner", at_most_s=120)
        took_s = time.monotonic() - begin

        ((most, charged),) = rows(url, "select max(crashes), sum(attempt) from kedge.runs")
        figure("all killed: runs in flight", in_flight, goal=RUNS, at_least=True)
        figure("all killed: until all have an owner again", took_s, unit="s", goal=LEASE_S + 5)
        assert (most, charged) == (1, 0)
        assert number(url, FINISHED) == 0
        assert number(url, "select count(*) from kedge.runs where queue <> 'default'") == 0
        assert rows(url, "select * from kedge.check_invariants(history => true)") == []
