"""The worker's command line, as an operator meets it."""

import os
import subprocess
import sys

import psycopg

from kedge_worker.__main__ import OK, UNREACHABLE, USAGE, WRONG_SCHEMA
from kedge_worker.testing import PostgresServer
from kedge_worker.testing._databases import Databases


def command(*arguments: str, url: str, **environment: str) -> tuple[int, str, str]:
    """Run `kedge-worker` and answer its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "kedge_worker", *arguments],
        env={**os.environ, "KEDGE_DATABASE_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def empty_database(postgres: PostgresServer, name: str) -> str:
    """A database without the schema; it goes with the server."""
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute(f"drop database if exists {name}".encode())
        conn.execute(f"create database {name}".encode())
    return postgres.database_url(name)


def test_migrate_plans_then_applies_then_has_nothing_to_do(postgres: PostgresServer) -> None:
    url = empty_database(postgres, "command_line_migrate")

    planned = command("migrate", "--plan", url=url)
    applied = command("migrate", url=url)
    again = command("migrate", url=url)

    assert planned[0] == applied[0] == again[0] == OK, planned + applied + again
    assert "create table" in planned[1]
    assert "0001 runs" in applied[1]
    assert again[1] == "nothing to do\n"


def test_the_printed_sql_makes_the_same_schema(postgres: PostgresServer) -> None:
    url = empty_database(postgres, "command_line_sql")

    code, script, _ = command("migrate", "--sql", "--schema", "flow", url="postgresql://nowhere")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(script.encode())

    assert code == OK
    assert command("migrate", "--schema", "flow", url=url)[1] == "nothing to do\n"


def test_a_worker_without_a_schema_names_the_command(postgres: PostgresServer) -> None:
    url = empty_database(postgres, "command_line_missing")

    code, _, said = command("run", "tests.scenarios.shop:worker", url=url)

    assert code == WRONG_SCHEMA
    assert "kedge-worker migrate" in said.splitlines()[-1]


def test_a_worker_beside_functions_of_another_release_names_the_command(databases: Databases) -> None:
    url = databases.create()
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("update kedge.migrations set hash = 'of another release' where number = 0")

        code, _, said = command("run", "tests.scenarios.shop:worker", url=url)

        assert code == WRONG_SCHEMA
        assert "another release: kedge-worker migrate" in said.splitlines()[-1]
    finally:
        databases.drop(url)


def test_a_worker_that_is_older_than_a_breaking_schema_stops(databases: Databases) -> None:
    url = databases.create()
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("insert into kedge.migrations values (9, 'future', 'breaking', 'x')")

        code, _, said = command("run", "tests.scenarios.shop:worker", url=url)

        assert code == WRONG_SCHEMA
        assert "newer" in said.splitlines()[-1]
    finally:
        databases.drop(url)


def test_what_is_no_worker_is_refused_with_a_hint(database_url: str) -> None:
    for target, hint in (
        ("tests.scenarios.shop", "module:worker"),
        ("tests.scenarios.shop:workr", "did you mean tests.scenarios.shop:worker?"),
        ("tests.scenarios.no_such_shop:worker", "no module"),
    ):
        code, _, said = command("run", target, url=database_url)

        assert code == USAGE, said
        assert hint in said


def test_migrate_says_when_the_database_is_not_reached() -> None:
    code, _, said = command("migrate", url="postgresql://127.0.0.1:1/nothing")

    assert code == UNREACHABLE
    assert "not reached" in said


def test_bad_settings_are_refused_where_the_worker_is_made(database_url: str) -> None:
    code, _, said = command("run", "tests.scenarios.shop:worker", url=database_url, KEDGE_CONCURRENCY="0")

    assert code == USAGE
    assert "concurrency" in said
