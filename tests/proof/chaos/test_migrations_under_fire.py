"""
Migrations by many at once, killed at every statement, beside traffic: the schema is that of a fresh install or the one
before, never something between, and nobody waits for a migration longer than two seconds.

KEDGE_PROOF_ROUNDS: rounds of twenty processes on each beginning (25); KEDGE_PROOF_EVERY: each how many statements one
is killed at (1).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, LiteralString, cast

import psycopg
import pytest

from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer
from tests.integration.test_migrator import catalog, new_database
from tests.proof.chaos.older import older
from tests.proof.kit.lanes import setting
from tests.proof.kit.plugin import Figure

pytestmark = pytest.mark.chaos

ROUNDS: Final = int(setting("rounds", 25))
EVERY: Final = int(setting("every", 1))
PROCESSES: Final = 20
LONGEST_S: Final = 2.0

# Ends the session that executes the n-th command of a migration. The counter is a sequence: no rollback takes it back.
BOMB: Final[LiteralString] = """
    create schema bomb;
    create sequence bomb.commands;
    create function bomb.go_off() returns event_trigger language plpgsql as $$
    begin
        if nextval('bomb.commands') = %s then perform pg_terminate_backend(pg_backend_pid()); end if;
    end $$;
    create event trigger bomb on ddl_command_end execute function bomb.go_off();
"""
DISARM: Final[LiteralString] = """
    drop event trigger if exists bomb;
    drop schema if exists bomb cascade;
