"""
Wrong uses of the clients: each line must be refused by both type checkers.

Both report an "ignore" that they do not need, so a misuse that passes makes the check fail. Only they run this.
"""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
import psycopg_pool

from kedge_client import AsyncClient, Client, EventRef, RunHandle, RunView, WorkflowRef


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


process = WorkflowRef("process", Order, Receipt)
settled = EventRef("settled", Receipt)
approved = EventRef("approved")
order = Order("1")


def take(*values: object) -> None:
    """Use what would else be unused."""


def sync(client: Client, conn: psycopg.Connection, other: psycopg.AsyncConnection[Any]) -> None:
    # A request is not a ref, nor an input.
    client.start(process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.start(order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.start("process")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.start(process, order)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    client.start(request=process(order))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.start_many(process(order))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.start_stream(process(order))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # Each chunk is a transaction of its own.
    client.start_stream([process(order)], conn=conn)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    # Connections.
    client.start(process(order), conn=other)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.start(process(order), conn)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.start(process(order), conn="host=h")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client("host=h")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    # Results.
    run = client.start(process(order))
    text: str = run.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    narrow: RunHandle[str] = run  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    run.result(timeout=[3])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.result(process)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.handle("process", run.id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.handle(process, run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    take(text, narrow)

    # Reads.
    client.get(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.list_runs(status="done")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.list_runs(limit="50")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.list_runs("process")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.list_runs(since="2026-01-01")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.last("process")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.cancel(run, "no stock")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def letters(client: Client, run: RunHandle[Receipt], other: psycopg.AsyncConnection[Any]) -> None:
    # An event's ref is no message, and its payload has a type.
    client.send(settled, run=run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.send("settled", run=run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.send(settled(order), run=run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.send(approved(order), run=run)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    client.send(approved(), run)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.send(approved(), topic=run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.send(approved(), run=run, conn=other)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run.send(approved(), run=run)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    run.send(approved(), topic="orders")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    client.pause(run, "a look")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.pause()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.resume(run, reason="ok")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.retry(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.fast_forward(run, 1, "settled")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.cancel(run, cascade="all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run.cancel("no stock")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.rerun_from(run)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.rerun_from(run, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run.rerun_from(step_id="charge")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    run.rerun_from("charge", conn=other)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def frozen(view: RunView, run: RunHandle[Receipt]) -> None:
    view.status = "failed"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    run.id = view.id  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def asynchronous(client: AsyncClient, conn: psycopg.Connection, pool: psycopg_pool.ConnectionPool) -> None:
    await client.start(process(order), conn=conn)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncClient(pool)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run = await client.start(process(order))
    receipt: Receipt = run.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    take(receipt)
    list(client.iter_runs())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    list(client.start_stream([]))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
