"""A worker that dies uses up no attempt and no check: what had failed before is known to the next one."""

import signal
from typing import Any

import psycopg
import pytest

from kedge import WorkflowRef
from kedge_client import Client
from tests.scenarios.crew import crew, wait_until
from tests.scenarios.flaky import flaky, patient


@pytest.mark.parametrize(
    ("ref", "result", "bodies", "failures"),
    [(flaky, "call 4", 4, [("s", 1), ("s", 2)]), (patient, "3 checks, 5 calls", 5, [])],
)
def test_a_killed_worker_uses_up_nothing(
    database_url: str,
    conn: psycopg.Connection,
    ref: WorkflowRef[str, str],
    result: str,
    bodies: int,
    failures: list[tuple[Any, ...]],
) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        first = workers.start("tests.scenarios.flaky:worker")
        run = client.start(ref("it"))
        wait_until(lambda: workers.bodies()["it 0"] == 2, "the second body hangs")
        workers.end(first, signal.SIGKILL)
        workers.start("tests.scenarios.flaky:worker")

        assert run.result(timeout="30s") == result
        assert workers.bodies()["it 0"] == bodies
    assert conn.execute("select kind::text, attempt from kedge.failures order by id").fetchall() == failures
    assert conn.execute("select count(*) from kedge.waits").fetchone() == (0,)
