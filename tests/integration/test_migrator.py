"""The schema is applied once whoever applies it, whole or not at all, and nothing that does not fit is touched."""

from __future__ import annotations

import re
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from kedge.errors import InvalidOptionError, SchemaError
from kedge.schema import SCHEMA_VERSION, functions_hash
from kedge_worker.__main__ import main
from kedge_worker._migrator import check_schema, full_sql, migrate, pending
from kedge_worker.testing import PostgresServer
from kedge_worker.testing._databases import broken_invariants
from tests import moves
from tests.sessions import Session, Sessions, open_sessions

ALL: Final = [
    "schema kedge",
    "0001 runs (additive)",
    "0002 durable_semantics (additive)",
    "0003 retention (additive)",
    "functions and views",
]

# Everything that a schema consists of, in words, whatever its name.
CATALOG: Final[LiteralString] = """
    select format('%%s %%s %%s', c.relkind, c.relname, c.reloptions) from pg_class c where c.relnamespace = %(schema)s
    union all
    select format('%%s.%%s %%s not null %%s default %%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                  a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
      from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
      left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
     where c.relnamespace = %(schema)s and c.relkind in ('r', 'v')
    union all
    select pg_get_indexdef(i.indexrelid) from pg_index i join pg_class c on c.oid = i.indexrelid
     where c.relnamespace = %(schema)s
    union all
    select format('%%s %%s', conname, pg_get_constraintdef(oid)) from pg_constraint where connamespace = %(schema)s
    union all
    select pg_get_functiondef(oid) from pg_proc where pronamespace = %(schema)s
    union all
    select pg_get_viewdef(oid) from pg_class where relnamespace = %(schema)s and relkind = 'v'
    union all
    select format('%%s %%s %%s', c.relname, seqcache, seqtypid::regtype)
      from pg_sequence join pg_class c on c.oid = seqrelid where c.relnamespace = %(schema)s
"""


def catalog(conn: psycopg.Connection, schema: str = "kedge") -> list[str]:
    (oid,) = conn.execute("select to_regnamespace(%s)::oid", (schema,)).fetchone() or (None,)
    lines = [line for (line,) in conn.execute(CATALOG, {"schema": oid})]
    return sorted(re.sub(rf'"?\b{schema}\b"?\.', "SCHEMA.", line) for line in lines)


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Generator[str]:
    """A database with nothing in it."""
    with new_database(postgres) as url:
        yield url


@contextmanager
def new_database(server: PostgresServer, options: LiteralString = "") -> Generator[str]:
    name = f"kedge_empty_{uuid4().hex[:12]}"
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {} " + options).format(sql.Identifier(name)))
        try:
            yield server.database_url(name)
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


# ---- once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_of_twenty_migrators_at_once_one_works_and_all_succeed(empty_url: str, level: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("alter database {} set default_transaction_isolation = {}").format(name, level))

    with ThreadPoolExecutor(20) as threads:
        done = list(threads.map(migrate, [empty_url] * 20))

    assert sorted(done) == [[]] * 19 + [ALL]
    assert broken_invariants(empty_url) == []


def test_migrating_again_does_nothing(database_url: str, db: Session) -> None:
    before = catalog(db.conn)

    assert migrate(database_url) == []
    assert pending(database_url) == []
    assert catalog(db.conn) == before


def test_a_plan_is_what_would_be_applied_and_applies_nothing(empty_url: str) -> None:
    plan = pending(empty_url)

    with psycopg.connect(empty_url) as conn:
        assert conn.execute("select to_regnamespace('kedge')").fetchone() == (None,)
    assert [title for title, _ in plan] == ALL
    assert migrate(empty_url) == ALL


def test_a_plan_can_be_applied_by_hand(empty_url: str, database_url: str) -> None:
    with psycopg.connect(empty_url) as conn:
        for _, text in pending(empty_url):
            conn.execute(text.encode())

    assert migrate(empty_url) == []
    assert same_catalog(empty_url, database_url)


