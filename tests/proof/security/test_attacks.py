"""What somebody with a client's rights, and bad intentions, can do to the others: nothing but what is his own."""

from __future__ import annotations

import math
from typing import Any, Final
from uuid import uuid4

import psycopg
import pytest

from kedge import EventRef, WorkflowRef
from kedge.errors import InvalidOptionError
from kedge.ids import new_run_id
from kedge.schema import check_schema_name
from kedge_worker import Context, workflow
from tests.proof.kit.lanes import thinned
from tests.proof.security.roles import REFUSED, Land

greet = WorkflowRef("greet", str, str)
go = EventRef("go", int)
MIB_64: Final = 67_108_864


@workflow(greet)
async def run_greet(ctx: Context, name: str) -> str:
    await ctx.wait_for("go", go)
    return f"hello {name}"


START: Final = (
    "select * from kedge.start_run_v1(%(id)s::uuid, %(workflow)s::text, %(queue)s::text, %(priority)s::int,"
    " %(input)s::bytea, %(meta)s::bytea, %(key)s::text, %(hash)s::bytea, %(conflict)s::text, %(resource)s::text,"
    " %(delay)s::float8, %(at)s::timestamptz, %(tags)s::text[], false, %(timeout)s::float8, %(singleton)s::text)"
)
START_MANY: Final = (
    "select * from kedge.start_runs_v1(array[%(id)s::uuid], %(workflow)s::text, %(queue)s::text, %(priority)s::int,"
    " array[%(input)s::bytea], array[%(meta)s::bytea],"
    " case when %(key)s::text is not null then array[%(key)s::text] end,"
    " array[%(hash)s::bytea], %(conflict)s::text, array[%(resource)s::text], %(delay)s::float8, %(at)s::timestamptz,"
    " %(tags)s::text[], false, %(timeout)s::float8, %(singleton)s::text)"
)


def terms(**changed: object) -> dict[str, object]:
    """A start that is all right, but for these."""
    return {
        "id": new_run_id(),
        "workflow": "greet",
        "queue": "default",
        "priority": 0,
        "input": b'\x01"x"',
        "meta": b"",
        "key": None,
        "hash": None,
        "conflict": "return",
        "resource": None,
        "delay": None,
        "at": None,
        "tags": None,
        "timeout": None,
        "singleton": None,
        **changed,
    }


# ---- shadows -------------------------------------------------------------------------------------------------------

SHADOWS: Final = """
    create schema mine;
    grant all on schema mine to proof_client;
"""
# What functions of ours use without saying where it is: each would tell if it were the attacker's that is met.
TRAPS: Final = """
    create function {place}.sprung() returns void language plpgsql as $f$
    begin
        if current_user not in ('proof_client') then
            raise exception 'sprung as %', current_user using errcode = 'ZZ666';
        end if;
    end $f$;
    create function {place}.eq(a uuid, b uuid) returns boolean language plpgsql as $f$
    begin perform {place}.sprung(); return pg_catalog.uuid_eq(a, b); end $f$;
    create operator {place}.= (leftarg = uuid, rightarg = uuid, function = {place}.eq);
    create function {place}.eqt(a text, b text) returns boolean language plpgsql as $f$
    begin perform {place}.sprung(); return pg_catalog.texteq(a, b); end $f$;
    create operator {place}.= (leftarg = text, rightarg = text, function = {place}.eqt);
    create function {place}.now() returns timestamptz language plpgsql as $f$
    begin perform {place}.sprung(); return '2000-01-01'; end $f$;
    create function {place}.clock_timestamp() returns timestamptz language plpgsql as $f$
    begin perform {place}.sprung(); return '2000-01-01'; end $f$;
    create function {place}.octet_length(a text) returns int language plpgsql as $f$
    begin perform {place}.sprung(); return 1; end $f$;
    create function {place}.octet_length(a bytea) returns int language plpgsql as $f$
    begin perform {place}.sprung(); return 1; end $f$;
    create function {place}.split_part(a text, b text, c int) returns text language plpgsql as $f$
    begin perform {place}.sprung(); return 'x'; end $f$;
    create function {place}.pg_notify(a text, b text) returns void language plpgsql as $f$
    begin perform {place}.sprung(); end $f$;
    create function {place}.gen_random_uuid() returns uuid language plpgsql as $f$
    begin perform {place}.sprung(); return null; end $f$;
    create function {place}.starts_with(a text, b text) returns boolean language plpgsql as $f$
    begin perform {place}.sprung(); return true; end $f$;
"""


