"""Right uses of the clients. Only the type checkers run this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import msgspec
import psycopg
import psycopg_pool

from kedge_client import (
    AsyncClient,
    AsyncRunHandle,
    AttemptView,
    Client,
    Delivery,
    EventRef,
    Page,
    Progress,
    RunEvent,
    RunHandle,
    RunStatus,
    RunView,
    StartStatement,
    StepView,
    WaitView,
    WorkflowRef,
)


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


process = WorkflowRef("process", Order, Receipt)
nightly = WorkflowRef("nightly")
settled = EventRef("settled", Receipt)
approved = EventRef("approved")
answered = EventRef("answered", int | None)
untyped = WorkflowRef.untyped("by-name")
order = Order("1")


def take_any_handle(handle: RunHandle[object]) -> None:
    assert_type(handle.result(), object)


def sync(client: Client, conn: psycopg.Connection, pool: psycopg_pool.ConnectionPool, run_id: UUID) -> None:
    assert_type(Client.connect(), Client)
    assert_type(Client.connect("host=h", max_connections=2, schema="s", timeout=3, listen=False, wake=False), Client)
    assert_type(Client(pool, timeout=timedelta(seconds=3)), Client)
    assert_type(Client(pool.connection), Client)
    with client as same:
        assert_type(same, Client)
    assert_type(client.scoped("customer-7"), Client)

    run = client.start(process(order, key="k"), conn=conn)
    assert_type(run, RunHandle[Receipt])
    assert_type(run.result(), Receipt)
    assert_type(run.result("30s"), Receipt)
    assert_type(run.result(timeout=0), Receipt)
    assert_type(run.created, bool | None)
    assert_type(run.id, UUID)
    assert_type(run.status(), RunStatus)
    assert_type(run.view(), RunView)
    assert_type(run.cancel(reason="no stock"), RunStatus)
    assert_type(client.start(nightly()).result(), None)
    assert_type(client.start(untyped({"a": 1})).result(), Any)

    assert_type(client.start_many(process(Order(str(number))) for number in range(3)), list[RunHandle[Receipt]])
    assert_type(client.start_many([process(order)], conn=conn), list[RunHandle[Receipt]])
    assert_type(client.start_stream(process(Order(str(number))) for number in range(3)), Iterator[RunHandle[Receipt]])
    for started in client.start_stream([process(order)]):
        assert_type(started.result(), Receipt)
    statement = client.start_statement(process(order))
    assert_type(statement, StartStatement[Receipt])
    assert_type(statement.psycopg(), tuple[str, dict[str, Any]])
    assert_type(statement.asyncpg(), tuple[str, list[Any]])
    assert_type(statement.handle(client), RunHandle[Receipt])
    assert_type(statement.handle(client, run_id).result(), Receipt)

    assert_type(client.handle(process, run_id), RunHandle[Receipt])
    assert_type(client.handle(process, "0198c0de-0000-7000-8000-000000000000").result(), Receipt)
    assert_type(client.result(process, run_id, timeout="1m"), Receipt)
    view = client.get(run)
    assert_type(view, RunView)
    assert_type(client.get(view).status, RunStatus)
    client.get(run_id)
    client.get("0198c0de-0000-7000-8000-000000000000")
    assert_type(client.last(process, resource="customer-7"), RunView | None)
    assert_type(client.steps(run), list[StepView])
    assert_type(client.progress(run).percent, float | None)
    assert_type(client.watch(run, after=7), Iterator[RunEvent])
    for event in client.watch(str(run.id)):
        assert_type(event.step, StepView | None)
        assert_type(event.progress, Progress | None)
    assert_type(view.waits, tuple[WaitView, ...])
    assert_type(view.attempts, tuple[AttemptView, ...])
    assert_type(client.list_runs(workflow=process, status=["failed", "cancelled"], parent=run, limit=10), Page[RunView])
    assert_type(
        client.list_runs(workflow="process", status="failed", tag="t", since=datetime.now(UTC)).items[0], RunView
    )
    assert_type(client.iter_runs(until=datetime.now(UTC)), Iterator[RunView])
    assert_type(client.count_runs(status="pending"), int)
    assert_type(client.cancel(view, conn=conn), RunStatus)

    # Letters.
    assert_type(client.send(settled(Receipt("c")), run=run), Delivery)
    assert_type(client.send(approved(key="k"), topic="orders", conn=conn).delivered, bool)
    assert_type(client.send(answered(None), run=run_id).event_id, UUID)
    assert_type(client.cancel(run, reason="no stock", cascade=True), RunStatus)
    assert_type(client.pause(run, reason="a look", conn=conn), RunStatus)
    assert_type(client.resume(view, conn=conn), RunStatus)
    assert_type(client.retry(run_id, conn=conn), RunStatus)
    assert_type(client.fast_forward(run), bool)
    assert_type(client.fast_forward("0198c0de-0000-7000-8000-000000000000", {"a": 1}, wait="settled", conn=conn), bool)
    assert_type(client.fast_forward(run, data=Receipt("c")), bool)
    assert_type(run.send(settled(Receipt("c")), conn=conn), Delivery)
    assert_type(run.cancel(cascade=True, conn=conn), RunStatus)
    assert_type(run.pause(reason="a look"), RunStatus)
    assert_type(run.resume(), RunStatus)
    assert_type(run.retry(), RunStatus)
    assert_type(run.rerun_from("charge"), RunHandle[Receipt])
    assert_type(run.rerun_from("charge#2", conn=conn).result(), Receipt)
    assert_type(client.rerun_from(run, "charge"), RunHandle[Any])
    assert_type(client.rerun_from(run_id, "charge", conn=conn), RunHandle[Any])
    assert_type(client.get(run).origin, UUID | None)
    assert_type(run.fast_forward(Receipt("c"), wait="settled"), bool)

    # What returns more may stand where less is asked for.
    take_any_handle(run)


async def asynchronous(
    client: AsyncClient, conn: psycopg.AsyncConnection[Any], pool: psycopg_pool.AsyncConnectionPool, run_id: UUID
) -> None:
    assert_type(AsyncClient.connect(), AsyncClient)
    assert_type(AsyncClient(pool), AsyncClient)
    assert_type(AsyncClient(pool.connection), AsyncClient)
    async with client as same:
        assert_type(same, AsyncClient)
    assert_type(client.scoped("customer-7"), AsyncClient)

    run = await client.start(process(order), conn=conn)
    assert_type(run, AsyncRunHandle[Receipt])
    assert_type(await run.result("30s"), Receipt)
    assert_type(await run.status(), RunStatus)
    assert_type(await run.view(), RunView)
    assert_type(await run.cancel(), RunStatus)
    assert_type(await client.start_many([process(order)], conn=conn), list[AsyncRunHandle[Receipt]])
    assert_type(client.start_stream([process(order)]), AsyncIterator[AsyncRunHandle[Receipt]])
    async for started in client.start_stream(process(Order(event.kind)) async for event in client.watch(run)):
        assert_type(await started.result(), Receipt)
    assert_type(client.start_statement(process(order)).handle(client), AsyncRunHandle[Receipt])
    assert_type(client.handle(process, run_id), AsyncRunHandle[Receipt])
    assert_type(await client.result(process, run_id, timeout=3), Receipt)
    assert_type(await client.get(run), RunView)
    assert_type(await client.last(process), RunView | None)
    assert_type(await client.steps(run), list[StepView])
    assert_type(await client.progress(run), Progress)
    async for event in client.watch(run):
        assert_type(event, RunEvent)
    assert_type(await client.list_runs(), Page[RunView])
    assert_type(client.iter_runs(tag="t"), AsyncIterator[RunView])
    assert_type(await client.count_runs(workflow=process), int)
    assert_type(await client.cancel(run, reason="x", conn=conn), RunStatus)
    assert_type(await client.send(settled(Receipt("c")), run=run, conn=conn), Delivery)
    assert_type(await client.pause(run), RunStatus)
    assert_type(await client.resume(run), RunStatus)
    assert_type(await client.retry(run), RunStatus)
    assert_type(await client.fast_forward(run, 3, wait="answer"), bool)
    assert_type(await run.send(approved(), conn=conn), Delivery)
    assert_type(await run.pause(), RunStatus)
    assert_type(await run.resume(conn=conn), RunStatus)
    assert_type(await run.retry(), RunStatus)
    assert_type(await run.rerun_from("charge", conn=conn), AsyncRunHandle[Receipt])
    assert_type(await client.rerun_from(run, "charge"), AsyncRunHandle[Any])
    assert_type(await run.fast_forward(), bool)
    await client.aclose()