def test_the_whole_schema_as_one_script_makes_what_a_migration_makes(empty_url: str, database_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute(full_sql().encode())

    assert migrate(empty_url) == []
    assert same_catalog(empty_url, database_url)


def test_functions_of_another_release_are_replaced_and_the_tables_stay(database_url: str, db: Session) -> None:
    moves.started(db)
    before = catalog(db.conn)
    db.rows(
        "create or replace function kedge.clock() returns timestamptz language sql"
        " as $$ select now() - interval '1 h' $$"
    )
    db.rows("drop function kedge.release_runs")
    db.rows("update kedge.migrations set hash = 'of another release' where number = 0")

    applied = migrate(database_url)

    assert applied == ["functions and views"]
    assert catalog(db.conn) == before
    assert db.value("select hash from kedge.migrations where number = 0") == functions_hash()
    assert len(moves.statuses(db)) == 1


def test_a_migration_that_fails_leaves_nothing(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute("create schema kedge")
        conn.execute("create view kedge.run_tags as select 1 as in_the_way")

        with pytest.raises(errors.DuplicateTable):
            migrate(empty_url)

        assert conn.execute("select relname from pg_class where relnamespace = 'kedge'::regnamespace").fetchall() == [
            ("run_tags",)
        ]
        conn.execute("drop view kedge.run_tags")
    assert migrate(empty_url) == ALL


def test_a_role_that_owns_the_schema_needs_no_right_to_make_schemas(empty_url: str) -> None:
    role = f"owner_{uuid4().hex[:12]}"
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        conn.execute(sql.SQL("create schema kedge authorization {}").format(sql.Identifier(role)))
        try:
            assert migrate(as_role(empty_url, role)) == ALL
        finally:
            conn.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(role)))
            conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def as_role(url: str, role: str) -> str:
    return make_conninfo(url, options=f"-c role={role}")


# ---- several installations ----------------------------------------------------------------------------------------


def test_two_schemas_in_one_database_are_alike_and_know_nothing_of_each_other(database_url: str, db: Session) -> None:
    applied = migrate(database_url, schema="other_1")

    assert applied == ["schema other_1", *ALL[1:]]
    assert migrate(database_url) == []
    assert catalog(db.conn, "other_1") == catalog(db.conn)
    moves.started(db)
    assert db.value("select count(*) from other_1.runs") == 0
    assert broken_invariants(database_url, schema="other_1") == []


def test_the_couriers_of_two_schemas_do_not_meet(database_url: str, sessions: Sessions) -> None:
    migrate(database_url, schema="other_1")
    db, courier = sessions.open(), sessions.open()
    (run,) = moves.started(db)
    moves.cancel(db, run)
    courier.begin()
    courier.rows("select * from other_1.sort_inbox(500)")

    sorted_ = moves.sort_inbox(db)
    courier.rollback()

    assert sorted_.ended == [run]


def test_the_migrators_of_two_schemas_do_not_wait_for_each_other(database_url: str, sessions: Sessions) -> None:
    migrating = sessions.open()
    migrating.begin()
    migrating.rows("select pg_advisory_xact_lock(hashtext('kedge-migrate'), hashtext('kedge'))")

    assert migrate(make_conninfo(database_url, options="-c statement_timeout=5s"), schema="other_1")

    migrating.rollback()


def test_a_migrator_waits_for_another_one_of_the_same_schema(empty_url: str) -> None:
    with open_sessions(empty_url) as sessions, ThreadPoolExecutor(1) as thread:
        first = sessions.open()
        first.begin()
        first.rows("select pg_advisory_xact_lock(hashtext('kedge-migrate'), hashtext('kedge'))")

        second = thread.submit(migrate, make_conninfo(empty_url, application_name="second"))
        sessions.wait_until(
            "select exists (select 1 from pg_stat_activity where application_name = 'second'"
            " and %(pid)s = any (pg_blocking_pids(pid)))",
            {"pid": first.pid},
            what="the second migrator to wait",
        )
        first.rollback()

        assert second.result() == ALL


