"""A database in which the roles are installed, with a login of each: what the tests of privileges and attacks need."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from kedge.schema.privileges import ROLES, role_name
from kedge_worker._migrator import install_roles
from kedge_worker.testing import PostgresServer
from kedge_worker.testing._databases import Databases

LOGINS: Final = ("client", "worker", "admin", "owner")
OUTSIDER: Final = "proof_outsider"
PASSWORD: Final = "proof"
REFUSED: Final = "42501"


@dataclass(frozen=True)
class Land:
    """A database with roles, and the ways into it."""

    url: str
    """As a superuser."""

    def url_of(self, role: str) -> str:
        """Of a login that is a member of `kedge_<role>`, or of the outsider, who is a member of nothing."""
        return make_conninfo(self.url, user=f"proof_{role}", password=PASSWORD)

    @contextmanager
    def open(self, role: str | None = None, **settings: str) -> Generator[psycopg.Connection[Any]]:
        """Connect, in autocommit mode, as a role's login or as a superuser."""
        flags = " ".join(f"-c {name}={value}" for name, value in settings.items())
        url = self.url if role is None else self.url_of(role)
        with psycopg.connect(url, autocommit=True, options=flags) as conn:
            yield conn

    def rows(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Execute as a superuser."""
        with self.open() as conn:
            return conn.execute(query, values or None).fetchall()


@pytest.fixture(scope="session")
def logins(postgres: PostgresServer) -> Generator[None]:
    """Logins of the cluster; the roles come with the first database that installs them, and go with the last."""
    names = [*(f"proof_{role}" for role in LOGINS), OUTSIDER]
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        for role in ROLES:
            _create(conn, role_name(role, "kedge"), "nologin")
        for name in names:
            _create(conn, name, "login password 'proof'")
        for role in LOGINS:
            conn.execute(f"grant kedge_{role} to proof_{role}".encode())
        yield
        for name in (*names, *(role_name(role, "kedge") for role in ROLES)):
            conn.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.fixture
def land(database_url: str, logins: None) -> Land:
    """A fresh database with the schema and the roles."""
    del logins
    install_roles(database_url)
    return Land(database_url)


@pytest.fixture(scope="module")
def shared_land(databases: Databases, logins: None) -> Generator[Land]:
    """One database for all tests of a module that undo whatever they do."""
    del logins
    url = databases.create()
    install_roles(url)
    yield Land(url)
    databases.drop(url)


def _create(conn: psycopg.Connection[Any], name: str, options: LiteralString) -> None:
    if conn.execute("select 1 from pg_roles where rolname = %s", (name,)).fetchone() is None:
        conn.execute(sql.SQL("create role {} " + options).format(sql.Identifier(name)))
