"""A new run from a step of one that has ended: what it takes over, and what it does not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge import (
    InvalidNameError,
    InvalidOptionError,
    InvalidRunStateError,
    RunActiveError,
    RunNotFoundError,
    StepNotFoundError,
    WorkflowRef,
)
from kedge.run_meta import RunMeta
from tests import ends
from tests.integration.client.orders import NIGHTLY, ORDER, PROCESS, RECEIPT
from tests.integration.client.test_client_start import is_rung, sleep_as_worker, was_rung
from tests.twins import AnyClient, AnyHandle, Twin, connected, opened

# As a run's journal might be: one row of each kind that a handler's operations leave.
ROWS = [
    (1, "s", "reserve"),
    (2, "f", "mail"),
    (3, "t", "ledger"),
    (4, "x", "stock"),
    (5, "e", "settled"),
    (7, "d", "cool-off"),
    (8, "n", "invoice"),
    (9, "s", "charge"),
    (10, "c", "invoice"),
    (11, "p", "shipment"),
    (12, "o", "answer"),
    (13, "m", "tell"),
    (14, "k", "patch"),
    (15, "u", "review"),
    (16, "s", "charge#2"),
]


def keep(conn: psycopg.Connection, run: UUID) -> None:
    """Journal rows of a live run, by the epoch that ends it."""
    for seq, kind, key in ROWS:
        conn.execute(
            "insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)"
            " values (%s, now() - interval '1 h', %s, 1, %s, %s, %s, %s, %s)",
            (run, seq, seq * 10, kind, key, b"\x01" + str(seq).encode(), b"\x01{}" if kind == "n" else b""),
        )
    conn.execute("update kedge.runs set next_seq = 17 where id = %s", (run,))


def kept(conn: psycopg.Connection, run: UUID) -> list[tuple[int, str, str]]:
    return conn.execute(
        "select seq, kind::text, key from kedge.journal where run_id = %s and seq > 0 order by seq", (run,)
    ).fetchall()


async def ended(twin: Twin, client: AnyClient, conn: psycopg.Connection, **options: Any) -> AnyHandle:
    """A completed run with a journal."""
    run = await twin.do(client.start, PROCESS(ORDER, **options))
    keep(conn, run.id)
    ends.complete(conn, run.id, RECEIPT)
    return run


@pytest.mark.parametrize(
    ("step", "first"),
    [("reserve", 1), ("mail", 2), ("stock", 4), ("charge", 9), ("invoice", 8), ("charge#2", 16)],
    ids=["the first", "a failed one", "an interrupted one", "a step", "a child, from its start on", "a repeated one"],
)
async def test_what_was_kept_before_the_step_is_taken_over(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, step: str, first: int
) -> None:
    old = await ended(twin, client, conn)

    new = await twin.do(old.rerun_from, step)

    copied = [row for row in ROWS if row[0] < first and row[1] not in "fx"]
    assert kept(conn, new.id) == copied
    assert conn.execute(
        "select epoch, next_seq, attempt, crashes from kedge.runs where id = %s", (new.id,)
    ).fetchone() == (
        0,
        max((seq for seq, *_ in copied), default=0) + 1,
        0,
        0,
    )
    same = conn.execute(
        "select bool_and(n.epoch = 0 and (n.at, n.took_ms, n.value, n.meta) = (o.at, o.took_ms, o.value, o.meta))"
        " from kedge.journal n join kedge.journal o on o.run_id = %s and o.seq = n.seq"
        " where n.run_id = %s and n.seq > 0",
        (old.id, new.id),
    ).fetchone()
    assert same == (True if copied else None,)


async def test_the_new_run_is_like_the_old_one_and_names_it(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    options: dict[str, Any] = {
        "queue": "fast",
        "priority": -5,
        "tags": ["a", "b"],
        "metadata": {"source": "test"},
        "timeout": "1h",
        "key": "k",
    }
    old = await ended(twin, client, conn, **options)

    new = await twin.do(old.rerun_from, "charge")

    was, view = await twin.do(client.get, old), await twin.do(client.get, new)
    assert new.created
    assert (view.status, view.workflow, view.queue, view.priority) == ("pending", "process-order", "fast", -5)
    assert (view.tags, view.metadata, view.input) == (("a", "b"), {"source": "test"}, was.input)
    assert (view.origin, was.origin) == (old.id, None)
    assert (view.key, was.key, view.parent_id) == (None, "k", None)
    assert view.options == was.options
    assert view.deadline_at is not None
    assert view.deadline_at - view.since == timedelta(hours=1)
    assert view.created_at > was.created_at
    assert (await twin.do(client.start, PROCESS(ORDER, key="k"))).id == old.id


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
async def test_however_a_run_has_ended_it_can_be_rerun(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, end: str
) -> None:
    old = await twin.do(client.start, PROCESS(ORDER))
    keep(conn, old.id)
    if end == "completed":
        ends.complete(conn, old.id, RECEIPT)
    elif end == "failed":
        ends.fail(conn, old.id, OSError("reset"))
    else:
        ends.cancel(conn, old.id)

    new = await twin.do(client.rerun_from, old, "charge")

    assert await twin.do(new.status) == "pending"
    assert await twin.do(old.status) == end


async def test_a_rerun_of_a_rerun_names_the_run_that_it_comes_from(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    first = await ended(twin, client, conn, metadata={"note": '"origin":"0"}', "origin": "x"})
    second = await twin.do(first.rerun_from, "charge")
    ends.complete(conn, second.id, RECEIPT)

    third = await twin.do(second.rerun_from, "ledger")

    assert (await twin.do(third.view)).origin == second.id
    assert (await twin.do(third.view)).metadata == {"note": '"origin":"0"}', "origin": "x"}
    metas = conn.execute(
        "select meta from kedge.journal where seq = 0 and run_id = any (%s) order by run_id",
        ([first.id, second.id, third.id],),
    ).fetchall()
    assert [RunMeta.decode(meta).origin for (meta,) in metas] == [None, str(first.id), str(second.id)]
    assert len(metas[1][0]) == len(metas[2][0])


@pytest.mark.parametrize("meta", [b"", b"\x01{}", b'\x01{"metadata":{"a":1},"added_later":[{"b":"}"}]}'])
async def test_the_origin_comes_to_whatever_meta_there_is(conn: psycopg.Connection, meta: bytes) -> None:
    origin = UUID("0198c0de-0000-7000-8000-000000000000")

    row = conn.execute("select kedge.with_origin(%s, %s)", (meta, origin)).fetchone()

    assert row is not None
    found = RunMeta.decode(row[0])
    assert (found.origin, found.metadata) == (str(origin), RunMeta.decode(meta).metadata)


def test_of_two_origins_the_later_one_counts() -> None:
    twice = b'\x01{"origin":"a","added_later":1,"origin":"b"}'

    assert RunMeta.decode(twice).origin == "b"


# ---- handles ------------------------------------------------------------------------------------------------------


async def test_a_handle_keeps_its_ref_and_an_id_gets_one_without_types(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    old = await ended(twin, client, conn)

    by_handle = await twin.do(old.rerun_from, "charge")
    by_client = await twin.do(client.rerun_from, old, "charge")
    by_id = await twin.do(client.rerun_from, str(old.id), "charge")
    for run in (by_handle, by_client, by_id):
        ends.complete(conn, run.id, RECEIPT)

    assert by_handle.ref is by_client.ref is PROCESS
    assert await twin.do(by_handle.result) == RECEIPT
    assert await twin.do(by_client.result) == RECEIPT
    assert by_id.ref == PROCESS
    assert await twin.do(by_id.result) == {"order_id": "o-1", "charge_id": "ch-1"}


async def test_a_version_stays_with_the_run(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    old = await twin.do(client.start, NIGHTLY())
    keep(conn, old.id)
    ends.complete(conn, old.id)

    new = await twin.do(client.rerun_from, old.id, "charge")

    assert new.ref == NIGHTLY
    assert (await twin.do(client.get, new)).version == "2"


# ---- what is refused ----------------------------------------------------------------------------------------------


async def test_a_run_that_has_not_ended_is_refused_with_its_status(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, PROCESS(ORDER, delay="1h"))

    with pytest.raises(InvalidRunStateError, match="it is waiting, it must be completed or failed") as caught:
        await twin.do(run.rerun_from, "charge")

    assert (caught.value.run_id, caught.value.status) == (run.id, "waiting")
    assert caught.value.wanted == ("completed", "failed", "cancelled")
    assert await twin.do(client.count_runs) == 1


async def test_a_step_that_the_run_does_not_have_is_refused_with_those_that_it_has(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    old = await ended(twin, client, conn)

    with pytest.raises(StepNotFoundError, match="has no step 'chrage': it has 'reserve', 'mail'") as caught:
        await twin.do(old.rerun_from, "chrage")

    assert caught.value.keys == tuple(dict.fromkeys(key for _, _, key in ROWS))
    assert (caught.value.run_id, caught.value.step) == (old.id, "chrage")
    assert await twin.do(client.count_runs) == 1


async def test_of_many_steps_fifty_are_named(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    old = await twin.do(client.start, PROCESS(ORDER))
    conn.execute(
        "insert into kedge.journal select %s, now(), n, 1, 0, 's', 'step' || n, '\\x01', ''"
        " from generate_series(1, 99) n",
        (old.id,),
    )
    conn.execute("update kedge.runs set next_seq = 100 where id = %s", (old.id,))
    ends.complete(conn, old.id, RECEIPT)

    with pytest.raises(StepNotFoundError, match="and more") as caught:
        await twin.do(old.rerun_from, "charge")

    assert caught.value.keys == tuple(f"step{n}" for n in range(1, 51))


async def test_a_step_of_which_there_are_only_failures_is_one_too(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    old = await twin.do(client.start, PROCESS(ORDER))
    keep(conn, old.id)
    conn.execute(
        "insert into kedge.failures (run_id, at, epoch, attempt, took_ms, journal_seq, kind, key, error) values"
        " (%(run)s, now(), 1, 1, 0, 0, 's', 'upload', ''), (%(run)s, now(), 1, 1, 0, 6, 'f', 'pack', '')",
        {"run": old.id},
    )
    ends.cancel(conn, old.id)

    attempted = await twin.do(old.rerun_from, "upload")
    moved = await twin.do(old.rerun_from, "pack")

    assert kept(conn, attempted.id) == [row for row in ROWS if row[1] not in "fx"]
    assert kept(conn, moved.id) == [row for row in ROWS if row[1] not in "fx" and row[0] < 6]


async def test_a_run_of_another_resource_looks_like_none(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    old = await ended(twin, client, conn, resource="alice")

    for run in (old.id, UUID("0198c0de-0000-7000-8000-000000000000")):
        with pytest.raises(RunNotFoundError) as caught:
            await twin.do(client.scoped("bob").rerun_from, run, "charge")
        assert str(caught.value).startswith(f"run {run} not found")

    new = await twin.do(client.scoped("alice").rerun_from, old.id, "charge")
    assert (await twin.do(new.view)).resource == "alice"


@pytest.mark.parametrize("step", ["", " a", "a\0", "x" * 201, None, 3])
async def test_what_is_no_steps_key_is_refused_where_it_is_written(twin: Twin, client: AnyClient, step: Any) -> None:
    with pytest.raises(InvalidNameError, match="step"):
        await twin.do(client.rerun_from, UUID("0198c0de-0000-7000-8000-000000000000"), step)
    with pytest.raises(InvalidOptionError):
        await twin.do(client.rerun_from, "x", "charge")


async def test_a_rerun_of_a_singleton_is_the_next_one(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    old = await ended(twin, client, conn, key="k", singleton="raise")

    new = await twin.do(old.rerun_from, "charge")
    with pytest.raises(RunActiveError) as again:
        await twin.do(old.rerun_from, "charge")
    with pytest.raises(RunActiveError) as started:
        await twin.do(client.start, PROCESS(ORDER, key="k", singleton="raise"))

    assert again.value.existing_id == started.value.existing_id == new.id
    assert (again.value.workflow, again.value.key) == ("process-order", "k")
    assert (await twin.do(new.view)).key == "k"


async def test_a_rerun_minds_no_active_singleton_of_another_resource(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    old = await ended(twin, client, conn, singleton="raise", resource="alice")
    await twin.do(client.start, PROCESS(ORDER, singleton="raise", resource="bob"))

    new = await twin.do(old.rerun_from, "charge")
    with pytest.raises(RunActiveError) as caught:
        await twin.do(client.scoped("alice").start, PROCESS(ORDER, singleton="raise"))

    assert caught.value.existing_id == new.id


# ---- once, and when its time comes --------------------------------------------------------------------------------


async def test_a_repeated_rerun_makes_one_run(conn: psycopg.Connection, twin: Twin, client: AnyClient) -> None:
    old = await ended(twin, client, conn, tags=["a"], singleton="raise")
    new = "0198c0de-0000-7000-8000-000000000001"
    conn.execute(
        "create or replace function kedge.id_time(p_id uuid) returns timestamptz language sql as 'select now()'"
    )
    call = "select created, workflow, queue from kedge.rerun_run_v1(%s, %s, null, 'charge')"

    first = conn.execute(call, (new, old.id)).fetchall()
    again = conn.execute(call, (new, old.id)).fetchall()
    ends.complete(conn, UUID(new), RECEIPT)
    after_the_end = conn.execute(call, (new, old.id)).fetchall()

    assert first == again == after_the_end == [(True, "process-order", "default")]
    assert await twin.do(client.count_runs) == 2


async def test_a_rerun_in_a_transaction_exists_when_that_commits(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, database_url: str
) -> None:
    old = await ended(twin, client, conn)
    sleep_as_worker(conn, "default", "process-order")
    async with connected(twin, database_url) as mine:
        new = await twin.do(old.rerun_from, "charge", conn=mine)
        before = await twin.do(client.count_runs)
        await twin.do(mine.commit)
        lost = await twin.do(client.rerun_from, old, "charge", conn=mine)
        await twin.do(mine.rollback)

    assert before == 1
    assert is_rung(conn)
    assert await twin.do(new.status) == "pending"
    with pytest.raises(RunNotFoundError):
        await twin.do(lost.status)


async def test_a_rerun_wakes_a_sleeping_worker_of_its_lane(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, database_url: str
) -> None:
    old = await ended(twin, client, conn, queue="mail")
    sleep_as_worker(conn, "mail", "process-order")

    async with opened(twin, database_url, wake=False) as quiet:
        await twin.do(quiet.rerun_from, old.id, "charge")
    assert not was_rung(conn)

    await twin.do(old.rerun_from, "charge")
    assert is_rung(conn)


async def test_racing_reruns_of_a_singleton_make_one_run(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    old = await ended(twin, client, conn, singleton="raise")

    outcomes = await asyncio.gather(*(twin.do(old.rerun_from, "charge") for _ in range(4)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)] == [RunActiveError] * 3
    assert await twin.do(client.count_runs, status="pending") == 1


async def test_a_run_without_types_can_be_rerun(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    old = await twin.do(client.start, WorkflowRef.untyped("by-name")({"anything": [1, 2]}))
    keep(conn, old.id)
    ends.complete(conn, old.id)

    new = await twin.do(old.rerun_from, "charge")

    assert (await twin.do(new.view)).input == {"anything": [1, 2]}
