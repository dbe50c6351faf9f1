"""
SIGTERM at random times under load: what a deploy does.

Two workers under a client's load; one after the other is stopped at a random moment and replaced by the next. Promised:
the process ends within its grace and two seconds, with nothing left owned; nobody is charged; and where the handlers
end within the grace nothing is executed twice. KEDGE_PROOF_SHUTDOWNS says how often in each of three tests (70),
KEDGE_PROOF_SEED repeats the moments.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from kedge_client import Client
from kedge_worker.testing import PostgresServer
from tests.proof.chaos.watch import is_registered, name_of, number, quantile, wait_until
from tests.proof.kit.fleet import Fleet, Process, fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, steps

MARGIN_S = 2.0
SHUTDOWNS = int(setting("shutdowns", 70))
SEED = int(setting("seed", 0)) or random.randrange(1_000_000)


class Deploys:
    """Stops and replaces workers, at random moments, and measures how long each took."""

    def __init__(self, processes: Fleet, *, grace_s: float, is_doubled: bool = False) -> None:
        self._fleet = processes
        self._grace_s = grace_s
        self._is_doubled = is_doubled
        self.took_s: list[float] = []
        self.wrong: list[str] = []

    def one(self, chance: random.Random) -> None:
        """Start a worker, stop it at a random time of its life."""
        process = self._fleet.worker()
        if chance.random() < 0.9:
            wait_until(lambda: is_registered(self._fleet.url, process) or process.poll() is not None, "it works")
            time.sleep(chance.random() * 0.8)
        else:
            time.sleep(0.3 + chance.random() * 0.4)  # perhaps while it begins
        begin = time.monotonic()
        self._fleet.journal.write("fault", kind="terminate", about=process.pid)
        process.send_signal(signal.SIGTERM)
        if self._is_doubled:
            time.sleep(chance.random() * 0.3)
            process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        self.took_s.append(time.monotonic() - begin)
        self._judge(process, code)

    def _judge(self, process: Process, code: int) -> None:
        url, took_s = self._fleet.url, self.took_s[-1]
        left = number(url, "select count(*) from kedge.workers where name = %s", name_of(process))
        # Before its loop runs, or after it, the signal does what signals do.
        if code not in (0, -signal.SIGTERM):
            self.wrong.append(f"exit code {code}: {self._fleet.log(process)[-2000:]}")
        if left:
            self.wrong.append(f"its row stands, {took_s:.2f} s after the signal: {self._fleet.log(process)[-2000:]}")
        if took_s > self._grace_s + MARGIN_S:
            self.wrong.append(f"it took {took_s:.2f} s: {self._fleet.log(process)[-2000:]}")


def deploy_under_load(url: str, folder: Path, deploys: Deploys, processes: Fleet, *, mix: str, pause_s: float) -> None:
    """Do it so often, two at a time, beside one worker that stays, with a client that never stops."""
    chance = random.Random(SEED)
    processes.worker()
    load = processes.client(rate=40, seconds=3600, mix=mix, pause=pause_s, n=2, results=0.2)
    errors: list[BaseException] = []
    turns = iter(range(SHUTDOWNS))

    def deploy(own: random.Random) -> None:
        try:
            for _ in turns:
                deploys.one(own)
        except BaseException as error:  # noqa: BLE001  # told to who waits for the threads
            errors.append(error)

    threads = [threading.Thread(target=deploy, args=(random.Random(chance.random()),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, (SEED, errors)
    # A client that is killed leaves what it has started and not sent: only mixes without events end by themselves.
    processes.kill(load)
    processes.drain()


@pytest.mark.chaos
def test_handlers_that_end_within_the_grace_run_once_however_often_workers_are_stopped(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure
) -> None:
    url, grace_s = breakable_postgres.url, 5.0
    with fleet(url, tmp_path, GRACE=f"{grace_s}s", LEASE="5s", POLL="1s") as processes:
        deploys = Deploys(processes, grace_s=grace_s)
        deploy_under_load(url, tmp_path, deploys, processes, mix="steps:3,charge:1,parallel:1", pause_s=0.1)

    report = check(url, tmp_path)
    figure("SIGTERM: longest exit", max(deploys.took_s), unit="s", goal=grace_s + MARGIN_S)
    figure("SIGTERM: p99 exit", quantile(deploys.took_s, 0.99), unit="s")
    figure("SIGTERM: bodies executed twice", report.counts["extra_bodies"], goal=0)
    assert not deploys.wrong, (SEED, deploys.wrong)
    assert not report.violations, (SEED, str(report))
    assert report.counts["extra_bodies"] == 0, (SEED, str(report))
    assert report.counts["crashes"] == 0


@pytest.mark.chaos
@pytest.mark.parametrize("is_doubled", [False, True], ids=["one signal", "two signals"])
def test_what_has_not_ended_within_the_grace_goes_back_and_nobody_is_charged(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure, *, is_doubled: bool
) -> None:
    url, grace_s = breakable_postgres.url, 60.0 if is_doubled else 0.1
    with fleet(url, tmp_path, GRACE=f"{grace_s}s", LEASE="5s", POLL="1s") as processes:
        # The second signal skips the grace.
        deploys = Deploys(processes, grace_s=0.3 if is_doubled else grace_s, is_doubled=is_doubled)
        deploy_under_load(url, tmp_path, deploys, processes, mix="steps:3,charge:1,nap:1", pause_s=0.4)

    report = check(url, tmp_path)
    name = "two SIGTERMs" if is_doubled else "SIGTERM, short grace"
    figure(f"{name}: longest exit", max(deploys.took_s), unit="s", goal=grace_s + MARGIN_S)
    assert not deploys.wrong, (SEED, deploys.wrong)
    assert not report.violations, (SEED, str(report))
    assert report.counts["crashes"] == 0


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_worker_ends_in_time_though_the_database_is_down(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure, how: str
) -> None:
    server, grace_s = breakable_postgres, 1.0
    with fleet(server.url, tmp_path, GRACE=f"{grace_s}s", LEASE="5s", POLL="1s") as processes:
        worker = processes.worker()
        with Client.connect(server.url) as client:
            client.start_many([steps(Work(3, 30.0)) for _ in range(5)])
        processes.wait_until("select count(*) = 5 from kedge.runs where state = 'r'")
        server.stop() if how == "stopped" else server.freeze()
        time.sleep(random.Random(SEED).random() * 3)

        begin = time.monotonic()
        code = processes.terminate(worker)
        took_s = time.monotonic() - begin

        server.start() if how == "stopped" else server.thaw()
        figure(f"SIGTERM, database {how}: exit", took_s, unit="s", goal=grace_s + MARGIN_S)
        assert code == 0, (SEED, processes.log(worker))
        assert took_s < grace_s + MARGIN_S, (SEED, processes.log(worker))
        processes.worker()
        # Taken back; or given back, if that was on its way and a server that thawed has executed it.
        processes.wait_until("select count(*) = 5 from kedge.runs where state = 'r' and epoch in (2, 3)")
        # It could not say that it leaves: to who takes its runs back that is a death, the first of those that count.
        assert number(server.url, "select max(crashes) from kedge.runs") <= 1
        assert number(server.url, "select sum(attempt) from kedge.runs") == 0


@pytest.mark.chaos
def test_a_worker_that_waits_for_its_database_ends_in_time(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure
) -> None:
    server = breakable_postgres
    with fleet(server.url, tmp_path, GRACE="0.1s", LEASE="15s") as processes:
        server.freeze()
        worker = processes.worker()
        wait_until(lambda: psutil.Process(worker.pid).net_connections("unix"), "it has knocked")
        time.sleep(0.5)

        begin = time.monotonic()
        code = processes.terminate(worker)

        figure("SIGTERM while it waits for a silent database", time.monotonic() - begin, unit="s", goal=MARGIN_S)
        server.thaw()
        assert code == 0
        assert time.monotonic() - begin < MARGIN_S
