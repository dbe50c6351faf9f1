"""
The network breaks in fourteen ways at each of a worker's connections, one after the other, under load.

A worker speaks to its database through a proxy that frames the protocol; a client that speaks to it directly keeps
starting runs with plain steps, transactional ones and events, and a probe measures how long a run takes. Promised: no
violation of any kind; runs take their usual time again within five seconds of the end of the fault (for a connection
that is dead and does not know it: its health period more); nobody is charged for a fault shorter than the lease; at the
end the worker has as many connections and files as before; and while the database is away the worker does not spin.

KEDGE_PROOF_FAULT_SECONDS is how long each fault lasts (2), KEDGE_PROOF_FAULT_RATE the load (20 starts/s).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kedge import RunError, UnavailableError
from kedge_client import Client
from kedge_worker.testing import PostgresServer
from tests.fault_proxy import Fault, Sender, answers_commit, asks_commit, nth
from tests.proof.chaos.network import PLACES, Network, Weather, network
from tests.proof.chaos.watch import broken, open_files, processor_s, quantile, sessions, wait_until
from tests.proof.kit.fleet import fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, charge

FAULT_S: Final = setting("fault_seconds", 2.0)
RATE: Final = setting("fault_rate", 20.0)
BACK_S: Final = 5.0
HEALTH_S: Final = 10.0
PATIENCE_S: Final = 45.0
POOLED: Final = 10
"""Connections that transactional steps may have, by default."""
MOST: Final = {
    **{f"kedge {place}": 1 for place in (*PLACES, "starts")},
    "kedge transaction": POOLED + 1,  # one more asks what became of the others
}
"""Sessions that a worker may have; which of them it has at some moment depends on what it has had to do."""


def lasting(weather: Weather) -> Callable[[Network, str], None]:
    """A weather of some time; connections that stand already meet it too."""

    def bring_about(net: Network, place: str) -> None:
        net.set(weather, place)
        time.sleep(FAULT_S)

    return bring_about


def new_ones(weather: Weather) -> Callable[[Network, str], None]:
    """A weather that only new connections meet: so the present ones are cut."""

    def bring_about(net: Network, place: str) -> None:
        net.set(weather, place)
        net.end(place)
        time.sleep(FAULT_S)

    return bring_about


def cut(net: Network, place: str) -> None:
    net.end(place)


def reset(net: Network, place: str) -> None:
    net.end(place, reset=True)


def freeze_after_some(net: Network, place: str) -> None:
    senders: tuple[Sender, ...] = ("client", "server")
    for sender in senders:
        net.trap_at(place, nth(7, sender), Fault.FREEZE)
    time.sleep(FAULT_S)
    net.melt()


def cut_at_commit(net: Network, place: str) -> None:
    for _ in range(5):
        net.trap_at(place, asks_commit, Fault.CUT)
        time.sleep(FAULT_S / 5)


def lose_answers_of_commits(net: Network, place: str) -> None:
    for _ in range(5):
        net.trap_at(place, answers_commit, Fault.CUT)
        time.sleep(FAULT_S / 5)


FAULTS: Final[dict[str, Callable[[Network, str], None]]] = {
    "latency": lasting(Weather(latency_s=0.05)),
    "jitter": lasting(Weather(jitter_s=0.1)),
    "bandwidth": lasting(Weather(bytes_per_s=20_000)),
    "cut": cut,
    "reset": reset,
    "freeze": lasting(Weather(frozen=True)),
    "freeze after the seventh message": freeze_after_some,
    "black hole": lasting(Weather(is_black_hole=True)),
    "deaf": lasting(Weather(is_deaf=True)),
    "cut at commit": cut_at_commit,
    "cut behind commit": lose_answers_of_commits,
    "lost notifications": lasting(Weather(loses_notifications=True)),
    "refused": new_ones(Weather(refuses=True)),
    "slow handshake": new_ones(Weather(handshake_s=0.2)),
}
SILENT: Final = {"black hole", "deaf"}


class Probe:
    """Runs one after the other, and how long each took: started when, in seconds."""

    def __init__(self, url: str) -> None:
        self.took: list[tuple[float, float]] = []
        self.errors: list[BaseException] = []
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Client.connect(self._url) as client:
            while not self._over.wait(0.02):
                begin = time.monotonic()
                try:
                    client.start(charge(Work(1))).result(timeout="60s")
                except (RunError, UnavailableError) as error:
                    self.errors.append(error)
                self.took.append((begin, time.monotonic() - begin))

    def usual_s(self, seconds: float) -> float:
        """The p99 of the next so many seconds."""
        begin = time.monotonic()
        time.sleep(seconds)
        return quantile([took for at, took in self.took if at >= begin], 0.99)

    def back_s(self, limit_s: float) -> float:
        """How long it takes from now until runs are fast again, five in a row."""
        begin = time.monotonic()

        def is_back() -> bool:
            last = [took for at, took in self.took[-5:] if at >= begin]
            return len(last) == 5 and max(last) <= limit_s

        try:
            wait_until(is_back, "runs take their usual time again", at_most_s=PATIENCE_S)
        except AssertionError as error:
            error.add_note(f"at most {limit_s:.2f} s; the last took {[round(took, 2) for _, took in self.took[-20:]]}")
            raise
        slow = [at + took for at, took in self.took if at + took >= begin and took > limit_s]
        return max(slow, default=begin) - begin

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def probing(url: str) -> Generator[Probe]:
    made = Probe(url)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.chaos
@pytest.mark.parametrize("place", PLACES)
def test_every_fault_of_the_network_heals(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure, place: str
) -> None:
    url = breakable_postgres.url
    with network(url) as net, fleet(url, tmp_path, LEASE="15s", POLL="1s") as processes, probing(url) as probe:
        worker = processes.worker(url=net.url)
        wait_until(lambda: len(probe.took) > 20, "it works")
        load = processes.client(rate=RATE, seconds=3600, mix="steps:2,charge:2,event:1", n=2, pause=0.02)
        limit_s = max(0.5, 3 * probe.usual_s(2))  # a shared machine has hiccups of its own
        files = open_files(worker)
        late: dict[str, float] = {}
        for name, bring_about in FAULTS.items():
            processes.journal.write("fault", kind=name, about=place)
            bring_about(net, place)
            net.heal()
            late[name] = probe.back_s(limit_s)
        processes.kill(load)
        probe.close()
        # A client that is killed leaves runs whose events it has not sent: these are parked when they have lingered.
        processes.wait_until("select not exists (select from kedge.runs where workflow <> 'event' or state = 'r')")

        # A pool lets go of what it does not need only after minutes: its limit is what it may have.
        def surplus() -> dict[str, int]:
            return {name: count for name, count in sessions(url, "kedge %").items() if count > MOST.get(name, 0)}

        wait_until(lambda: not surplus(), f"it has no more sessions than it may have: {surplus()}")
        wait_until(lambda: open_files(worker) <= files + POOLED + 3, f"it has no more files than that: {files}")
        assert worker.poll() is None

    report = check(url, tmp_path, live=("waiting", "pending"))
    figure(
        f"{place}: slowest return after a fault",
        max(t for n, t in late.items() if n not in SILENT),
        unit="s",
        goal=BACK_S,
    )
    figure(f"{place}: return from a black hole", max(late[n] for n in SILENT), unit="s", goal=HEALTH_S + BACK_S)
    assert not probe.errors
    assert not broken(report), str(report)
    # Each fault can cut what every connection of the pool is at, and the traps five times one of them.
    cuts = len(FAULTS) * POOLED + 2 * 5 if place == "transaction" else 0
    assert report.counts["extra_bodies"] <= cuts, str(report)
    assert report.counts["crashes"] == 0, str(report)
    assert max(late.values()) <= 2 * (HEALTH_S + BACK_S), late


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["refused", "black hole", "frozen"])
def test_a_worker_whose_database_is_away_does_not_spin(
    database_url: str, tmp_path: Path, figure: Figure, how: str
) -> None:
    weather = {
        "refused": Weather(refuses=True),
        "black hole": Weather(is_black_hole=True),
        "frozen": Weather(frozen=True),
    }[how]
    seconds = 5 * FAULT_S
    with network(database_url) as net, fleet(database_url, tmp_path, LEASE="2s", POLL="1s") as processes:
        worker = processes.worker(url=net.url)
        load = processes.client(rate=20, seconds=2, mix="steps:2,charge:2,nap:1", n=2, pause=0.3)
        load.wait()
        processes.journal.write("fault", kind=how, about="all connections, for longer than the lease")
        net.set(weather)
        for place in ("journal", "control", "transaction", "listener", "lease", "starts"):
            net.end(place)
        time.sleep(1)
        before = processor_s(worker)
        time.sleep(seconds)
        share = (processor_s(worker) - before) / seconds

        net.heal()

        processes.drain()
        figure(f"processor, database {how}", 100 * share, unit="%", goal=10)
        # What a busy loop costs, on any machine.
        assert share < 0.5

    report = check(database_url, tmp_path)
    assert not broken(report), str(report)
    assert report.counts["crashes"] == 0
