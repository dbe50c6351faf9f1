"""Transactional steps whose commit the server calls done before its synchronous standby has it."""

from __future__ import annotations

import asyncio

import pytest

from kedge_worker.testing import PostgresServer
from tests import moves
from tests.integration.test_interleavings_transactions import SYNC, Step, bench, kept, ledger
from tests.integration.test_leased_store import commit_until_one_is_cancelled, waits_for_a_standby
from tests.sessions import open_sessions

WAITS = """
    select count(*) = 1 from pg_stat_activity
     where wait_event = 'SyncRep' and not pid = any (%(but)s) and application_name like 'kedge%%'
"""


@pytest.mark.parametrize("sync", SYNC)
async def test_a_commit_whose_wait_was_cancelled_is_told_when_the_standby_has_it(
    breakable_postgres: PostgresServer, sync: bool
) -> None:
    """And the body is not executed again: what was committed here is not lost as long as this server lives."""
    with open_sessions(breakable_postgres.url) as sessions:
        db = sessions.open(synchronous_commit="local")
        moves.started(db)
        async with bench(breakable_postgres.url) as own:
            probe = sessions.open()
            db.rows("alter system set synchronous_standby_names = 'nobody'")
            db.rows("select pg_reload_conf()")
            probing = probe.later(commit_until_one_is_cancelled)
            await asyncio.to_thread(waits_for_a_standby, sessions, probe.pid)
            step = Step()
            stepping = asyncio.create_task(own.transact(step, sync=sync))
            committing = {"but": [probe.pid]}
            await asyncio.to_thread(sessions.wait_until, WAITS, committing, what="the commit waits")
            (pid,) = db.rows(
                "select pid from pg_stat_activity where wait_event = 'SyncRep' and pid <> $1", (probe.pid,)
            )[0]

            db.rows("select pg_cancel_backend($1)", (pid,))
            settling = {"but": [probe.pid, pid]}
            await asyncio.to_thread(sessions.wait_until, WAITS, settling, what="who settles it waits as well")
            assert not stepping.done()

            db.rows("select pg_cancel_backend($1)", (probe.pid,))
            probing.result()
            db.rows("alter system reset synchronous_standby_names")
            db.rows("select pg_reload_conf()")
            seq = await stepping

        assert (kept(db, seq), step.calls, ledger(db)) == (b"\x011", 1, 1)
