"""Databases for tests: one template with the schema, one clone a test, and the question whether it is still sound."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

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
