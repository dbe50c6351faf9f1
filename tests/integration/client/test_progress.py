"""How far a run is, for whoever asks the database."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from kedge import RunNotFoundError, WorkflowRef, new_run_id
from kedge_client import Progress
from tests import ends
from tests.integration.client import tables
from tests.integration.client.orders import ORDER, PROCESS
from tests.twins import AnyClient, Twin


async def started(twin: Twin, client: AnyClient) -> UUID:
    run_id: UUID = (await twin.do(client.start, PROCESS(ORDER))).id
    return run_id


async def completed(twin: Twin, client: AnyClient, conn: psycopg.Connection, steps: int) -> UUID:
    """A run that has needed so many steps."""
    run = await started(twin, client)
    for number in range(steps):
        tables.keep(conn, run, f"step{number}")
    ends.complete(conn, run)
    return run


async def test_what_nobody_knows_is_none(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    tables.keep(conn, run, "charge")

    assert await twin.do(client.progress, run) == Progress(done=1)


async def test_what_the_handler_says_is_told_as_it_is(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    tables.define(conn, PROCESS.name, total_steps=2)
    tables.keep(conn, run, "charge")
    tables.say(conn, run, 30, 200, 15.0, "reading")

    progress = await twin.do(client.progress, run)

    assert progress == Progress(done=30, total=200, percent=15.0, message="reading", source="handler")


async def test_percent_that_the_handler_says_does_not_go_down(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await started(twin, client)
    tables.say(conn, run, 30, 100, 30.0)
    tables.say(conn, run, 40, 400, 10.0)
    tables.say(conn, run, 50)

    assert await twin.do(client.progress, run) == Progress(done=50, percent=30.0, source="handler")


async def test_else_the_declared_steps_count(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await started(twin, client)
    tables.define(conn, PROCESS.name, total_steps=4)
    await completed(twin, client, conn, 10)
    tables.keep(conn, run, "charge")
    for kind in "fxnmok":
        tables.keep(conn, run, f"no step {kind}", ValueError("no") if kind == "f" else None, kind=kind)
    tables.keep(conn, run, "answer", kind="e")

    assert await twin.do(client.progress, run) == Progress(done=2, total=4, percent=50.0, source="definition")


async def test_else_the_last_completed_run_before_this_one_began_teaches(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    await completed(twin, client, conn, 9)
    await completed(twin, client, conn, 5)
    failed = await started(twin, client)
    tables.keep(conn, failed, "charge")
    ends.fail(conn, failed, ValueError("no"))
    run = await started(twin, client)
    conn.execute("update kedge.runs set started_at = kedge.instant() where id = %s", (run,))
    tables.keep(conn, run, "charge")

    before = await twin.do(client.progress, run)
    await completed(twin, client, conn, 50)

    assert before == Progress(done=1, total=5, percent=20.0, source="last_run")
    assert await twin.do(client.progress, run) == before


async def test_other_versions_teach_nothing(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    await completed(twin, client, conn, 5)
    newer = WorkflowRef(PROCESS.name, type(ORDER), version="2")
    run = (await twin.do(client.start, newer(ORDER))).id
    tables.keep(conn, run, "charge")

    assert (await twin.do(client.progress, run)).percent is None


@pytest.mark.parametrize("said", [True, False])
async def test_only_a_completed_run_is_at_a_hundred(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, *, said: bool
) -> None:
    await completed(twin, client, conn, 2)
    runs = [await started(twin, client) for _ in range(3)]
    for run in runs:
        for number in range(2):
            tables.keep(conn, run, f"step{number}")
        if said:
            tables.say(conn, run, 100, 100, 99.0)

    unfinished = [(await twin.do(client.progress, run)).percent for run in runs]
    ends.complete(conn, runs[0])
    ends.fail(conn, runs[1], ValueError("no"))
    ends.cancel(conn, runs[2])
    ended = [(await twin.do(client.progress, run)).percent for run in runs]

    assert unfinished == [99.0, 99.0, 99.0]
    assert ended == [100.0, 99.0, 99.0]


async def test_a_completed_run_that_said_nothing_is_at_a_hundred(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await completed(twin, client, conn, 0)

    assert (await twin.do(client.progress, run)).percent == 100.0


async def test_progress_is_of_runs_that_one_may_see(twin: Twin, client: AnyClient) -> None:
    run = (await twin.do(client.start, PROCESS(ORDER, resource="alice"))).id

    assert (await twin.do(client.scoped("alice").progress, run)).done == 0
    for scope, run_id in ((client.scoped("bob"), run), (client, new_run_id())):
        with pytest.raises(RunNotFoundError) as caught:
            await twin.do(scope.progress, run_id)
        assert caught.value.run_id == run_id
