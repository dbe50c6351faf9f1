"""The connection that hears the doorbell, when it goes."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest

from kedge_worker._listener import Listener
from tests.sessions import Session


async def test_a_connection_that_goes_leaves_no_reader_for_the_next_one_with_its_number(
    database_url: str, db: Session
) -> None:
    loop = asyncio.get_running_loop()
    listener = Listener(database_url, worker_id=uuid4(), ring=lambda _: None)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        number = conn.fileno()
        listening = asyncio.create_task(listener._listen(conn))
        db.rows("select pg_terminate_backend($1::int)", (conn.info.backend_pid,))

        with pytest.raises(psycopg.OperationalError, match="terminat"):
            await listening

        assert not loop.remove_reader(number), "whoever gets this number next would hear nothing"


async def test_it_leaves_the_loop_in_the_turn_in_which_its_connection_goes(database_url: str, db: Session) -> None:
    loop = asyncio.get_running_loop()
    listener = Listener(database_url, worker_id=uuid4(), ring=lambda _: None)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        number, broken = conn.fileno(), loop.create_future()
        loop.add_reader(number, lambda: None)
        db.rows("select pg_terminate_backend($1::int, 10000)", (conn.info.backend_pid,))

        while not broken.done():
            listener._hear(conn.pgconn, number, broken)

        assert not loop.remove_reader(number)
        with pytest.raises(psycopg.OperationalError, match="terminat"):
            await broken
