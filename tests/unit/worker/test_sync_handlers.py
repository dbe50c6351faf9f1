"""Sync handlers: the same promises, in a thread."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from kedge.errors import (
    DomainError,
    HandlerUseError,
    NestedStepError,
    NotEncodableError,
    StepFailedError,
    WrongThreadError,
)
from kedge.failures import decode_error
from kedge_worker import _executor
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._outcomes import End, GiveBack
from kedge_worker._sync_context import SyncContext
from tests.unit.worker.journal import Lives, bound, claim


class OutOfStock(DomainError):
    sku: str


class Bodies:
    def __init__(self) -> None:
        self.begun: list[Any] = []

    def echo(self, value: int) -> int:
        self.begun.append(value)
        return value


async def live_and_repeat(handler: Callable[[SyncContext], Any], bodies: Bodies) -> tuple[Any, list[tuple[str, str]]]:
    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        journal = lives.journal.keys(claimed.id)
        bodies.begun.clear()
        assert await lives.again(claimed) == move
        assert lives.journal.keys(claimed.id) == journal
        assert bodies.begun == []
        return lives.result(move), journal


async def test_steps_run_in_the_handlers_thread_and_are_kept() -> None:
    bodies = Bodies()
    threads: set[str] = set()

    def here() -> str:
        threads.add(threading.current_thread().name)
        return "here"

    def handler(ctx: SyncContext) -> int:
        threads.add(threading.current_thread().name)
        ctx.step("here", here)
        return ctx.step("a", bodies.echo, 1) + ctx.step("a", bodies.echo, 2)

    result, journal = await live_and_repeat(handler, bodies)

    assert result == 3
    assert journal == [("s", "here"), ("s", "a"), ("s", "a#2")]
    assert threading.current_thread().name not in threads


async def test_after_a_crash_it_goes_on_behind_what_is_kept() -> None:
    bodies = Bodies()

    def handler(ctx: SyncContext) -> int:
        return sum([ctx.step("a", bodies.echo, i) for i in range(4)])

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        bodies.begun.clear()
        move = await lives.again(claimed, up_to=2)

    assert lives.result(move) == 6
    assert bodies.begun == [2, 3]


async def test_failures_declared_errors_and_unkeepable_values_are_the_same_live_and_on_replay() -> None:
    bodies = Bodies()

    @step(raises=(OutOfStock,))
    def reserve() -> None:
        bodies.begun.append("reserve")
        raise OutOfStock(sku="k-1")

    def explode() -> None:
        bodies.begun.append("explode")
        raise SystemExit(3)

    def nan() -> float:
        bodies.begun.append("nan")
        return float("nan")

    def handler(ctx: SyncContext) -> list[str]:
        said: list[str] = []
        for name, function in (("reserve", reserve), ("explode", explode), ("nan", nan)):
            try:
                ctx.step(name, cast("Any", function))
            except OutOfStock as error:
                said.append(error.sku)
            except StepFailedError as error:
                said.append(error.error.kind)
            except NotEncodableError as error:
                said.append(error.where)
        return said

    result, journal = await live_and_repeat(handler, bodies)

    assert result == ["k-1", "builtins.SystemExit", "step 'nan'"]
    assert journal == [("f", "reserve"), ("f", "explode"), ("f", "nan")]


async def test_no_body_begins_before_what_was_kept_is_durable() -> None:
    def handler(ctx: SyncContext) -> None:
        ctx.step("a", lives.journal.log.append, "body a")
        ctx.step("b", lives.journal.log.append, "body b")

    async with Lives(bound(handler)) as lives:
        await lives.run()

    assert lives.journal.log == ["body a", "keep a", "durable", "body b", "keep b"]


async def test_transactions_commit_with_their_memo() -> None:
    bodies = Bodies()

    def insert(conn: Any, value: int) -> int:
        conn.execute_sync(f"insert {value}")
        return bodies.echo(value)

    def handler(ctx: SyncContext) -> int:
        return ctx.transaction("ledger", insert, 7)

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.transactions.committed == ["insert 7"]

    assert lives.result(again) == lives.result(move) == 7
    assert lives.journal.keys(claimed.id) == [("t", "ledger")]


async def test_sync_handlers_of_all_threads_can_use_transactions_at_once() -> None:
    meet = threading.Barrier(2)

    def insert(_conn: Any) -> int:
        return 1

    def handler(ctx: SyncContext) -> int:
        meet.wait(10)
        return ctx.transaction("ledger", insert)

    async with Lives(bound(handler), threads=2) as lives:
        moves = await asyncio.gather(lives.run(), lives.run())

    assert [lives.result(move) for _, move in moves] == [1, 1]


async def test_mistakes_are_named_at_the_call() -> None:
    async def is_async() -> int:
        return 1

    def handler(ctx: SyncContext) -> list[str]:
        def nested() -> str:
            with pytest.raises(NestedStepError):
                ctx.step("inner", len, "x")
            return "nested"

        def elsewhere() -> None:
            with pytest.raises(WrongThreadError):
                ctx.step("a", len, "x")
            said.append("elsewhere")

        said = [ctx.step("nested", nested)]
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with pytest.raises(HandlerUseError, match="plain functions"):
            ctx.step("async", cast("Any", is_async))
        with pytest.raises(HandlerUseError, match="plain functions"):
            ctx.transaction("async", cast("Any", is_async))
        return said

    result, _ = await live_and_repeat(handler, Bodies())

    assert result == ["nested", "elsewhere"]


async def test_facts_are_the_same_on_replay() -> None:
    def handler(ctx: SyncContext) -> list[str]:
        said = [str(ctx.now()), str(ctx.uuid()), str(ctx.random().random()), str(ctx.run_id)]
        ctx.step("a", len, "x")
        return said

    await live_and_repeat(handler, Bodies())


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), StopIteration(), ValueError()])
async def test_whatever_a_handler_raises_the_worker_lives(error: BaseException) -> None:
    def handler(_ctx: SyncContext) -> None:
        raise error

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert isinstance(move, End)
    assert move.status == "f"
    assert decode_error(move.error).kind != ""


async def test_a_handler_that_is_cancelled_meets_a_closed_context() -> None:
    begun, go = threading.Event(), threading.Event()
    reached: list[str] = []

    def body() -> int:
        begun.set()
        go.wait(10)
        return 1

    def handler(ctx: SyncContext) -> str:
        try:
            ctx.step("long", body)
        except Exception:  # noqa: BLE001  # must not catch it
            reached.append("caught")
        reached.append("went on")
        return "done"

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await asyncio.to_thread(begun.wait)
        lives.executor.ask(claimed.id, "x", "enough")
        go.set()
        move = await lives.journal.moved(claimed.id)

    assert move == End("x", reason="enough")
    assert reached == []
    # What was done is kept, though nobody gets it any more.
    assert lives.journal.keys(claimed.id) == [("s", "long")]


async def test_a_handler_that_completes_before_it_notices_has_completed() -> None:
    begun, go = threading.Event(), threading.Event()

    def handler(_ctx: SyncContext) -> str:
        begun.set()
        go.wait(10)
        return "done"

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await asyncio.to_thread(begun.wait)
        lives.executor.ask(claimed.id, "x", "too late")
        go.set()
        move = await lives.journal.moved(claimed.id)

    assert lives.result(move) == "done"


async def test_a_handler_that_waits_for_the_journal_is_released_from_there() -> None:
    def handler(ctx: SyncContext) -> None:
        ctx.step("a", len, "x")
        lives.journal.held = True
        ctx.step("b", len, "y")

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        while not lives.journal.held:
            await asyncio.sleep(0)

        assert await lives.executor.shutdown(0) == []

    assert lives.journal.moves[claimed.id] == GiveBack()
    assert lives.journal.keys(claimed.id) == [("s", "a")]


async def test_a_handler_that_has_no_thread_yet_never_begins() -> None:
    begun, go = threading.Event(), threading.Event()
    ran: list[str] = []

    def handler(ctx: SyncContext) -> None:
        ran.append(str(ctx.run_id))
        begun.set()
        go.wait(10)

    async with Lives(bound(handler), threads=1) as lives:
        first, second = claim(lives.workflow), claim(lives.workflow)
        lives.executor.start(first)
        lives.executor.start(second)
        await asyncio.to_thread(begun.wait)
        lives.executor.ask(second.id, "x", "enough")
        move = await lives.journal.moved(second.id)
        go.set()
        await lives.journal.moved(first.id)

    assert move == End("x", reason="enough")
    assert ran == [str(first.id)]


async def test_a_run_is_not_given_back_while_its_handlers_thread_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_executor, "UNWINDING_S", 0.01)
    begun, go = threading.Event(), threading.Event()

    def handler(ctx: SyncContext) -> None:
        begun.set()
        go.wait(10)
        ctx.step("a", len, "x")

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await asyncio.to_thread(begun.wait)

        assert await lives.executor.shutdown(0) == [claimed.id]
        assert claimed.id not in lives.journal.moves
        go.set()

        assert await lives.journal.moved(claimed.id) == GiveBack()


async def test_another_kind_of_operation_is_a_mismatch() -> None:
    def insert(_conn: Any) -> int:
        return 1

    versions: list[Callable[[SyncContext], Any]] = [
        lambda ctx: ctx.step("a", len, "x"),
        lambda ctx: ctx.transaction("a", insert),
    ]

    def handler(ctx: SyncContext) -> Any:
        return versions.pop(0)(ctx)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert isinstance(move, GiveBack)
    assert "'a' is a step in the journal" in str(move.reason)


async def test_what_an_async_handler_had_interrupted_no_sync_one_can_repeat() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def interrupting(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ctx.step("a", never), 0.001)

    def handler(ctx: SyncContext) -> None:
        ctx.step("a", len, "x")

    async with Lives(bound(interrupting), bound(handler, name="sync")) as lives:
        claimed, _ = await lives.run()
        memo = lives.journal.memo(claimed.id)
        lives.workflow = bound(handler, name="sync")
        _, move = await lives.run(memo=memo, next_seq=2)

    assert isinstance(move, GiveBack)
    assert "was interrupted" in str(move.reason)
