"""A step that fails is tried again as its policy says, and what of the budget is used up survives whatever happens."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from kedge.errors import DomainError, InvalidOptionError, NotEncodableError, StepFailedError
from kedge.failures import decode_error
from kedge.retry import NonRetryable, Retry, RetryAfter
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._outcomes import End, GiveBack, Park
from kedge_worker._worker import Worker
from tests.unit.worker.journal import Lives, MemoryJournal, bound, claim, failures, sides

AT_ONCE = Retry(3, initial=0, jitter=False)
IN_AN_HOUR = Retry(3, initial="1h", maximum="1h", jitter=False)


class CardDeclined(DomainError):
    code: str


class Script:
    """A step's function: raises or returns what it is given, one after the other, over all lives."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return int(outcome)


async def live(handler: Callable[[Context], Awaitable[Any]], **options: Any) -> tuple[Any, MemoryJournal]:
    async with Lives(bound(handler), linger_s=60, **options) as lives:
        _, move = await lives.run()
        return lives.result(move), lives.journal


# ---- which policy counts


async def test_without_a_policy_there_is_one_attempt() -> None:
    body = Script(ValueError(), 1)

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", body)
        return caught.value.attempts

    assert (await live(handler))[0] == 1
    assert body.calls == 1


@pytest.mark.parametrize(
    ("call", "own", "house", "attempts"),
    [(2, 3, 4, 2), (None, 3, 4, 3), (None, None, 4, 4), (None, None, None, 1), (1, 3, 4, 1)],
)
async def test_the_call_goes_before_the_function_and_the_function_before_the_worker(
    call: int | None, own: int | None, house: int | None, attempts: int
) -> None:
    def policy(number: int | None) -> Retry | None:
        return None if number is None else Retry(number, initial=0)

    calls = 0

    @step(retry=policy(own))
    async def explode() -> None:
        nonlocal calls
        calls += 1
        raise ValueError

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", explode, retry=policy(call))
        return caught.value.attempts

    result, _ = await live(handler, step_retry=policy(house) or Retry.NEVER)

    assert result == calls == attempts


async def test_a_policy_replaces_another_one_whole() -> None:
    @step(retry=Retry(5, initial=0, give_up_on=(ValueError,)))
    async def explode() -> None:
        raise ValueError

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", explode, retry=Retry(2, initial=0))
        return caught.value.attempts

    assert (await live(handler))[0] == 2


async def test_a_wrong_policy_is_refused_where_it_is_written() -> None:
    wrong: Any = 3

    async def nothing() -> None: ...
    async def nothing_with(_: Any) -> None: ...

    async def handler(ctx: Context) -> None:
        with pytest.raises(InvalidOptionError, match=r"retry=3: give a Retry, as Retry\(3\)"):
            await ctx.step("a", nothing, retry=wrong)
        with pytest.raises(InvalidOptionError, match=r"retry=3: give a Retry, as Retry\(3\)"):
            await ctx.transaction("a", nothing_with, retry=wrong)

    await live(handler)

    with pytest.raises(InvalidOptionError, match="retry=3: give a Retry"):
        step(retry=wrong)
    with pytest.raises(InvalidOptionError, match="retry=3: give a Retry"):
        Worker(workflows=[bound(handler)], step_retry=wrong)


async def test_a_wrapper_made_with_wraps_has_the_policy_of_what_it_wraps() -> None:
    @step(retry=AT_ONCE)
    async def explode() -> None:
        raise ValueError

    @functools.wraps(explode)
    async def wrapper() -> None:
        await explode()

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", wrapper)
        return caught.value.attempts

    assert (await live(handler))[0] == 3


# ---- one attempt after the other


async def test_it_is_tried_again_until_it_succeeds_and_the_handler_sees_the_value_only() -> None:
    body = Script(ValueError("one"), OSError("two"), 7)

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", body, retry=AT_ONCE)

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == 7
        assert lives.journal.keys(claimed.id) == [("s", "a")]
        assert lives.journal.left_open == []
        assert lives.result(await lives.again(claimed)) == 7
    assert body.calls == 3


