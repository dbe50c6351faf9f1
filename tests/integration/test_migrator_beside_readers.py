"""A migration that meets a long transaction gives way, and comes again."""

from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString

import psycopg

from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer
from tests.integration.test_migrator import new_database
from tests.proof.chaos.older import older
from tests.scenarios.crew import wait_until

WAITING: LiteralString = (
    "select coalesce(array_agg(pid), '{}') from pg_locks where not granted and locktype = 'relation'"
)


def test_a_migration_that_meets_a_reader_gives_way_and_comes_again(postgres: PostgresServer) -> None:
    with new_database(postgres) as url, ThreadPoolExecutor(1) as pool:
        older(url)
        with psycopg.connect(url) as reader, psycopg.connect(url, autocommit=True) as looking:
            reader.execute("select from kedge.inbox")

            migration = pool.submit(migrate, url)

            def waiting() -> list[int]:
                return [int(pid) for (pids,) in looking.execute(WAITING) for pid in pids]

            wait_until(lambda: bool(waiting()), "it waits for the reader")
            first = waiting()
            wait_until(lambda: bool(waiting()) and not set(waiting()) & set(first), "it has given way, and come again")
            reader.rollback()

            assert migration.result(60) == [
                "0002 durable_semantics (additive)",
                "0003 retention (additive)",
                "functions and views",
            ]
