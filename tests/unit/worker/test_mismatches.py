"""Code that does not fit what is kept puts its run off, with the reason, for longer each time, until it fits again."""

import asyncio
from typing import Any

import pytest

from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._outcomes import End, GiveBack, Mismatched, Park, next_move
from kedge_worker._sync_context import SyncContext
from tests.unit.worker.journal import Lives, bound


def put_off(*reasons: str) -> list[tuple[float, str | None]]:
    """The moves of a run that is put off for one reason after the other."""
    moves: list[tuple[float, str | None]] = []
    before: str | None = None
    for reason in reasons:
        move = next_move(Mismatched(reason), before=before)
        assert isinstance(move, GiveBack)
        moves.append((move.delay_s, move.reason))
        before = move.reason
    return moves


def test_the_same_reason_puts_a_run_off_for_twice_as_long_up_to_ten_minutes() -> None:
    moves = put_off(*["it does not fit"] * 20)

    assert [delay for delay, _ in moves[:7]] == [30, 60, 120, 240, 480, 600, 600]
    assert [moves[place][1] for place in (0, 1, -1)] == [
        "it does not fit",
        "it does not fit (put off 2 times)",
        "it does not fit (put off 20 times)",
    ]


def test_another_reason_begins_anew() -> None:
    assert put_off("a", "a", "b", "b", "a") == [
        (30, "a"),
        (60, "a (put off 2 times)"),
        (30, "b"),
        (60, "b (put off 2 times)"),
        (30, "a"),
    ]


def test_what_somebody_else_said_of_the_run_counts_for_nothing() -> None:
    assert next_move(Mismatched("a"), before="maintenance") == GiveBack(30, "a")


async def one(value: object = None) -> int:
    return 1


async def test_a_run_with_a_mismatch_waits_with_the_reason_and_goes_on_when_the_code_fits_again() -> None:
    name, kind = "a", "step"

    async def handler(ctx: Context) -> int:
        if kind == "step":
            await ctx.step(name, one)
        else:
            await ctx.sleep(name, 0)
        await ctx.sleep("later", "1h")
        return 1

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert isinstance(move, Park)
        kind = "sleep"
        first = await lives.again(claimed)
        assert isinstance(first, GiveBack)
        second = await lives.again(claimed, reason=first.reason)
        kind = "step"
        lives.journal.now_s += 3600
        fixed = await lives.again(claimed)

    reason = "'a' is a step in the journal (seq 1), and a sleep in the code"
    assert [first, second] == [GiveBack(30, reason), GiveBack(60, f"{reason} (put off 2 times)")]
    assert isinstance(fixed, End)


# ---- arguments


async def test_arguments_are_not_compared_unless_a_step_says_so() -> None:
    argument = "first"

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", one, argument)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        argument = "second"

        assert lives.result(await lives.again(claimed)) == 1
        assert lives.journal.memo(claimed.id)[0].meta == b"", "and nothing is paid for"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ((1, "x"), (2, "x"), "'a' was called with another argument 1 (seq 1) than in the code"),
        ((1, "x"), (2, "y"), "'a' was called with another argument 1 and 2 (seq 1) than in the code"),
        ((1, "x"), (1,), "'a' was called with 2 arguments (seq 1), and with 1 in the code"),
        (({"a": 1, "b": 2},), ({"b": 2, "a": 1},), None),
        (({3, 1, 2},), ({1, 2, 3},), None),
        ((asyncio,), (pytest,), None),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_marked_step_is_not_recalled_for_other_arguments(
    before: tuple[Any, ...], after: tuple[Any, ...], reason: str | None, is_async: bool
) -> None:
    args = before

    @step(check_input=True)
    async def charge(*_: Any) -> str:
        return "charged"

    @step(check_input=True)
    def charge_sync(*_: Any) -> str:
        return "charged"

    async def handler(ctx: Context) -> str:
        return await ctx.step("a", charge, *args)

    def sync_handler(ctx: SyncContext) -> str:
        return ctx.step("a", charge_sync, *args)

    async with Lives(bound(handler if is_async else sync_handler)) as lives:
        claimed, _ = await lives.run()
        args = after

        move = await lives.again(claimed)

        if reason is None:
            assert lives.result(move) == "charged"
        else:
            assert move == GiveBack(30, reason)
            args = before
            assert lives.result(await lives.again(claimed)) == "charged"


async def test_a_failure_of_a_marked_step_is_compared_too() -> None:
    argument = 1

    @step(check_input=True)
    async def explode(_: int) -> None:
        raise ValueError

    async def handler(ctx: Context) -> None:
        await ctx.step("a", explode, argument)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        argument = 2

        assert isinstance(await lives.again(claimed), GiveBack)


async def test_a_step_that_is_marked_later_takes_what_was_kept_before() -> None:
    function: Any = one
    argument = 1

    async def handler(ctx: Context) -> int:
        value: int = await ctx.step("a", function, argument)
        return value

    @step(check_input=True)
    async def marked(_: int) -> int:
        return 2

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        function, argument = marked, 2

        assert lives.result(await lives.again(claimed)) == 1


async def test_arguments_count_as_they_were_when_the_body_began() -> None:
    @step(check_input=True)
    async def changes(items: list[int]) -> int:
        items.append(4)
        return len(items)

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", changes, [1, 2, 3])

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()

        assert lives.result(await lives.again(claimed)) == 4
