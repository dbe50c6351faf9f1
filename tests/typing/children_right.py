"""Right uses of child runs and maps. Only the type checkers run this."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from typing import assert_type
from uuid import UUID

import msgspec

from kedge import RunRequest
from kedge_worker import Child, Context, SyncChild, SyncContext, WorkflowRef, workflow


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


process = WorkflowRef("process", Order, Receipt)
quiet = WorkflowRef("quiet", Order)
nightly = WorkflowRef("nightly")


async def charge(order: Order) -> Receipt:
    return Receipt(order.order_id)


async def note(order: Order) -> None:
    await charge(order)


def charge_in_thread(order: Order) -> Receipt:
    return Receipt(order.order_id)


def request_of(order: Order) -> RunRequest[Receipt]:
    return process(order, queue="slow")


async def ask(order: Order, *, model: str) -> str:
    return order.order_id + model


def orders() -> Iterator[Order]:
    yield Order("o1")


@workflow(process)
async def handle(ctx: Context, order: Order) -> Receipt:
    assert_type(await ctx.call("a", process(order)), Receipt)
    assert_type(await ctx.call("b", process(order, key="k"), on_parent_end="cancel"), Receipt)
    assert_type(await ctx.call("c", quiet(order)), None)
    assert_type(await ctx.call("d", nightly()), None)

    child = await ctx.start("e", process(order), on_parent_end="abandon")
    assert_type(child, Child[Receipt])
    assert_type(child.run_id, UUID)
    assert_type(await child.result(), Receipt)
    wider: Child[object] = child
    await asyncio.gather(wider.result())

    both = await asyncio.gather(ctx.call("f", process(order)), ctx.start("g", quiet(order)))
    assert_type(both, tuple[Receipt, Child[None]])

    assert_type(await ctx.map("h", process, [order]), list[Receipt])
    assert_type(await ctx.map("i", quiet, orders()), list[None])
    assert_type(await ctx.map("j", request_of, {order}, limit=3), list[Receipt])
    assert_type(await ctx.map("k", lambda one: process(one, tags=["x"]), [order]), list[Receipt])
    assert_type(await ctx.map("l", charge, [order]), list[Receipt])
    assert_type(await ctx.map("m", note, [order]), list[None])
    assert_type(await ctx.map("n", charge_in_thread, (order,)), list[Receipt])
    assert_type(await ctx.map("o", functools.partial(ask, model="m"), [order]), list[str])
    assert_type(await ctx.map("p", len, ["x"]), list[int])
    assert_type(await ctx.map("q", lambda number: 2 * number, range(3)), list[int])
    return Receipt("ch_1")


@workflow(process)
def handle_in_thread(ctx: SyncContext, order: Order) -> Receipt:
    assert_type(ctx.call("a", process(order)), Receipt)
    assert_type(ctx.call("b", nightly(), on_parent_end="cancel"), None)
    child = ctx.start("c", process(order))
    assert_type(child, SyncChild[Receipt])
    assert_type(child.run_id, UUID)
    assert_type(child.result(), Receipt)
    assert_type(ctx.map("d", process, [order]), list[Receipt])
    assert_type(ctx.map("e", request_of, [order], limit=3), list[Receipt])
    assert_type(ctx.map("f", charge_in_thread, [order]), list[Receipt])
    assert_type(ctx.map("g", len, ["x"]), list[int])
    return Receipt("ch_1")
