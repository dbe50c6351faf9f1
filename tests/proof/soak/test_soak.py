"""
Everything at once, for long: every kind of run, three workers, a fault each half minute, and nothing that grows.

Twenty minutes in `make soak`; KEDGE_PROOF_MINUTES=480 is a night. KEDGE_PROOF_RATE says how many runs a second,
KEDGE_PROOF_SEED which faults.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psycopg
import pytest

from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer, postgres_server
from tests.proof.kit.fleet import Fleet, Process, fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.soak.samples import sampled, shown

LEASE_S: Final = 5.0
MIX: Final = "steps:6,parallel:2,charge:4,event:3,impatient:1,nap:2,parent:2,flaky:1,patient:1"


class Trouble:
    """What goes wrong, one thing at a time. The elder worker is left alone: its memory is looked at."""

    def __init__(self, server: PostgresServer, processes: Fleet, seed: int) -> None:
        self._server = server
        self._fleet = processes
        self._random = random.Random(seed)
        self._workers: list[Process] = [processes.worker() for _ in range(2)]
        self._ways: list[Callable[[], None]] = [
            self._kill,
            self._kill,
            self._freeze,
            self._leave,
            self._cut,
            self._crash,
        ]

    def make(self) -> None:
        self._random.choice(self._ways)()

    def _kill(self) -> None:
        self._fleet.kill(self._taken())
        self._workers.append(self._fleet.worker())

    def _freeze(self) -> None:
        victim = self._taken()
        self._fleet.stop(victim)
        time.sleep(2 * LEASE_S)
        self._fleet.cont(victim)
        self._workers.append(victim)

    def _leave(self) -> None:
        assert self._fleet.terminate(self._taken()) == 0
        self._workers.append(self._fleet.worker())

    def _cut(self) -> None:
        self._fleet.journal.write("fault", kind="backends terminated", about="server")
        with psycopg.connect(self._server.url, autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'kedge%'")

    def _crash(self) -> None:
        self._fleet.journal.write("fault", kind="server killed", about="server")
        self._server.kill()
        self._server.start()

    def _taken(self) -> Process:
        return self._workers.pop(self._random.randrange(len(self._workers)))


@pytest.mark.soak
def test_nothing_is_lost_and_nothing_grows(tmp_path: Path, figure: Figure) -> None:
    seconds = 60 * setting("minutes", 20)
    rate = setting("rate", 40)
    pause_s = setting("fault_every", 30)
    seed = int(setting("seed", time.time_ns() % 1_000_000))
    sys.stderr.write(f"\nKEDGE_PROOF_SEED={seed}\n")
    with postgres_server() as server:
        migrate(server.url)
        with fleet(server.url, tmp_path, LEASE=f"{LEASE_S:g}s") as processes:
            trouble = Trouble(server, processes, seed)
            elder = processes.worker()
            client = processes.client(rate=rate, seconds=seconds, mix=MIX, n=3, pause=0.01, results=0.5, pauses=0.1)
            end = time.monotonic() + seconds
            with sampled(server.url, {"worker": elder.pid, "client": client.pid}) as samples:
                while (left := end - time.monotonic()) > 0:
                    time.sleep(min(pause_s, left))
                    if left > pause_s:
                        trouble.make()
            assert client.wait(timeout=120) == 0, processes.log(client)
            assert elder.poll() is None, processes.log(elder)
            processes.drain(patience_s=120)
            report = check(server.url, tmp_path)
    sys.stderr.write(f"{shown(samples.all)}\n{report}\n")

    figure("soak: broken promises", len(report.violations), goal=0)
    figure("soak: minutes", seconds / 60)
    figure("soak: runs", report.counts["runs"])
    figure("soak: faults", report.counts["faults"])
    figure("soak: extra bodies", report.counts["extra_bodies"])
    figure("soak: worker's memory, late over early", samples.growth(lambda s: s.memory["worker"]), goal=1.1)
    figure("soak: client's memory, late over early", samples.growth(lambda s: s.memory["client"]), goal=1.1)
    figure("soak: hot tables, late over early", samples.growth(lambda s: s.hot_bytes), goal=1.5)
    figure("soak: sessions, late over early", samples.growth(lambda s: s.sessions), goal=1.1)
    figure("soak: oldest transaction seen", max(s.oldest_transaction_s for s in samples.all), unit="s", goal=10)
    assert report.violations == []
