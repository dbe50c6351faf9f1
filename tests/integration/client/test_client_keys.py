"""Idempotency keys: same key, same run, and what happens when the two starts do not agree."""

import asyncio
from uuid import UUID

import psycopg
import pytest

from kedge import InputConflictError, OnConflict, RunExistsError, RunRequest, WorkflowRef
from tests import ends
from tests.integration.client.orders import NOTIFY, ORDER, PROCESS, RECEIPT, Order, Receipt
from tests.twins import AnyClient, Twin, connected

BY_ORDER = WorkflowRef("process-order", Order, str, key=lambda order: f"order:{order.order_id}")
OTHER = Order("o-2")


async def test_the_same_key_answers_with_the_same_run(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, key="k"))
    second = await twin.do(client.start, PROCESS(ORDER, key="k"))

    assert first == second
    assert (first.created, second.created) == (True, False)
    assert await twin.do(client.count_runs) == 1


async def test_a_ref_makes_the_key_unless_the_request_says_otherwise(twin: Twin, client: AnyClient) -> None:
    made = await twin.do(client.start, BY_ORDER(ORDER))
    again = await twin.do(client.start, BY_ORDER(ORDER))
    without = await twin.do(client.start, BY_ORDER(ORDER, key=None))

    assert (made == again, made == without) == (True, False)
    assert (await twin.do(made.view)).key == "order:o-1"


async def test_a_key_belongs_to_its_workflow(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, key="k"))
    second = await twin.do(client.start, NOTIFY("hello", key="k"))

    assert second.created
    assert first != second


async def test_a_new_version_does_not_start_a_key_again(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, WorkflowRef("w", Order, version="1")(ORDER, key="k"))
    second = await twin.do(client.start, WorkflowRef("w", Order, version="2")(ORDER, key="k"))

    assert first == second


async def test_the_same_key_with_another_input_is_refused(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, key="k"))

    with pytest.raises(InputConflictError, match="another input") as caught:
        await twin.do(client.start, PROCESS(OTHER, key="k"))

    assert caught.value.existing_id == first.id
    assert (caught.value.workflow, caught.value.key) == ("process-order", "k")


async def test_an_input_that_reads_the_same_is_the_same(twin: Twin, client: AnyClient) -> None:
    plain = WorkflowRef("plain", dict[str, int], None)
    first = await twin.do(client.start, plain({"a": 1, "b": 2}, key="k"))
    second = await twin.do(client.start, plain({"b": 2, "a": 1}, key="k"))

    assert first == second


async def test_inputs_of_types_that_differ_say_nothing_about_each_other(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, WorkflowRef("w", dict[str, int], None)({"a": 1}, key="k"))
    second = await twin.do(client.start, WorkflowRef("w", list[int], None)([1], key="k"))

    assert first == second


async def test_any_input_will_do_where_the_request_says_so(twin: Twin, client: AnyClient) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, key="k"))
    second = await twin.do(client.start, PROCESS(OTHER, key="k", on_conflict="return_any_input"))

    assert first == second
    assert second.created is False


@pytest.mark.parametrize("order", [ORDER, OTHER], ids=["same input", "other input"])
async def test_a_taken_key_is_refused_where_the_request_says_so(twin: Twin, client: AnyClient, order: Order) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, key="k"))

    with pytest.raises(RunExistsError, match="is taken by run") as caught:
        await twin.do(client.start, PROCESS(order, key="k", on_conflict="raise"))

    assert type(caught.value) is RunExistsError
    assert caught.value.existing_id == first.id


@pytest.mark.parametrize("on_conflict", ["return", "return_any_input", "raise"])
async def test_a_key_belongs_to_a_resource(twin: Twin, client: AnyClient, on_conflict: OnConflict) -> None:
    def ask(resource: str | None) -> RunRequest[Receipt]:
        return PROCESS(ORDER, key="k", resource=resource, on_conflict=on_conflict)

    first = [await twin.do(client.start, ask(resource)) for resource in ("alice", "bob", None)]

    assert [run.created for run in first] == [True] * 3
    assert len({run.id for run in first}) == 3
    for run, resource in zip(first, ("alice", "bob", None), strict=True):
        again = PROCESS(ORDER, key="k", resource=resource)
        assert (await twin.do(client.start, again)).id == run.id
    assert await twin.do(client.scoped("bob").start, PROCESS(ORDER, key="k")) == first[1]


async def test_a_key_stays_taken_after_the_end(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, key="k"))
    ends.complete(conn, first.id, RECEIPT)

    second = await twin.do(client.start, PROCESS(ORDER, key="k"))

    assert second == first
    assert await twin.do(second.result, timeout=30) == RECEIPT


async def test_racing_starters_make_one_run(twin: Twin, client: AnyClient) -> None:
    runs = await asyncio.gather(*(twin.do(client.start, PROCESS(ORDER, key="k")) for _ in range(8)))

    assert len({run.id for run in runs}) == 1
    assert sorted(bool(run.created) for run in runs) == [False] * 7 + [True]


