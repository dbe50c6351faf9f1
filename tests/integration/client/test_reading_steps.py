"""What `steps` shows of a run, as a worker has left it."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import psycopg

from kedge import new_run_id
from tests import ends
from tests.integration.client import tables
from tests.integration.client.orders import ORDER, PROCESS
from tests.twins import AnyClient, Twin

HOUR = timedelta(hours=1)


async def started(twin: Twin, client: AnyClient) -> UUID:
    run_id: UUID = (await twin.do(client.start, PROCESS(ORDER))).id
    return run_id


async def test_steps_come_in_the_order_in_which_they_reached_the_handler(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    tables.keep(conn, run, "ledger", [1, 2], kind="t", seq=3)
    tables.keep(conn, run, "charge", {"id": "ch-1"}, seq=1, took_ms=1500)
    tables.keep(conn, run, "slow", kind="x", seq=7, operation="t")

    steps = await twin.do(client.steps, run)

    assert [(step.seq, step.kind, step.status, step.key) for step in steps] == [
        (1, "step", "completed", "charge"),
        (3, "transaction", "completed", "ledger"),
        (7, "transaction", "interrupted", "slow"),
    ]
    assert [step.value for step in steps] == [{"id": "ch-1"}, [1, 2], None]
    assert steps[0].took == timedelta(seconds=1.5)
    assert steps[0].finished_at is not None
    assert steps[0].started_at == steps[0].finished_at - timedelta(seconds=1.5)


async def test_a_step_shows_every_attempt_that_failed(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    tables.fail_attempt(conn, run, "charge", ConnectionError("first"), 1, took_ms=20)
    tables.fail_attempt(conn, run, "charge", ConnectionError("second"), 2, took_ms=30)
    tables.fail_attempt(conn, run, "", ValueError("the run's own"), 1, kind="r")
    tables.keep(conn, run, "charge", "ch-1", took_ms=10)
    tables.fail_attempt(conn, run, "mail", ValueError("first"), 1)
    tables.wait(conn, run, "mail", "r", attempt=1, due_in=HOUR)

    charge, mail = await twin.do(client.steps, run)

    assert [(one.attempt, one.error.message) for one in charge.attempts] == [(1, "first"), (2, "second")]
    assert [one.took for one in charge.attempts] == [timedelta(milliseconds=20), timedelta(milliseconds=30)]
    assert (charge.status, charge.value, charge.error) == ("completed", "ch-1", None)
    assert (mail.kind, mail.status, mail.seq) == ("step", "open", None)
    assert [one.error.message for one in mail.attempts] == ["first"]


async def test_waits_and_children_are_shown_while_they_are_open(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run, child = await started(twin, client), new_run_id()
    tables.keep(conn, run, "invoice/start", str(child), kind="n")
    tables.wait(conn, run, "invoice", "c", state=str(child), due_in=HOUR)
    tables.wait(conn, run, "~1/answer", "e", slot="e:approved", due_in=HOUR)

    begun, call, answer = await twin.do(client.steps, run)

    assert (begun.kind, begun.status, begun.child_id) == ("child started", "completed", child)
    assert (call.kind, call.status, call.child_id) == ("child", "open", child)
    assert (answer.key, answer.id, answer.kind, answer.status) == ("~1/answer", "answer", "event", "open")


async def test_an_ended_run_keeps_its_steps(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    tables.keep(conn, run, "charge", "ch-1")
    tables.keep(conn, run, "mail", ValueError("no address"), kind="f")
    ends.fail(conn, run, ValueError("no address"))

    charge, mail = await twin.do(client.steps, run)

    assert (charge.status, charge.value) == ("completed", "ch-1")
    assert (mail.kind, mail.status) == ("step", "failed")
    assert mail.error is not None
    assert mail.error.message == "no address"
    assert [one.attempt for one in mail.attempts] == [1]


async def test_steps_of_another_resource_are_not_shown(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = (await twin.do(client.start, PROCESS(ORDER, resource="alice"))).id
    tables.keep(conn, run, "charge")
    tables.wait(conn, run, "nap", "d", due_in=HOUR)
    tables.fail_attempt(conn, run, "charge", ValueError("no"), 1)

    seen = await twin.do(client.scoped("alice").steps, run)
    asked = [
        conn.execute("select * from kedge.steps_v1(%s, 'bob', 0, null, null)", (run,)),
        conn.execute("select * from kedge.waits_v1(%s, 'bob')", (run,)),
        conn.execute("select * from kedge.failures_v1(%s, 'bob', 10)", (run,)),
    ]

    assert [step.key for step in seen] == ["charge", "nap"]
    assert [cursor.fetchall() for cursor in asked] == [[], [], []]
