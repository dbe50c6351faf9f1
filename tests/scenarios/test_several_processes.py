"""`kedge-worker run --processes N`: one command, N workers, and none of them is left behind or missing."""

import os
import signal
from pathlib import Path
from typing import LiteralString

import psutil
import psycopg
import pytest

from kedge_client import Client
from kedge_worker.__main__ import OK, USAGE, WRONG_SCHEMA
from kedge_worker.testing import PostgresServer
from tests.scenarios.crew import count, crew, wait_until
from tests.scenarios.doors import open_door, wait_at_door
from tests.scenarios.poison import Poison, poison
from tests.scenarios.shop import Order, process, quick
from tests.scenarios.test_command_line import command, empty_database

DOORS = "tests.scenarios.doors:worker"
RUNNING = "select count(*) from kedge.runs where state = 'r'"
RUNNING_WORKERS = "select count(distinct worker_id) from kedge.runs where state = 'r'"
WORKERS = "select count(*) from kedge.workers"


def workers_of(conn: psycopg.Connection, query: LiteralString = "select name from kedge.workers") -> set[int]:
    """The processes of the workers that are registered: their names end in them."""
    return {int(name.rpartition(":")[2]) for (name,) in conn.execute(query)}


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- one command, several workers


def test_each_process_is_a_worker_of_its_own_and_sigterm_gives_back_what_all_have(
    database_url: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    with (
        crew(database_url, CONCURRENCY="1", GRACE="0.1s", LEASE="30s") as workers,
        Client.connect(database_url) as client,
    ):
        all_of_them = workers.start(DOORS, processes=2)
        runs = client.start_many([wait_at_door(str(tmp_path / f"door{i}")) for i in range(2)])
        wait_until(lambda: count(conn, RUNNING_WORKERS) == 2, "each process executes one of the runs")
        pids = workers_of(conn)

        code = workers.end(all_of_them)

        assert code == OK
        assert len(pids) == 2
        assert all_of_them.pid not in pids
        assert (count(conn, RUNNING), count(conn, WORKERS), count(conn, "select count(*) from kedge.idle")) == (0, 0, 0)
        assert [(client.get(run).status, client.get(run).crashes) for run in runs] == [("pending", 0)] * 2
        assert not any(map(lives, pids))


def test_the_environment_says_how_many_and_each_line_of_the_log_says_from_which(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url, PROCESSES="2") as workers, Client.connect(database_url) as client:
        all_of_them = workers.start()
        runs = client.start_many([quick(Order(f"o{i}")) for i in range(20)])

        assert [run.result(timeout="30s") for run in runs] == [f"o{i}" for i in range(20)]
        wait_until(lambda: count(conn, WORKERS) == 2, "both work, and neither has started more")
        pids = workers_of(conn)
        assert workers.end(all_of_them) == OK
        said = workers.log(all_of_them).splitlines()
        assert {int(line.split()[2]) for line in said} == {all_of_them.pid, *pids}


def test_sigint_of_a_terminal_reaches_the_command_alone_which_passes_it_on(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url) as workers:
        all_of_them = workers.start(processes=2)
        wait_until(lambda: count(conn, WORKERS) == 2, "both work")
        groups = {os.getpgid(pid) for pid in workers_of(conn)}

        code = workers.end(all_of_them, signal.SIGINT)

        assert (code, count(conn, WORKERS)) == (OK, 0)
        assert os.getpgid(0) not in groups


def test_a_signal_that_reaches_each_process_and_the_command_as_well_skips_no_grace(
    database_url: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    with crew(database_url, GRACE="60s") as workers, Client.connect(database_url) as client:
        all_of_them = workers.start(DOORS, processes=2)
        run = client.start(wait_at_door(str(tmp_path / "door")))
        wait_until(lambda: count(conn, WORKERS) == 2 and count(conn, RUNNING) == 1, "one executes it, the other rests")
        (busy,) = workers_of(conn, "select name from kedge.workers where id in (select worker_id from kedge.runs)")

        os.kill(busy, signal.SIGTERM)
        wait_until(lambda: workers.log(all_of_them).count("worker: SIGTERM") == 1, "it has heard the first")
        os.kill(busy, signal.SIGTERM)
        wait_until(lambda: workers.log(all_of_them).count("worker: SIGTERM") == 2, "it has heard the second")
        all_of_them.terminate()
        wait_until(lambda: "processes: SIGTERM" in workers.log(all_of_them), "the command has heard it too")
        open_door(tmp_path, "door")

        assert all_of_them.wait(timeout=30) == OK
        assert run.result(timeout=0) == str(busy)
        assert count(conn, "select max(epoch) from kedge.finished") == 1


def test_a_second_signal_skips_the_grace_of_all(database_url: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    with crew(database_url, GRACE="1h", LEASE="30s") as workers, Client.connect(database_url) as client:
        all_of_them = workers.start(DOORS, processes=2)
        client.start(wait_at_door(str(tmp_path / "door")))
        wait_until(lambda: count(conn, WORKERS) == 2 and count(conn, RUNNING) == 1, "one executes it, the other rests")
        all_of_them.terminate()
        wait_until(lambda: "worker: SIGTERM" in workers.log(all_of_them), "the first has come through")

        code = workers.end(all_of_them)

        assert (code, count(conn, RUNNING), count(conn, WORKERS)) == (OK, 0, 0)


# ---------------------------------------------------------------- deaths


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGTERM, "exit code 0")], ids=["kill", "term"]
)
def test_a_process_that_ends_is_replaced_and_its_runs_go_on(
    database_url: str, conn: psycopg.Connection, number: signal.Signals, how: str
) -> None:
    with crew(database_url) as workers, Client.connect(database_url) as client:
        all_of_them = workers.start(processes=2)
        wait_until(lambda: count(conn, WORKERS) == 2, "both work")
        runs = client.start_many([process(Order(f"o{i}", steps=4, pause_s=0.1)) for i in range(20)])
        wait_until(lambda: count(conn, RUNNING) > 0, "some run")
        gone, stays = sorted(workers_of(conn))

        os.kill(gone, number)

        assert [run.result(timeout="30s").name for run in runs] == [f"o{i}" for i in range(20)]
        wait_until(lambda: len(workers_of(conn) - {gone}) == 2, "another one has taken its place")
        assert stays in workers_of(conn)
        assert f"process {gone} (" in workers.log(all_of_them)
        assert f"ended: {how}; the next one starts in 1 s" in workers.log(all_of_them)
        assert workers.end(all_of_them) == OK


