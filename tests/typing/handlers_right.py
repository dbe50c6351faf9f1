"""Right uses of handlers, steps and contexts. Only the type checkers run this."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar, assert_type
from uuid import UUID

import anyio
import msgspec
import psycopg

from kedge_worker import Context, DomainError, SyncContext, Workflow, WorkflowRef, step, workflow
from kedge_worker._registry import Registry

T = TypeVar("T")


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


class CardDeclined(DomainError):
    code: str


process = WorkflowRef("process", Order, Receipt)
nightly = WorkflowRef("nightly")


# ---- functions of steps


async def charge(order: Order) -> Receipt:
    return Receipt(order.order_id)


def charge_in_thread(order: Order, cents: int = 0) -> Receipt:
    return Receipt(order.order_id * cents)


async def ask(prompt: str, *, model: str) -> str:
    return prompt + model


async def first(items: list[T]) -> T:
    return items[0]


async def many(*numbers: int) -> int:
    return sum(numbers)


class Shop:
    async def charge(self, order: Order) -> Receipt:
        return await charge(order)

    @classmethod
    async def make(cls, name: str) -> int:
        return len(cls.__name__ + name)

    @staticmethod
    def twice(value: int) -> int:
        return 2 * value

    async def __call__(self, value: int) -> str:
        return str(value)


async def insert(conn: psycopg.AsyncConnection[Any], order: Order) -> int:
    return (await conn.execute("select 1", [order.order_id])).rowcount


def insert_in_thread(conn: psycopg.Connection, order: Order) -> int:
    return conn.execute("select 1", [order.order_id]).rowcount


async def insert_barely(conn: psycopg.AsyncConnection) -> None:
    await conn.execute("select 1")


# ---- @step


@step
async def bare(order: Order) -> Receipt:
    return await charge(order)


@step(raises=(CardDeclined,))
async def declared(order: Order) -> Receipt:
    return await charge(order)


@step(raises=(CardDeclined,))
def declared_in_thread(order: Order) -> Receipt:
    return charge_in_thread(order)


# ---- handlers


@workflow(process)
async def handle(ctx: Context, order: Order) -> Receipt:
    assert_type(await ctx.step("charge", charge, order), Receipt)
    assert_type(await ctx.step("thread", charge_in_thread, order), Receipt)
    assert_type(await ctx.step("thread", charge_in_thread, order, 7), Receipt)
    assert_type(await ctx.step("ask", functools.partial(ask, model="m"), "why"), str)
    assert_type(await ctx.step("generic", first, [1, 2]), int)
    assert_type(await ctx.step("many", many, 1, 2, 3), int)
    assert_type(await ctx.step("method", Shop().charge, order), Receipt)
    assert_type(await ctx.step("class", Shop.make, "x"), int)
    assert_type(await ctx.step("static", Shop.twice, 1), int)
    assert_type(await ctx.step("object", Shop(), 1), str)
    assert_type(await ctx.step("lambda", lambda: 5), int)
    assert_type(await ctx.step("declared", declared, order), Receipt)
    assert_type(await bare(order), Receipt)
    assert_type(await declared(order), Receipt)
    assert_type(declared_in_thread(order), Receipt)
    assert_type(await ctx.step("output", charge, order, output=Receipt), Receipt)

    assert_type(await ctx.transaction("a", insert, order), int)
    assert_type(await ctx.transaction("b", insert_in_thread, order), int)
    assert_type(await ctx.transaction("c", insert_barely), None)

    assert_type(await ctx.branch("left", helper, ctx, 1), list[str])

    both = await asyncio.gather(ctx.step("one", charge, order), ctx.step("two", many, 1))
    assert_type(both, tuple[Receipt, int])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ctx.step("in group", charge, order))
    assert_type(task.result(), Receipt)
    async with anyio.create_task_group() as anyio_group:
        anyio_group.start_soon(ctx.step, "in anyio", many, 1)
        anyio_group.start_soon(helper, ctx, 1)

    assert_type(ctx.run_id, UUID)
    assert_type(ctx.attempt, int)
    assert_type(ctx.resource, str | None)
    assert_type(ctx.metadata, Mapping[str, Any])
    assert_type(ctx.now(), datetime)
    assert_type(ctx.uuid(), UUID)
    assert_type(ctx.random(), random.Random)
    ctx.log.info("charged", order=order.order_id)
    ctx.log("warning", "charged twice", order=order.order_id)
    return Receipt("ch_1")


async def helper(ctx: Context, count: int) -> list[str]:
    return [str(await ctx.step("x", many, i)) for i in range(count)]


@workflow(process)
def handle_in_thread(ctx: SyncContext, order: Order) -> Receipt:
    assert_type(ctx.step("charge", charge_in_thread, order), Receipt)
    assert_type(ctx.step("declared", declared_in_thread, order), Receipt)
    assert_type(ctx.step("static", Shop.twice, 1), int)
    assert_type(ctx.step("output", charge_in_thread, order, output=Receipt), Receipt)
    assert_type(ctx.transaction("ledger", insert_in_thread, order), int)
    assert_type(ctx.now(), datetime)
    return Receipt("ch_1")


@workflow(nightly)
async def clean_up(ctx: Context) -> None:
    await ctx.step("many", many)


@workflow(nightly)
def clean_up_in_thread(ctx: SyncContext) -> None:
    ctx.step("len", len, "x")


assert_type(handle, Workflow[Order, Receipt])
assert_type(handle_in_thread, Workflow[Order, Receipt])
assert_type(clean_up, Workflow[None, None])
assert_type(clean_up_in_thread, Workflow[None, None])
assert_type(handle.ref, WorkflowRef[Order, Receipt])
assert_type(handle.fn, Callable[..., Any])

Registry([handle, clean_up, handle_in_thread])
