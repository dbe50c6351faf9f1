"""The example's API service, over HTTP, on a real database: what it takes, what it refuses, what it leaves behind."""

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import msgspec
import psycopg
import pytest
from starlette.types import Receive, Scope, Send

from examples.orders.api_service import make_app
from examples.orders.demo import TABLES
from examples.orders.make_orders import FILE, make_lines
from examples.orders.refs import Order, Receipt, process_order
from examples.orders.stage.customers import read_lines
from kedge_worker import Context, Worker, workflow

LINES = read_lines(2_000)
ORDER: dict[str, Any] = msgspec.json.decode(LINES[0].order)
NOT_AN_ORDER = {
    "cut off": bytes(LINES[0].order)[:-1],
    "empty": b"",
    "a list": b"[]",
    "not UTF-8": b'{"order_id":"DE-\xff"}',
    "too deep": b'{"extra":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "half a surrogate": b'{"order_id":"\\ud800"}',
}


@workflow(process_order)
async def handle_at_once(_: Context, order: Order) -> Receipt:
    return Receipt(order.order_id, "shelf", 1, 2, order.total_cents, order.currency)


@pytest.fixture
async def api(database_url: str, conn: psycopg.Connection) -> AsyncGenerator[httpx.AsyncClient]:
    """The service in this process, on a database with its tables."""
    conn.execute(TABLES.read_bytes())
    app = make_app(database_url)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://shop") as http:
            yield http


def counted(conn: psycopg.Connection) -> tuple[int, int]:
    """How many orders and how many runs there are."""
    row = conn.execute("select (select count(*) from orders), (select count(*) from kedge.runs)").fetchone()
    assert row is not None
    return row[0], row[1]


def test_the_file_is_what_its_maker_makes() -> None:
    assert FILE.read_text(encoding="utf-8").splitlines() == make_lines()


async def test_every_wrong_order_of_the_file_is_refused_for_the_field_that_is_wrong(
    api: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    wrong = [line for line in LINES if line.refused_for]

    answers = [await api.post("/orders", content=bytes(line.order)) for line in wrong]

    assert len(wrong) == 48
    assert {answer.status_code for answer in answers} == {422}
    assert [answer.json()["field"] for answer in answers] == [line.refused_for for line in wrong]
    assert counted(conn) == (0, 0)


@pytest.mark.parametrize("body", NOT_AN_ORDER.values(), ids=NOT_AN_ORDER.keys())
async def test_a_body_that_is_no_order_is_refused(
    api: httpx.AsyncClient, conn: psycopg.Connection, body: bytes
) -> None:
    answer = await api.post("/orders", content=body)

    assert (answer.status_code, answer.json()["field"]) == (422, "order")
    assert counted(conn) == (0, 0)


async def test_an_order_is_stored_together_with_its_run(api: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    answer = await api.post("/orders", json=ORDER)

    assert (answer.status_code, answer.json()["created"]) == (202, True)
    assert conn.execute("select order_id from orders").fetchall() == [(ORDER["order_id"],)]
    assert conn.execute("select id::text from kedge.runs").fetchall() == [(answer.json()["run_id"],)]


async def test_an_order_whose_run_cannot_be_started_is_not_stored(
    api: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    conn.execute("alter table kedge.runs add constraint closed check (false)")

    with pytest.raises(Exception, match="closed"):
        await api.post("/orders", json=ORDER)

    assert counted(conn) == (0, 0)


async def test_a_repeated_order_gets_its_first_run(api: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    first = await api.post("/orders", json=ORDER)

    again = await api.post("/orders", json=dict(reversed(ORDER.items())))

    assert again.status_code == 200
    assert again.json() == {"run_id": first.json()["run_id"], "created": False}
    assert counted(conn) == (1, 1)


async def test_another_order_with_a_taken_id_is_refused(api: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    await api.post("/orders", json=ORDER)

    other = await api.post("/orders", json=ORDER | {"customer": "Somebody Else"})

    assert (other.status_code, other.json()["field"]) == (409, "order_id")
    assert conn.execute("select customer from orders").fetchall() == [(ORDER["customer"],)]


async def test_a_run_is_pending_until_a_worker_has_completed_it(api: httpx.AsyncClient, database_url: str) -> None:
    run_id = (await api.post("/orders", json=ORDER)).json()["run_id"]

    before = await api.get(f"/orders/{run_id}")
    await Worker(database_url, workflows=[handle_at_once]).run_until_idle()
    after = await api.get(f"/orders/{run_id}", params={"wait": 10})

    assert before.json() == {"status": "pending"}
    assert after.json()["status"] == "completed"
    assert after.json()["receipt"]["order_id"] == ORDER["order_id"]


@pytest.mark.parametrize("run_id", ["01890000-0000-7000-8000-000000000000", str(UUID(int=7)), "42"])
async def test_an_unknown_run_is_not_found(api: httpx.AsyncClient, run_id: str) -> None:
    assert (await api.get(f"/orders/{run_id}")).status_code == 404


@pytest.mark.parametrize("wait", ["-1", "31", "nan", "soon", ""])
async def test_a_senseless_wait_is_refused(api: httpx.AsyncClient, wait: str) -> None:
    answer = await api.get("/orders/01890000-0000-7000-8000-000000000000", params={"wait": wait})

    assert (answer.status_code, answer.json()["field"]) == (422, "wait")
