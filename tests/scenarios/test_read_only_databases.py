"""A server that takes no writes, as a standby or a managed one whose disk is full: workers wait until one does."""

import psycopg

from kedge_client import Client
from kedge_worker.testing import PostgresServer
from tests.scenarios.crew import crew, wait_until
from tests.scenarios.shop import Order, process, quick


def test_workers_wait_while_the_server_is_read_only(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with crew(server.url, LEASE="2s") as workers, Client.connect(server.url) as client:
        there = workers.start()
        run = client.start(process(Order("before", steps=3, pause_s=0.3)))
        wait_until(lambda: workers.bodies().total() >= 1, "it is under way")

        make_read_only(server, "on")
        late = workers.start()
        for worker in (there, late):
            wait_until(lambda: "read-only" in workers.log(worker), "it has met the server")  # noqa: B023

        assert (there.poll(), late.poll()) == (None, None)
        make_read_only(server, "off")
        assert run.result(timeout="60s").name == "before"
        assert client.start(quick(Order("after"))).result(timeout="60s") == "after"


def make_read_only(server: PostgresServer, value: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(f"alter system set default_transaction_read_only = {value}".encode())
        conn.execute("select pg_reload_conf()")
