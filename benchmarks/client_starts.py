"""
Starts a second: bulk, by one thread, by fifty async starters; and start to result without a worker's share.

    python -m benchmarks.client_starts [--database-url URL] [--bulk 30000] [--single 5000] [--profile]

Without a URL it finds a durable Postgres as the tests do. Writes to a schema of its own, which it drops.
"""

import argparse
import asyncio
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import msgspec
import psycopg
from psycopg import sql

from kedge import RunRequest, WorkflowRef
from kedge_client import AsyncClient, Client
from kedge_worker._migrator import migrate
from kedge_worker.testing import postgres_server

SCHEMA = "kedge_client_starts"


class Order(msgspec.Struct, frozen=True):
    """An input of 60 bytes, as the other benchmarks have it."""

    order_id: str
    amount_cents: int


process = WorkflowRef("process-order", Order, str)


def timed(title: str, count: int, work: Callable[[], object]) -> None:
    """Print how many a second, and how much of our own processor time one took."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"{title:44} {count / wall:10,.0f}/s {processor / count * 1e6:8.1f} us of Python each", flush=True)


def bulk(url: str, count: int) -> None:
    """One start_many, requests made before."""
    with Client.connect(url, schema=SCHEMA) as client:
        client.start(process(Order("warm", 1)))
        timed(f"start_many of {count:,}, requests included", count, lambda: client.start_many(requests(count)))
        made = requests(count)
        timed(f"start_many of {count:,}", count, lambda: client.start_many(made))
        keyed = [process(Order(f"o{i}", i), key=f"k{i}") for i in range(count // 10)]
        timed(f"start_many of {count // 10:,} with keys", count // 10, lambda: client.start_many(keyed))


def requests(count: int) -> list[RunRequest[str]]:
    """Make the requests of a bulk start."""
    return [process(Order(f"order-{number}", number)) for number in range(count)]


def single(url: str, count: int) -> None:
    """One thread, one start after the other."""
    with Client.connect(url, schema=SCHEMA) as client:
        client.start(process(Order("warm", 1)))

        def work() -> None:
            for number in range(count):
                client.start(process(Order("order", number)))

        timed("start, 1 thread", count, work)


async def concurrent(url: str, count: int, starters: int, connections: int) -> None:
    """Fifty tasks, one start after the other each."""
    async with AsyncClient.connect(url, schema=SCHEMA, max_connections=connections) as client:
        await asyncio.gather(*(client.start(process(Order("warm", 1))) for _ in range(2 * connections)))

        async def starter() -> None:
            for number in range(count // starters):
                await client.start(process(Order("order", number)))

        wall, processor = time.perf_counter(), time.process_time()
        await asyncio.gather(*(starter() for _ in range(starters)))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        title = f"start, {starters} async starters, {connections} connections"
        print(f"{title:44} {count / wall:10,.0f}/s {processor / count * 1e6:8.1f} us of Python each", flush=True)


async def latency(url: str, count: int) -> None:
    """Start, end by SQL, result: what the client adds to a run's time."""
    schema = sql.Identifier(SCHEMA)
    claim = sql.SQL(
        "update {s}.runs set state = 'r', worker_id = gen_random_uuid(), epoch = 1 where id = %s returning worker_id"
    ).format(s=schema)
    end = sql.SQL(
        "select {s}.end_runs(%s, array[%s]::uuid[], array[1], array['c'], array[%s]::bytea[], array[null]::bytea[],"
        " array[null], array[0], array[0], array[0])"
    ).format(s=schema)
    tell = sql.SQL("select {s}.notify_watchers(array[%s]::uuid[])").format(s=schema)
    spent: list[float] = []
    async with (
        AsyncClient.connect(url, schema=SCHEMA) as client,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as conn,
    ):
        for number in range(count):
            began = time.perf_counter()
            run = await client.start(process(Order("order", number)))
            started = time.perf_counter()
            waiting = asyncio.create_task(run.result(10))
            await asyncio.sleep(0.002)
            owner = await (await conn.execute(claim, (run.id,))).fetchone()
            assert owner is not None
            await conn.execute(end, (*owner, run.id, b'\x01"done"'))
            await conn.execute(tell, (run.id,))
            told = time.perf_counter()
            await waiting
            done = time.perf_counter()
            spent.append((started - began + done - told) * 1000)
    spent.sort()
    p50, p99 = statistics.median(spent), spent[int(len(spent) * 0.99)]
    print(f"start, and result after the notification: p50 {p50:.2f} ms, p99 {p99:.2f} ms", flush=True)


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url")
    parser.add_argument("--bulk", type=int, default=30_000)
    parser.add_argument("--single", type=int, default=5_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.database_url or stack.enter_context(postgres_server()).url
        migrate(url, schema=SCHEMA)
        try:
            profile = cProfile.Profile() if options.profile else None
            if profile:
                profile.enable()
            bulk(url, options.bulk)
            single(url, options.single)
            for connections in (1, 4, 8):
                asyncio.run(concurrent(url, options.single, 50, connections))
            asyncio.run(latency(url, 300))
            if profile:
                profile.disable()
                pstats.Stats(profile).sort_stats("tottime").print_stats(35)
        finally:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(SCHEMA)))


if __name__ == "__main__":
    main()
