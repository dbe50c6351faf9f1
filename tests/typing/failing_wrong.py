"""Wrong uses of retries, timeouts and polls. Each line must be refused by both type checkers."""

from __future__ import annotations

import msgspec

from kedge_worker import Context, NotYet, Retry, SyncContext, Worker, step


class Order(msgspec.Struct, frozen=True):
    order_id: str


async def charge(order: Order) -> str:
    return order.order_id


async def shipped(order: Order) -> str | NotYet:
    return order.order_id or NotYet()


def shipped_in_thread(order: Order) -> str | NotYet:
    return order.order_id or NotYet()


async def handle(ctx: Context, order: Order) -> None:
    await ctx.step("a", charge, order, retry=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.step("b", charge, order, timeout=Retry(3))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.step("c", charge, order, every="1m")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await ctx.poll("d", shipped, order)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await ctx.poll("e", shipped, 3, every="1m")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.poll("f", shipped(order), every="1m")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.poll("g", shipped, order, every="1m", max_attempts="5")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.transaction("h", charge, timeout="1m")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    answer: int = await ctx.poll("i", shipped, order, every="1m")  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    answer += 1


def handle_in_thread(ctx: SyncContext, order: Order) -> None:
    ctx.step("a", lambda: 1, timeout="1m")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    answer: int = ctx.poll("b", shipped_in_thread, order, every="1m")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    answer += 1


@step(retry=3)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def wrong_policy() -> None:
    raise NotImplementedError


Worker(workflows=[], step_retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
