"""
The server dies under load, again and again, in every way that it can: nothing that was acknowledged is lost, work goes
on as soon as it is back, and no worker ends.

KEDGE_PROOF_ROUNDS: crashes of each test (21); KEDGE_PROOF_RATE: starts a second (40).
"""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import pytest

from kedge_worker._migrator import migrate
from tests.proof.chaos.endless import Clients
from tests.proof.chaos.servers import Node, node
from tests.proof.kit.fleet import Fleet, fleet
from tests.proof.kit.journal import Line, read_journals
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure

pytestmark = pytest.mark.chaos

ROUNDS: Final = int(setting("rounds", 21))
RATE: Final = setting("rate", 40)
MIX: Final = "steps:6,parallel:2,event:4,charge:3,nap:1,parent:1,flaky:1"


@pytest.fixture
def server() -> Generator[Node]:
    with node() as made:
        migrate(made.url)
        yield made


def backend(server: Node) -> None:
    """One session: the server ends all others, and recovers by itself."""
    server.kill_backend("kedge%")


def postmaster(server: Node) -> None:
    server.kill_postmaster()
    server.start()


def power(server: Node) -> None:
    server.kill()
    server.start()


def immediate_stop(server: Node) -> None:
    server.stop(signal.SIGQUIT)
    server.start()


def fast_restart(server: Node) -> None:
    server.stop(signal.SIGINT)
    server.start()


@pytest.mark.parametrize("crash", [backend, postmaster, power, immediate_stop, fast_restart])
def test_nothing_acknowledged_is_lost_when_the_server_crashes(
    server: Node, tmp_path: Path, crash: Callable[[Node], None], figure: Figure
) -> None:
    with fleet(server.url, tmp_path, LEASE="5s", POLL="2s") as crew:
        workers = [crew.worker() for _ in range(2)]
        clients = Clients(crew, rate=RATE, mix=MIX, results=0.02)

        def check_workers() -> None:
            assert [worker.poll() for worker in workers] == [None, None], "a worker has ended"

        _crash(crew, server, crash, check_workers)
        clients.end()
        crew.drain(180)
        check_workers()
        assert [crew.terminate(worker) for worker in workers] == [0, 0]

    report = check(server.url, tmp_path)
    pauses = resumed(read_journals(tmp_path))
    figure(f"{crash.__name__}: crashes", ROUNDS)
    figure(f"{crash.__name__}: acknowledged starts", report.counts["start.ok"])
    figure(f"{crash.__name__}: work resumes, median", statistics.median(pauses), unit="s")
    figure(f"{crash.__name__}: work resumes, longest", max(pauses), unit="s", goal=3.0)
    assert not report.violations, report
    assert report.counts["start.ok"] > 0


def _crash(crew: Fleet, server: Node, crash: Callable[[Node], None], check_workers: Callable[[], None]) -> None:
    _wait_for_work(crew)
    for _ in range(ROUNDS):
        _wait_for_work(crew)
        time.sleep(random.uniform(0.1, 1.0))
        crew.journal.write("fault", kind=crash.__name__, about="server")
        crash(server)
        server.wait_until_it_answers()
        crew.journal.write("accepts")
        check_workers()


def _wait_for_work(crew: Fleet) -> None:
    """Until some worker has said something more, but not for ever: the checks say what is wrong then."""
    before, end = _said(crew), time.monotonic() + 10
    while _said(crew) == before and time.monotonic() < end:
        time.sleep(0.05)


def _said(crew: Fleet) -> int:
    return sum(file.stat().st_size for file in crew.folder.glob("worker-*.journal"))


def resumed(lines: list[Line]) -> list[float]:
    """After each moment at which the server accepted again, how long until a handler began: its claim was answered."""
    pauses: list[float] = []
    waiting: float | None = None
    for line in lines:
        if line["what"] == "accepts":
            waiting = line["at"]
        elif line["what"] == "fault":
            waiting = None  # the next one came before: it counts from its own end
        elif line["what"] == "life" and waiting is not None:
            pauses.append(line["at"] - waiting)
            waiting = None
    return pauses
