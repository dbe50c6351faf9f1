"""
Wrong uses of handlers, steps and contexts: each line must be refused by both type checkers.

Both report an "ignore" that they do not need, so a misuse that passes makes the check fail. Only they run this.
"""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

from kedge_worker import Context, SyncContext, WorkflowRef, step, workflow


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


process = WorkflowRef("process", Order, Receipt)
nightly = WorkflowRef("nightly")


async def charge(order: Order) -> Receipt:
    return Receipt(order.order_id)


async def ask(prompt: str, *, model: str) -> str:
    return prompt + model


async def insert(conn: psycopg.AsyncConnection[Any], order: Order) -> int:
    return (await conn.execute("select 1", [order.order_id])).rowcount


def insert_in_thread(conn: psycopg.Connection[Any], order: Order) -> int:
    return conn.execute("select 1", [order.order_id]).rowcount


async def steps(ctx: Context, order: Order) -> None:
    # Arguments of another type, too few, too many.
    await ctx.step("a", charge, 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.step("a", charge)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.step("a", charge, order, order)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType, reportCallIssue]
    # The result in the place of the function.
    await ctx.step("a", charge(order))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    # Keyword arguments go through functools.partial.
    await ctx.step("a", ask, "why")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.step("a", ask, "why", model="m")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    # The id comes first.
    await ctx.step(charge, order)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.step(7, charge, order)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    # The result is what the function answers, and the call is not the result.
    text: str = await ctx.step("a", charge, order)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    receipt: Receipt = ctx.step("a", charge, order)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    # Forgotten to await.
    ctx.step("a", charge, order)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    # A connection of its own comes first, and a client's is none.
    await ctx.transaction("a", charge, order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.transaction("a", insert, 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    # A branch is not a step: its function is async.
    await ctx.branch("a", len, "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ctx.branch("a", charge, 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # What a run knows of itself is not to be changed.
    ctx.attempt = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    take(text, receipt)


def sync_steps(ctx: SyncContext, order: Order) -> None:
    receipt: Receipt = ctx.step("a", charge, order)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    ctx.transaction("a", insert, order)  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    ctx.step("a", len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.branch("a", len, "x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    take(receipt)


def take(*values: object) -> None:
    """Use what would else be unused."""


# ---- handlers that do not fit their refs


@workflow(process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_input(ctx: Context, order: int) -> Receipt:
    raise NotImplementedError


@workflow(process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_output(ctx: Context, order: Order) -> str:
    raise NotImplementedError


@workflow(process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def no_input(ctx: Context) -> Receipt:
    raise NotImplementedError


@workflow(process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_context(ctx: SyncContext, order: Order) -> Receipt:
    raise NotImplementedError


@workflow(process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_sync_context(ctx: Context, order: Order) -> Receipt:
    raise NotImplementedError


@workflow(nightly)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def input_of_none(ctx: Context, order: Order) -> None:
    raise NotImplementedError


@workflow  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
async def without_ref(ctx: Context, order: Order) -> Receipt:
    raise NotImplementedError


@workflow(process)
async def handle(ctx: Context, order: Order) -> Receipt:
    return await ctx.step("a", charge, order)


async def call(ctx: Context, order: Order) -> None:
    # A workflow is not called: clients start it, tests call its .fn.
    await handle(ctx, order)  # type: ignore[operator]  # pyright: ignore[reportCallIssue]


@step(raises=(ValueError,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def undeclared() -> None:
    raise NotImplementedError


@step(tries=3)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
async def unknown_option() -> None:
    raise NotImplementedError
