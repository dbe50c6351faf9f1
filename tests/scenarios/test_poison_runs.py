"""A handler that kills its process takes nobody along, and ends as what it is."""

import os
import secrets
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest

from kedge import RunCrashedError
from kedge_client import Client
from kedge_worker.testing import PostgresServer
from tests.scenarios.crew import Crew, count, crew, wait_until
from tests.scenarios.poison import Poison, innocent, poison, slow, stuck

TARGET = "tests.scenarios.poison:worker"


def start(workers: Crew) -> "subprocess.Popen[bytes]":
    return workers.start(TARGET)


def start_until_it_is_solo(workers: Crew) -> "subprocess.Popen[bytes]":
    """Two workers that die of a run, one after the other; answers the third, which has it executed by a child."""
    for _ in range(2):
        start(workers).wait(timeout=60)
    return start(workers)


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_handler_that_kills_its_process_fails_after_two_deaths_among_others_and_three_alone_and_nobody_with_it(
    database_url: str, conn: psycopg.Connection, how: str
) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        runs = client.start_many([innocent(f"i{n}") for n in range(20)])
        bad = client.start(poison(Poison(how)))

        survivor = start_until_it_is_solo(workers)

        with pytest.raises(RunCrashedError) as caught:
            bad.result(timeout="60s")
        assert [run.result(timeout="60s") for run in runs] == [f"i{n}" for n in range(20)]
        deaths = [body.rpartition(" ")[0] for body in workers.bodies() if body.startswith("death")]
        assert deaths == ["death in shared"] * 2 + ["death in solo"] * 3
        assert survivor.poll() is None
        view = client.get(bad)
        assert (view.status, view.crashes, view.queue) == ("failed", 5, "default")
        assert view.error is not None
        assert view.error == caught.value.error
        assert "the last 3 executed nothing else" in view.error.message
        assert count(conn, "select count(*) from kedge.finished where status <> 'c'") == 1


