"""Transactional steps, as far as the handler's side goes."""

import asyncio
from typing import Any

import pytest

from kedge.errors import DomainError, NotEncodableError, StepFailedError, TransactionFailedError
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._runs import LiveRun, TransactionBody
from kedge_worker._signals import LeaseLostError
from tests.unit.worker.journal import Lives, MemoryTransactions, bound, claim


class OutOfStock(DomainError):
    sku: str


class UniqueViolation(Exception):
    """Looks like psycopg's."""

    sqlstate = "23505"


async def echo(value: int) -> int:
    return value


async def insert(conn: Any, value: int) -> int:
    await conn.execute(f"insert {value}")
    return value


def insert_in_thread(conn: Any, value: int) -> int:
    conn.execute_sync(f"insert {value}")
    return value


async def test_a_transaction_is_done_once_async_or_in_a_thread() -> None:
    async def handler(ctx: Context) -> list[int]:
        return [await ctx.transaction("a", insert, 1), await ctx.transaction("b", insert_in_thread, 2)]

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.transactions.committed == ["insert 1", "insert 2"]

    assert lives.result(move) == lives.result(again) == [1, 2]
    assert lives.journal.keys(claimed.id) == [("t", "a"), ("t", "b")]


async def test_no_outcome_comes_between_a_transactions_seq_and_its_commit() -> None:
    async def handler(ctx: Context) -> list[int]:
        steps = [ctx.step("s", echo, i) for i in range(5)]
        return list(await asyncio.gather(ctx.transaction("t", insert, 7), *steps, ctx.transaction("t", insert, 8)))

    async with Lives(bound(handler)) as lives:
        lives.transactions.rounds_of_commit = 50
        claimed, move = await lives.run()  # the journal refuses rows while the gate is shut
        again = await lives.again(claimed)

    assert lives.result(move) == lives.result(again) == [7, 0, 1, 2, 3, 4, 8]


async def test_what_the_database_refuses_has_its_sqlstate_live_and_on_replay() -> None:
    async def refuse(_conn: Any) -> None:
        raise UniqueViolation("duplicate key")

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(TransactionFailedError) as caught:
            await ctx.transaction("ledger", refuse)
        error = caught.value
        assert error.error is not None
        return [error.sqlstate, error.key, error.error.message]

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.transactions.committed == []

    assert lives.result(move) == lives.result(again) == ["23505", "ledger", "duplicate key"]


async def test_other_errors_are_those_of_a_step_and_nothing_is_committed() -> None:
    @step(raises=(OutOfStock,))
    async def reserve(conn: Any) -> None:
        await conn.execute("update stock")
        raise OutOfStock(sku="k-1")

    async def explode(conn: Any) -> None:
        await conn.execute("update stock")
        raise ValueError("no")

    async def nan(conn: Any) -> float:
        await conn.execute("update stock")
        return float("nan")

    async def handler(ctx: Context) -> list[str]:
        said: list[str] = []
        for function in (reserve, explode, nan):
            try:
                await ctx.transaction("a", function)
            except OutOfStock as error:
                said.append(error.sku)
            except StepFailedError as error:
                said.append(error.error.kind)
            except NotEncodableError as error:
                said.append(error.where)
        return said

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.transactions.committed == []

    assert lives.result(move) == lives.result(again) == ["k-1", "builtins.ValueError", "step 'a#3'"]


async def test_a_transaction_of_a_lost_run_ends_its_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []

    async def lose(_self: Any, run: LiveRun, key: str, body: TransactionBody, *, sync: bool, meta: object) -> int:
        raise LeaseLostError(run, key, body, sync, meta)

    monkeypatch.setattr(MemoryTransactions, "run", lose)

    async def handler(ctx: Context) -> None:
        try:
            await ctx.transaction("a", insert, 1)
        except Exception:  # noqa: BLE001  # must not catch it
            reached.append("caught")
        reached.append("went on")

    async with Lives(bound(handler)) as lives:
        lives.executor.start(claim(lives.workflow))
        for _ in range(10):
            await asyncio.sleep(0)

        assert lives.executor.runs == {}

    assert reached == []
    assert lives.journal.moves == {}


async def test_the_pool_is_closed_with_the_executor() -> None:
    async def handler(_ctx: Context) -> None: ...

    async with Lives(bound(handler)) as lives:
        pass

    assert lives.transactions.closed
