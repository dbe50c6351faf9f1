"""kedge, through the same door as the others: one worker process, one client with its default settings."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any, Final, cast

from benchmarks.peers.adapter import Adapter, main
from kedge import EventRef, WorkflowRef
from kedge_client import AsyncClient, AsyncRunHandle
from kedge_worker import Context, Worker, workflow
from kedge_worker._migrator import migrate

CONNECTIONS = 8

one = WorkflowRef("one", None, dict[str, bool])
ten = WorkflowRef("ten", None, dict[str, bool])
fan = WorkflowRef("fan", None, int)
event = WorkflowRef("event", None, int)
happened = EventRef("happened", int)
REFS: Final[dict[str, WorkflowRef[None, Any]]] = {"one": one, "ten": ten, "fan": fan, "event": event}


async def work() -> dict[str, bool]:
    return {"ok": True}


@workflow(one)
async def handle_one(ctx: Context) -> dict[str, bool]:
    return await ctx.step("work", work)


@workflow(ten)
async def handle_ten(ctx: Context) -> dict[str, bool]:
    for _ in range(9):
        await ctx.step("work", work)
    return await ctx.step("work", work)


@workflow(fan)
async def handle_fan(ctx: Context) -> int:
    return len(await asyncio.gather(*(ctx.step("work", work) for _ in range(100))))


@workflow(event)
async def handle_event(ctx: Context) -> int:
    return await ctx.wait_for("event", happened)


def as_handle(run: object) -> AsyncRunHandle[object]:
    """What `start` has answered."""
    return cast("AsyncRunHandle[object]", run)


class WithKedge(Adapter):
    """One worker process, one client process."""

    batch = 5000
    client: AsyncClient

    async def setup(self, url: str) -> None:
        await asyncio.to_thread(migrate, url)

    async def worker(self, url: str, in_flight: int) -> None:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        worker = Worker(url, workflows=[handle_one, handle_ten, handle_fan, handle_event], concurrency=in_flight)
        print("READY", flush=True)
        await worker.run()

    async def open(self, url: str) -> None:
        self.client = AsyncClient.connect(url, max_connections=CONNECTIONS)

    async def start(self, workflow: str) -> object:
        return await self.client.start(REFS[workflow]())

    async def bulk(self, workflow: str, number: int) -> None:
        await self.client.start_many([REFS[workflow]() for _ in range(number)])

    async def result(self, run: object) -> object:
        return await as_handle(run).result()

    async def send(self, run: object) -> None:
        await as_handle(run).send(happened(1))

    async def close(self) -> None:
        await self.client.aclose()


if __name__ == "__main__":
    main(WithKedge())
