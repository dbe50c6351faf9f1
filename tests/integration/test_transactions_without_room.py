"""A server without room is no failure of a transactional step: it is repeated until there is some."""

from typing import Any

import psycopg
import pytest

from kedge_worker import Context
from tests.scenarios.stage import handled, stage


@pytest.mark.parametrize("state", ["53100", "53300"])
async def test_a_full_server_fails_no_transactional_step(database_url: str, state: str) -> None:
    calls = 0

    async def book(conn: psycopg.AsyncConnection[Any]) -> int:
        nonlocal calls
        calls += 1
        if calls < 8:  # more often than a lost race is repeated
            await conn.execute(f"do $$ begin raise exception using errcode = '{state}'; end $$".encode())
        return calls

    async def play(ctx: Context) -> int:
        return await ctx.transaction("book", book)

    ref, handler = handled(play)
    with stage(database_url) as own:
        run = await own.play(ref(), handler)

        assert run.result(timeout="10s") == 8
        assert own.rows("select sum(attempt + crashes) from kedge.finished") == [(0,)]
