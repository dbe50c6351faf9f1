"""
The synchronous standby is away for longer than two leases: nothing is acknowledged, nothing is taken over, nothing is
executed twice, and all goes on when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kedge import OutcomeUnknownError, UnavailableError
from kedge_client import Client
from kedge_worker._migrator import migrate
from tests.proof.chaos.endless import Clients
from tests.proof.chaos.servers import Pair, pair
from tests.proof.kit.fleet import Fleet, fleet
from tests.proof.kit.journal import read_journals
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, charge, event, go, steps

pytestmark = pytest.mark.chaos

RATE: Final = setting("rate", 10)
LEASE_S: Final = 5.0
AWAY_S: Final = setting("seconds", 15)
WAITING: Final = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"


@pytest.fixture
def servers() -> Generator[Pair]:
    with pair(synchronous=True) as made:
        migrate(made.url)
        yield made


@contextmanager
def standby_away(servers: Pair, crew: Fleet) -> Generator[None]:
    """For this block."""
    crew.journal.write("fault", kind="standby away", about="server")
    servers.standby.stop()
    yield
    crew.journal.write("fault", kind="standby back", about="server")
    servers.standby.start()


def test_nothing_is_acknowledged_taken_over_or_done_twice_while_the_standby_is_away(
    servers: Pair, tmp_path: Path, figure: Figure
) -> None:
    with fleet(servers.url, tmp_path, LEASE=f"{LEASE_S}s", POLL="2s") as crew:
        workers = [crew.worker() for _ in range(2)]
        with Client.connect(servers.url) as client:
            waiting = client.start(event(Work(1)))
            # Executed while the standby is away, and longer than a lease.
            running = [client.start(charge(Work(1, AWAY_S / 2))) for _ in range(4)]
        crew.wait_until("select count(*) = 4 from kedge.runs where state = 'r' and workflow = 'charge'")
        clients = Clients(crew, rate=RATE, mix="steps:6,parallel:2,event:2,charge:3,parent:1")
        crew.wait_until("select count(*) > 20 from kedge.finished")
        owners = owners_of(servers, [run.id for run in running])
        registered = servers.primary.ask("select id from kedge.workers order by id")

        crew.journal.write("start.invoke", key="own")
        crew.journal.write("send.invoke", run=str(waiting.id), n=0)
        with standby_away(servers, crew):
            since, end = time.monotonic(), time.monotonic() + AWAY_S
            with Client.connect(servers.url, timeout="2s") as client:
                own = steps(Work(1), key="own")
                assert_never_acknowledged(lambda: client.start(own))
                assert_never_acknowledged(lambda: client.start(own))
                assert_never_acknowledged(lambda: client.handle(event, waiting.id).send(go(0, key="own")))
                assert_never_acknowledged(lambda: client.handle(event, waiting.id).send(go(0, key="own")))
            while time.monotonic() < end:
                # Some end meanwhile: their commits hang, and whoever ends such a session makes its work visible here.
                assert set(owners_of(servers, [run.id for run in running])) <= set(owners), "taken over"
                assert servers.primary.ask("select id from kedge.workers order by id") == registered, "a lease was lost"
                time.sleep(0.2)
            until = time.monotonic()
            stuck = servers.primary.ask(WAITING)[0][0]

        back = time.monotonic()
        with Client.connect(servers.url) as client:
            client.start(own).result(timeout="60s")
            client.handle(event, waiting.id).send(go(0, key="own"))
        recovery_s = time.monotonic() - back
        clients.end()
        crew.drain(120)
        assert [worker.poll() for worker in workers] == [None, None], "a worker has ended"
        assert [crew.terminate(worker) for worker in workers] == [0, 0]

    lines = read_journals(tmp_path)
    # What had the standby's word may be told a moment later.
    told = [x for x in lines if x["what"] in {"start.ok", "send.ok"} and since + 1 < x["at"] < until]
    report = check(servers.url, tmp_path)
    figure("standby away: sessions that wait for it at the end", int(str(stuck)))
    figure("standby away: a run is done after it is back", recovery_s, unit="s", goal=10.0)
    figure("standby away: bodies executed more than once", report.counts["extra_bodies"], goal=0)
    assert not told, told
    assert not report.violations, report
    assert report.counts["crashes"] == 0
    assert report.counts["extra_bodies"] == 0
    lives = [line["run"] for line in lines if line["what"] == "life"]
    assert [lives.count(str(run.id)) for run in running] == [1] * len(running), "interrupted"


def assert_never_acknowledged(call: Callable[[], object]) -> None:
    """The first try is not known; a repeat may also wait for the first one, and say that it did nothing."""
    with pytest.raises((OutcomeUnknownError, UnavailableError)):
        call()


def owners_of(servers: Pair, runs: list[object]) -> list[tuple[object, ...]]:
    return servers.primary.ask(
        "select id, epoch, worker_id, crashes from kedge.runs where id = any(%s) order by id", runs
    )
