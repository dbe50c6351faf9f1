"""
The standby is promoted while the old primary lives on, and nobody has fenced that: those who have a session there stay,
others begin to work on the new one, until the old one is ended.

What was acknowledged by the old one since is lost with it: nothing, where its commits wait for the standby that left.
In the history that survives nothing is doubled.
KEDGE_PROOF_SECONDS: how long both live (5); KEDGE_PROOF_RATE: starts a second (20).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import psycopg
import pytest

from kedge_client import Client
from kedge_worker._migrator import migrate
from tests.proof.chaos.endless import Clients
from tests.proof.chaos.servers import Pair, pair
from tests.proof.chaos.test_failover import is_about_the_tail, lost_starts, repeat, wait_for_work
from tests.proof.kit.fleet import fleet
from tests.proof.kit.journal import read_journals
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, charge

pytestmark = pytest.mark.chaos

SECONDS: Final = setting("seconds", 5)
RATE: Final = setting("rate", 20)
LEASE_S: Final = 5.0
# Without events, as in any failover that loses something: a run whose acknowledged event is lost waits for ever.
MIX: Final = "steps:6,parallel:2,charge:4,parent:2"


@pytest.mark.parametrize("synchronous", [False, True], ids=["asynchronous", "synchronous"])
def test_what_two_primaries_do_at_once_is_lost_with_the_old_one_and_doubles_nothing_in_the_new_one(
    synchronous: bool, tmp_path: Path, figure: Figure
) -> None:
    with pair(synchronous=synchronous) as servers:
        migrate(servers.url)
        with fleet(servers.url, tmp_path, LEASE=f"{LEASE_S}s", POLL="2s") as crew:
            stayed = [crew.worker() for _ in range(2)]
            clients = Clients(crew, rate=RATE, mix=MIX, results=0)
            wait_for_work(crew)
            with Client.connect(servers.url) as client:
                # Theirs when the two part ways, and still when they meet again.
                shared = [client.start(charge(Work(2, LEASE_S + SECONDS))) for _ in range(3)]
            crew.wait_until(
                "select count(*) = 3 from kedge.runs where state = 'r' and key is null and parent_id is null"
            )
            servers.wait_until_streaming()

            parted = time.monotonic()
            crew.journal.write("fault", kind="two primaries", about="server")
            servers.standby.promote()
            # Two promotions are no matter of this test: the new one has no standby yet.
            servers.standby.reload(synchronous_standby_names="")
            newcomer = crew.worker(url=new_first(servers))
            with Client.connect(new_first(servers)) as client:
                known = [client.start(charge(Work(1), key=f"new {n}")) for n in range(20)]
            for run in known:
                crew.journal.write("start.invoke", key=f"new {known.index(run)}")
            time.sleep(max(0.0, parted + SECONDS - time.monotonic()))

            crew.journal.write("fault", kind="fenced", about="server")
            servers.primary.kill()
            fenced = time.monotonic()
            servers.switched()
            clients.end()
            crew.drain(180)
            assert [one.poll() for one in (*stayed, newcomer)] == [None] * 3, "a worker has ended"
            # By the timeline, or because others on the new one have taken their runs back.
            gave_up = [crew.log(worker).count("lease lost") for worker in stayed]
            assert [crew.terminate(one) for one in (*stayed, newcomer)] == [0] * 3

        lost = lost_starts(servers.url, tmp_path)
        repeat(servers.url, lost)
        with fleet(servers.url, tmp_path, LEASE=f"{LEASE_S}s") as crew:
            crew.worker()
            crew.drain()
        report = check(servers.url, tmp_path, tail_lost=True)
        with psycopg.connect(servers.url) as conn:
            effects = conn.execute(
                "select run, count(*) from effects where run = any(%s) group by 1",
                ([run.id for run in (*shared, *known)],),
            ).fetchall()

    executed = [line for line in read_journals(tmp_path) if line["what"] == "body" and parted < line["at"] < fenced]
    kind = "synchronous" if synchronous else "asynchronous"
    figure(f"two primaries, {kind}: starts that only the old one acknowledged", len(lost))
    figure(f"two primaries, {kind}: bodies executed while both lived", len(executed))
    figure(f"two primaries, {kind}: bodies executed more than once", report.counts["extra_bodies"])
    assert bool(lost) != synchronous, "with a synchronous one nothing may be lost, with the other it proves nothing"
    assert not [line for line in lost if not parted - 1 < line["at"] < fenced + 1], "lost, though both had it"
    assert {run.id: (2 if run in shared else 1) for run in (*shared, *known)} == dict(effects)
    assert all(gave_up), "who comes from the old one keeps nothing of it"
    assert not [one for one in report.violations if not is_about_the_tail(one)], report


def new_first(servers: Pair) -> str:
    """As a process says it that begins with the other host, or has lost the old one from sight."""
    ports = f"{servers.primary.port},{servers.standby.port}"
    return servers.url.replace(ports, ",".join(reversed(ports.split(","))))
