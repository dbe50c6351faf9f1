"""Right uses of retries, timeouts and polls. Only the type checkers run this."""

from __future__ import annotations

import asyncio
import functools
from datetime import timedelta
from typing import Any, assert_type

import msgspec
import psycopg

from kedge_worker import Context, NotYet, Retry, SyncContext, Worker, Workflow, WorkflowRef, step, workflow


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Parcel(msgspec.Struct, frozen=True):
    code: str


# ---- functions


@step(retry=Retry(5, initial="1s"), timeout="20s", check_input=True)
async def charge(order: Order) -> str:
    return order.order_id


@step(retry=Retry.NEVER, timeout=timedelta(seconds=3))
def charge_in_thread(order: Order) -> str:
    return order.order_id


async def shipped(order: Order) -> Parcel | NotYet:
    return Parcel(order.order_id) if order.order_id else NotYet()


async def page(order: Order, *, state: int = 0) -> list[str] | NotYet:
    return NotYet(state + 1) if state < 3 else [order.order_id]


def shipped_in_thread(order: Order) -> Parcel | NotYet:
    return Parcel(order.order_id)


async def maybe(least: int) -> Parcel | NotYet | None:
    return None if least else NotYet("state")


async def says_when() -> NotYet:
    return NotYet()


async def insert(conn: psycopg.AsyncConnection[Any], order: Order) -> int:
    return (await conn.execute("select 1", [order.order_id])).rowcount


# ---- handlers


@workflow(WorkflowRef("process", Order, str), retry=Retry(3), timeout="48h")
async def handle(ctx: Context, order: Order) -> str:
    assert_type(await ctx.step("a", charge, order, retry=Retry(2)), str)
    assert_type(await ctx.step("b", charge, order, timeout="1m"), str)
    assert_type(await ctx.step("c", charge_in_thread, order, timeout=None, retry=Retry.NEVER), str)
    assert_type(await ctx.step("d", charge, order, retry=Retry(None), timeout=5, output=str), str)
    assert_type(await ctx.transaction("e", insert, order, retry=Retry(2)), int)

    assert_type(await ctx.poll("f", shipped, order, every="1m"), Parcel)
    assert_type(await ctx.poll("g", page, order, every=60, timeout="7d", backoff=1.5), list[str])
    assert_type(await ctx.poll("h", shipped_in_thread, order, every="1m", max_attempts=5, retry=Retry(3)), Parcel)
    assert_type(await ctx.poll("i", maybe, 1, every=timedelta(minutes=1)), Parcel | None)
    assert_type(await ctx.poll("j", functools.partial(page, order, state=7), every="1m"), list[str])
    assert_type(await ctx.poll("k", charge, order, every="1m"), str)
    both = await asyncio.gather(ctx.poll("l", shipped, order, every="1m"), ctx.step("m", charge, order))
    assert_type(both, tuple[Parcel, str])
    return await charge(order)


@workflow(WorkflowRef("process-in-thread", Order, str))
def handle_in_thread(ctx: SyncContext, order: Order) -> str:
    assert_type(ctx.step("a", charge_in_thread, order, retry=Retry(2), timeout=None), str)
    assert_type(ctx.poll("b", shipped_in_thread, order, every="1m", timeout="1h"), Parcel)
    return charge_in_thread(order)


assert_type(handle, Workflow[Order, str])
Worker(workflows=[handle, handle_in_thread], step_retry=Retry(2))
