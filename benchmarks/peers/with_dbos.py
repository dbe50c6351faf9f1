"""DBOS Transact: async workflows; DBOSClient and a registered queue; polling every 10 ms instead of each second."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa
from dbos import DBOS, DBOSClient

from benchmarks.peers.adapter import Adapter, main

POLL_S = 0.01
POOL = 20


def define() -> None:
    """Register the workflows."""

    @DBOS.step()
    async def work():
        return {"ok": True}

    @DBOS.workflow(name="one")
    async def one():
        return await work()

    @DBOS.workflow(name="ten")
    async def ten():
        for _ in range(10):
            done = await work()
        return done

    @DBOS.workflow(name="fan")
    async def fan():
        return len(await asyncio.gather(*(work() for _ in range(100))))

    @DBOS.workflow(name="event")
    async def event():
        return await DBOS.recv_async("event", timeout_seconds=3600)


class WithDbos(Adapter):
    """One worker process, one client process."""

    batch = 200

    def launch(self, url, in_flight):
        DBOS(
            config={
                "name": "bench",
                "system_database_url": url,
                "application_version": "bench",
                "sys_db_pool_size": POOL,
                "max_executor_threads": 128,
                "log_level": "ERROR",
            }
        )
        define()
        DBOS.launch()
        DBOS.register_queue("q", worker_concurrency=in_flight, polling_interval_sec=POLL_S)

    async def setup(self, url):
        def once():
            self.launch(url, 100)
            DBOS.destroy()

        await asyncio.to_thread(once)

    async def worker(self, url, in_flight):
        await asyncio.to_thread(self.launch, url, in_flight)
        print("READY", flush=True)
        await asyncio.Event().wait()

    async def open(self, url):
        self.client = await asyncio.to_thread(
            lambda: DBOSClient(system_database_url=url, system_database_pool_size=POOL, application_name="bench")
        )
        self.engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    async def start(self, workflow):
        return await self.client.enqueue_async({"queue_name": "q", "workflow_name": workflow})

    async def bulk(self, workflow, number):
        def once():
            with self.engine.begin() as conn:
                for _ in range(number):
                    self.client.enqueue_in_transaction(conn, {"queue_name": "q", "workflow_name": workflow})

        await asyncio.to_thread(once)

    async def result(self, run):
        return await run.get_result(polling_interval_sec=POLL_S)

    async def send(self, run):
        await self.client.send_async(run.get_workflow_id(), 1, "event")

    async def close(self):
        self.client.destroy()


if __name__ == "__main__":
    main(WithDbos())
