"""Absurd's Python SDK, async, polling every 10 ms; ABSURD_SQL names its sql/absurd.sql, which its package lacks."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import psycopg
from absurd_sdk import AsyncAbsurd

from benchmarks.peers.adapter import Adapter, main

POLL_S = 0.01
SCHEMA = Path(os.environ["ABSURD_SQL"]).read_bytes()
CLIENTS = 8  # one connection each


async def work():
    return {"ok": True}


def define(app) -> None:
    """Register the workflows."""

    @app.register_task("one")
    async def one(params, ctx):
        return await ctx.step("work", work)

    @app.register_task("ten")
    async def ten(params, ctx):
        for i in range(10):
            done = await ctx.step(f"work-{i}", work)
        return done

    @app.register_task("fan")
    async def fan(params, ctx):
        return len(await asyncio.gather(*(ctx.step(f"work-{i}", work) for i in range(100))))

    @app.register_task("event")
    async def event(params, ctx):
        return await ctx.await_event(f"event:{ctx.task_id}")


class WithAbsurd(Adapter):
    """One worker process, one client process."""

    async def setup(self, url):
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(SCHEMA)
        app = AsyncAbsurd(url)
        await app.create_queue("default")
        await app.close()

    async def worker(self, url, in_flight):
        app = AsyncAbsurd(url)
        define(app)
        print("READY", flush=True)
        await app.start_worker(concurrency=in_flight, poll_interval=POLL_S)

    async def open(self, url):
        self.clients = [AsyncAbsurd(url) for _ in range(CLIENTS)]
        self.turns = itertools.cycle(self.clients)

    async def start(self, workflow):
        return (await next(self.turns).spawn(workflow, {}, queue="default"))["task_id"]

    async def result(self, run):
        return await self.clients[0].await_task_result(str(run))

    async def send(self, run):
        await self.clients[0].emit_event(f"event:{run}", 1)

    async def close(self):
        for client in self.clients:
            await client.close()


if __name__ == "__main__":
    main(WithAbsurd())
