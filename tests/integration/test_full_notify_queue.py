"""The queue of notifications fills up while a session that LISTENs stays in its transaction: nothing fails for that."""

from collections.abc import Generator

import psycopg
import pytest

from kedge_client import Client
from kedge_worker import Worker
from kedge_worker.testing import PostgresServer
from tests.scenarios.shop import Order, be_quick, quick

FIRST_WITH_SETTING = 17


@pytest.fixture
def full(breakable_postgres: PostgresServer) -> Generator[str]:
    """A server whose queue is full, and stays so."""
    server = breakable_postgres
    if server.version < FIRST_WITH_SETTING:
        pytest.skip("before PostgreSQL 17 the queue of notifications has 8 GB: KEDGE_TEST_POSTGRES=18")
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute("alter system set max_notify_queue_pages = 64")
    server.restart()
    with psycopg.connect(server.url) as stuck, psycopg.connect(server.url, autocommit=True) as conn:
        stuck.execute("listen anything")
        stuck.commit()
        stuck.execute("select 1")
        for size in (7000, 10):
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                fill(conn, size)
        yield server.url


async def test_starts_and_runs_do_not_fail_when_nobody_can_be_notified(full: str) -> None:
    sleep_in(full)
    with Client.connect(full) as client, psycopg.connect(full) as conn:
        inside = client.start(quick(Order("inside", steps=2)), conn=conn)
        conn.commit()
        outside = client.start(quick(Order("outside", steps=2)))
        many = client.start_many([quick(Order(f"m{i}", steps=2)) for i in range(3)], conn=conn)
        conn.commit()

        await Worker(full, workflows=[be_quick]).run_until_idle()

        assert [run.result(timeout="10s") for run in (inside, outside, *many)] == [
            "inside",
            "outside",
            "m0",
            "m1",
            "m2",
        ]
        with psycopg.connect(full) as looking:
            assert looking.execute("select sum(crashes + attempt), max(epoch) from kedge.finished").fetchone() == (0, 1)


def fill(conn: psycopg.Connection, size: int) -> None:
    """Notify nobody, for ever."""
    while True:
        conn.execute("select pg_notify('nobody', repeat('x', %s) || g) from generate_series(1, 20) g", (size,))


def sleep_in(url: str) -> None:
    """Let a worker stand in `idle`, so that every start wants to ring."""
    with psycopg.connect(url) as conn:
        conn.execute(
            "insert into kedge.idle (worker_id, queues, workflows) values (gen_random_uuid(), '{default}', '{quick}')"
        )
