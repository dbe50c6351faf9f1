"""PgQueuer as a plain queue, without steps and results: asyncpg, jobs taken and given in batches."""

from __future__ import annotations

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries

from benchmarks.peers.adapter import Adapter, main


class WithPgQueuer(Adapter):
    """One worker process, one client process."""

    batch = 1000

    async def driver(self, url):
        self.pool = await asyncpg.create_pool(url, min_size=2, max_size=20)
        return AsyncpgPoolDriver(self.pool)

    async def setup(self, url):
        await Queries(await self.driver(url)).install()

    async def worker(self, url, in_flight):
        queuer = PgQueuer(await self.driver(url))

        @queuer.entrypoint("one")
        async def one(job):
            return None

        print("READY", flush=True)
        await queuer.run(batch_size=in_flight, max_concurrent_tasks=2 * in_flight)

    async def open(self, url):
        self.queries = Queries(await self.driver(url))

    async def start(self, workflow):
        return (await self.queries.enqueue("one", b""))[0]

    async def bulk(self, workflow, number):
        await self.queries.enqueue(["one"] * number, [b""] * number, [0] * number)


if __name__ == "__main__":
    main(WithPgQueuer())
