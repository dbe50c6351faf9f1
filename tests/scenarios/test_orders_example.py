"""The demo as `make demo` runs it, with fewer orders: real processes, real kills, and nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from examples.orders.stage.customers import read_lines
from kedge_worker.testing import PostgresServer
from tests.postgres import may_start_servers

ROOT = Path(__file__).parents[2]
ORDERS = 200
DEADLINE_S = 90
MARK = "DEMO_MARK"


class Demo:
    """A demo under way. All its processes, the server's too, carry a mark in their environment."""

    def __init__(self, **environment: str) -> None:
        self._mark = str(uuid.uuid4())
        inherited = {name: value for name, value in os.environ.items() if not name.endswith("DATABASE_URL")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.orders.demo", "--orders", str(ORDERS)],
            cwd=ROOT,
            env={**inherited, **environment, MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, text: str) -> None:
        """Read on until the demo says this."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return
        raise AssertionError(f"the demo ended without saying {text!r}")

    def family(self) -> list[psutil.Process]:
        """Return the processes that there are, the demo itself among them."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def finish(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it has said since."""
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, output


@contextmanager
def demo(**environment: str) -> Generator[Demo]:
    """Start a demo; what the test finds too many is cleared away."""
    started = Demo(**environment)
    try:
        yield started
    finally:
        for process in started.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.process.communicate()


def figures(output: str) -> dict[str, float]:
    """The table: the figure that a line ends with, by the words before it."""
    found = re.findall(r"^  (\S.*?) {2,}([\d.,]+)(?: ms)?$", output, re.MULTILINE)
    return {name: float(figure.replace(",", "")) for name, figure in found}


def test_every_accepted_order_gets_one_receipt_although_workers_are_killed(postgres: PostgresServer) -> None:
    lines = read_lines(ORDERS)
    good: list[dict[str, Any]] = [msgspec.json.decode(line.order) for line in lines if line.refused_for is None]
    accepted = len({order["order_id"] for order in good})

    with demo(KEDGE_DATABASE_URL=postgres.url, KEDGE_REQUIRE_POSTGRES="url") as played:
        code, output = played.finish()
        left = played.family()

    assert code == 0, output
    counted = figures(output)
    assert counted["posted"] == ORDERS
    assert counted["accepted"] == counted["completed"] == accepted
    assert counted["duplicates answered with the first run"] == len(good) - accepted > 0
    assert counted["refused, with the field's name"] == ORDERS - len(good) > 0
    assert counted["steps executed"] == 4 * accepted
    assert counted["charges in the ledger"] == 2 * accepted
    assert counted["workers killed"] == 2
    assert counted["take-backs"] >= 2
    assert left == []
    with psycopg.connect(postgres.url) as conn:
        assert conn.execute("select from pg_database where datname like 'kedge_demo%'").rowcount == 0


@pytest.mark.skipif(not may_start_servers(), reason="KEDGE_REQUIRE_POSTGRES leaves the demo no server of its own")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_demo_that_is_stopped_leaves_no_process(number: signal.Signals) -> None:
    with demo() as played:
        played.wait_for("kill -9")
        family = played.family()

        played.process.send_signal(number)
        code, output = played.finish()
        _, alive = psutil.wait_procs(family, timeout=DEADLINE_S)

    assert len(family) > 10  # the API service, three workers, their guards, the server
    assert alive == []
    assert "Traceback" not in output
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 128 + signal.SIGINT)


@pytest.fixture
def poor_url(postgres: PostgresServer) -> Generator[str]:
    """A server whose role may not create databases."""
    role = f"poor_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login password 'poor'").format(sql.Identifier(role)))
        yield make_conninfo(postgres.url, user=role, password="poor")
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_a_server_that_gives_the_demo_no_database_is_left_alone(poor_url: str) -> None:
    with demo(KEDGE_DATABASE_URL=poor_url, KEDGE_REQUIRE_POSTGRES="url") as played:
        code, output = played.finish()

    assert code == 1
    assert "give it CREATEDB" in output
    assert "Traceback" not in output
