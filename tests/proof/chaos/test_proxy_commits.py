"""
One of a hundred ends of a round trip is cut, before the server has it or before its answer arrives: nobody knows.

A client and two workers, each behind a proxy of its own, start runs, send events and keep steps by the thousand. What
was acknowledged is there, nothing is there twice, and a call whose outcome is unknown says so or is settled by its key.

KEDGE_PROOF_SECONDS (45), KEDGE_PROOF_RATE (100 starts/s), KEDGE_PROOF_AMBIGUOUS (0.01).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge_worker.testing import PostgresServer
from tests.proof.chaos.network import network
from tests.proof.chaos.watch import broken
from tests.proof.kit.fleet import fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure

SECONDS = setting("seconds", 45.0)
RATE = setting("rate", 100.0)
SHARE = setting("ambiguous", 0.01)


@pytest.mark.chaos
def test_no_unknown_end_loses_or_doubles_anything(
    breakable_postgres: PostgresServer, tmp_path: Path, figure: Figure
) -> None:
    url = breakable_postgres.url
    with (
        network(url) as of_clients,
        network(url) as of_workers,
        fleet(url, tmp_path, LEASE="15s", POLL="1s") as processes,
    ):
        for _ in range(2):
            processes.worker(url=of_workers.url)
        of_clients.ambiguous = of_workers.ambiguous = SHARE
        processes.journal.write("fault", kind="ambiguous", about=SHARE)
        load = processes.client(
            url=of_clients.url, rate=RATE, seconds=SECONDS, mix="steps:3,event:2,charge:2,parent:1", n=3, results=0.3
        )
        code = load.wait(timeout=SECONDS + 120)
        processes.drain(120)

        assert code == 0, processes.log(load)

    report = check(url, tmp_path)
    counts = report.counts
    wrong = broken(report)
    calls = counts["start.ok"] + counts["send.ok"] + counts["outcomes"]
    figure("unknown ends: starts, sends and outcomes", calls)
    figure("unknown ends: cuts", of_clients.cuts + of_workers.cuts)
    figure("unknown ends: reported to clients", counts["start.unknown"] + counts["send.unknown"])
    figure("unknown ends: transactional bodies executed again", counts["extra_bodies"])
    figure("unknown ends: broken promises", len(wrong), goal=0)
    assert of_clients.cuts
    assert of_workers.cuts
    assert not wrong, str(report)
    assert counts["extra_bodies"] <= of_workers.cuts
    assert counts["crashes"] == 0  # a cut connection is nobody's death
