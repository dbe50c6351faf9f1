"""The API service: takes orders over HTTP and starts a run for each. It knows the refs, and no handler."""

import os
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict

import msgspec
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from examples.orders.refs import Order, process_order
from kedge_client import (
    AsyncClient,
    InputConflictError,
    InvalidOptionError,
    ResultTimeoutError,
    RunCancelledError,
    RunFailedError,
    RunNotFoundError,
)


class State(TypedDict):
    """What lives as long as the service."""

    pool: AsyncConnectionPool
    client: AsyncClient


class Look(msgspec.Struct, frozen=True):
    """How to look at a run: `?wait=10` answers as soon as it has ended, and after 10 seconds at the latest."""

    wait: Annotated[float, msgspec.Meta(ge=0, le=30)] = 0


# A repeated order is no error: it finds its row and gets its run.
INSERT_ORDER = """
    insert into orders (order_id, customer, currency, total_cents)
    values (%s, %s, %s, %s) on conflict (order_id) do nothing
"""


async def place_order(request: Request[State]) -> Response:
    """POST /orders: store the order and start its run, both or neither."""
    try:
        order = msgspec.json.decode(await request.body(), type=Order)
    except (ValueError, RecursionError) as error:  # not an order; not JSON; not even UTF-8; brackets without end
        return refusal(error)

    try:
        async with request.state["pool"].connection() as conn, conn.transaction():
            await conn.execute(INSERT_ORDER, (order.order_id, order.customer, order.currency, order.total_cents))
            run = await request.state["client"].start(process_order(order), conn=conn)
    except InputConflictError:
        return answer(409, error="another order has this id already", field="order_id")
    return answer(202 if run.created else 200, run_id=run.id, created=run.created)


async def read_order(request: Request[State]) -> Response:
    """GET /orders/{run_id}: tell how far the order is, with its receipt at the end."""
    try:
        look = msgspec.convert(dict(request.query_params), Look, strict=False)
    except msgspec.ValidationError as error:
        return refusal(error)

    try:
        run = request.state["client"].handle(process_order, request.path_params["run_id"])
    except InvalidOptionError:  # a UUID, but of no run
        return answer(404, error="no such run")
    try:
        return answer(200, status="completed", receipt=await run.result(timeout=look.wait))
    except ResultTimeoutError:
        return answer(200, status=await run.status())
    except RunFailedError as failure:
        return answer(200, status="failed", error=failure.error.message)
    except RunCancelledError as cancel:
        return answer(200, status="cancelled", error=cancel.reason)
    except RunNotFoundError:
        return answer(404, error="no such run")


def refusal(error: Exception) -> Response:
    """Answer 422 with the field's name, as msgspec gives it: "Expected `int` >= 1 - at `$.lines[0].quantity`"."""
    text = str(error)
    where = re.search(r" - at `\$\.?([^`]*)`$", text)
    missing = re.search(r"missing required field `([^`]+)`", text)
    names = [found[1] for found in (where, missing) if found]
    return answer(422, error=text, field=".".join(names) or "order")


def answer(status_code: int, **body: object) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(body), status_code, media_type="application/json")


def make_app(database_url: str | None = None) -> Starlette:
    """Build the service; without a URL it takes KEDGE_DATABASE_URL when it starts."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[State]:
        pool: AsyncConnectionPool = AsyncConnectionPool(database_url or os.environ["KEDGE_DATABASE_URL"], open=False)
        async with pool, AsyncClient(pool) as client:
            yield {"pool": pool, "client": client}

    return Starlette(
        routes=[
            Route("/orders", place_order, methods=["POST"]),
            Route("/orders/{run_id:uuid}", read_order),
        ],
        lifespan=lifespan,
    )


app = make_app()
