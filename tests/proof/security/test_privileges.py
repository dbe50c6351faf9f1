"""Each role may do exactly what the table of privileges says, with each object that the catalog knows."""

from __future__ import annotations

from typing import Any, Final

import psycopg
import pytest

from kedge.schema.privileges import (
    ADMIN_FUNCTIONS,
    CLIENT_FUNCTIONS,
    OWNER_FUNCTIONS,
    SEQUENCES,
    TABLES,
    VIEWS,
    WORKER_FUNCTIONS,
)
from tests.proof.kit.lanes import thinned
from tests.proof.security.roles import REFUSED, Land

CALLERS: Final = ("client", "worker", "admin", "outsider")
TABLE_RIGHTS: Final = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
SEQUENCE_RIGHTS: Final = ("usage", "select", "update")

FUNCTIONS_OF: Final = {
    "client": frozenset(CLIENT_FUNCTIONS),
    "worker": frozenset(CLIENT_FUNCTIONS + WORKER_FUNCTIONS),
    "admin": frozenset(CLIENT_FUNCTIONS + ADMIN_FUNCTIONS),
    "outsider": frozenset[str](),
}

# Every object of the schema, whoever made it: kind, name, oid.
OBJECTS: Final = """
    select 'function', p.proname::text, p.oid from pg_proc p where p.pronamespace = 'kedge'::regnamespace
    union all
    select case c.relkind when 'r' then 'table' when 'v' then 'view' when 'S' then 'sequence' else c.relkind::text end,
           c.relname::text, c.oid
      from pg_class c where c.relnamespace = 'kedge'::regnamespace and c.relkind not in ('i', 'I', 't', 'c')
"""


def expected(role: str, kind: str, name: str) -> frozenset[str]:
    """What a role may do with an object, as the table of privileges says."""
    if kind == "function":
        return frozenset(["execute"]) if name in FUNCTIONS_OF[role] else frozenset()
    if kind == "sequence":
        return frozenset(["usage"]) if role == "worker" else frozenset()
    if role == "worker" and kind == "table":
        return frozenset(TABLES[name].split(", "))
    return frozenset(["select"]) if role == "admin" else frozenset()


def without_entry(conn: psycopg.Connection[Any]) -> set[tuple[str, str]]:
    """The objects of which the table of privileges says nothing, and those of which it speaks without reason."""
    found = {(str(kind), str(name)) for kind, name, _ in conn.execute(OBJECTS)}
    named = {
        *(("function", n) for n in (*CLIENT_FUNCTIONS, *WORKER_FUNCTIONS, *ADMIN_FUNCTIONS, *OWNER_FUNCTIONS)),
        *(("table", name) for name in TABLES),
        *(("view", name) for name in VIEWS),
        *(("sequence", name) for name in SEQUENCES),
    }
    return found ^ named


def open_to_everybody(conn: psycopg.Connection[Any]) -> set[str]:
    """What PUBLIC may do with anything in the schema, or with the schema."""
    rows = conn.execute("""
        select p.oid::regprocedure || ' ' || a.privilege_type from pg_proc p
         cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
         where p.pronamespace = 'kedge'::regnamespace and a.grantee = 0
        union all
        select c.oid::regclass || ' ' || a.privilege_type from pg_class c cross join lateral aclexplode(c.relacl) a
         where c.relnamespace = 'kedge'::regnamespace and a.grantee = 0
        union all
        select n.nspname || ' ' || a.privilege_type from pg_namespace n cross join lateral aclexplode(n.nspacl) a
         where n.nspname = 'kedge' and a.grantee = 0""")
    return {str(text) for (text,) in rows}


def loose_functions(conn: psycopg.Connection[Any]) -> set[str]:
    """Functions with the owner's rights that look for names where a caller may have put some."""
    rows = conn.execute("""
        select p.proname::text from pg_proc p
         where p.pronamespace = 'kedge'::regnamespace and p.prosecdef
           and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)""")
    return {str(name) for (name,) in rows}


# ---- the catalog ----------------------------------------------------------------------------------------------------