def test_a_run_that_crashed_twice_with_a_neighbour_gets_on_alone_and_returns_to_its_queue(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        bystander = client.start(slow(1.0))
        bad = client.start(poison(Poison()))

        start_until_it_is_solo(workers)

        assert bystander.result(timeout="60s") == "solo, then shared"
        with pytest.raises(RunCrashedError):
            bad.result(timeout="60s")
        assert count(conn, "select crashes from kedge.finished where status = 'c' and queue = 'default'") == 0
        slow_bodies = [body for body in workers.bodies() if body.startswith("slow")]
        assert slow_bodies == ["slow in shared 0", "slow in solo 0"]


def test_a_handler_that_stops_killing_completes_alone(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        run = client.start(poison(Poison(deaths=3)))

        start_until_it_is_solo(workers)

        assert run.result(timeout="60s") == "survived in solo"
        assert client.get(run).crashes == 3
        wait_until(lambda: count(conn, "select count(*) from kedge.workers") == 1, "the child has left")


# ---- ends of children that are nobody's fault ----------------------------------------------------------------------


def make_solo(conn: psycopg.Connection) -> None:
    """What two crashes do."""
    conn.execute("update kedge.runs set queue = kedge.solo_lane(queue), crashes = 2, epoch = 4")


def in_solo(workers: Crew) -> bool:
    return workers.bodies()["slow in solo 0"] > 0


def test_a_deploy_gives_back_what_a_child_executes_and_charges_nobody(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url, GRACE="0.3s") as workers, Client.connect(database_url) as client:
        run = client.start(slow(60.0))
        make_solo(conn)
        parent = start(workers)
        wait_until(lambda: in_solo(workers), "a child executes the run")

        code = workers.end(parent)

        assert code == 0
        assert conn.execute("select state::text, crashes, queue from kedge.runs").fetchall() == [
            ("p", 2, "!solo default")
        ]
        assert count(conn, "select count(*) from kedge.workers") == 0
        assert client.get(run).status == "pending"


def test_a_child_ends_its_run_within_the_grace(database_url: str, conn: psycopg.Connection) -> None:
    with crew(database_url, GRACE="20s") as workers, Client.connect(database_url) as client:
        run = client.start(slow(1.0))
        make_solo(conn)
        parent = start(workers)
        wait_until(lambda: in_solo(workers), "a child executes the run")

        code = workers.end(parent)

        assert code == 0
        assert count(conn, "select count(*) from kedge.journal where kind = 's'") == 1
        assert (client.get(run).status, client.get(run).crashes) == ("waiting", 0)


def test_a_child_does_not_outlive_its_killed_parent_and_nobody_is_charged(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url, LEASE="30s") as workers, Client.connect(database_url) as client:
        client.start(slow(60.0))
        make_solo(conn)
        parent = start(workers)
        wait_until(lambda: in_solo(workers), "a child executes the run")

        workers.end(parent, signal.SIGKILL)

        wait_until(lambda: count(conn, "select count(*) from kedge.runs where state = 'p'") == 1, "it was given back")
        assert count(conn, "select crashes from kedge.runs") == 2
        wait_until(
            lambda: count(conn, "select count(*) from kedge.workers where '!solo default' = any (queues)") == 0,
            "the child has left",
        )
        conn.execute("delete from kedge.workers")  # the parent's row, whose lease is long


def test_a_child_whose_handler_blocks_it_for_ever_is_ended_and_the_run_is_charged(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        run = client.start(stuck(600.0))
        make_solo(conn)
        start(workers)

        wait_until(lambda: len(pids(workers)) == 2, "the run is executed once more")
        first, second = pids(workers)

        wait_until(lambda: not is_alive(first), "the first child has ended")
        assert count(conn, "select crashes from kedge.runs") == 3
        client.cancel(run)
        wait_until(lambda: client.get(run).status == "cancelled", "it was taken back once more")
        wait_until(lambda: not is_alive(second), "so has the second")


def pids(workers: Crew) -> list[int]:
    """The processes that were blocked, in order."""
    return [int(body.rpartition(" ")[2]) for body in workers.bodies() if body.startswith("stuck")]


def is_alive(pid: int) -> bool:
    """Whether the process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_outage_of_the_database_charges_nobody(breakable_postgres: PostgresServer) -> None:
    url = breakable_postgres.url
    with crew(url) as workers, Client.connect(url) as client:
        with psycopg.connect(url, autocommit=True) as conn:
            run = client.start(poison(Poison(after_s=3.0, deaths=0)))
            make_solo(conn)
            worker = start(workers)
            wait_until(lambda: count(conn, "select count(*) from kedge.runs where state = 'r'") == 1, "a child has it")

        breakable_postgres.stop()
        wait_until(lambda: "lease lost" in workers.log(worker), "the lease has lapsed")
        breakable_postgres.start()

        assert run.result(timeout="60s") == "survived in solo"
        with psycopg.connect(url, autocommit=True) as conn:
            assert count(conn, "select crashes from kedge.finished") == 2


# ---- runs that kill nobody, and that nobody can read or store --------------------------------------------------------


def test_a_run_whose_end_the_database_refuses_is_not_executed_for_ever(
    database_url: str, conn: psycopg.Connection
) -> None:
    conn.execute("create function refuse() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$")
    conn.execute(
        "create trigger refuse before insert on kedge.finished for each row"
        " when (new.workflow = 'poison' and (new.error is null or position('RunCrashed'::bytea in new.error) = 0))"
        " execute function refuse()"
    )
    with crew(database_url) as workers, Client.connect(database_url) as client:
        bad = client.start(poison(Poison(after_s=0.0, deaths=0, steps=0)))
        runs = client.start_many([innocent(f"i{n}") for n in range(20)])
        start(workers)

        with pytest.raises(RunCrashedError):
            bad.result(timeout="60s")

        assert [run.result(timeout="60s") for run in runs] == [f"i{n}" for n in range(20)]
        assert client.get(bad).crashes == 5


def test_a_run_whose_input_is_damaged_stops_nobody_else(breakable_postgres: PostgresServer) -> None:
    url = breakable_postgres.url
    with crew(url) as workers, Client.connect(url) as client:
        runs = client.start_many([innocent(f"i{n}") for n in range(10)])
        bad = client.start(innocent(secrets.token_hex(50_000)))
        runs += client.start_many([innocent(f"i{n}") for n in range(10, 20)])
        lose_large_values_of_the_journal(breakable_postgres)
        start(workers)

        with pytest.raises(RunCrashedError):
            bad.result(timeout="60s")

        assert [run.result(timeout="60s") for run in runs] == [f"i{n}" for n in range(20)]


def lose_large_values_of_the_journal(server: PostgresServer) -> None:
    """What a disk does that loses a file."""
    with psycopg.connect(server.url, autocommit=True) as conn:
        ((folder, file),) = conn.execute(
            "select current_setting('data_directory'), pg_relation_filepath(reltoastrelid)"
            " from pg_class where oid = 'kedge.journal'::regclass"
        ).fetchall()
    path = Path(folder, file)
    if not path.exists():
        pytest.skip("the server's files are elsewhere")
    server.stop()
    os.truncate(path, 0)
    server.start()
