"""The database goes and comes back: workers keep their head down, clients say what they know, nothing is lost."""

import signal

import psycopg
import pytest

from kedge_client import Client, UnavailableError
from kedge_worker.testing import PostgresServer
from tests.scenarios.crew import count, crew, wait_until
from tests.scenarios.shop import Order, process, quick


def test_work_goes_on_when_the_database_restarts(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with crew(server.url, LEASE="5s") as workers, Client.connect(server.url) as client:
        workers.start()
        runs = client.start_many([process(Order(f"o{i}", steps=4, pause_s=0.3)) for i in range(20)])
        with psycopg.connect(server.url, autocommit=True) as conn:
            wait_until(lambda: count(conn, "select count(*) from kedge.journal where seq > 0") >= 20, "20 steps")

        server.restart()

        assert [run.result(timeout="60s").name for run in runs] == [f"o{i}" for i in range(20)]
        with psycopg.connect(server.url, autocommit=True) as conn:
            assert count(conn, "select sum(crashes + attempt) from kedge.finished") == 0
            assert count(conn, "select max(epoch) from kedge.finished") == 1
            assert workers.bodies().total() == 80


def test_an_outage_longer_than_the_lease_charges_nobody(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with crew(server.url, LEASE="1s") as workers, Client.connect(server.url) as client:
        worker = workers.start()
        runs = client.start_many([process(Order(f"o{i}", steps=3, pause_s=0.4)) for i in range(10)])
        with psycopg.connect(server.url, autocommit=True) as conn:
            wait_until(lambda: count(conn, "select count(*) from kedge.journal where seq > 0") >= 10, "10 steps")

        server.stop()
        wait_until(lambda: "lease lost" in workers.log(worker), "the lease has lapsed")
        server.start()

        assert [run.result(timeout="60s").name for run in runs] == [f"o{i}" for i in range(10)]
        with psycopg.connect(server.url, autocommit=True) as conn:
            assert count(conn, "select sum(crashes + attempt) from kedge.finished") == 0


def test_a_killed_server_forgets_nothing_that_it_acknowledged(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with crew(server.url, LEASE="3s") as workers, Client.connect(server.url) as client:
        workers.start()
        runs = client.start_many([quick(Order(f"o{i}", steps=5)) for i in range(2000)])

        server.kill()
        server.start()

        assert [run.result(timeout="60s") for run in runs] == [f"o{i}" for i in range(2000)]


def test_a_worker_waits_for_a_database_that_is_not_there_yet(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with crew(server.url) as workers:
        server.stop()
        worker = workers.start()
        wait_until(lambda: "no database yet" in workers.log(worker), "it has tried")

        server.start()

        with Client.connect(server.url) as client:
            assert client.start(quick(Order("late"))).result(timeout="30s") == "late"


def test_a_client_says_that_nothing_was_started_when_the_database_is_down(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with Client.connect(server.url) as client:
        server.stop()

        with pytest.raises(UnavailableError):
            client.start(quick(Order("never")))

        server.start()
        assert client.count_runs() == 0
        assert client.start(quick(Order("now"))).created


def test_a_worker_stops_in_time_with_the_database_down(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with crew(server.url, GRACE="0.2s", LEASE="1s") as workers, Client.connect(server.url) as client:
        worker = workers.start()
        client.start_many([process(Order(f"o{i}", steps=2, pause_s=5)) for i in range(3)])
        wait_until(lambda: workers.bodies().total() == 3, "all run")

        server.stop()
        code = workers.end(worker, signal.SIGTERM)

        assert code == 0