def test_every_object_has_an_entry_and_every_entry_an_object(land: Land) -> None:
    with land.open() as conn:
        assert without_entry(conn) == set()

        conn.execute("create function kedge.brand_new() returns int language sql as 'select 1'")
        conn.execute("create table kedge.unheard_of ()")
        assert without_entry(conn) == {("function", "brand_new"), ("table", "unheard_of")}


def test_a_name_is_one_function(shared_land: Land) -> None:
    names = [name for kind, name, _ in shared_land.rows(OBJECTS) if kind == "function"]

    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("role", CALLERS)
def test_the_catalog_grants_a_role_exactly_what_its_entry_says(shared_land: Land, role: str) -> None:
    login = f"proof_{role}"
    wrong: list[tuple[str, str, frozenset[str]]] = []
    with shared_land.open() as conn:
        checks = {"function": ("function", ["execute"]), "sequence": ("sequence", list(SEQUENCE_RIGHTS))}
        table_rights = [*TABLE_RIGHTS, *(["maintain"] if conn.info.server_version >= 170000 else [])]
        for kind, name, oid in conn.execute(OBJECTS).fetchall():
            what, rights = checks.get(kind, ("table", table_rights))
            has = frozenset(
                right
                for right in rights
                for (may,) in conn.execute(
                    f"select has_{what}_privilege(%s::name, %s::oid, %s)".encode(), (login, oid, right)
                )
                if may
            )
            if has != expected(role, kind, name):
                wrong.append((kind, name, has))
        schema = conn.execute(
            "select has_schema_privilege(%(r)s, 'kedge', 'usage'), has_schema_privilege(%(r)s, 'kedge', 'create')",
            {"r": login},
        ).fetchone()

    assert wrong == []
    assert schema == (role != "outsider", False)


def test_nobody_but_the_owner_owns_anything(shared_land: Land) -> None:
    owners = shared_land.rows("""
        select distinct pg_get_userbyid(relowner)::text from pg_class where relnamespace = 'kedge'::regnamespace
        union select distinct pg_get_userbyid(proowner)::text from pg_proc where pronamespace = 'kedge'::regnamespace
        union select pg_get_userbyid(nspowner)::text from pg_namespace where nspname = 'kedge'""")
    groups = shared_land.rows(
        "select rolname::text, rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls from pg_roles"
        " where rolname like 'kedge\\_%' order by 1"
    )

    assert owners == [("kedge_owner",)]
    assert groups == [
        (name, False, False, False, False, False)
        for name in ("kedge_admin", "kedge_client", "kedge_owner", "kedge_worker")
    ]


@pytest.mark.parametrize("with_roles", [False, True], ids=["without roles", "with roles"])
def test_there_is_nothing_that_everybody_may_do(
    database_url: str, request: pytest.FixtureRequest, with_roles: bool
) -> None:
    if with_roles:
        request.getfixturevalue("land")
    with psycopg.connect(database_url, autocommit=True) as conn:
        assert open_to_everybody(conn) == set()

        conn.execute("create function kedge.brand_new() returns int language sql as 'select 1'")
        assert open_to_everybody(conn) == {"kedge.brand_new() EXECUTE"}


def test_exactly_the_api_has_the_owners_rights_and_looks_for_names_nowhere_else(land: Land) -> None:
    with land.open() as conn:
        definers = conn.execute(
            "select proname::text from pg_proc where pronamespace = 'kedge'::regnamespace and prosecdef"
        ).fetchall()
        assert sorted(name for (name,) in definers) == sorted(CLIENT_FUNCTIONS)
        assert loose_functions(conn) == set()

        conn.execute("alter function kedge.ring_v1(text, text) set search_path = pg_temp, pg_catalog")
        conn.execute("alter function kedge.watch_v1(uuid[], text) reset search_path")
        assert loose_functions(conn) == {"ring_v1", "watch_v1"}