async def test_each_failure_that_is_followed_by_an_attempt_is_kept_with_its_number_and_traceback() -> None:
    body = Script(ValueError("one"), OSError("two"), 7)

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", body, retry=AT_ONCE)

    _, journal = await live(handler)

    kept = failures(journal)
    assert [(one.n, one.attempt, one.kind, one.key) for one in kept] == [(1, 1, "s", "a"), (2, 2, "s", "a")]
    assert [(one.error.kind, one.error.message, one.error.attempt) for one in kept] == [
        ("builtins.ValueError", "one", 1),
        ("builtins.OSError", "two", 2),
    ]
    assert all("raise outcome" in (one.error.traceback or "") for one in kept)
    assert kept[1].error.cause is None, "an attempt is no cause of the next one's failure"


async def test_the_wait_is_closed_with_the_outcome_and_not_later() -> None:
    body = Script(ValueError(), 7)

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", body, retry=AT_ONCE)

    _, journal = await live(handler)

    # The memory journal keeps order: behind "keep a" comes nothing but what closes the wait.
    assert sides(journal) == ["KEEP_FAILURES", "OPEN_WAITS", "CLOSE_WAITS"]


async def test_a_failure_is_durable_before_the_next_attempt_begins() -> None:
    async def handler(ctx: Context) -> int:
        async def body() -> int:
            lives.journal.log.append("body")
            if lives.journal.log.count("body") == 1:
                raise ValueError
            return 1

        return await ctx.step("a", body, retry=AT_ONCE)

    async with Lives(bound(handler), linger_s=60) as lives:
        await lives.run()

    assert lives.journal.log == ["body", "durable", "body", "keep a"]


async def test_a_step_that_succeeds_at_once_writes_nothing_beside_its_row() -> None:
    async def handler(ctx: Context) -> int:
        return await ctx.step("a", Script(7), retry=AT_ONCE)

    _, journal = await live(handler)

    assert sides(journal) == []


async def test_a_used_up_budget_raises_the_last_error_the_same_live_and_on_replay() -> None:
    body = Script(ValueError("one"), ValueError("two"), OSError("three"))
    causes: list[BaseException | None] = []

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", body, retry=AT_ONCE)
        causes.append(caught.value.__cause__)
        error = caught.value
        return [error.attempts, error.error.kind, error.error.message, str(error).split("failed ")[1]]

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()
        first = lives.result(move)
        again = lives.result(await lives.again(claimed))
        (row,) = lives.journal.memo(claimed.id)

        assert lives.journal.left_open == []
    assert first == again == [3, "builtins.OSError", "three", "after 3 attempts: OSError: three"]
    assert [type(cause) for cause in causes] == [OSError, type(None)]
    assert (row.kind, decode_error(row.value).attempt) == ("f", 3)
    assert len(failures(lives.journal)) == 2, "the last one is the row"


@pytest.mark.parametrize(
    ("policy", "errors", "attempts"),
    [
        (Retry(5, initial=0), [NonRetryable("no")], 1),
        (Retry(5, initial=0), [ValueError(), NonRetryable("no")], 2),
        (Retry(5, initial=0, give_up_on=(KeyError,)), [ValueError(), KeyError()], 2),
        (Retry(5, initial=0, retry_on=(OSError,)), [OSError(), ValueError()], 2),
        (Retry(5, initial=0, retry_on=(OSError,)), [RetryAfter(0), RetryAfter(0), ValueError()], 3),
        (Retry(5, initial=0), [SystemExit(3)], 1),
        (Retry(5, initial=0), [asyncio.CancelledError()], 1),
        (Retry(2, initial=0), [RetryAfter(0), RetryAfter(0)], 2),
        (Retry.NEVER, [RetryAfter(0)], 1),
    ],
)
async def test_what_is_final_is_not_tried_again(policy: Retry, errors: Sequence[BaseException], attempts: int) -> None:
    body = Script(*errors, 1)

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", body, retry=policy)
        return [caught.value.attempts, caught.value.error.kind.split(".")[-1]]

    result, _ = await live(handler)

    assert result == [attempts, type(errors[-1]).__name__]
    assert body.calls == attempts


async def test_a_value_that_cannot_be_kept_is_final() -> None:
    calls = 0

    async def nan() -> float:
        nonlocal calls
        calls += 1
        return float("nan")

    async def handler(ctx: Context) -> str:
        with pytest.raises(NotEncodableError) as caught:
            await ctx.step("a", nan, retry=AT_ONCE)
        return caught.value.where

    assert (await live(handler))[0] == "step 'a'"
    assert calls == 1


