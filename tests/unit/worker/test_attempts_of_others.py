"""What is tried again besides async steps: transactions, and all of it in sync handlers."""

import asyncio
import threading
from typing import Any

import pytest

from kedge.errors import DomainError, NotEncodableError, StepFailedError, TransactionFailedError
from kedge.retry import NonRetryable, Retry
from kedge_worker import _attempts
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._outcomes import End, GiveBack, Park
from kedge_worker._sync_context import SyncContext
from tests.unit.worker.journal import Lives, bound, claim, failures, sides

AT_ONCE = Retry(3, initial=0, jitter=False)
IN_AN_HOUR = Retry(3, initial="1h", maximum="1h", jitter=False)


class OutOfStock(DomainError):
    sku: str


class Refusal(Exception):
    """Looks like psycopg's."""

    sqlstate = "23505"


class Script:
    """A function: raises or returns what it is given, one after the other, over all lives."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return int(outcome)

    def with_conn(self, conn: Any) -> int:
        conn.execute_sync(f"insert {self.calls}")
        return self()

    async def with_async_conn(self, conn: Any) -> int:
        await conn.execute(f"insert {self.calls}")
        return self()


# ---- transactions


@pytest.mark.parametrize("in_thread", [True, False])
async def test_a_transaction_that_fails_is_rolled_back_and_tried_again(in_thread: bool) -> None:
    body = Script(ValueError("one"), Refusal("two"), 7)

    async def handler(ctx: Context) -> int:
        if in_thread:
            return await ctx.transaction("t", body.with_conn, retry=AT_ONCE)
        return await ctx.transaction("t", body.with_async_conn, retry=AT_ONCE)

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == 7
        assert lives.transactions.committed == ["insert 2"]
        assert lives.journal.keys(claimed.id) == [("t", "t")]
        assert [(one.kind, one.attempt, one.error.message) for one in failures(lives.journal)] == [
            ("t", 1, "one"),
            ("t", 2, "two"),
        ]
        assert lives.journal.left_open == []
        assert lives.result(await lives.again(claimed)) == 7
    assert body.calls == 3


async def test_a_transaction_that_succeeds_at_once_writes_nothing_beside_its_row() -> None:
    async def handler(ctx: Context) -> int:
        return await ctx.transaction("t", Script(7).with_async_conn, retry=AT_ONCE)

    async with Lives(bound(handler)) as lives:
        await lives.run()

        assert sides(lives.journal) == []


async def test_a_transactions_used_up_budget_is_the_same_live_and_on_replay() -> None:
    body = Script(*[Refusal("again")] * 3)

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(TransactionFailedError) as caught:
            await ctx.transaction("t", body.with_async_conn, retry=AT_ONCE)
        assert caught.value.error is not None
        return [caught.value.sqlstate, caught.value.error.attempt]

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == lives.result(await lives.again(claimed)) == ["23505", 3]
        assert lives.journal.left_open == []


async def test_a_transaction_goes_on_after_a_park_with_what_is_left() -> None:
    body = Script(ValueError("one"), ValueError("two"), NonRetryable("three"))

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.transaction("t", body.with_async_conn, retry=IN_AN_HOUR)
        return caught.value.attempts

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        for failed in (1, 2):
            assert move == Park(())
            assert [(one.kind, one.attempt) for one in lives.journal.waits(claimed.id)] == [("r", failed)]
            lives.journal.now_s += 3600
            move = await lives.again(claimed)

        assert lives.result(move) == 3


async def test_a_transaction_whose_value_cannot_be_kept_is_final() -> None:
    calls = 0

    async def nan(_: Any) -> float:
        nonlocal calls
        calls += 1
        return float("nan")

    async def handler(ctx: Context) -> str:
        with pytest.raises(NotEncodableError) as caught:
            await ctx.transaction("t", nan, retry=AT_ONCE)
        return caught.value.where

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert lives.result(move) == "step 't'"
    assert calls == 1


# ---- sync handlers


async def test_a_sync_handlers_step_is_tried_again_in_its_own_thread() -> None:
    body = Script(ValueError("one"), OSError("two"), 7)
    threads: set[str] = set()

    def work() -> int:
        threads.add(threading.current_thread().name)
        return body()

    def handler(ctx: SyncContext) -> int:
        threads.add(threading.current_thread().name)
        return ctx.step("a", work, retry=AT_ONCE)

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == 7
        assert sides(lives.journal)[-1] == "CLOSE_WAITS"
        assert [(one.kind, one.attempt, one.n) for one in failures(lives.journal)] == [("s", 1, 1), ("s", 2, 2)]
        assert len(threads) == 1
        assert lives.result(await lives.again(claimed)) == 7
    assert body.calls == 3


async def test_a_sync_handler_holds_no_thread_while_its_step_waits_for_the_next_attempt() -> None:
    body = Script(ValueError("one"), ValueError("two"), ValueError("three"))

    def handler(ctx: SyncContext) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            ctx.step("a", body, retry=IN_AN_HOUR)
        return [caught.value.attempts, caught.value.error.message]

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        for _ in range(2):
            assert move == Park(())
            lives.journal.now_s += 1800
            assert await lives.again(claimed) == Park(())
            lives.journal.now_s += 1800
            move = await lives.again(claimed)

        assert lives.result(move) == lives.result(await lives.again(claimed)) == [3, "three"]
        assert lives.journal.left_open == []
    assert body.calls == 3


async def test_a_sync_handlers_policies_come_from_the_same_places() -> None:
    own, house = Script(ValueError(), 1), Script(ValueError(), 2)

    @step(retry=Retry.NEVER)
    def never() -> int:
        return own()

    def handler(ctx: SyncContext) -> list[int]:
        with pytest.raises(StepFailedError):
            ctx.step("own", never)
        return [ctx.step("call", never, retry=AT_ONCE), ctx.step("house", house)]

    async with Lives(bound(handler), linger_s=60, step_retry=Retry(2, initial=0)) as lives:
        _, move = await lives.run()

        assert lives.result(move) == [1, 2]


async def test_declared_errors_and_final_ones_in_a_sync_handler() -> None:
    @step(raises=(OutOfStock,), retry=AT_ONCE)
    def reserve() -> None:
        raise OutOfStock(sku="k-1")

    final = Script(NonRetryable("no"))

    def handler(ctx: SyncContext) -> list[Any]:
        with pytest.raises(OutOfStock) as caught:
            ctx.step("reserve", reserve)
        with pytest.raises(StepFailedError) as failed:
            ctx.step("final", final, retry=AT_ONCE)
        return [caught.value.sku, failed.value.attempts]

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == lives.result(await lives.again(claimed)) == ["k-1", 1]


async def test_a_sync_handlers_transaction_is_tried_again() -> None:
    body = Script(Refusal("one"), 7)

    def handler(ctx: SyncContext) -> int:
        return ctx.transaction("t", body.with_conn, retry=AT_ONCE)

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == 7
        assert lives.transactions.committed == ["insert 1"]
        assert lives.journal.left_open == []
        assert lives.journal.keys(claimed.id) == [("t", "t")]


@pytest.mark.parametrize(("request_", "outcome"), [("x", End("x")), ("s", GiveBack())])
async def test_a_sync_handler_that_waits_for_an_attempt_can_be_cancelled_and_paused(
    request_: str, outcome: Any
) -> None:
    body = Script(ValueError())

    def handler(ctx: SyncContext) -> int:
        return ctx.step("a", body, retry=IN_AN_HOUR)

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        while not lives.journal.waits(claimed.id):
            await asyncio.sleep(0.001)
        lives.executor.ask(claimed.id, request_, None)

        assert await lives.journal.moved(claimed.id) == outcome
    assert body.calls == 1


# ---- for ever


@pytest.mark.parametrize("is_poll", [True, False])
async def test_of_an_operation_that_fails_for_ever_a_thousand_failures_are_kept(
    is_poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attempts, "MAX_KEPT_FAILURES", 3)
    body = Script(*[OSError()] * 5, NonRetryable("at last"))
    for_ever = Retry(None, initial=0)

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError, match="at last") as caught:
            await (ctx.poll("a", body, every="1s", retry=for_ever) if is_poll else ctx.step("a", body, retry=for_ever))
        return caught.value.attempts

    async with Lives(bound(handler), linger_s=60) as lives:
        _, move = await lives.run()

        assert lives.result(move) == 6, "it counts on"
        assert [one.attempt for one in failures(lives.journal)] == [1, 2, 3]
        assert lives.journal.left_open == []
