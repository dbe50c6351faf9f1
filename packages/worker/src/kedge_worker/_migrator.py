"""Applies the schema: tables forward only, functions whenever they differ, all in one transaction under a lock."""

from __future__ import annotations

import hashlib
import random
import time
from contextlib import AbstractContextManager
from typing import Final

import psycopg
from psycopg import sql

from kedge import schema as kedge_schema
from kedge.errors import PrivilegesError, SchemaError
from kedge.schema.privileges import privileges_sql, role_name, roles_sql

MINIMUM_SERVER: Final = 140000

# Below deadlock_timeout as it usually is: whoever works with the tables must not be the one that gives way.
_LOCK_MS: Final = 500
_PAUSE_S: Final = (0.5, 1.0)
_PATIENCE_S: Final = 60.0

_SCHEMA: Final = """
create schema if not exists {schema};
"""

_MIGRATIONS_TABLE: Final = """
create table if not exists kedge.migrations (
    number     int         not null primary key,   -- 0 is the set of functions
    name       text        not null,
    kind       text        not null,
    hash       text        not null,
    applied_at timestamptz not null default now()
);
"""

_RECORD: Final = """
insert into kedge.migrations (number, name, kind, hash) values (%s, %s, %s, %s)
on conflict (number) do update set hash = excluded.hash, applied_at = now()
"""


def migrate(conninfo: str, *, schema: str = "kedge") -> list[str]:
    """
    Bring the schema to this release's version; a no-op where it is there already.

    Safe to run from any number of processes at once: one works, the others wait for it and find nothing to do. Where
    roles are installed the owner does it, so that all that is made belongs to it, and the others may do what they need.
    Tables that are in use are locked all at once or not at all, within half a second: nobody waits long for a migration
    that waits for somebody. It is tried again for a minute.

    Returns:
        What was applied, in order, for people.

    Raises:
        SchemaError: The database is newer than this release, was changed by hand, is not UTF-8, or is older than
            PostgreSQL 14.
        PrivilegesError: The roles are installed, and the login is not of the owner's.
        psycopg.errors.QueryCanceled: Some transaction uses the tables all the time.
    """
    kedge_schema.check_schema_name(schema)
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _migrate(conninfo, schema)
        except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > give_up_at:
                raise
        time.sleep(random.uniform(*_PAUSE_S))  # noqa: S311  # jitter


def _migrate(conninfo: str, schema: str) -> list[str]:
    with psycopg.connect(conninfo, autocommit=True) as conn, _transaction(conn):
        _check_server(conn)
        # What somebody has put in the way of ours, in a schema of the path, is not met.
        conn.execute("set local search_path = pg_catalog, pg_temp")
        _become_owner(conn, schema)
        # No lock_timeout while queueing for the turn.
        conn.execute("set local lock_timeout = 0")
        conn.execute("select pg_advisory_xact_lock(hashtext('kedge-migrate'), hashtext(%s))", (schema,))
        plan = _plan(conn, schema)
        if len(plan) > 1:  # not only functions
            _lock_tables(conn, schema)
        for _, text in plan:
            conn.execute(text)  # pyright: ignore[reportArgumentType, reportCallIssue]  # our own files, not a literal
        return [title for title, _ in plan]