@pytest.mark.parametrize("place", ["pg_temp", "mine"])
def test_what_a_caller_has_called_as_ours_is_called_is_never_met(land: Land, place: str) -> None:
    with land.open() as conn:
        conn.execute(SHADOWS)
        tables = [
            str(name)
            for (name,) in conn.execute(
                "select relname from pg_class where relnamespace = 'kedge'::regnamespace and relkind in ('r', 'v')"
            )
        ]
        calls = api_calls(conn)
    mine = new_run_id()
    with land.open("client") as conn:
        for table in tables:
            conn.execute(f"create table {place}.{table} (id uuid, run_id uuid)".encode())
        conn.execute(TRAPS.replace("{place}", place).encode())
        conn.execute(f"set search_path = {place}, pg_catalog, kedge".encode())

        assert (springs(conn, place), springs_as_owner(land, place)) == (False, place != "pg_temp" or None)
        conn.execute(START.encode(), terms(id=mine, key="k", hash=b"h" * 24, tags=["a"]))
        for call in calls:
            assert executed(conn, call, {"run": mine}) not in {"ZZ666", REFUSED, "XX000"}, call

        for table in tables:
            assert conn.execute(f"select count(*) from {place}.{table}".encode()).fetchone() == (0,), table
    assert land.rows("select count(*) from kedge.runs where id = %s", mine) == [(1,)]


def springs(conn: psycopg.Connection[Any], place: str) -> bool:
    """Whether a trap springs for the attacker's own sake: it must not, it only tells of others."""
    try:
        conn.execute(f"select {place}.sprung()".encode())
    except psycopg.Error:
        return True
    return False


def springs_as_owner(land: Land, place: str) -> bool | None:
    """Whether a function with another's rights that has not pinned its path falls into a trap: the traps are good."""
    if place == "pg_temp":
        return None
    with land.open() as conn:
        conn.execute(
            "create function kedge.careless() returns boolean language sql security definer as"
            " $$ select now() > '1999-01-01' $$"
        )
        conn.execute("grant execute on function kedge.careless to proof_client")
    try:
        with land.open("client", search_path="mine,pg_catalog") as conn:
            conn.execute("select kedge.careless()")
    except psycopg.Error as error:
        return error.sqlstate == "ZZ666"
    finally:
        with land.open() as conn:
            conn.execute("drop function kedge.careless")
    return False


def api_calls(conn: psycopg.Connection[Any]) -> list[str]:
    """A call of each function that a client may call, with sensible values."""
    values = {
        "p_run": "%(run)s::uuid",
        "p_ids": "array[%(run)s::uuid]",
        "p_letter": "gen_random_uuid()",
        "p_id": "%(run)s::uuid",
        "p_channel": "'channel'",
        "p_event": "'go'",
        "p_limit": "10",
        "p_workflow": "'greet'",
        "p_queue": "'default'",
        "p_step": "'a'",
        "p_payload": "'\\x0131'::bytea",
        "p_full": "true",
        "p_priority": "0",
        "p_input": "'\\x01'::bytea",
        "p_inputs": "array['\\x01'::bytea]",
        "p_after": "0",
        "p_lines": "0",
        "p_notes": "0",
        "p_statuses": "array['pending', 'failed']",
    }
    calls: list[str] = []
    for name, names, types in conn.execute("""
        select p.proname::text, p.proargnames[1:p.pronargs],
               array(select format_type(t, null) from unnest(p.proargtypes::oid[]) with ordinality a(t, n) order by n)
          from pg_proc p where p.pronamespace = 'kedge'::regnamespace and p.prosecdef order by 1""").fetchall():
        arguments = [
            f"{'null' if (name, argument) == ('list_run_ids_v1', 'p_after') else values.get(argument, 'null')}::{kind}"
            for argument, kind in zip(names, types, strict=True)
        ]
        calls.append(f"select * from kedge.{name}({', '.join(arguments)})")
    return calls


# ---- names ---------------------------------------------------------------------------------------------------------

NAMES: Final = (
    'a"b',
    "o'brien",
    "a$$b",
    "$cmd$",
    "x.job",
    "a\\b",
    "a\nb",
    "a\tb",
    "n" * 63,
    "n" * 64,
    "n" * 1000,
    "🚢",
    "a\u202eb",
    "\u0430pple",
    "pg_catalog",
    "public",
    "%s",
    "%I",
    "%(name)s",
    "{}",
    ":x",
    "--",
    ";drop schema kedge cascade",
    " a",
    "a ",
    "",
    "\x01",
    "\x7f",
    "!solo default",
    "@",
    "a@",
    "k:x",
    "t:x",
    "/*",
    "null",
    "\\x00",
    "' or 1=1 --",
    "$1",
    "{0}",
)


def test_a_name_of_any_kind_is_refused_with_a_typed_error_or_kept_as_it_is(land: Land) -> None:
    for name in thinned(NAMES, of=10):
        _try_name(land, name)


