"""
A client's session plans a function's statements a few times and then never again.

Left to itself, Postgres compares the guessed cost of a plan for all arguments with that of plans for the present ones.
Of an array it guesses that it is longer than the one run that clients ask for, and so some statements would be planned
at each call for ever, which costs several times what they do.
"""

from __future__ import annotations

from typing import Final
from uuid import uuid4

import psycopg
import pytest

from kedge import WorkflowRef
from kedge.ids import new_run_id
from kedge_client import Client
from tests import ends

order: Final = WorkflowRef("order", None, None)

# Of what each is for: one run, all that is optional left out.
CALLS: Final = {
    "fast_forward_v1": "%(letter)s, %(live)s, null, 'wait', 'x'::bytea",
    "failures_v1": "%(run)s, null, 10",
    "get_runs_v1": "array[%(run)s]::uuid[], null, true",
    "observe_v1": "array[%(run)s]::uuid[], 'somebody'",
    "progress_v1": "%(run)s, null",
    "rerun_run_v1": "%(new)s, %(run)s, null, 'step'",
    "results_v1": "array[%(run)s]::uuid[]",
    "ring_v1": "'default', 'order'",
    "run_log_v1": "%(run)s, null, 0, 0, 100",
    "send_v1": "%(letter)s, %(live)s, null, 'paid', null, 'x'::bytea",
    "start_run_v1": "%(new)s, 'order', 'default', 0, 'x'::bytea, null, null, null, 'return', null, null, null, null,"
    " true",
    "start_runs_v1": "array[%(new)s]::uuid[], 'order', 'default', 0, array['x'::bytea], null, null, null, 'return',"
    " null, null, null, null, true",
    "steps_v1": "%(run)s, null, 0, 500, null",
    "waits_v1": "%(run)s, null",
    "watch_v1": "array[%(run)s]::uuid[], 'somebody'",
}
# They call functions in SQL, which older servers plan in each statement that calls them.
SINCE_18: Final = {"fast_forward_v1", "start_runs_v1"}
# Its text depends on the filters that are given, and so does its plan.
DYNAMIC: Final = {"list_run_ids_v1"}


@pytest.mark.parametrize("function", CALLS)
def test_a_function_that_a_client_has_called_a_few_times_is_not_planned_again(
    conn: psycopg.Connection, database_url: str, function: str
) -> None:
    if function in SINCE_18 and conn.info.server_version < 180000:
        pytest.xfail("functions in SQL keep their plans since PostgreSQL 18")
    with Client.connect(database_url) as client:
        ended, live = client.start(order(None)).id, client.start(order(None)).id
    ends.complete(conn, ended)
    said: list[str | None] = []
    conn.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary))
    query = f"select * from kedge.{function}({CALLS[function]})".encode()

    def call() -> None:
        new = {"letter": uuid4(), "new": new_run_id()}
        conn.execute(query, {"run": ended, "live": live, **new}, prepare=True)

    for _ in range(10):
        call()
    conn.execute("set client_min_messages = log")
    conn.execute("set log_planner_stats = on")
    conn.execute("select 1")
    assert "PLANNER STATISTICS" in said, "this server does not say when it plans"
    said.clear()
    call()

    assert "PLANNER STATISTICS" not in said


def test_every_function_of_the_api_that_keeps_its_plans_is_among_them(conn: psycopg.Connection) -> None:
    written = conn.execute(
        """select p.proname from pg_proc p join pg_language l on l.oid = p.prolang
            where p.pronamespace = 'kedge'::regnamespace and p.proname like '%\\_v1' and l.lanname = 'plpgsql'"""
    )

    assert {name for (name,) in written} == CALLS.keys() | DYNAMIC


def test_where_plans_are_forbidden_none_is_compiled_because_there_is_no_other(conn: psycopg.Connection) -> None:
    """What is forbidden counts as very dear before PostgreSQL 18, and what is very dear is compiled: 30 ms a call."""
    pinned = conn.execute(
        """select p.proname, p.proconfig from pg_proc p
            where p.pronamespace = 'kedge'::regnamespace and p.proconfig::text like '%enable\\_%=off%'"""
    ).fetchall()

    assert {name for name, settings in pinned if "jit=off" not in settings} == set()
    assert "send_v1" in {name for name, _ in pinned}
