"""Transactional steps whose connection is swallowed on the way: the server is well, and nobody will ever answer."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from kedge_worker import _silence
from tests import moves
from tests.fault_proxy import Fault, Match, Message, answers_commit, asks_commit
from tests.integration.test_interleavings_transactions import SYNC, Step, bench, kept, ledger
from tests.sessions import Session, Sessions

LEFT = "select count(*) from pg_stat_activity where application_name = 'kedge transaction' and xact_start is not null"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_silence, "_PERIOD_S", 0.05)


@pytest.fixture
def db(sessions: Sessions) -> Session:
    """With one run to claim."""
    session = sessions.open()
    moves.started(session)
    return session


def says(words: bytes) -> Match:
    """The client sends a statement with these words."""

    def matches(message: Message) -> bool:
        return message.sender == "client" and message.kind in (b"Q", b"P") and words in message.body.lower()

    return matches


@pytest.mark.parametrize("sync", SYNC)
@pytest.mark.parametrize(
    ("match", "calls"),
    [
        pytest.param(says(b"begin"), 1, id="BEGIN"),
        pytest.param(says(b"insert into ledger"), 2, id="the body's statement"),
        pytest.param(says(b'insert into "kedge".journal'), 2, id="the memo"),
        pytest.param(asks_commit, 2, id="COMMIT"),
        pytest.param(answers_commit, 1, id="the answer to COMMIT"),
    ],
)
async def test_a_step_whose_connection_is_swallowed_ends_on_another_one(
    database_url: str, db: Session, match: Match, calls: int, sync: bool
) -> None:
    async with bench(database_url) as own:
        step = Step()
        trap = own.proxy.set_trap(match, Fault.SWALLOW)

        seq = await own.transact(step, sync=sync)

        assert trap.has_sprung
        assert (step.calls, ledger(db), kept(db, seq)) == (calls, 1, b"\x01%d" % calls)
        assert db.rows(LEFT) == [(0,)], "the session that was swallowed holds its locks"


@pytest.mark.parametrize("sync", SYNC)
async def test_a_statement_that_takes_long_is_no_silence(database_url: str, db: Session, sync: bool) -> None:
    calls: list[int] = []

    async def in_loop(conn: psycopg.AsyncConnection[Any]) -> bytes:
        calls.append(1)
        await conn.execute("select pg_sleep(1)")
        return b"\x01null"

    def in_thread(conn: psycopg.Connection[Any]) -> bytes:
        calls.append(1)
        conn.execute("select pg_sleep(1)")
        return b"\x01null"

    async with bench(database_url) as own:
        await own.runner.run(own.run, "long", in_thread if sync else in_loop, sync=sync)

    assert calls == [1]


async def test_a_body_that_thinks_for_long_is_no_silence(database_url: str, db: Session) -> None:
    step = Step(before=lambda: asyncio.sleep(1))
    async with bench(database_url) as own:
        await own.transact(step)

    assert (step.calls, ledger(db)) == (1, 1)