async def test_a_declared_error_is_tried_again_too_and_comes_back_as_its_class() -> None:
    calls = 0

    @step(raises=(CardDeclined,), retry=AT_ONCE)
    async def charge() -> None:
        nonlocal calls
        calls += 1
        raise CardDeclined(code="stolen")

    async def handler(ctx: Context) -> str:
        with pytest.raises(CardDeclined) as caught:
            await ctx.step("a", charge)
        return caught.value.code

    assert (await live(handler))[0] == "stolen"
    assert calls == 3


async def test_a_function_in_a_thread_is_tried_again_as_well() -> None:
    calls = 0

    def flaky() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ValueError
        return calls

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", flaky, retry=AT_ONCE)

    assert (await live(handler))[0] == 3


async def test_branches_fail_and_go_on_each_for_itself() -> None:
    async def handler(ctx: Context) -> tuple[int, ...]:
        return await asyncio.gather(
            ctx.step("a", Script(ValueError(), 1), retry=AT_ONCE),
            ctx.step("b", Script(2)),
            ctx.step("c", Script(ValueError(), ValueError(), 3), retry=AT_ONCE),
        )

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == [1, 2, 3]
        assert sorted(one.key for one in failures(lives.journal)) == ["a", "c", "c"]
        assert lives.result(await lives.again(claimed)) == [1, 2, 3]


# ---- long delays, and other lives


async def test_a_long_delay_parks_the_run_and_the_budget_is_what_is_left() -> None:
    body = Script(ValueError("one"), ValueError("two"), ValueError("three"), 4)

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", body, retry=IN_AN_HOUR)
        return caught.value.attempts

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert move == Park(())
        (wait,) = lives.journal.waits(claimed.id)
        assert (wait.kind, wait.key, wait.attempt, wait.left_s) == ("r", "a", 1, 3600)

        lives.journal.now_s += 1800
        assert await lives.again(claimed) == Park(())
        assert body.calls == 1, "a resume is no attempt"
        assert [one.left_s for one in lives.journal.waits(claimed.id)] == [1800]

        lives.journal.now_s += 1800
        assert await lives.again(claimed) == Park(())
        assert body.calls == 2
        assert [(one.attempt, one.left_s) for one in lives.journal.waits(claimed.id)] == [(2, 3600)]

        lives.journal.now_s += 3600
        assert lives.result(await lives.again(claimed)) == 3
        assert lives.journal.left_open == []
    assert body.calls == 3
    assert [(one.attempt, one.error.message) for one in failures(lives.journal)] == [(1, "one"), (2, "two")]


async def test_retry_after_says_the_delay_however_long() -> None:
    async def handler(ctx: Context) -> int:
        return await ctx.step("a", Script(RetryAfter("3 days")), retry=Retry(2))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()

        (wait,) = lives.journal.waits(claimed.id)
    assert wait.left_s == 3 * 86_400


async def test_an_attempt_that_is_lost_with_its_worker_uses_up_nothing() -> None:
    begun = asyncio.Event()
    calls = 0

    async def body() -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            begun.set()
            await asyncio.Event().wait()
        raise ValueError(str(calls))

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", body, retry=AT_ONCE)
        return caught.value.attempts

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await begun.wait()
        lives.executor.lose(claimed.id)

        assert lives.result(await lives.again(claimed)) == 3
    assert calls == 4
    assert [one.attempt for one in failures(lives.journal)] == [1, 2]


async def test_an_attempt_that_a_shutdown_stops_uses_up_nothing() -> None:
    begun = asyncio.Event()

    async def body() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("because of the cancellation") from None
        return 1

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", body, retry=AT_ONCE)

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await begun.wait()
        await lives.executor.shutdown(0)

        assert isinstance(lives.journal.moves[claimed.id], GiveBack)
        assert failures(lives.journal) == []
        assert lives.journal.waits(claimed.id) == ()


async def test_after_a_deploy_the_new_policy_counts_what_the_old_one_has_used_up() -> None:
    body = Script(ValueError(), ValueError(), 1)
    policy = IN_AN_HOUR

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("a", body, retry=policy)
        return caught.value.attempts

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        lives.journal.now_s += 3600
        policy = Retry(2)

        assert lives.result(await lives.again(claimed)) == 2


