"""Killing, freezing and stopping worker processes loses nothing and doubles nothing that is kept."""

import signal

import psycopg

from kedge_client import Client
from tests.scenarios.crew import count, crew, wait_until
from tests.scenarios.shop import Order, pay, process, stubborn

FINISHED = "select count(*) from kedge.finished"
RUNNING = "select count(*) from kedge.runs where state = 'r'"


def test_runs_of_a_killed_worker_go_on_from_their_last_kept_step(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        first = workers.start()
        runs = client.start_many([process(Order(f"o{i}", steps=4, pause_s=0.15)) for i in range(20)])
        wait_until(lambda: count(conn, "select count(*) from kedge.journal where seq > 0") >= 30, "30 steps are kept")

        workers.end(first, signal.SIGKILL)
        workers.start()

        results = [run.result(timeout="30s") for run in runs]
        assert [r.notes for r in results] == [[f"o{i} {n}" for n in range(4)] for i in range(20)]
        assert count(conn, "select count(*) from kedge.journal where seq > 0") == 80
        # A body runs once, plus at most once for the one kill.
        assert max(workers.bodies().values()) <= 2
        assert workers.bodies().total() <= 80 + 20
        assert count(conn, "select max(epoch) from kedge.finished") == 3  # claim, take back, claim


def test_a_frozen_worker_that_wakes_up_too_late_writes_nothing(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        frozen = workers.start()
        runs = client.start_many([process(Order(f"o{i}", steps=3, pause_s=0.2)) for i in range(10)])
        wait_until(lambda: count(conn, "select count(*) from kedge.journal where seq > 0") >= 10, "10 steps are kept")

        frozen.send_signal(signal.SIGSTOP)
        workers.start()
        for run in runs:
            run.result(timeout="30s")
        kept = conn.execute("select run_id, seq, epoch, value from kedge.journal order by 1, 2").fetchall()
        frozen.send_signal(signal.SIGCONT)
        wait_until(
            lambda: count(conn, "select count(*) from kedge.workers where lease_until > clock_timestamp()") == 2,
            "the woken process has begun a new life",
        )

        assert conn.execute("select run_id, seq, epoch, value from kedge.journal order by 1, 2").fetchall() == kept
        assert client.start(process(Order("later"))).result(timeout="30s").name == "later"


def test_a_stopped_worker_gives_its_runs_back_and_charges_nobody(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url, GRACE="0.2s", LEASE="30s") as workers, Client.connect(database_url) as client:
        first = workers.start()
        runs = client.start_many([process(Order(f"o{i}", steps=3, pause_s=0.4)) for i in range(10)])
        wait_until(lambda: count(conn, RUNNING) == 10, "all run")

        code = workers.end(first)

        assert code == 0
        assert count(conn, RUNNING) == 0
        assert count(conn, "select count(*) from kedge.workers") == 0
        assert count(conn, "select count(*) from kedge.idle") == 0
        workers.start()
        assert [run.result(timeout="30s").name for run in runs] == [f"o{i}" for i in range(10)]
        assert count(conn, "select sum(crashes + attempt) from kedge.finished") == 0


def test_handlers_that_end_within_the_grace_are_not_executed_again(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url, GRACE="20s") as workers, Client.connect(database_url) as client:
        first = workers.start()
        runs = client.start_many([process(Order(f"o{i}", steps=2, pause_s=0.3)) for i in range(10)])
        wait_until(lambda: count(conn, RUNNING) == 10, "all run")

        code = workers.end(first)

        assert code == 0
        assert [run.result(timeout=0).name for run in runs] == [f"o{i}" for i in range(10)]
        assert workers.bodies().total() == 20
        assert count(conn, "select max(epoch) from kedge.finished") == 1


def test_a_blocked_loop_does_not_cost_the_lease(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url, LEASE="1s") as workers, Client.connect(database_url) as client:
        workers.start()
        workers.start()

        result = client.start(stubborn(1.8)).result(timeout="30s")

        assert result == "stubborn 1"
        assert workers.bodies().total() == 2
        assert count(conn, "select epoch from kedge.finished") == 1


def test_a_charge_stands_in_the_ledger_once_however_often_workers_die(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        alive = workers.start()
        runs = client.start_many([pay(Order(f"o{i}", pause_s=0.05)) for i in range(60)])
        for enough in (10, 30, 45):
            wait_until(lambda: count(conn, "select count(*) from ledger") >= enough, f"{enough} charges")  # noqa: B023
            workers.end(alive, signal.SIGKILL)
            alive = workers.start()

        ids = [run.result(timeout="60s") for run in runs]

        rows = conn.execute("select name, id from ledger order by id").fetchall()
        assert sorted(rows) == sorted((f"o{i}", paid) for i, paid in enumerate(ids))
        assert count(conn, FINISHED) == 60