def _lock_tables(conn: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
    """
    Lock what there is, where there is something to migrate.

    One table after the other, as the statements come to them, would stop all traffic on the first while a long query on
    the last is waited for.
    """
    rows = conn.execute(
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relkind = 'r' order by 1",
        (schema,),
    ).fetchall()
    if not rows:
        return
    conn.execute(f"set local statement_timeout = '{_LOCK_MS}ms'".encode())
    tables = sql.SQL(", ").join(sql.Identifier(schema, str(name)) for (name,) in rows)
    conn.execute(sql.SQL("lock table {} in access exclusive mode").format(tables))
    conn.execute("set local statement_timeout to default")
    conn.execute(f"set local lock_timeout = '{_LOCK_MS}ms'".encode())


def pending(conninfo: str, *, schema: str = "kedge") -> list[tuple[str, str]]:
    """What `migrate` would apply, as (title, SQL), without applying it."""
    kedge_schema.check_schema_name(schema)
    with psycopg.connect(conninfo, autocommit=True) as conn:
        _check_server(conn)
        return _plan(conn, schema)


def install_roles(conninfo: str, *, schema: str = "kedge") -> None:
    """
    Install the four roles, or bring what they may do to this release's state.

    Raises:
        psycopg.errors.InsufficientPrivilege: The login may not create roles, or does not own what there is.
    """
    kedge_schema.check_schema_name(schema)
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute(roles_sql(schema))  # pyright: ignore[reportArgumentType, reportCallIssue]  # our own text


def full_sql(*, schema: str = "kedge") -> str:
    """The whole schema for an empty database, as one script for people who apply it by other means."""
    parts = ["begin;", _prelude(schema)]
    for title, text in _steps({}, schema):
        parts += [f"-- {title}", text]
    return "\n".join([*parts, "commit;", ""])


def check_schema(applied: dict[int, tuple[str, str, str]], *, schema: str) -> None:
    """
    Refuse a database that this release cannot work with; `applied` is number -> (name, kind, hash), empty if missing.

    A newer schema is fine as long as everything newer is additive: that is how a rolling deploy works. At the same
    number the functions must be the same.
    """
    wanted = kedge_schema.SCHEMA_VERSION
    found = max(applied, default=0)
    if found < wanted or (found == wanted and applied[0][2] != kedge_schema.functions_hash()):
        raise SchemaError(found, wanted, f"kedge-worker migrate --schema {schema}")
    if any(kind == "breaking" for number, (_, kind, _) in applied.items() if number > wanted):
        raise SchemaError(found, wanted, "deploy a newer kedge-worker")


def _transaction(conn: psycopg.Connection[tuple[object, ...]]) -> AbstractContextManager[object]:
    # What the one before has applied while this one waited for its turn must be visible, whatever the default is.
    conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    return conn.transaction()


def _become_owner(conn: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
    owner = role_name("owner", schema)
    is_owners = conn.execute(
        "select 1 from pg_namespace n join pg_roles r on r.oid = n.nspowner where n.nspname = %s and r.rolname = %s",
        (schema, owner),
    ).fetchone()
    if is_owners is None:
        return
    try:
        conn.execute(sql.SQL("set local role {}").format(sql.Identifier(owner)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise PrivilegesError(
            f"the schema {schema} belongs to the role {owner}: grant {owner} to the login that migrates", error.sqlstate
        ) from error


def _prelude(schema: str, *, exists: bool = False) -> str:
    # IF NOT EXISTS asks for the right to create schemas even where there is nothing to create.
    made = "" if exists else _SCHEMA.format(schema=f'"{schema}"')
    return made + kedge_schema.render(_MIGRATIONS_TABLE, schema)


def _plan(conn: psycopg.Connection[tuple[object, ...]], schema: str) -> list[tuple[str, str]]:
    applied = _applied(conn, schema)
    plan = _steps(applied, schema)
    if not plan or applied:
        return plan
    exists = conn.execute("select to_regnamespace(%s)", (f'"{schema}"',)).fetchone() != (None,)
    return [(f"schema {schema}", _prelude(schema, exists=exists)), *plan]


def _applied(conn: psycopg.Connection[tuple[object, ...]], schema: str) -> dict[int, tuple[str, str, str]]:
    if conn.execute("select to_regclass(%s)", (f'"{schema}".migrations',)).fetchone() == (None,):
        return {}
    rows = conn.execute(sql.SQL("select number, name, kind, hash from {}.migrations").format(sql.Identifier(schema)))
    return {int(str(n)): (str(name), str(kind), str(digest)) for n, name, kind, digest in rows}


def _steps(applied: dict[int, tuple[str, str, str]], schema: str) -> list[tuple[str, str]]:
    steps: list[tuple[str, str]] = []
    known = {m.number: m for m in kedge_schema.migrations()}
    newest = max(applied, default=0)
    if newest > kedge_schema.SCHEMA_VERSION:
        raise SchemaError(newest, kedge_schema.SCHEMA_VERSION, "use the newer release's kedge-worker to migrate")
    for number, migration in known.items():
        digest = hashlib.blake2b(migration.sql.encode(), digest_size=16).hexdigest()
        if number in applied:
            if applied[number][2] != digest:
                raise SchemaError(
                    newest,
                    kedge_schema.SCHEMA_VERSION,
                    f"migration {number} ({migration.name}) is not the one applied here: a released file was changed",
                )
            continue
        text = kedge_schema.render(migration.sql, schema) + _record(
            number, migration.name, migration.kind, digest, schema
        )
        steps.append((f"{number:04d} {migration.name} ({migration.kind})", text))
    functions_hash = kedge_schema.functions_hash()
    if steps or applied.get(0, ("", "", ""))[2] != functions_hash:
        text = "\n".join(kedge_schema.render(body, schema) for _, body in kedge_schema.functions())
        text += privileges_sql(schema)
        steps.append(("functions and views", text + _record(0, "functions", "additive", functions_hash, schema)))
    return steps


def _record(number: int, name: str, kind: str, digest: str, schema: str) -> str:
    values = (number, *(f"'{text}'" for text in (name, kind, digest)))
    return kedge_schema.render(_RECORD, schema) % values + ";\n"


def _check_server(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    if conn.info.server_version < MINIMUM_SERVER:
        raise SchemaError(0, kedge_schema.SCHEMA_VERSION, "use PostgreSQL 14 or later")
    if conn.execute("show server_encoding").fetchone() != ("UTF8",):
        raise SchemaError(0, kedge_schema.SCHEMA_VERSION, "use a database with encoding UTF8")