"""


# ---- beginnings


def empty(url: str) -> None:
    """Nothing is there."""


# Forked from a process that has imported what they need.
CONTEXT: Final = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kedge_worker._migrator", __name__])

BEGINNINGS: Final = pytest.mark.parametrize("begin", [empty, older])


@pytest.fixture
def fresh(postgres: PostgresServer) -> list[str]:
    """What a fresh install has."""
    with new_database(postgres) as url:
        migrate(url)
        return schema_of(url)


@pytest.fixture(scope="module")
def crowd() -> Generator[ProcessPoolExecutor]:
    """Twenty processes that migrate when told."""
    with ProcessPoolExecutor(PROCESSES, mp_context=CONTEXT) as pool:
        list(pool.map(time.sleep, [0.2] * PROCESSES))  # long enough for each process to get one
        yield pool


# ---- at once


@BEGINNINGS
def test_twenty_processes_migrate_at_once(
    begin: Callable[[str], None], postgres: PostgresServer, fresh: list[str], crowd: ProcessPoolExecutor, figure: Figure
) -> None:
    slowest = 0.0
    for _ in range(ROUNDS):
        with new_database(postgres) as url:
            begin(url)
            began = time.monotonic()
            applied = list(crowd.map(migrate, [url] * PROCESSES))
            slowest = max(slowest, time.monotonic() - began)
            assert sum(bool(one) for one in applied) == 1, "more than one has applied something"
            assert schema_of(url) == fresh
    figure(f"{begin.__name__}: rounds of {PROCESSES} migrators", ROUNDS)
    figure(f"{begin.__name__}: slowest round", slowest, unit="s")


# ---- killed


@BEGINNINGS
def test_a_migrator_whose_session_ends_at_any_command_leaves_nothing(
    begin: Callable[[str], None], postgres: PostgresServer, fresh: list[str], figure: Figure
) -> None:
    points = 0
    with new_database(postgres) as url:
        begin(url)
        before = schema_of(url)
        command = random.randint(1, EVERY)
        while True:
            arm(url, command)
            with suppress(psycopg.OperationalError):
                migrate(url)
                break  # there are not so many commands
            disarm(url)
            assert schema_of(url) == before, f"killed at command {command}"
            points += 1
            command += EVERY
        disarm(url)
        assert schema_of(url) == fresh
    figure(f"{begin.__name__}: commands at which a migration was ended", points, goal=100 / EVERY, at_least=True)


@BEGINNINGS
def test_a_migrator_that_is_killed_is_followed_by_one_that_succeeds(
    begin: Callable[[str], None], postgres: PostgresServer, fresh: list[str], figure: Figure
) -> None:
    kills = 0
    for statement in range(1, 50):
        with new_database(postgres) as url:
            begin(url)
            process = CONTEXT.Process(target=migrate_and_die, args=(url, statement))
            process.start()
            process.join(60)
            migrate(url)
            assert schema_of(url) == fresh, f"killed at statement {statement}"
            if process.exitcode != -signal.SIGKILL:
                assert process.exitcode == 0
                break
            kills += 1
    figure(f"{begin.__name__}: statements at which a migrator was killed", kills, goal=5, at_least=True)


def migrate_and_die(url: str, statement: int) -> None:
    """Migrate, and be killed when that statement is on its way to the server."""
    execute: Any = psycopg.Connection.execute
    count = 0

    def executed(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == statement:
            threading.Timer(random.choice((0, 0.005, 0.02)), os.kill, (os.getpid(), signal.SIGKILL)).start()
            execute(*args, **options)
            time.sleep(60)
        return execute(*args, **options)

    cast("Any", psycopg.Connection).execute = executed
    migrate(url)


# ---- beside traffic


def test_traffic_never_waits_longer_than_two_seconds_for_a_migration(
    postgres: PostgresServer, fresh: list[str], figure: Figure
) -> None:
    """Each table has a reader who takes his time: a migration that waits for one after the other stops all traffic."""
    with new_database(postgres) as url:
        older(url)
        with traffic(url) as waits, readers(url, finished=1.7, inbox=3.4, inbox_failed=5.1):
            migrate(url)
        assert schema_of(url) == fresh
    figure("longest wait of traffic beside a migration", max(waits), unit="s", goal=LONGEST_S)
    assert max(waits) < LONGEST_S


@contextmanager
def traffic(url: str) -> Generator[list[float]]:
    """Short statements on all tables, as workers and clients send them; how long each took."""
    waits: list[float] = []
    over = threading.Event()

    def work(table: LiteralString) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not over.is_set():
                began = time.monotonic()
                conn.execute("select count(*) from kedge." + table)
                waits.append(time.monotonic() - began)
                time.sleep(0.005)

    with ThreadPoolExecutor(4) as pool:
        tables: tuple[LiteralString, ...] = ("runs", "finished", "inbox", "journal")
        working = [pool.submit(work, table) for table in tables]
        try:
            time.sleep(0.3)
            yield waits
            time.sleep(0.3)
        finally:
            over.set()
    for one in working:
        one.result()


@contextmanager
def readers(url: str, **seconds: float) -> Generator[None]:
    """One reader of each table, all at once, each for so long."""

    def read(table: str, reads: threading.Barrier) -> None:
        with psycopg.connect(url) as conn:
            conn.execute(f"select count(*) from kedge.{table}".encode())
            reads.wait()
            time.sleep(seconds[table])

    all_read = threading.Barrier(len(seconds) + 1)
    with ThreadPoolExecutor(len(seconds)) as pool:
        reading = [pool.submit(read, table, all_read) for table in seconds]
        all_read.wait(30)
        yield
    for one in reading:
        one.result()


# ---- what is there


def schema_of(url: str) -> list[str]:
    """Everything that the schema consists of, or nothing."""
    with psycopg.connect(url, autocommit=True) as conn:
        if conn.execute("select to_regnamespace('kedge')").fetchone() == (None,):
            return []
        applied = conn.execute("select number, hash from kedge.migrations order by number").fetchall()
        return [*catalog(conn), *map(str, applied)]


def arm(url: str, command: int) -> None:
    """Let the session end that executes this command of a migration."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(BOMB.replace("%s", str(command)).encode())


def disarm(url: str) -> None:
    with ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(url, autocommit=True))
        conn.execute(DISARM)
