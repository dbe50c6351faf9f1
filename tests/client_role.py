"""
The suites of clients as a login that is a member of `kedge_client` and of nothing else: with KEDGE_TEST_CLIENT_ROLE=1.

    KEDGE_TEST_CLIENT_ROLE=1 pytest tests/integration/client tests/scenarios

What a test makes with `Client.connect`, or opens as an application's connection, logs in as that member. The tests' own
looks at the tables, and workers, stay the owner's; so do clients that log in as somebody else, those of tests that are
marked `owners_client`, and those of a server that a test has for itself, to break it: there are no roles in it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kedge.schema.privileges import ROLES, role_name
from kedge_client import AsyncClient, Client
from kedge_worker._migrator import install_roles
from kedge_worker.testing import PostgresServer
from kedge_worker.testing._databases import Databases
from tests import twins

VARIABLE: Final = "KEDGE_TEST_CLIENT_ROLE"
LOGIN: Final = "kedge_test_client_login"
PASSWORD: Final = "test"


class Switch:
    """Replaces the ways in of clients by the member's."""

    def __init__(self) -> None:
        self.switched = 0
        self.is_off = False
        """For a test that says so."""
        self._prefix: str | None = None
        self._user: object = None

    @contextmanager
    def on(self, server: PostgresServer, databases: Databases) -> Generator[None]:
        """Install the roles in what new databases are copies of, and let clients log in as the member."""
        template = databases._template
        with psycopg.connect(server.url, autocommit=True) as admin:
            _execute(admin, "alter database {} with allow_connections true", template)
            install_roles(server.database_url(template))
            _execute(admin, "alter database {} with allow_connections false", template)
            _execute(admin, "create role {} login password 'test' in role kedge_client", LOGIN)
        self._prefix = databases._prefix
        self._user = conninfo_to_dict(server.url).get("user")
        undo = self._replace()
        try:
            yield
        finally:
            undo()
            # A server that was given to us outlives the tests: nothing of the roles may stay in its template.
            with psycopg.connect(server.url, autocommit=True) as admin:
                _execute(admin, "drop role {}", LOGIN)
                _execute(admin, "alter database {} with allow_connections true", template)
                with psycopg.connect(server.database_url(template), autocommit=True) as conn:
                    conn.execute("drop schema kedge cascade")
                    for role in ROLES:
                        _execute(conn, "drop owned by {}", role_name(role, "kedge"))
                for role in ROLES:
                    _execute(admin, "drop role {}", role_name(role, "kedge"))

    def url(self, dsn: str | None) -> str | None:
        """The member's way to a test's database; None where it is another server's, or the test says who it is."""
        given = conninfo_to_dict(dsn or "")
        is_ours = self._prefix is not None and str(given.get("dbname", "")).startswith(self._prefix)
        if self.is_off or not is_ours or given.get("user") != self._user:
            return None
        self.switched += 1
        return make_conninfo(str(dsn), user=LOGIN, password=PASSWORD)

    def _replace(self) -> Callable[[], None]:
        places: list[tuple[Any, str, Any]] = []
        for kind in (Client, AsyncClient):
            own: Any = kind
            places.append((own, "connect", own.__dict__["connect"]))
            own.connect = classmethod(self._wrapped(own.connect.__func__))
        for twin in twins.TWINS:
            own = type(twin)
            places.append((own, "open", own.__dict__["open"]))
            own.open = self._wrapped(own.open)

        def undo() -> None:
            for owner, name, value in places:
                setattr(owner, name, value)

        return undo

    def _wrapped(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(connect)
        def switched(owner: Any, dsn: str | None = None, /, *rest: Any, **options: Any) -> Any:
            return connect(owner, self.url(dsn) or dsn, *rest, **options)

        return switched


SWITCH: Final = Switch()


@pytest.fixture(scope="session", autouse=True)
def as_client_role(request: pytest.FixtureRequest) -> Generator[None]:
    """For a folder's conftest: clients are members of `kedge_client` if the environment wants it."""
    if os.environ.get(VARIABLE) != "1":
        yield
        return
    with SWITCH.on(request.getfixturevalue("postgres"), request.getfixturevalue("databases")):
        yield
    # None would prove nothing.
    assert SWITCH.switched > 0


@pytest.fixture(autouse=True)
def stays_the_owners(request: pytest.FixtureRequest) -> Generator[None]:
    """Beside it: leaves the clients of a marked test alone."""
    SWITCH.is_off = request.node.get_closest_marker("owners_client") is not None
    yield
    SWITCH.is_off = False


def _execute(conn: psycopg.Connection[Any], statement: str, name: str) -> None:
    conn.execute(sql.SQL(statement).format(sql.Identifier(name)))  # pyright: ignore[reportArgumentType]  # our own text