async def test_a_starter_waits_for_the_transaction_that_holds_its_key(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    async with connected(twin, database_url) as mine:
        first = await twin.do(client.start, PROCESS(ORDER, key="k"), conn=mine)
        racing = asyncio.create_task(twin.do(client.start, PROCESS(ORDER, key="k")))
        await until_somebody_waits(conn)

        await twin.do(mine.commit)

        assert await racing == first


async def test_a_starter_gets_the_key_of_a_transaction_that_is_rolled_back(
    twin: Twin, client: AnyClient, database_url: str, conn: psycopg.Connection
) -> None:
    async with connected(twin, database_url) as mine:
        first = await twin.do(client.start, PROCESS(ORDER, key="k"), conn=mine)
        racing = asyncio.create_task(twin.do(client.start, PROCESS(OTHER, key="k")))
        await until_somebody_waits(conn)

        await twin.do(mine.rollback)

        second = await racing
        assert second.created
        assert second != first


async def until_somebody_waits(conn: psycopg.Connection) -> None:
    """Return when a backend waits for a lock."""
    async with asyncio.timeout(30):
        while conn.execute("select 1 from pg_locks where not granted limit 1").fetchone() is None:
            await asyncio.sleep(0)


async def test_handles_of_a_bulk_start_come_in_the_order_of_the_requests(twin: Twin, client: AnyClient) -> None:
    taken = await twin.do(client.start, PROCESS(ORDER, key="k-1"))
    requests = [
        NOTIFY("a"),
        PROCESS(ORDER, key="k-2"),
        PROCESS(ORDER, key="k-1"),
        PROCESS(ORDER, delay="1h"),
        NOTIFY("b", tags=["x"]),
        PROCESS(ORDER, key="k-2"),
        NOTIFY("c"),
    ]

    runs = await twin.do(client.start_many, requests)

    views = [await twin.do(run.view) for run in runs]
    assert [view.input for view in views if view.workflow == "notify"] == ["a", "b", "c"]
    assert [view.key for view in views] == [None, "k-2", "k-1", None, None, "k-2", None]
    assert [run.created for run in runs] == [True, True, False, True, True, False, True]
    assert runs[2] == taken
    assert runs[1] == runs[5]
    assert [view.status for view in views] == ["pending"] * 3 + ["waiting"] + ["pending"] * 3
    assert views[4].tags == ("x",)


async def test_a_bulk_start_of_many_batches_loses_nothing(twin: Twin, client: AnyClient) -> None:
    runs = await twin.do(client.start_many, [PROCESS(Order(f"o-{i}"), resource=f"r-{i % 3}") for i in range(2500)])

    assert len({run.id for run in runs}) == 2500
    assert await twin.do(client.count_runs) == 2500
    assert await twin.do(client.count_runs, resource="r-1") == 833
    last = await twin.do(runs[-1].view)
    assert last.input == {"order_id": "o-2499", "cents": 100}


async def test_a_bulk_start_of_nothing_starts_nothing(twin: Twin, client: AnyClient) -> None:
    assert await twin.do(client.start_many, []) == []


@pytest.mark.parametrize("on_conflict", ["return", "raise"])
async def test_a_bulk_start_is_all_or_nothing(twin: Twin, client: AnyClient, on_conflict: OnConflict) -> None:
    taken = await twin.do(client.start, PROCESS(ORDER, key="taken"))
    requests = [NOTIFY("a"), PROCESS(ORDER, key="free"), PROCESS(OTHER, key="taken", on_conflict=on_conflict)]

    with pytest.raises(RunExistsError) as caught:
        await twin.do(client.start_many, requests)

    assert type(caught.value) is (InputConflictError if on_conflict == "return" else RunExistsError)
    assert (caught.value.existing_id, caught.value.key) == (taken.id, "taken")
    assert await twin.do(client.count_runs) == 1


async def test_in_a_bulk_start_a_key_is_one_for_each_resource(twin: Twin, client: AnyClient) -> None:
    alice = await twin.do(client.start, PROCESS(ORDER, key="k", resource="alice"))

    requests = [PROCESS(ORDER, key="k", resource=resource) for resource in ("bob", "alice", None, "bob")]
    bob, same, nobody, again = await twin.do(client.start_many, requests)

    assert (same.id, bob.id) == (alice.id, again.id)
    assert [run.created for run in (bob, same, nobody, again)] == [True, False, True, False]


async def test_bulk_starts_with_the_same_keys_in_other_orders_do_not_deadlock(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    keys = [f"k-{i}" for i in range(300)]
    forwards = [PROCESS(ORDER, key=key, priority=number % 3) for number, key in enumerate(keys)]

    for _ in range(3):
        conn.execute("truncate kedge.run_keys, kedge.runs, kedge.journal")
        first, second = await asyncio.gather(
            twin.do(client.start_many, forwards), twin.do(client.start_many, forwards[::-1])
        )

        assert first == second[::-1]
        assert {(a.created, b.created) for a, b in zip(first, second[::-1], strict=True)} <= {
            (True, False),
            (False, True),
        }


async def test_an_id_is_a_uuid_that_sorts_by_time(twin: Twin, client: AnyClient) -> None:
    runs = await twin.do(client.start_many, [NOTIFY(str(i)) for i in range(100)])

    ids: list[UUID] = [run.id for run in runs]
    assert ids == sorted(ids)
    assert {run_id.version for run_id in ids} == {7}
