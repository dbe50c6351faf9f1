"""
Every hot statement goes by its index and touches what it works on, not what the tables hold.

In the states in which a plan can be found: made while the tables were empty and kept since, made with statistics of
that time, made with fresh ones; made before there were any statistics; and made while those of live runs had just been
emptied and still had their pages, which autovacuum takes statistics of whenever a worker keeps up. The engine's
sessions pin their planner; a client's sessions are as they come.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from typing import Final, TypeAlias

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kedge_client._settings import client_settings, own_conninfo
from kedge_worker._settings import WorkerSettings
from kedge_worker.testing._databases import Databases
from tests.contract import crowd
from tests.contract.hot_moves import HOT_MOVES
from tests.contract.hot_reads import HOT_READS
from tests.contract.hot_retention import HOT_RETENTION
from tests.contract.hot_starts import HOT_STARTS
from tests.contract.hot_statements import HOT as HOT_OTHERS
from tests.contract.hot_statements import OWN, Hot, Side
from tests.contract.plans import GROWING, explain, inner_statement, numbered, prepare

STATES: Final = (
    "kept since the tables were empty",
    "statistics of empty tables",
    "fresh statistics",
    "kept since there were no statistics",
    "kept since live runs had all ended",
)
LIVE: Final = frozenset(("runs", "inbox", "waits", "events", "watchers", "observers"))
"""The tables that are empty again and again."""
HOT: Final[dict[str, Hot]] = {**HOT_OTHERS, **HOT_MOVES, **HOT_STARTS, **HOT_READS, **HOT_RETENTION}
# Where retention has just taken all that had ended, (workflow, id) looks as good as (id) until the next statistics that
# autovacuum takes, behind the first rows that come again: each id costs a walk through those. Not on PostgreSQL 16.
KNOWN: Final = {
    (name, STATES[-1])
    for name in (
        "delete ended: keys",
        "delete ended: rows",
        "delete ended: tags",
        "courier: lock what has ended",
    )
}
CASES: Final = [
    pytest.param(
        name,
        state,
        marks=[
            pytest.mark.xfail(
                reason="statistics of an emptied history: (workflow, id) is walked for each id", strict=False
            )
        ],
    )
    if (name, state) in KNOWN
    else (name, state)
    for name in HOT
    for state in STATES
]

Sessions: TypeAlias = Mapping[Side, psycopg.Connection]


@pytest.fixture(scope="module")
def sessions(databases: Databases) -> Generator[dict[str, Sessions]]:
    """By state and side, with every statement prepared. Tests leave the databases behind them as they are."""
    with ExitStack() as stack:
        stale, fresh, new, emptied = (databases.create() for _ in range(4))
        for url in (stale, fresh, new, emptied):
            stack.callback(databases.drop, url)
            with psycopg.connect(url, autocommit=True) as conn:
                # Autovacuum would come in the middle and take new statistics.
                for table in GROWING:
                    conn.execute(f"alter table kedge.{table} set (autovacuum_enabled = off)".encode())
                if url is not new:
                    conn.execute("vacuum analyze")
                if url is emptied:
                    crowd.fill(conn)
                    for table in (*GROWING, "definitions", "workers"):
                        conn.execute(f"delete from kedge.{table}".encode())
                        conn.execute(f"{'analyze' if table in LIVE else 'vacuum analyze'} kedge.{table}".encode())
        early, first, again = _kept(stack, stale), _kept(stack, new), _kept(stack, emptied)
        for url in (stale, fresh, new, emptied):
            with psycopg.connect(url, autocommit=True) as conn:
                crowd.fill(conn)
        with psycopg.connect(fresh, autocommit=True) as conn:
            conn.execute("vacuum analyze")
        late = _sessions(stack, stale), _sessions(stack, fresh)
        yield dict(zip(STATES, (early, *late, first, again), strict=True))


@pytest.mark.parametrize(("name", "state"), CASES)
def test_a_hot_statement_touches_what_it_works_on_and_not_what_the_tables_hold(
    sessions: dict[str, Sessions], name: str, state: str
) -> None:
    hot = HOT[name]

    plan = explain(sessions[state][hot.side], _name(name), hot.arguments)

    assert not plan.scanned_whole, str(plan)
    assert hot.by <= plan.indexes, str(plan)
    assert plan.touched <= hot.touches, f"{plan.touched} rows touched:\n{plan}"
    assert plan.blocks <= (hot.blocks or 15 * hot.touches + 20), f"{plan.blocks} blocks touched:\n{plan}"


def _kept(stack: ExitStack, url: str) -> Sessions:
    """With plans that are made now."""
    sessions = _sessions(stack, url)
    for name, hot in HOT.items():
        explain(sessions[hot.side], _name(name), hot.arguments)
    return sessions


def _sessions(stack: ExitStack, url: str) -> Sessions:
    settings = WorkerSettings(database_url=url)
    urls: dict[Side, str] = {
        "journal": settings.journal_conninfo(),
        "control": settings.control_conninfo(),
        # A client's own: its functions pin that, or come to it by themselves (test_planned_once).
        "client": own_conninfo(
            make_conninfo(url, options="-c plan_cache_mode=force_generic_plan"),
            client_settings(schema=None, timeout="10s", listen=True, wake=True),
        ),
    }
    # Without prepared statements of its own psycopg leaves ours alone when a transaction is rolled back.
    made: Sessions = {
        side: stack.enter_context(psycopg.connect(urls[side], autocommit=True, prepare_threshold=None)) for side in urls
    }
    claimed = "{" + ",".join(map(str, OWN)) + "}"
    made["journal"].execute("select set_config('kedge_claim.ids', %s, false)", (claimed,))
    for name, hot in HOT.items():
        conn = made[hot.side]
        if hot.within is not None:
            statement = inner_statement(conn, *hot.within, list(hot.variables))
            prepare(conn, _name(name), statement, list(hot.variables.values()))
        else:
            prepare(conn, _name(name), numbered(hot.statement)[0])
    return made


def _name(name: str) -> str:
    return re.sub(r"\W+", "_", name)
