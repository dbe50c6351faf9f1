"""
Wrong uses of child runs and maps: each line must be refused by both type checkers.

Both report an "ignore" that they do not need, so a misuse that passes makes the check fail. Only they run this.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from kedge_worker import Context, SyncContext, WorkflowRef


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


process = WorkflowRef("process", Order, Receipt)


async def charge(order: Order) -> Receipt:
    return Receipt(order.order_id)


async def wrong(ctx: Context, order: Order, other_id: UUID) -> None:
    # A ref is not a request, and neither is an input.
    await ctx.call("a", process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ctx.call("a", order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ctx.start("a", "process")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # The input's type.
    await ctx.call("a", process("o1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # An unknown policy.
    await ctx.call("a", process(order), on_parent_end="detach")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # The result's type, and what was forgotten to be awaited.
    text: str = await ctx.call("a", process(order))  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    receipt: Receipt = ctx.call("a", process(order))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    ctx.start("a", process(order))  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    child = await ctx.start("a", process(order))
    other: Receipt = child.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    child.run_id = other_id  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    # Items of another type, no items, more arguments than the item.
    await ctx.map("a", process, ["o1"])  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.map("a", charge, ["o1"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.map("a", charge, order)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.map("a", charge, [order], order)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await ctx.map("a", charge, [order], limit="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    take(text, receipt, other)


def wrong_in_thread(ctx: SyncContext, order: Order) -> None:
    ctx.call("a", process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    text: str = ctx.call("a", process(order))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    numbers: list[int] = ctx.map("a", process, [order])  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    take(text, numbers)


def take(*values: object) -> None:
    """Use what would else be unused."""
