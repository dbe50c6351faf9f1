"""A start outside of a transaction: what is stored, who is woken, and what a failure leaves behind."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from kedge import InvalidOptionError, Retry, RunNotFoundError, RunRequest, SchemaError, WorkflowRef
from tests.integration.client.orders import NIGHTLY, NOTIFY, ORDER, PROCESS, Order
from tests.integration.client.tables import note_rings
from tests.twins import ASYNC, AnyClient, Twin, opened

WORKER = UUID("00000000-0000-4000-8000-000000000001")
CHANNEL = f"kedge_w_{WORKER.hex}"


def sleep_as_worker(conn: psycopg.Connection, queue: str, workflow: str) -> None:
    """Let a worker lie asleep and listen for its doorbell."""
    conn.execute(
        "insert into kedge.workers (id, lease_until, lease, started_at, protocol, name, queues, workflows)"
        " values (%s, now() + interval '1 h', interval '1 h', now(), 1, 'sleeper', %s, %s)",
        (WORKER, [queue], [workflow]),
    )
    conn.execute(
        "insert into kedge.idle (worker_id, queues, workflows) values (%s, %s, %s)", (WORKER, [queue], [workflow])
    )
    conn.execute(f"listen {CHANNEL}".encode())


def was_rung(conn: psycopg.Connection) -> bool:
    """Whether the doorbell has rung, for what has been committed by now."""
    # The answer to a statement comes behind the notifications that were there before it.
    conn.execute("select 1")
    return any(notify.channel == CHANNEL for notify in conn.notifies(timeout=0.0))


def is_rung(conn: psycopg.Connection) -> bool:
    """Wait until the doorbell rings, and say whether it has."""
    return any(notify.channel == CHANNEL for notify in conn.notifies(timeout=30.0, stop_after=1))


async def test_a_started_run_is_there_with_all_that_was_said(twin: Twin, client: AnyClient) -> None:
    request = PROCESS(
        ORDER, resource="customer-7", queue="fast", priority=-5, tags=["a", "b"], metadata={"source": "test"}, key="k"
    )

    run = await twin.do(client.start, request)
    view = await twin.do(client.get, run)

    assert run.created
    assert view.id == run.id
    assert (view.workflow, view.version, view.status) == ("process-order", None, "pending")
    assert (view.queue, view.priority, view.resource, view.key) == ("fast", -5, "customer-7", "k")
    assert view.tags == ("a", "b")
    assert view.metadata == {"source": "test"}
    assert view.input == {"order_id": "o-1", "cents": 100}
    assert {name: option.origin for name, option in view.options.items()} == {"queue": "request", "priority": "request"}


async def test_the_defaults_of_a_ref_are_shown_with_their_origin(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, NOTIFY("hello"))

    view = await twin.do(run.view)

    assert (view.queue, view.priority) == ("mail", 3)
    assert {name: option.origin for name, option in view.options.items()} == {"queue": "ref", "priority": "ref"}


async def test_a_version_is_kept_apart_from_the_name(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, NIGHTLY())

    view = await twin.do(client.get, run.id)

    assert (view.workflow, view.version, view.input) == ("nightly", "2", None)


async def test_a_request_started_twice_makes_two_runs(twin: Twin, client: AnyClient) -> None:
    request = PROCESS(ORDER)

    first = await twin.do(client.start, request)
    second = await twin.do(client.start, request)

    assert first != second
    assert await twin.do(client.count_runs) == 2


async def test_a_delayed_run_waits_until_it_is_due(twin: Twin, client: AnyClient) -> None:
    later = datetime.now(UTC) + timedelta(days=3)

    by_delay = await twin.do((await twin.do(client.start, PROCESS(ORDER, delay="3 days"))).view)
    by_time = await twin.do((await twin.do(client.start, PROCESS(ORDER, start_at=later))).view)
    at_once = await twin.do((await twin.do(client.start, PROCESS(ORDER, delay=0))).view)

    assert by_delay.status == "waiting"
    assert by_delay.due_at == by_delay.created_at + timedelta(days=3)
    assert (by_time.status, by_time.due_at) == ("waiting", later)
    assert (at_once.status, at_once.due_at) == ("pending", None)


async def test_a_timeout_is_a_deadline_from_when_the_run_is_due(twin: Twin, client: AnyClient) -> None:
    at_once = await twin.do((await twin.do(client.start, PROCESS(ORDER, timeout="90s"))).view)
    delayed = await twin.do((await twin.do(client.start, PROCESS(ORDER, timeout="90s", delay="1h"))).view)
    many = await twin.do(client.start_many, [PROCESS(ORDER, timeout="90s"), PROCESS(ORDER, timeout="2m")])

    assert at_once.deadline_at == at_once.created_at + timedelta(seconds=90)
    assert delayed.deadline_at == delayed.created_at + timedelta(hours=1, seconds=90)
    views = [await twin.do(run.view) for run in many]
    assert [view.deadline_at and view.deadline_at - view.created_at for view in views] == [
        timedelta(seconds=90),
        timedelta(minutes=2),
    ]


async def test_a_timeout_of_the_ref_holds_unless_the_request_says_otherwise(twin: Twin, client: AnyClient) -> None:
    limited = WorkflowRef("limited", str, timeout="1h")

    by_ref = await twin.do((await twin.do(client.start, limited("x"))).view)
    by_request = await twin.do((await twin.do(client.start, limited("x", timeout="1m"))).view)
    without = await twin.do((await twin.do(client.start, limited("x", timeout=None))).view)
    unsaid = await twin.do((await twin.do(client.start, PROCESS(ORDER))).view)

    assert [
        view.deadline_at and view.deadline_at - view.created_at for view in (by_ref, by_request, without, unsaid)
    ] == [
        timedelta(hours=1),
        timedelta(minutes=1),
        None,
        None,
    ]
    options = [view.options.get("timeout") for view in (by_ref, by_request, without, unsaid)]
    assert [option and (option.value, option.origin) for option in options] == [
        (timedelta(hours=1), "ref"),
        (timedelta(minutes=1), "request"),
        (None, "request"),
        None,
    ]


async def test_a_retry_policy_travels_with_the_run(twin: Twin, client: AnyClient) -> None:
    policy = Retry(3, initial="2s", jitter=False)

    run = await twin.do(client.start, PROCESS(ORDER, retry=policy))

    option = (await twin.do(run.view)).options["retry"]
    assert (option.value, option.origin) == (policy, "request")


async def test_a_start_wakes_a_sleeping_worker(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    sleep_as_worker(conn, "mail", "notify")

    await twin.do(client.start, NOTIFY("hello"))

    assert is_rung(conn)
    assert conn.execute("select count(*) from kedge.idle").fetchone() == (0,)


@pytest.mark.parametrize(
    "asked",
    [PROCESS(ORDER), NOTIFY("hello", queue="other"), NOTIFY("hello", delay="1h")],
    ids=["workflow", "queue", "delayed"],
)
async def test_a_start_wakes_nobody_who_could_not_claim_it(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, asked: RunRequest[None]
) -> None:
    sleep_as_worker(conn, "mail", "notify")

    await twin.do(client.start, asked)

    assert not was_rung(conn)


async def test_a_client_that_shall_not_wake_wakes_nobody(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    sleep_as_worker(conn, "mail", "notify")

    async with opened(twin, database_url, wake=False) as client:
        await twin.do(client.start, NOTIFY("hello"))
        await twin.do(client.start_many, [NOTIFY("hello")])

    assert not was_rung(conn)


async def test_the_doorbell_rings_in_a_transaction_of_its_own(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    note_rings(conn)

    run = await twin.do(client.start, PROCESS(ORDER))
    many = await twin.do(client.start_many, [PROCESS(ORDER)])

    started = conn.execute(
        "select xmin::text from kedge.journal where run_id = any (%s)", ([run.id, many[0].id],)
    ).fetchall()
    rung = conn.execute("select xid from rung").fetchall()
    assert len(rung) == len(started) == 2
    assert set(rung).isdisjoint(started)


async def test_a_doorbell_that_fails_fails_no_start(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    conn.execute(
        "create or replace function kedge.ring_v1(p_queue text, p_workflow text) returns void language plpgsql"
        " as $$ begin raise exception 'no bell'; end $$"
    )

    run = await twin.do(client.start, PROCESS(ORDER))
    (other,) = await twin.do(client.start_many, [PROCESS(ORDER)])

    assert await twin.do(run.status) == "pending"
    assert await twin.do(other.status) == "pending"


@pytest.mark.owners_client("it migrates a second schema, in which no roles are installed")
async def test_the_schema_is_where_the_client_was_told(
    twin: Twin, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kedge_worker._migrator import migrate

    migrate(database_url, schema="other_place")
    async with opened(twin, database_url, schema="other_place") as client:
        run = await twin.do(client.start, PROCESS(ORDER))
    monkeypatch.setenv("KEDGE_SCHEMA", "other_place")
    monkeypatch.setenv("KEDGE_DATABASE_URL", database_url)

    async with opened(twin, None) as by_environment:
        assert (await twin.do(by_environment.get, run.id)).workflow == "process-order"
    async with opened(twin, database_url, schema="kedge") as elsewhere:
        with pytest.raises(RunNotFoundError):
            await twin.do(elsewhere.get, run.id)


async def test_a_database_without_the_schema_is_told_by_the_command_that_makes_it(
    twin: Twin, database_url: str
) -> None:
    async with opened(twin, database_url, schema="nowhere") as client:
        with pytest.raises(SchemaError, match="kedge-worker migrate --schema nowhere") as caught:
            await twin.do(client.start, PROCESS(ORDER))

    assert caught.value.found == 0


async def test_an_id_of_another_time_is_refused_with_the_reason(
    twin: Twin, client: AnyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_2020 = UUID("016f5e66-e800-7000-8000-000000000000")
    monkeypatch.setattr("kedge_client._requests.new_run_id", lambda: of_2020)

    with pytest.raises(InvalidOptionError, match="Set the clock"):
        await twin.do(client.start, PROCESS(ORDER))
    with pytest.raises(InvalidOptionError, match="Set the clock"):
        await twin.do(client.start_many, [PROCESS(ORDER)])


async def test_fifty_starters_at_once_start_fifty_runs(database_url: str) -> None:
    async with opened(ASYNC, database_url) as client:
        runs = await asyncio.gather(*(ASYNC.do(client.start, PROCESS(Order(f"o-{i}"))) for i in range(50)))

        views = await asyncio.gather(*(ASYNC.do(run.view) for run in runs))

    assert all(run.created for run in runs)
    assert [view.input for view in views] == [{"order_id": f"o-{i}", "cents": 100} for i in range(50)]


async def test_starters_at_once_share_transactions(database_url: str, conn: psycopg.Connection) -> None:
    async with opened(ASYNC, database_url) as client:
        await asyncio.gather(*(ASYNC.do(client.start, PROCESS(ORDER)) for _ in range(50)))

    transactions = conn.execute("select count(distinct xmin::text) from kedge.journal").fetchone()
    assert transactions is not None
    assert transactions[0] <= 5


async def test_of_starters_at_once_only_the_refused_one_fails(database_url: str, conn: psycopg.Connection) -> None:
    conn.execute(
        "create function refuse() returns trigger language plpgsql"
        " as $$ begin raise exception 'not this one'; end $$;"
        "create trigger refuse before insert on kedge.runs for each row when (new.resource = 'bad')"
        " execute function refuse()"
    )
    async with opened(ASYNC, database_url) as client:
        outcomes = await asyncio.gather(
            *(ASYNC.do(client.start, PROCESS(ORDER, resource="bad" if i == 17 else "good")) for i in range(30)),
            return_exceptions=True,
        )

    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [17]
    assert "not this one" in str(outcomes[17])
    assert conn.execute("select count(*) from kedge.runs").fetchone() == (29,)


async def test_a_start_that_is_cancelled_before_it_goes_starts_nothing(database_url: str) -> None:
    async with opened(ASYNC, database_url) as client:
        starts = [asyncio.create_task(ASYNC.do(client.start, PROCESS(ORDER))) for _ in range(10)]
        await asyncio.sleep(0)

        starts[-1].cancel()
        await asyncio.gather(*starts, return_exceptions=True)

        assert starts[-1].cancelled()
        assert await ASYNC.do(client.count_runs) == 9


async def test_a_workflow_without_types_can_be_started_by_its_name(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, WorkflowRef.untyped("by-name")({"anything": [1, 2]}))

    assert (await twin.do(run.view)).input == {"anything": [1, 2]}