# ---- tried out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", thinned(CALLERS, of=2))
def test_each_function_is_executed_or_refused_as_the_entry_says(shared_land: Land, role: str) -> None:
    calls = shared_land.rows("""
        select p.proname::text, format('select kedge.%s(%s)', p.proname, (
                   select string_agg('null::' || format_type(t, null), ', ' order by n)
                     from unnest(p.proargtypes::oid[]) with ordinality as a(t, n)))
          from pg_proc p where p.pronamespace = 'kedge'::regnamespace""")
    wrong: list[tuple[str, str | None]] = []
    with shared_land.open(role) as conn:
        for name, call in calls:
            state = outcome(conn, call)
            if (state == REFUSED) == (name in FUNCTIONS_OF[role]):
                wrong.append((name, state))

    assert wrong == []


@pytest.mark.parametrize("role", thinned(CALLERS, of=2))
def test_each_table_is_read_written_or_refused_as_the_entry_says(shared_land: Land, role: str) -> None:
    wrong: list[tuple[str, str, str | None]] = []
    with shared_land.open() as conn:
        objects = [row for row in conn.execute(OBJECTS).fetchall() if row[0] in ("table", "view")]
        first_columns = {
            oid: conn.execute(
                "select attname::text from pg_attribute where attrelid = %s and attnum = 1", (oid,)
            ).fetchall()[0][0]
            for _, _, oid in objects
        }
    with shared_land.open(role) as conn:
        for kind, name, oid in objects:
            column = first_columns[oid]
            tries = {
                "select": f"select from kedge.{name} limit 0",
                "insert": f"insert into kedge.{name} ({column}) select null where false",
                "update": f"update kedge.{name} set {column} = null where false",
                "delete": f"delete from kedge.{name} where false",
                "truncate": f"truncate kedge.{name}",
                "trigger": f"create trigger t after insert on kedge.{name} execute function"
                " suppress_redundant_updates_trigger()",
                "alter": f"alter table kedge.{name} add column mine int",
                "drop": f"drop table kedge.{name}",
                "index": f"create index on kedge.{name} ({column})",
            }
            for right, statement in tries.items():
                state = outcome(conn, statement)
                is_wanted = right in expected(role, kind, name)
                # A view cannot be written at all, whoever tries: another error than the one of privileges.
                is_let = state != REFUSED and (kind == "table" or state is None)
                if is_let != is_wanted:
                    wrong.append((name, right, state))

    assert wrong == []


CHANGES: Final = (
    "create table kedge.mine ()",
    "create function kedge.instant(int) returns int language sql as 'select 1'",
    "create or replace function kedge.clock() returns timestamptz language sql as 'select now()'",
    "create or replace function kedge.instant() returns timestamptz language sql as 'select now()'",
    "alter function kedge.clock() volatile",
    "drop function kedge.clock()",
    "create operator kedge.= (leftarg = uuid, rightarg = uuid, function = uuid_eq)",
    "create view kedge.mine as select 1",
    "alter schema kedge rename to mine",
    "drop schema kedge cascade",
    "comment on schema kedge is 'mine'",
    "set role kedge_owner",
    "set session authorization kedge_owner",
    "set session_replication_role = replica",
    "copy kedge.runs to program 'cat'",
    "copy kedge.runs to '/tmp/runs'",
)


def test_nobody_changes_what_there_is(shared_land: Land) -> None:
    let: list[tuple[str, str, str | None]] = []
    for role in CALLERS:
        with shared_land.open(role) as conn:
            states = {statement: outcome(conn, statement) for statement in CHANGES}
        let += [(role, statement, state) for statement, state in states.items() if state != REFUSED]

    assert let == []


def test_only_members_of_a_role_become_it(shared_land: Land) -> None:
    for role in CALLERS:
        with shared_land.open(role) as conn:
            states = {
                other: outcome(conn, f"set role kedge_{other}") for other in ("client", "worker", "admin", "owner")
            }

        assert states == {other: None if other == role else REFUSED for other in states}


def outcome(conn: psycopg.Connection[Any], statement: str) -> str | None:
    """Execute it, undo it, and answer its SQLSTATE; None if it went well."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(statement.encode())
    except psycopg.Error as error:
        return error.sqlstate
    return None
