"""Databases for tests: one template with the schema, one clone a test, and the question whether it is still sound."""

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer, postgres_server
from kedge_worker.testing.postgres import PIN_VARIABLE

VERSION_VARIABLE: Final = "KEDGE_TEST_POSTGRES"
DEFAULT_VERSION: Final = 18
FIRST_WITH_STRATEGIES: Final = 15


class WrongVersionError(Exception):
    """The tests were asked for one version of PostgreSQL and found another."""

    def __init__(self, wanted: int, server: PostgresServer) -> None:
        super().__init__(wanted, server)
        self.wanted = wanted
        self.server = server

    def __str__(self) -> str:
        return f"{VERSION_VARIABLE} asks for PostgreSQL {self.wanted}, but this is {self.server!r}"


@contextmanager
def server_for_tests() -> Generator[PostgresServer]:
    """
    Give the server that tests share: fast, in memory where there is room.

    Raises:
        WrongVersionError: KEDGE_TEST_POSTGRES is set, and the server that was found is of another version.
    """
    wanted = os.environ.get(VERSION_VARIABLE)
    with postgres_server(int(wanted or DEFAULT_VERSION), fast=True) as server:
        if wanted and server.version != int(wanted):
            raise WrongVersionError(int(wanted), server)
        yield server


@contextmanager
def server_to_break() -> Generator[PostgresServer]:
    """Give a server for one test that may stop, kill and freeze it; `server.url` has the schema already."""
    version = int(os.environ.get(VERSION_VARIABLE) or DEFAULT_VERSION)
    with postgres_server(version, fast=True, sources=("embedded", "local")) as server:
        migrate(server.url)
        yield server


def may_start_servers() -> bool:
    """Whether the environment leaves us the choice of a server that we can break."""
    return os.environ.get(PIN_VARIABLE) in {None, "", "embedded", "local"}


class Databases:
    """
    Makes and drops the databases of one process.

    Cloned with FILE_COPY: 6 ms in memory, where WAL_LOG takes 9; on a disk they are equal.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._prefix = f"kedge_test_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self._made = 0
        self._template = f"{self._prefix}_template"
        self._connection = psycopg.connect(server.url, autocommit=True)
        self._execute("create database {}", self._template)
        migrate(server.database_url(self._template))
        # Autovacuum in the template would be in a clone's way.
        self._execute("alter database {} with allow_connections false", self._template)

    def create(self) -> str:
        """Return the URL of a new database with the schema in it."""
        self._made += 1
        name = f"{self._prefix}_{self._made}"
        if self._server.version >= FIRST_WITH_STRATEGIES:
            self._execute("create database {} template {} strategy file_copy", name, self._template)
        else:
            self._execute("create database {} template {}", name, self._template)
        return self._server.database_url(name)

    def drop(self, url: str) -> None:
        """Drop a database of `create`, whoever is still connected."""
        self._execute("drop database if exists {} with (force)", str(conninfo_to_dict(url)["dbname"]))

    def close(self) -> None:
        """Drop the template: a server that was given to us outlives the tests."""
        self._execute("drop database {} with (force)", self._template)
        self._connection.close()

    def _execute(self, statement: LiteralString, *names: str) -> None:
        self._connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def broken_invariants(url: str, *, schema: str = "kedge") -> list[dict[str, Any]]:
    """Return the rows of `check_invariants()`, ended runs included: none unless something is wrong."""
    with psycopg.connect(url) as connection, connection.cursor(row_factory=dict_row) as cursor:
        query = sql.SQL("select * from {}.check_invariants(history => true)").format(sql.Identifier(schema))
        return cursor.execute(query).fetchall()