def test_the_end_of_all_processes_at_once_by_their_own_handlers_does_not_end_the_command(
    database_url: str, conn: psycopg.Connection
) -> None:
    with crew(database_url, CONCURRENCY="1") as workers, Client.connect(database_url) as client:
        all_of_them = workers.start("tests.scenarios.poison:worker", processes=2)
        wait_until(lambda: count(conn, WORKERS) == 2, "both work")

        runs = client.start_many([poison(Poison("exit", deaths=2)) for _ in range(2)])

        assert [run.result(timeout="60s") for run in runs] == ["survived in shared"] * 2
        assert workers.end(all_of_them) == OK


def test_processes_give_everything_back_and_end_when_the_command_is_killed(
    database_url: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    with crew(database_url, GRACE="1h", LEASE="1h") as workers, Client.connect(database_url) as client:
        all_of_them = workers.start(DOORS, processes=2)
        run = client.start(wait_at_door(str(tmp_path / "door")))
        wait_until(lambda: count(conn, WORKERS) == 2 and count(conn, RUNNING) == 1, "one executes it, the other rests")
        pids = workers_of(conn)

        all_of_them.kill()

        wait_until(lambda: not any(map(lives, pids)), "they have gone as well")
        assert (count(conn, RUNNING), count(conn, WORKERS)) == (0, 0)
        assert (client.get(run).status, client.get(run).crashes) == ("pending", 0)


def test_a_database_that_is_away_is_waited_for_and_ends_nothing(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with crew(server.url) as workers:
        server.stop()
        all_of_them = workers.start(processes=2)
        wait_until(lambda: "no database yet" in workers.log(all_of_them), "the first has tried")

        server.start()

        with psycopg.connect(server.url, autocommit=True) as conn:
            wait_until(lambda: count(conn, WORKERS) == 2, "both work")
        assert workers.end(all_of_them) == OK
        assert "the next one starts" not in workers.log(all_of_them)


# ---------------------------------------------------------------- what is wrong for all


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tests.scenarios.shop", "is not module:worker"),
        ("tests.scenarios.shop:workr", "did you mean tests.scenarios.shop:worker?"),
        ("tests.scenarios.no_such_shop:worker", "there is no module"),
    ],
)
def test_a_wrong_target_ends_the_command_and_is_said_once(database_url: str, target: str, said: str) -> None:
    code, _, log = command("run", target, "--processes", "3", url=database_url)

    assert code == USAGE
    assert log.count(said) == 1


def test_wrong_settings_end_the_command(database_url: str) -> None:
    code, _, log = command(
        "run", "tests.scenarios.shop:worker", "--processes", "2", url=database_url, KEDGE_CONCURRENCY="0"
    )

    assert code == USAGE
    assert log.count("concurrency=0 is out of range") == 1


def test_a_schema_that_does_not_fit_ends_the_command(postgres: PostgresServer) -> None:
    url = empty_database(postgres, "several_processes_missing")

    code, _, log = command("run", "tests.scenarios.shop:worker", "--processes", "2", url=url)

    assert code == WRONG_SCHEMA
    assert log.count("kedge-worker migrate") == 1


def test_a_module_that_cannot_be_imported_any_more_ends_the_command_when_the_last_process_has_gone(
    database_url: str, conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "deployed_worker.py"
    module.write_text("from tests.scenarios.shop import worker\n", "utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with crew(database_url) as workers, Client.connect(database_url) as client:
        all_of_them = workers.start("deployed_worker:worker", processes=2)
        wait_until(lambda: count(conn, WORKERS) == 2, "both work")
        first, last = workers_of(conn)
        module.write_text("raise SystemExit(3)  # a deploy that went wrong\n", "utf-8")

        os.kill(first, signal.SIGKILL)
        again = "ended before it worked: exit code 3; the next one starts in 2 s"
        wait_until(lambda: again in workers.log(all_of_them), "its successor could not begin")
        assert client.start(quick(Order("meanwhile"))).result(timeout="30s") == "meanwhile"
        os.kill(last, signal.SIGKILL)

        assert all_of_them.wait(timeout=30) == 3
        assert workers.log(all_of_them).count("no other works: the end of all") == 1


@pytest.mark.parametrize("number", ["0", "-1", "257", "two"])
def test_a_number_of_processes_that_is_none_is_refused(number: str) -> None:
    given = command("run", "nowhere:worker", f"--processes={number}", url="")
    said = command("run", "nowhere:worker", url="", KEDGE_PROCESSES=number)

    wrong = f"{number!r}: how many worker processes to run, from 1 to 256\n"
    assert given == (USAGE, "", f"kedge-worker: --processes={wrong}")
    assert said == (USAGE, "", f"kedge-worker: KEDGE_PROCESSES={wrong}")