@pytest.mark.parametrize("name", ["", "Kedge", "1st", "a b", 'a"b', "a" * 42, "kédge", "kedge.runs", "x;drop table y"])
def test_a_name_that_is_no_schemas_is_refused_before_anybody_connects(name: str) -> None:
    nowhere = "host=/nowhere"

    for refuse in (migrate, pending):
        with pytest.raises(InvalidOptionError):
            refuse(nowhere, schema=name)
    with pytest.raises(InvalidOptionError):
        full_sql(schema=name)


def test_the_longest_name_and_one_that_is_a_word_of_sql_work(empty_url: str) -> None:
    for name in ("a" * 41, "select", "_"):
        migrate(empty_url, schema=name)

        assert broken_invariants(empty_url, schema=name) == []


# ---- what does not fit --------------------------------------------------------------------------------------------


def test_a_released_file_that_was_changed_is_refused_and_named(database_url: str, db: Session) -> None:
    db.rows("update kedge.migrations set hash = 'another' where number = 1")
    db.rows("update kedge.migrations set hash = 'another' where number = 0")

    with pytest.raises(SchemaError, match=r"migration 1 \(runs\) is not the one applied here"):
        migrate(database_url)

    assert db.value("select hash from kedge.migrations where number = 0") == "another"


def test_a_newer_schema_is_refused(database_url: str, db: Session) -> None:
    db.rows("insert into kedge.migrations (number, name, kind, hash) values (99, 'later', 'additive', 'x')")

    for refuse in (migrate, pending):
        with pytest.raises(SchemaError, match="newer release") as refused:
            refuse(database_url)
        assert (refused.value.found, refused.value.wanted) == (99, SCHEMA_VERSION)


@pytest.mark.parametrize("options", ["encoding 'SQL_ASCII'", "encoding 'LATIN1'"])
def test_a_database_that_is_not_utf8_is_refused(postgres: PostgresServer, options: LiteralString) -> None:
    with new_database(postgres, options + " locale 'C' template template0") as url:
        with pytest.raises(SchemaError, match="UTF8"):
            migrate(url)

        with psycopg.connect(url) as conn:
            assert conn.execute("select to_regnamespace('kedge')").fetchone() == (None,)


def test_a_worker_refuses_what_it_cannot_work_with_and_names_the_command() -> None:
    present = {0: ("functions", "additive", functions_hash()), SCHEMA_VERSION: ("runs", "additive", "x")}

    check_schema(present, schema="kedge")
    check_schema({**present, 99: ("later", "additive", "x")}, schema="kedge")
    with pytest.raises(SchemaError, match=r"missing.*kedge-worker migrate --schema mine"):
        check_schema({}, schema="mine")
    with pytest.raises(SchemaError, match=r"version 99.*newer kedge-worker"):
        check_schema({**present, 98: ("a", "additive", "x"), 99: ("b", "breaking", "x")}, schema="kedge")


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command_applies_plans_and_prints(empty_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs: list[str] = []
    for flags in (["--plan"], [], [], ["--plan"], ["--sql"]):
        assert main(["migrate", "--database-url", empty_url, "--schema", "kedge", *flags]) == 0
        outputs.append(capsys.readouterr().out)

    plan, applied, again, plan_again, script = outputs
    assert [line for line in plan.splitlines() if line in [f"-- {title}" for title in ALL]] == [
        f"-- {title}" for title in ALL
    ]
    assert applied == "".join(f"applied {title}\n" for title in ALL)
    assert again == "nothing to do\n"
    assert plan_again.startswith("-- nothing to do")
    assert script == full_sql()


def test_the_command_tells_a_schema_that_does_not_fit_by_its_exit_code(
    database_url: str, db: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    db.rows("insert into kedge.migrations (number, name, kind, hash) values (99, 'later', 'additive', 'x')")

    assert main(["migrate", "--database-url", database_url, "--schema", "kedge"]) == 5
    assert "newer release" in capsys.readouterr().err


def same_catalog(url: str, other: str) -> bool:
    with psycopg.connect(url) as conn, psycopg.connect(other) as reference:
        assert catalog(conn) == catalog(reference)
    return True


@pytest.fixture(autouse=True)
def _environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes its options into the environment, for the module that `run` imports."""
    for name in ("KEDGE_DATABASE_URL", "KEDGE_SCHEMA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
