"""
PgBouncer in transaction mode, as API services have it: clients lose nothing but the push, and workers refuse it.

The version of Debian (1.18) keeps no prepared statements across its server's sessions, so nothing may depend on them.
KEDGE_PROOF_SECONDS: how long the load goes through it (10); KEDGE_PROOF_POOLER: which tests go through it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

from kedge.errors import InvalidOptionError
from kedge_client import Client, UnavailableError
from kedge_worker import Worker
from kedge_worker._migrator import migrate
from tests.proof.chaos.servers import Node, node
from tests.proof.chaos.through_pooler import Pooler
from tests.proof.kit.fleet import fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import ALL, Work, steps

pytestmark = pytest.mark.chaos

SECONDS: Final = setting("seconds", 10)
SUITES: Final = {
    # What is watched is pushed; what is refused as bad input mostly reaches no pooler; the last one changes the server.
    "clients": [
        "tests/integration/client",
        *(
            f"--ignore=tests/integration/client/test_{name}.py"
            for name in ("watch", "client_bad_input", "repeats_await_the_standby")
        ),
    ],
    "scenarios": [
        "tests/scenarios/test_the_way_of_a_run.py",
        "tests/scenarios/test_sleeps_and_events.py",
        "tests/scenarios/test_sends_and_topics.py",
        "tests/scenarios/test_children.py",
        "tests/scenarios/test_pauses_and_fast_forward.py",
    ],
}
# What a client has not got behind a pooler: the push, the server's own deadline for a statement, prepared statements;
# and for a second after its server is back PgBouncer refuses calls (server_login_retry), with a typed error.
NOT_THERE: Final = (
    "listen",
    "push",
    "prepare",
    "limits_of_time",
    "waits_too_long_for_its_key",
    "waiter_is_registered",
    "server_that_is_killed_under_load",
)


@pytest.fixture
def server() -> Generator[Node]:
    with node() as made:
        migrate(made.url)
        yield made


@pytest.fixture
def pooled(server: Node) -> Generator[str]:
    """The URL of the server's database through the pooler."""
    pooler = Pooler("127.0.0.1", str(server.port), password=server.password)
    yield pooler.url(server.url)
    pooler.close()


@pytest.mark.parametrize("suite", SUITES)
def test_the_suite_passes_with_its_clients_behind_the_pooler(suite: str, tmp_path: Path) -> None:
    """In a process of its own, in which `connect` leads through the pooler."""
    arguments = ["-p", "tests.proof.chaos.through_pooler", "-q", "-x", "-o", "faulthandler_timeout=300"]
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if name != "KEDGE_PROOF"}
    with log.open("wb") as output:
        code = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                *arguments,
                "-k",
                " and ".join(f"not {one}" for one in NOT_THERE),
                *SUITES[suite],
            ],
            env=environment,
            stdout=output,
            stderr=output,
            check=False,
        ).returncode
    assert code == 0, log.read_text("utf-8", "replace")[-6000:]


def test_runs_go_their_way_while_clients_are_behind_the_pooler(
    server: Node, pooled: str, tmp_path: Path, figure: Figure
) -> None:
    with fleet(server.url, tmp_path, LEASE="5s") as crew:
        crew.worker()
        polling = crew.worker(LISTEN="false", POLL="0.5s")
        client = crew.client(url=pooled, rate=30, seconds=SECONDS, results=0.5, listen=0)
        assert client.wait(SECONDS + 60) == 0, crew.log(client)
        crew.drain()
        assert crew.terminate(polling) == 0
    report = check(server.url, tmp_path)
    figure("through the pooler: acknowledged starts", report.counts["start.ok"])
    assert not report.violations, report
    assert report.counts["start.ok"] > 0


@pytest.mark.parametrize("settings", ["", "ignore_startup_parameters = options\n"], ids=["", "settings are dropped"])
async def test_a_worker_refuses_a_pooler(server: Node, settings: str) -> None:
    """Also one that drops the settings of sessions without a word."""
    pooler = Pooler("127.0.0.1", str(server.port), password=server.password, settings=settings)
    with pytest.raises(InvalidOptionError, match="pooler"):
        await Worker(pooler.url(server.url), workflows=ALL).run(signals=False)
    pooler.close()


def test_a_client_that_listens_says_what_a_pooler_wants(pooled: str) -> None:
    with Client.connect(pooled) as client, pytest.raises(UnavailableError, match="listen=False"):
        client.start(steps(Work(1)))
