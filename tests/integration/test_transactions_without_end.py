"""Transactional steps that could go on for ever, and do not: bodies that end their connection, silent servers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors

from kedge_worker import _transactions
from kedge_worker._signals import LeaseLostError
from tests import moves
from tests.fault_proxy import Fault, asks_commit
from tests.integration.test_interleavings_transactions import SYNC, Step, bench, ledger
from tests.sessions import Session, Sessions

GONE: Final = "select not exists (select 1 from pg_stat_activity where pid = %(pid)s)"


@pytest.fixture
def db(sessions: Sessions) -> Session:
    """With one run to claim."""
    session = sessions.open()
    moves.started(session)
    return session


@pytest.mark.parametrize("sync", SYNC)
async def test_a_body_that_closes_its_connection_is_tried_five_times(
    database_url: str, db: Session, sync: bool
) -> None:
    calls: list[int] = []

    async def in_loop(conn: psycopg.AsyncConnection[Any]) -> bytes:
        calls.append(1)
        await conn.execute("insert into ledger default values")
        await conn.close()
        return b"\x01null"

    def in_thread(conn: psycopg.Connection[Any]) -> bytes:
        calls.append(1)
        conn.execute("insert into ledger default values")
        conn.close()
        return b"\x01null"

    async with bench(database_url) as own:
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await own.runner.run(own.run, "charge", in_thread if sync else in_loop, sync=sync)

        assert len(calls) == 5
        assert ledger(db) == 0
        assert own.run.gate is None


async def test_a_body_that_keeps_the_server_waiting_is_not_repeated_for_ever(
    database_url: str, sessions: Sessions, db: Session
) -> None:
    calls: list[int] = []

    async def dawdle(conn: psycopg.AsyncConnection[Any]) -> bytes:
        calls.append(1)
        await conn.execute("set local idle_in_transaction_session_timeout = '1ms'")
        await asyncio.to_thread(sessions.wait_until, GONE, {"pid": conn.info.backend_pid}, what="the session's end")
        await conn.execute("select 1")
        return b"\x01null"

    async with bench(database_url) as own:
        with pytest.raises(errors.IdleInTransactionSessionTimeout):
            await own.runner.run(own.run, "charge", dawdle, sync=False)

        # The server's last word may be lost with the socket: then it is not known whose fault the end was.
        assert len(calls) >= 5
        assert own.run.gate is None


@pytest.mark.parametrize("sync", SYNC)
@pytest.mark.parametrize("silent", [False, True], ids=["a server that refuses", "a server that is silent"])
async def test_nobody_settles_a_commit_beyond_the_lease(
    database_url: str, db: Session, monkeypatch: pytest.MonkeyPatch, silent: bool, sync: bool
) -> None:
    monkeypatch.setattr(_transactions, "_LOOK_S", 0.1)
    async with bench(database_url) as own:
        step = Step()
        trap = own.proxy.set_trap(asks_commit, Fault.FREEZE)
        transacting = asyncio.create_task(
            own.runner.run(own.run, "charge", step.in_thread if sync else step.in_loop, sync=sync)
        )
        await trap.sprung()
        own.proxy.refusing = not silent
        own.proxy.cut()
        await own.proxy.knock()

        own.run.lost = True

        with pytest.raises(LeaseLostError):
            await transacting
        assert (step.calls, ledger(db)) == (1, 0)
        own.proxy.thaw()