def _try_name(land: Land, name: str) -> None:
    before = land.rows("select count(*) from pg_class")
    with land.open("client") as conn:
        run = new_run_id()
        conn.execute(START.encode(), terms(id=run))
        for call, values in (
            (START, terms(workflow=name)),
            (START, terms(queue=name)),
            (START, terms(resource=name)),
            (START, terms(key=name, hash=b"h" * 24)),
            (START, terms(key=name, singleton="raise")),
            (START, terms(tags=[name])),
            (START_MANY, terms(queue=name)),
            (START_MANY, terms(resource=name)),
            (START_MANY, terms(tags=[name])),
            (START_MANY, terms(key=name, hash=b"h" * 24)),
            (
                "select * from kedge.send_v1(gen_random_uuid(), %(run)s, null, %(name)s, null, '\\x01')",
                {"run": run, "name": name},
            ),
            ("select * from kedge.send_v1(gen_random_uuid(), null, %(name)s, 'go', null, '\\x01')", {"name": name}),
            (
                "select * from kedge.cancel_run_v1(gen_random_uuid(), %(run)s, %(name)s, %(name)s)",
                {"run": run, "name": name},
            ),
            (
                "select * from kedge.fast_forward_v1(gen_random_uuid(), %(run)s, null, %(name)s, null)",
                {"run": run, "name": name},
            ),
            (
                "select * from kedge.rerun_run_v1(%(new)s, %(run)s, null, %(name)s)",
                {"new": new_run_id(), "run": run, "name": name},
            ),
            (
                """select kedge.list_run_ids_v1(
                       %(name)s, array[%(name)s], %(name)s, null, %(name)s, null, null, 10, null, false)""",
                {"name": name},
            ),
            ("select kedge.count_runs_v1(%(name)s, array[%(name)s], %(name)s, %(name)s, null, null)", {"name": name}),
            ("select kedge.ring_v1(%(name)s, %(name)s)", {"name": name}),
        ):
            assert executed(conn, call, values) in {None, "KE005", "KE010"}, (name, call)
    with land.open("client") as conn, pytest.raises((psycopg.DataError, ValueError)):
        conn.execute(START.encode(), terms(workflow=f"{name}\0"))
    kept = {
        value
        for row in land.rows("select queue, workflow, resource, key from kedge.runs where state <> 's'")
        for value in row
    }
    assert kept <= {None, "default", "greet", "", *NAMES}, name
    assert land.rows("select count(*) from pg_class") == before
    assert not any(str(queue).startswith("!solo ") for (queue,) in land.rows("select queue from kedge.runs"))


@pytest.mark.parametrize("name", [*NAMES, "a\0b"], ids=ascii)
def test_a_schemas_name_is_plain_or_refused(name: str) -> None:
    if name in {"pg_catalog", "public", "null"}:
        assert check_schema_name(name) == name  # plain words; quoted wherever they stand
    else:
        with pytest.raises(InvalidOptionError):
            check_schema_name(name)


# ---- limits --------------------------------------------------------------------------------------------------------

WRONG: Final[dict[str, dict[str, object]]] = {
    "no id": {"id": None},
    "no workflow": {"workflow": None},
    "no queue": {"queue": None},
    "no input": {"input": None},
    "no priority": {"priority": None},
    "a key without a hash": {"key": "k"},
    "a priority that is too high": {"priority": 40_000},
    "the least number": {"priority": -(2**31)},
    "a delay that is no number": {"delay": math.nan},
    "an endless delay": {"delay": math.inf},
    "a delay before all times": {"delay": -math.inf},
    "a delay of ages": {"delay": 1e18},
    "a timeout that is no number": {"timeout": math.nan},
    "a timeout of no time": {"timeout": 0.0},
    "a timeout in the past": {"timeout": -1.0},
    "a timeout of ages": {"timeout": 1e300},
    "a start at infinity": {"at": "infinity"},
    "a start before all times": {"at": "-infinity"},
    "a start beyond all calendars": {"at": "294276-01-01"},
    "a start before Christ": {"at": "0044-03-15 BC"},
    "too many tags": {"tags": [f"t{n}" for n in range(101)]},
    "a tag that is none": {"tags": [None]},
    "a tag that is too long": {"tags": ["t" * 201]},
    "a resource that is too long": {"resource": "r" * 1001},
    "no resource but an empty one": {"resource": ""},
    "a workflow that is too long": {"workflow": "w" * 402},
    "a queue that is too long": {"queue": "q" * 201},
    "a key that is too long": {"key": "k" * 1001, "hash": b"h" * 24},
    "the engine's own lane": {"queue": "!solo default"},
    "the engine's own lane, by key": {"queue": "!solo default", "key": "k", "hash": b"h" * 24},
}


