"""Procrastinate as a plain queue, without steps and results: LISTEN on, batch_defer as bulk."""

from __future__ import annotations

import procrastinate

from benchmarks.peers.adapter import Adapter, main


class WithProcrastinate(Adapter):
    """One worker process, one client process."""

    def app(self, url):
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=8, max_size=20))

        @app.task(name="one", queue="q")
        async def one():
            return None

        self.one = one
        return app

    async def setup(self, url):
        app = self.app(url)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    async def worker(self, url, in_flight):
        app = self.app(url)
        async with app.open_async():
            print("READY", flush=True)
            await app.run_worker_async(
                concurrency=in_flight, install_signal_handlers=False, fetch_job_polling_interval=5
            )

    async def open(self, url):
        self.opened = self.app(url)
        await self.opened.open_async()

    async def start(self, workflow):
        return await self.one.defer_async()

    async def bulk(self, workflow, number):
        await self.one.batch_defer_async(*[{} for _ in range(number)])

    async def close(self):
        await self.opened.close_async()


if __name__ == "__main__":
    main(WithProcrastinate())
