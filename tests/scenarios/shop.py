"""The workflows of the scenario tests; a subprocess runs them as `kedge-worker run tests.scenarios.shop:worker`."""

import asyncio
import os
import time

import msgspec
import psycopg

from kedge import WorkflowRef
from kedge_worker import Context, SyncContext, Worker, workflow


class Order(msgspec.Struct, frozen=True):
    """An order; `pause_s` is how long each step takes."""

    name: str
    steps: int = 3
    pause_s: float = 0.0


class Receipt(msgspec.Struct, frozen=True):
    """What the steps answered, in order."""

    name: str
    notes: list[str]


process = WorkflowRef("process", Order, Receipt)
stubborn = WorkflowRef("stubborn", float, str)
pay = WorkflowRef("pay", Order, int)
pay_sync = WorkflowRef("pay-sync", Order, int)
quick = WorkflowRef("quick", Order, str)


def note_body(name: str, number: int) -> None:
    """Say that a step's body began: outside of the database, which may be down."""
    with open(os.environ["SHOP_BODIES"], "a", encoding="utf-8") as file:
        file.write(f"{name} {number}\n")


async def work(name: str, number: int, pause_s: float) -> str:
    """Begin, then take a while."""
    note_body(name, number)
    await asyncio.sleep(pause_s)
    return f"{name} {number}"


@workflow(process)
async def process_order(ctx: Context, order: Order) -> Receipt:
    """Some steps, one after the other."""
    return Receipt(order.name, [await ctx.step("work", work, order.name, i, order.pause_s) for i in range(order.steps)])


def block(seconds: float) -> str:
    """What one should not do in a loop: hold the interpreter's thread."""
    time.sleep(seconds)
    return "done"


@workflow(stubborn)
async def block_the_loop(ctx: Context, seconds: float) -> str:
    """Block the worker's loop between two steps."""
    await ctx.step("before", work, "stubborn", 0, 0.0)
    block(seconds)
    return await ctx.step("after", work, "stubborn", 1, 0.0)


async def charge(conn: psycopg.AsyncConnection, name: str) -> int:
    """Write the ledger."""
    cursor = await conn.execute("insert into ledger (name) values (%s) returning id", (name,))
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


def charge_sync(conn: psycopg.Connection, name: str) -> int:
    """Write the ledger, in a thread."""
    row = conn.execute("insert into ledger (name) values (%s) returning id", (name,)).fetchone()
    return 0 if row is None else int(row[0])


@workflow(pay)
async def pay_order(ctx: Context, order: Order) -> int:
    """A step, a transactional step, a step."""
    await ctx.step("before", work, order.name, 0, order.pause_s)
    paid = await ctx.transaction("charge", charge, order.name)
    await ctx.step("after", work, order.name, 1, order.pause_s)
    return paid


def note(name: str) -> str:
    """Nothing much."""
    return name.upper()


@workflow(pay_sync)
def pay_order_sync(ctx: SyncContext, order: Order) -> int:
    """The same from a thread."""
    ctx.step("before", note, order.name)
    return ctx.transaction("charge", charge_sync, order.name)


async def echo(name: str) -> str:
    """Nothing at all."""
    return name


@workflow(quick)
async def be_quick(ctx: Context, order: Order) -> str:
    """As many steps as asked for, without effects."""
    for i in range(order.steps):
        await ctx.step(f"echo-{i}", echo, order.name)
    return order.name


ALL = (process_order, block_the_loop, pay_order, pay_order_sync, be_quick)
worker = Worker(workflows=ALL) if "KEDGE_DATABASE_URL" in os.environ else None
