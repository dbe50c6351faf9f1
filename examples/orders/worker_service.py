"""The worker service: what happens to an order. It knows the refs, and nothing of the API service."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from examples.orders.refs import Order, Receipt, process_order
from kedge_worker import Context, Worker, workflow

DATABASE_URL = os.environ.get("KEDGE_DATABASE_URL", "")
# How long the warehouse and the mail server take to answer.
OUTSIDE_S = 0.02


@workflow(process_order)
async def handle(ctx: Context, order: Order) -> Receipt:
    """
    Take an order from the warehouse to the receipt.

    Every step's value is kept. Whoever takes this run over from a dead worker gets the kept values, and goes on with
    the first step that has none.
    """
    shelf = await ctx.step("reserve-stock", reserve_stock, order)
    goods = await ctx.transaction("charge-goods", charge_goods, order)
    shipping, _ = await asyncio.gather(
        ctx.step("charge-shipping", charge_shipping, order),
        ctx.step("send-mail", send_mail, order),
    )
    return Receipt(
        order_id=order.order_id,
        shelf=shelf,
        goods_entry=goods,
        shipping_entry=shipping,
        paid_cents=order.total_cents + order.shipping_cents,
        currency=order.currency,
    )


async def reserve_stock(order: Order) -> str:
    """Ask the warehouse. A plain step: if its worker dies before the value is kept, it is asked once more."""
    await count_body("reserve-stock", order)
    await asyncio.sleep(OUTSIDE_S)
    return f"{order.country}/{order.lines[0].sku}"


async def charge_goods(conn: AsyncConnection, order: Order) -> int:
    """Charge exactly once, although nothing in the table refuses a second entry: entry and kept value commit as one."""
    return await entry_of(
        await conn.execute(
            "insert into ledger (order_id, what, amount_cents) values (%s, 'goods', %s) returning entry",
            (order.order_id, order.total_cents),
        )
    )


async def charge_shipping(order: Order) -> int:
    """Charge exactly once, the other way: a plain step, whose repeat finds its entry by the key."""
    await count_body("charge-shipping", order)
    async with connection() as conn:
        # Not "do nothing": that would return no entry.
        return await entry_of(
            await conn.execute(
                """
                insert into ledger (order_id, what, amount_cents, key) values (%s, 'shipping', %s, %s)
                on conflict (key) do update set key = excluded.key returning entry
                """,
                (order.order_id, order.shipping_cents, f"shipping:{order.order_id}"),
            )
        )


async def send_mail(order: Order) -> None:
    """Thank the customer. In the worst case twice, which nobody minds."""
    await count_body("send-mail", order)
    await asyncio.sleep(OUTSIDE_S)


async def count_body(step: str, order: Order) -> None:
    """Note that the body of a plain step ran, so that the demo can say how often."""
    async with connection() as conn:
        await conn.execute("insert into step_bodies (order_id, step) values (%s, %s)", (order.order_id, step))


async def entry_of(cursor: AsyncCursor[TupleRow]) -> int:
    """Return the number of the entry that a statement answered with."""
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


# The application's own connections. Only a transaction step uses one of the worker's.
pool = AsyncConnectionPool(DATABASE_URL, open=False, min_size=1, max_size=4, kwargs={"autocommit": True})


@asynccontextmanager
async def connection() -> AsyncGenerator[AsyncConnection]:
    """Lend a connection, opened when the first step needs one."""
    await pool.open()
    async with pool.connection() as conn:
        yield conn


worker = Worker(workflows=[handle])