@pytest.mark.parametrize("call", [START, START_MANY], ids=["one", "many"])
def test_limits_hold_for_who_calls_by_hand(land: Land, call: str) -> None:
    with land.open("client") as conn:
        states = {what: refused(conn, call, terms(**wrong)) for what, wrong in WRONG.items()}

        assert {what: state for what, state in states.items() if state != "KE005"} == {}
    assert land.rows("select count(*) from kedge.runs") == [(0,)]


@pytest.mark.full
def test_nobody_stores_more_than_64_mib_in_one_value(land: Land) -> None:
    large, run = bytes(MIB_64 + 1), new_run_id()
    with land.open("client") as conn:
        conn.execute(START.encode(), terms(id=run))
        for call, values in (
            (START, terms(input=large)),
            (START, terms(meta=large)),
            (START_MANY, terms(input=large)),
            (START_MANY, terms(meta=large)),
            ("select * from kedge.send_v1(gen_random_uuid(), %(run)s, null, 'go', null, %(data)s)", {"data": large}),
            ("select * from kedge.fast_forward_v1(gen_random_uuid(), %(run)s, null, null, %(data)s)", {"data": large}),
        ):
            assert refused(conn, call, {"run": run, **values}) == "KE005", call


def test_letters_have_limits_too(land: Land) -> None:
    run = new_run_id()
    send = (
        "select * from kedge.send_v1(%(letter)s::uuid, %(run)s::uuid, %(topic)s::text, %(event)s::text, null,"
        " %(data)s::bytea)"
    )
    good: dict[str, object] = {"letter": uuid4(), "run": run, "topic": None, "event": "go", "data": b"\x01"}
    with land.open("client") as conn:
        conn.execute(START.encode(), terms(id=run))
        for wrong in (
            {"letter": None},
            {"event": None},
            {"event": ""},
            {"event": "e" * 201},
            {"topic": "t"},
            {"run": None},
            {"run": None, "topic": "t" * 201},
            {"run": None, "topic": ""},
            {"event": "a\x1fb"},
            {"data": None},
        ):
            assert refused(conn, send, {**good, **wrong}) == "KE005", wrong
        for call in (
            "select * from kedge.cancel_run_v1(null, %(run)s, null, null)",
            "select * from kedge.pause_run_v1(null, %(run)s, null, null)",
            "select kedge.watch_v1(array[%(run)s::uuid], '')",
            "select kedge.watch_v1(array[%(run)s::uuid], repeat('c', 64))",
            "select kedge.watch_v1(array[%(run)s::uuid], null)",
            "select kedge.observe_v1(array[%(run)s::uuid], '')",
            "select kedge.observe_v1(array[%(run)s::uuid], repeat('é', 32))",
            "select * from kedge.rerun_run_v1(null, %(run)s, null, 'a')",
        ):
            assert refused(conn, call, {"run": run}) == "KE005", call

        with land.open() as owner:
            owner.execute(
                "insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload)"
                " select %s, gen_random_uuid(), now(), 'e', 'e:go', '\\x01' from generate_series(1, 999)",
                (run,),
            )
        said = [conn.execute(send.encode(), {**good, "letter": uuid4()}).fetchone() for _ in range(2)]
    assert [row[0] for row in said if row] == [True, False]


def test_one_id_twice_in_one_start_is_one_run(land: Land) -> None:
    first, second = new_run_id(), new_run_id()
    with land.open("client") as conn:
        for keys, hashes in ((None, None), (["a", "b", "a"], [b"h" * 24] * 3)):
            conn.execute(
                "select * from kedge.start_runs_v1(%s::uuid[], 'greet', 'default', 0, %s::bytea[], null, %s::text[],"
                " %s::bytea[], 'return', null, null, null, array['t'], false)",
                ([first, second, first], [b"\x01"] * 3, keys, hashes),
            )

    assert land.rows("select count(*) from kedge.runs") == [(2,)]


def test_times_that_nobody_means_are_no_errors_of_the_server(land: Land) -> None:
    with land.open("client") as conn:
        run = new_run_id()
        conn.execute(START.encode(), terms(id=run))
        for since, wanted in (("1900-01-01", [run]), ("-infinity", [run]), ("infinity", []), ("290000-01-01", [])):
            found = conn.execute(
                "select kedge.list_run_ids_v1(null, null, null, null, null, %s, null, 10, null, false)", (since,)
            ).fetchone()
            assert found == (wanted,), since


def executed(conn: psycopg.Connection[Any], call: str, values: dict[str, Any]) -> str | None:
    """Execute it for good, and answer its SQLSTATE."""
    try:
        conn.execute(call.encode(), values)
    except psycopg.Error as error:
        return error.sqlstate
    return None


def refused(conn: psycopg.Connection[Any], call: str, values: dict[str, Any]) -> str | None:
    """Execute it, undo it, and answer its SQLSTATE."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(call.encode(), values)
    except psycopg.Error as error:
        return error.sqlstate
    return None
