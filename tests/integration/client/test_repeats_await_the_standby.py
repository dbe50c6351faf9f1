"""Who repeats a call is told that all is done only when that is on the synchronous standby, if there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kedge import EventRef, WorkflowRef
from kedge_client import Client
from kedge_worker.testing import PostgresServer
from tests.integration.test_leased_store import commit_until_one_is_cancelled, waits_for_a_standby
from tests.sessions import open_sessions

greet = WorkflowRef("greet", str, str)
go = EventRef("go", int)
sync = WorkflowRef("sync", str, str)


async def test_a_repeat_that_finds_everything_done_waits_for_the_standby_like_the_first(
    breakable_postgres: PostgresServer,
) -> None:
    """What it finds may be on no standby: its own commit's wait was cut short, by an administrator or a restart."""
    with (
        open_sessions(breakable_postgres.url) as sessions,
        Client.connect(breakable_postgres.url, max_connections=8) as client,
    ):
        db = sessions.open(synchronous_commit="local")
        run = client.start(greet("first", key="k"))
        calls: list[Callable[[], object]] = [
            lambda: client.start(greet("first", key="k")),
            lambda: client.start_many([greet("first", key="k")]),
            lambda: client.start(sync("all", singleton="return")),
            lambda: run.send(go(1, key="k")),
            lambda: client.send(go(1, key="k"), topic="news"),
        ]
        for call in calls:
            call()

        probe = sessions.open()
        db.rows("alter system set synchronous_standby_names = 'nobody'")
        db.rows("select pg_reload_conf()")
        probing = probe.later(commit_until_one_is_cancelled)
        await asyncio.to_thread(waits_for_a_standby, sessions, probe.pid)
        repeats = [asyncio.create_task(asyncio.to_thread(call)) for call in calls]
        await asyncio.to_thread(
            sessions.wait_until,
            "select count(*) = %(number)s from pg_stat_activity where wait_event = 'SyncRep'",
            {"number": 1 + len(calls)},
            what="every repeat waits for the standby",
        )
        assert not any(repeat.done() for repeat in repeats)

        db.rows("select pg_cancel_backend($1)", (probe.pid,))
        probing.result()
        db.rows("alter system reset synchronous_standby_names")
        db.rows("select pg_reload_conf()")
        await asyncio.gather(*repeats)
