"""The proxy fails where it is told to, and nowhere else."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.fault_proxy import Fault, FaultProxy, Match, answers_commit, asks_commit, nth
from tests.sessions import Session


async def connect(proxy: FaultProxy) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(proxy.url)


async def test_without_a_trap_everything_passes_whatever_its_size(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy, await connect(proxy) as conn:
        rows = await (await conn.execute("select repeat('x', %s)", (3_000_000,))).fetchall()

    assert len(rows[0][0]) == 3_000_000


@pytest.mark.parametrize(
    ("match", "fault", "stored"),
    [
        (asks_commit, Fault.CUT, 0),
        (asks_commit, Fault.CUT_BEHIND, 1),
        (answers_commit, Fault.CUT, 1),
        (answers_commit, Fault.CUT_BEHIND, 1),
    ],
)
async def test_a_commit_is_cut_on_the_way_there_or_back(
    database_url: str, db: Session, match: Match, fault: Fault, stored: int
) -> None:
    db.rows("create table t ()")
    async with FaultProxy(database_url) as proxy:
        conn = await connect(proxy)
        await conn.execute("insert into t default values")
        trap = proxy.set_trap(match, fault)

        with pytest.raises(psycopg.OperationalError):
            await conn.commit()
        await trap.sprung()

    assert trap.has_sprung
    wait_for_rows(db, stored)


async def test_what_an_abandoned_client_has_sent_arrives_when_it_is_released(database_url: str, db: Session) -> None:
    db.rows("create table t ()")
    async with FaultProxy(database_url) as proxy:
        conn = await connect(proxy)
        await conn.execute("insert into t default values")
        trap = proxy.set_trap(asks_commit, Fault.ABANDON)
        with pytest.raises(psycopg.OperationalError):
            await conn.commit()
        await trap.sprung()
        before = db.value("select count(*) from t")

        await trap.release()

        assert before == 0
        wait_for_rows(db, 1)


async def test_a_frozen_proxy_lets_nothing_pass_and_loses_nothing(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy, await connect(proxy) as conn:
        trap = proxy.set_trap(nth(1, "client"), Fault.FREEZE)
        answer = asyncio.create_task(conn.execute("select 1"))
        await trap.sprung()
        arriving = asyncio.create_task(connect(proxy))
        await proxy.knock()
        early = answer.done() or arriving.done()

        proxy.thaw()

        assert not early
        assert await (await answer).fetchone() == (1,)
        await (await arriving).close()


async def test_a_trap_springs_once_at_the_message_that_was_meant(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy, await connect(proxy) as conn:
        trap = proxy.set_trap(nth(2, "client", lambda message: message.kind == b"Q"), Fault.CUT)
        await conn.set_autocommit(True)
        first = await conn.execute("select 1")
        sprung = trap.has_sprung
        with pytest.raises(psycopg.OperationalError):
            await conn.execute("select 2")
        async with await connect(proxy) as other:
            await other.execute("select 3")

    assert not sprung
    assert first.rowcount == 1


async def test_delays_and_refusals_are_switched_on_and_off(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:
        proxy.refusing = True
        with pytest.raises(psycopg.OperationalError):
            await connect(proxy)
        proxy.refusing = False
        proxy.delay_s = 0.001
        async with await connect(proxy) as conn:
            assert await (await conn.execute("select 1")).fetchone() == (1,)


async def test_a_server_that_is_not_there_looks_as_it_does_without_a_proxy() -> None:
    async with FaultProxy("host=/nowhere dbname=nothing") as proxy:
        with pytest.raises(psycopg.OperationalError):
            await connect(proxy)


def wait_for_rows(db: Session, count: int) -> None:
    """The server notices a closed socket a little later, and commits as late: behind this lock it is certain."""
    db.begin()
    db.rows("lock table t in access exclusive mode")
    found = db.value("select count(*) from t")
    db.rollback()
    assert found == count
