"""
Every hot statement goes by its index and touches what it works on, not what the tables hold.

In the three states in which a plan can be found: made while the tables were empty and kept since, made with statistics
of that time, made with fresh ones. The engine's sessions pin their planner; a client's sessions are as they come.
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

STATES: Final = ("kept since the tables were empty", "statistics of empty tables", "fresh statistics")
HOT: Final[dict[str, Hot]] = {**HOT_OTHERS, **HOT_MOVES, **HOT_STARTS, **HOT_READS, **HOT_RETENTION}
CASES: Final = [(name, state) for name in HOT for state in STATES]

Sessions: TypeAlias = Mapping[Side, psycopg.Connection]


@pytest.fixture(scope="module")
def sessions(databases: Databases) -> Generator[dict[str, Sessions]]:
    """By state and side, with every statement prepared. Tests leave the two databases behind them as they are."""
    with ExitStack() as stack:
        stale, fresh = databases.create(), databases.create()
        for url in (stale, fresh):
            stack.callback(databases.drop, url)
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute("vacuum analyze")
                # Autovacuum would come in the middle and take new statistics.
                for table in GROWING:
                    conn.execute(f"alter table kedge.{table} set (autovacuum_enabled = off)".encode())
        early = _sessions(stack, stale)
        for name, hot in HOT.items():
            explain(early[hot.side], _name(name), hot.arguments)
        for url in (stale, fresh):
            with psycopg.connect(url, autocommit=True) as conn:
                crowd.fill(conn)
        with psycopg.connect(fresh, autocommit=True) as conn:
            conn.execute("vacuum analyze")
        yield dict(zip(STATES, (early, _sessions(stack, stale), _sessions(stack, fresh)), strict=True))


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
