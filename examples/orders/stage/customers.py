"""The demo's customers: they post orders over HTTP, and each waits for its receipt before it posts the next."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import msgspec

from examples.orders.refs import Receipt

FILE: Final = Path(__file__).parents[1] / "orders.jsonl"
HTTP_TIMEOUT_S: Final = 30
# How long a look at a run waits for its end: less than the HTTP timeout, and then one looks again.
LOOK_S: Final = 10


class Line(msgspec.Struct, frozen=True):
    """A line of orders.jsonl: the body to post, byte for byte, and the field to be blamed if it is wrong."""

    order: msgspec.Raw
    refused_for: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """What POST /orders says of an order that it takes, or, with the field, of one that it refuses."""

    run_id: str | None = None
    created: bool = False
    field: str | None = None


class Look(msgspec.Struct, frozen=True):
    """What GET /orders/{run_id} says."""

    status: str
    receipt: Receipt | None = None
    error: str | None = None


@dataclass(frozen=True)
class Posted:
    """What became of one line. The seconds are those from the posting to the receipt."""

    line: Line
    status_code: int
    answer: Answer
    look: Look | None
    took_s: float


@dataclass
class Sales:
    """How far the customers are."""

    total: int
    begun: int = 0
    ended: list[Posted] = field(default_factory=list[Posted])


def read_lines(limit: int) -> list[Line]:
    """Read the first lines of the file."""
    with FILE.open("rb") as file:
        return [msgspec.json.decode(line, type=Line) for line, _ in zip(file, range(limit), strict=False)]


async def post_all(api_url: str, lines: Sequence[Line], sales: Sales, *, customers: int) -> None:
    """Let so many customers post all the lines between them, in order."""
    queue = iter(lines)
    async with asyncio.TaskGroup() as group:
        for _ in range(customers):
            group.create_task(_be_customer(api_url, queue, sales))


async def _be_customer(api_url: str, queue: Iterator[Line], sales: Sales) -> None:
    # A client each: one client's pool of 40 connections costs more time than the whole service. There is no TLS here,
    # so no certificates are loaded.
    async with httpx.AsyncClient(base_url=api_url, timeout=HTTP_TIMEOUT_S, verify=False) as http:
        for line in queue:
            sales.begun += 1
            began = time.perf_counter()
            response = await http.post("/orders", content=bytes(line.order))
            answer = msgspec.json.decode(response.content, type=Answer)
            look = await _receipt(http, answer.run_id) if answer.run_id else None
            sales.ended.append(Posted(line, response.status_code, answer, look, time.perf_counter() - began))


async def _receipt(http: httpx.AsyncClient, run_id: str) -> Look:
    while True:
        response = await http.get(f"/orders/{run_id}", params={"wait": LOOK_S})
        look = msgspec.json.decode(response.raise_for_status().content, type=Look)
        if look.status in {"completed", "failed", "cancelled"}:
            return look
