"""What a run's next life does with what the journal holds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from kedge.errors import StepFailedError
from kedge_worker import _turns
from kedge_worker._context import Context
from kedge_worker._outcomes import GiveBack
from tests.unit.worker.journal import Lives, bound


async def echo(value: int) -> int:
    return value


async def insert(_conn: Any, value: int) -> int:
    return value


class Deploy:
    """A handler that changes between two lives."""

    def __init__(self, *versions: Callable[[Context], Awaitable[Any]]) -> None:
        self._versions = list(versions)

    async def __call__(self, ctx: Context) -> Any:
        return await self._versions.pop(0)(ctx)


def deployed(*versions: Callable[[Context], Awaitable[Any]]) -> Lives:
    deploy = Deploy(*versions)

    async def handler(ctx: Context) -> Any:
        return await deploy(ctx)

    return Lives(bound(handler))


async def test_what_is_kept_is_not_done_again_and_what_is_not_is() -> None:
    done: list[int] = []

    async def note(value: int) -> int:
        done.append(value)
        return value

    async def handler(ctx: Context) -> int:
        return sum([await ctx.step("note", note, i) for i in range(5)])

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        done.clear()
        again = await lives.again(claimed, up_to=3)

    assert lives.result(again) == 10
    assert done == [3, 4]


async def test_seqs_go_on_behind_what_the_journal_holds() -> None:
    async def handler(ctx: Context) -> None:
        for i in range(3):
            await ctx.step("a", echo, i)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        await lives.again(claimed, up_to=2)

    assert [row.seq for row in lives.journal.memo(claimed.id)] == [1, 2, 3]


async def test_a_transaction_in_the_place_of_a_step_is_a_mismatch_that_the_handler_cannot_catch() -> None:
    caught: list[BaseException] = []

    async def before(ctx: Context) -> None:
        await ctx.step("ledger", echo, 1)

    async def after(ctx: Context) -> str:
        try:
            await ctx.transaction("ledger", insert, 1)
        except Exception as error:  # noqa: BLE001  # that is the point
            caught.append(error)
        return "went on"

    async with deployed(before, after) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert isinstance(move, GiveBack)
    assert move.delay_s > 0
    assert "'ledger' is a step in the journal (seq 1), and a transaction in the code" in str(move.reason)
    assert caught == []


async def test_a_mismatch_counts_even_if_the_handler_swallows_everything() -> None:
    async def before(ctx: Context) -> None:
        await ctx.transaction("ledger", insert, 1)

    async def after(ctx: Context) -> str:
        try:
            await ctx.step("ledger", echo, 1)
        except BaseException:  # noqa: BLE001  # that is the point
            with pytest.raises(asyncio.CancelledError):
                await ctx.step("other", echo, 2)
        return "went on"

    async with deployed(before, after) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert isinstance(move, GiveBack)
    assert lives.journal.keys(claimed.id) == [("t", "ledger")]


async def test_a_mismatch_in_a_task_that_nobody_awaits_ends_the_handler() -> None:
    async def before(ctx: Context) -> None:
        await asyncio.create_task(work(ctx))

    async def work(ctx: Context) -> None:
        await ctx.step("a", echo, 1)

    async def changed(ctx: Context) -> None:
        await ctx.transaction("a", insert, 1)

    async def after(ctx: Context) -> None:
        task = asyncio.create_task(changed(ctx))
        await asyncio.Event().wait()
        await task

    async with deployed(before, after) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert isinstance(move, GiveBack)


async def test_the_failure_of_a_transaction_is_told_from_that_of_a_step() -> None:
    async def fail(_conn: Any) -> None:
        raise ValueError

    async def before(ctx: Context) -> None:
        with pytest.raises(StepFailedError, match="ValueError"):
            await ctx.transaction("a", fail)

    async def after(ctx: Context) -> None:
        await ctx.step("a", fail, None)

    async with deployed(before, after) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert isinstance(move, GiveBack)
    assert "'a' is a transaction in the journal" in str(move.reason)


async def test_a_kept_value_that_no_longer_fits_its_type_is_a_mismatch() -> None:
    async def text() -> str:
        return "seven"

    async def number() -> int:
        return 7

    async def before(ctx: Context) -> None:
        await ctx.step("a", text)

    async def after(ctx: Context) -> None:
        await ctx.step("a", number)

    async with deployed(before, after) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert isinstance(move, GiveBack)
    assert "step 'a'" in str(move.reason)


async def test_outcomes_that_changed_code_does_not_ask_for_hold_nobody_up() -> None:
    async def before(ctx: Context) -> None:
        await ctx.step("removed", echo, 1)
        await ctx.step("kept", echo, 2)

    async def after(ctx: Context) -> list[int]:
        return list(await asyncio.gather(ctx.step("kept", echo, 2), ctx.step("new", echo, 3)))

    async with deployed(before, after) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert lives.result(move) == [2, 3]


async def test_kept_values_are_handed_out_in_the_order_in_which_they_were_kept() -> None:
    order: list[str] = []

    async def first(ctx: Context, gate: asyncio.Event) -> None:
        await gate.wait()
        await ctx.step("x", echo, 1)
        order.append("first")

    async def second(ctx: Context, gate: asyncio.Event) -> None:
        await ctx.step("x", echo, 2)
        order.append("second")
        gate.set()

    async def live(ctx: Context) -> None:
        gate = asyncio.Event()
        await asyncio.gather(first(ctx, gate), second(ctx, gate))

    async def again(ctx: Context) -> None:
        # Nothing keeps the first branch back now: it asks at once for what was kept second.
        gate = asyncio.Event()
        gate.set()
        await asyncio.gather(first(ctx, gate), second(ctx, gate))

    async with deployed(live, again) as lives:
        claimed, _ = await lives.run()
        assert order == ["second", "first"]
        await lives.again(claimed)

    assert order == ["second", "first"] * 2


async def test_an_outcome_waits_for_a_sibling_that_sleeps_outside_of_steps() -> None:
    order: list[str] = []

    async def sleeper(ctx: Context, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.sleep(0)
        await ctx.step("x", echo, 1)
        order.append("sleeper")

    async def other(ctx: Context, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.sleep(0)
        await ctx.step("x", echo, 2)
        order.append("other")

    async def live(ctx: Context) -> None:
        await asyncio.gather(sleeper(ctx, 1), other(ctx, 40))

    async def again(ctx: Context) -> None:
        await asyncio.gather(sleeper(ctx, 40), other(ctx, 0))

    async with deployed(live, again) as lives:
        claimed, _ = await lives.run()
        await lives.again(claimed)

    assert order == ["sleeper", "other"] * 2


async def test_the_wait_for_a_sibling_that_awaits_something_else_ends_some_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_turns, "PATIENCE_S", 0.01)

    async def before(ctx: Context) -> None:
        await ctx.step("removed", echo, 1)

    async def after(ctx: Context) -> int:
        known = asyncio.Event()

        async def tell() -> int:
            value = await ctx.step("new", echo, 2)
            known.set()
            return value

        return (await asyncio.gather(tell(), known.wait()))[0]

    async with deployed(before, after) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert lives.result(move) == 2
    assert "may come in another order" in caplog.text


async def test_joins_are_recognised_so_that_nobody_waits_for_what_cannot_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_turns.Turns, "_look_later", _must_not_wait)

    async def asks(ctx: Context) -> None:
        await ctx.step("kept", echo, 1)

    async def before(ctx: Context) -> None:
        await ctx.step("removed", echo, 0)
        await by_every_join(ctx)

    async def by_every_join(ctx: Context) -> None:
        await asyncio.create_task(asks(ctx))
        await asyncio.gather(asks(ctx), asyncio.gather(asks(ctx)))
        async with asyncio.TaskGroup() as group:
            group.create_task(asks(ctx))
        await asyncio.wait([asyncio.create_task(asks(ctx))])
        for ended in asyncio.as_completed([asyncio.create_task(asks(ctx))]):
            await ended
        async with anyio.create_task_group() as anyio_group:
            anyio_group.start_soon(asks, ctx)

    async with deployed(before, by_every_join) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

    assert lives.result(move) is None


def _must_not_wait(_turns_of_a_run: _turns.Turns) -> None:
    raise AssertionError("a join was taken for something from outside")