async def test_a_run_is_not_parked_while_the_body_of_another_step_runs() -> None:
    release = asyncio.Event()
    flaky = Script(ValueError(), 1)

    async def body() -> int:
        await release.wait()
        return 2

    async def handler(ctx: Context) -> tuple[int, ...]:
        return await asyncio.gather(
            ctx.step("a", flaky, retry=IN_AN_HOUR),
            ctx.step("b", body),
        )

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        while not lives.journal.waits(claimed.id):
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert claimed.id not in lives.journal.moves
        release.set()

        assert await lives.journal.moved(claimed.id) == Park(())
        lives.journal.now_s += 3600
        assert lives.result(await lives.again(claimed)) == [1, 2]


# ---- whoever stops it


async def waiting_for_the_next_attempt(lives: Lives) -> Any:
    claimed = claim(lives.workflow)
    lives.executor.start(claimed)
    while not lives.journal.waits(claimed.id):
        await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    return claimed


async def never_again(ctx: Context) -> int:
    return await ctx.step("a", Script(ValueError()), retry=IN_AN_HOUR)


async def test_a_cancel_ends_the_wait_for_the_next_attempt() -> None:
    async with Lives(bound(never_again), linger_s=60) as lives:
        claimed = await waiting_for_the_next_attempt(lives)

        lives.executor.ask(claimed.id, "x", "enough")

        assert await lives.journal.moved(claimed.id) == End("x", reason="enough")
        assert lives.journal.keys(claimed.id) == []


async def test_a_pause_leaves_the_wait_for_the_next_attempt_as_it_is() -> None:
    async with Lives(bound(never_again), linger_s=60) as lives:
        claimed = await waiting_for_the_next_attempt(lives)

        lives.executor.ask(claimed.id, "s", None)

        assert await lives.journal.moved(claimed.id) == GiveBack()
        assert [one.attempt for one in lives.journal.waits(claimed.id)] == [1]


async def test_a_pause_during_an_attempt_that_fails_begins_no_other_one() -> None:
    begun, release = asyncio.Event(), asyncio.Event()
    calls = 0

    async def body() -> int:
        nonlocal calls
        calls += 1
        begun.set()
        await release.wait()
        raise ValueError

    async def handler(ctx: Context) -> int:
        return await ctx.step("a", body, retry=AT_ONCE)

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await begun.wait()
        lives.executor.ask(claimed.id, "s", None)
        release.set()

        assert await lives.journal.moved(claimed.id) == GiveBack()
        assert [one.attempt for one in lives.journal.waits(claimed.id)] == [1]
    assert calls == 1


async def test_the_handlers_own_timeout_interrupts_the_wait_for_the_next_attempt_also_on_replay() -> None:
    body = Script(ValueError(), 1)

    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.01):
                await ctx.step("a", body, retry=IN_AN_HOUR)
        except TimeoutError:
            return "gave up"
        return "went on"

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == "gave up"
        assert lives.journal.keys(claimed.id) == [("x", "a")]
        assert lives.journal.left_open == []
        assert lives.result(await lives.again(claimed)) == "gave up"
    assert body.calls == 1


async def test_a_step_may_have_any_timeout_of_the_handlers_around_its_attempts() -> None:
    async def handler(ctx: Context) -> int:
        async with asyncio.timeout(1000):
            return await ctx.step("a", Script(ValueError(), 7), retry=AT_ONCE)

    assert (await live(handler))[0] == 7


async def test_the_loser_of_a_race_leaves_no_attempt_behind() -> None:
    async def handler(ctx: Context) -> Any:
        return await ctx.first("race", ctx.step("a", Script(ValueError()), retry=IN_AN_HOUR), ctx.sleep("late", 0.01))

    async with Lives(bound(handler), linger_s=60) as lives:
        _, move = await lives.run()

        assert lives.result(move) == [1, None]
        assert lives.journal.left_open == []


async def test_a_step_where_an_open_wait_is_stored_as_something_else_is_a_mismatch() -> None:
    is_step = False

    async def handler(ctx: Context) -> Any:
        return await (ctx.step("a", Script(1)) if is_step else ctx.sleep("a", "1h"))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        is_step = True

        move = await lives.again(claimed)

        assert isinstance(move, GiveBack)
        assert move.reason == "'a' has begun as a sleep, and is a step that is to be repeated in the code"


async def test_another_key_is_dropped_at_the_next_park() -> None:
    name = "a"

    async def handler(ctx: Context) -> int:
        return await ctx.step(name, Script(ValueError(), 1), retry=IN_AN_HOUR)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        name = "b"

        assert await lives.again(claimed) == Park(("a",))
        assert [one.key for one in lives.journal.waits(claimed.id)] == ["b"]
