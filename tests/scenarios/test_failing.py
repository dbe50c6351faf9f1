"""What becomes of steps, polls and runs that fail, with the real engine: across parks, deploys and moved clocks."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import psycopg
import pytest

from kedge import NonRetryable, Retry, RetryAfter, WorkflowRef
from kedge_client import (
    AsyncClient,
    RunCancelledError,
    RunDeadlineError,
    RunFailedError,
    StepFailedError,
    StepTimedOutError,
    TransactionFailedError,
    WaitTimeoutError,
)
from kedge_worker import Context, NotYet, SyncContext, Worker, step, workflow
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, handled, stage

HOURLY = Retry(3, initial="1h", maximum="1h", jitter=False)
AT_ONCE = Retry(3, initial=0, jitter=False)


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


class Flaky:
    """A step's function: raises what it is given, one after the other, then answers how often it was called."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        return self.call()

    def call(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def retrying(body: Flaky, retry: Retry) -> Any:
    async def handler(ctx: Context) -> int:
        return await ctx.step("flaky", body, retry=retry)

    return handler


# ---- attempts of a step


async def test_attempts_hours_apart_happen_when_the_clock_says_and_are_seen_by_the_client(
    play: Stage, clock: Clock
) -> None:
    body = Flaky(OSError("one"), OSError("two"))
    ref, made = handled(retrying(body, HOURLY))

    run = await play.play(ref(), made)
    assert run.status() == "waiting"
    assert body.calls == 1
    clock.advance("59m")
    await play.go_on()
    assert body.calls == 1
    clock.advance("2m")
    await play.go_on()
    assert body.calls == 2
    clock.advance("61m")
    await play.go_on()

    assert run.result(timeout=0) == 3
    (seen,) = play.client.steps(run)
    assert (seen.kind, seen.status) == ("step", "completed")
    assert [(one.attempt, one.error.message) for one in seen.attempts] == [(1, "one"), (2, "two")]
    assert play.rows("select count(*) from kedge.waits") == [(0,)]


async def test_a_step_that_waits_for_its_next_attempt_is_seen_to_do_so(play: Stage) -> None:
    ref, made = handled(retrying(Flaky(OSError("one")), HOURLY))
    run = await play.play(ref(), made)

    (seen,) = play.client.steps(run)

    assert (seen.key, seen.kind, seen.status) == ("flaky", "step", "open")
    assert [one.error.message for one in seen.attempts] == ["one"]
    assert play.rows("select kind::text, key, attempt from kedge.waits") == [("r", "flaky", 1)]


async def test_a_used_up_budget_fails_the_run_with_the_count(play: Stage) -> None:
    body = Flaky(*[OSError("down")] * 9)
    ref, made = handled(retrying(body, AT_ONCE))

    run = await play.play(ref(), made)

    with pytest.raises(RunFailedError, match="failed after 3 attempts: OSError: down"):
        run.result(timeout=0)
    assert body.calls == 3
    assert play.rows("select attempt, kind::text, key, n from kedge.failures order by id") == [
        (1, "s", "flaky", 1),
        (2, "s", "flaky", 1),  # of another claim: each attempt was parked
    ]


async def test_a_serving_worker_makes_quick_attempts_without_letting_the_run_go(play: Stage) -> None:
    body = Flaky(OSError("one"), OSError("two"))
    ref, made = handled(retrying(body, Retry(3, initial="10ms")))

    async with AsyncClient.connect(play.url) as client, Worker(play.url, workflows=[made]):
        run = await client.start(ref())
        assert await run.result(timeout="20s") == 3

    assert play.epoch(run.id) == 1


async def test_the_workers_house_rule_holds_where_nothing_else_is_said(play: Stage) -> None:
    body, own = Flaky(OSError("one")), Flaky(OSError("own"))

    @step(retry=Retry.NEVER)
    async def never() -> int:
        return own.call()

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            await ctx.step("own", never)
        return [await ctx.step("house", body), caught.value.attempts]

    ref, made = handled(handler)
    run = play.client.start(ref())
    await Worker(play.url, workflows=[made], step_retry=Retry(2, initial=0)).run_until_idle()

    assert run.result(timeout=0) == [2, 1]


async def test_a_cancel_ends_a_run_that_waits_for_a_steps_next_attempt(play: Stage, clock: Clock) -> None:
    body = Flaky(OSError("one"))
    ref, made = handled(retrying(body, HOURLY))
    run = await play.play(ref(), made)

    run.cancel(reason="enough")
    await play.go_on()
    clock.advance("2h")
    await play.go_on()

    with pytest.raises(RunCancelledError, match="enough"):
        run.result(timeout=0)
    assert body.calls == 1
    assert play.rows("select count(*) from kedge.waits") == [(0,)]


async def test_a_pause_holds_the_next_attempt_up_and_a_resume_lets_it_begin(play: Stage, clock: Clock) -> None:
    body = Flaky(OSError("one"))
    ref, made = handled(retrying(body, HOURLY))
    run = await play.play(ref(), made)

    run.pause()
    await play.go_on()
    clock.advance("5h")
    await play.go_on()
    assert run.status() == "paused"
    assert body.calls == 1

    run.resume()
    await play.go_on()
    assert run.result(timeout=0) == 2


async def test_a_deploy_while_an_attempt_is_awaited_counts_nothing(play: Stage, clock: Clock) -> None:
    body = Flaky(OSError("one"), OSError("two"), OSError("three"))
    ref, made = handled(retrying(body, HOURLY))
    async with Worker(play.url, workflows=[made]):
        run = play.client.start(ref())
        while not play.rows("select 1 from kedge.waits"):
            await asyncio.sleep(0.01)
    for _ in range(3):  # workers come and go
        await Worker(play.url, workflows=[made]).run_until_idle()
    assert body.calls == 1

    _, fixed = handled(retrying(body, Retry(2)))
    clock.advance("61m")
    await Worker(play.url, workflows=[fixed]).run_until_idle()

    with pytest.raises(RunFailedError, match="after 2 attempts: OSError: two"):
        run.result(timeout=0)


async def test_a_sync_handlers_steps_are_tried_again_too(play: Stage, clock: Clock) -> None:
    body = Flaky(OSError("one"), OSError("two"))

    def handler(ctx: SyncContext) -> int:
        return ctx.step("flaky", body.call, retry=HOURLY)

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for _ in range(2):
        assert run.status() == "waiting"
        clock.advance("61m")
        await play.go_on()

    assert run.result(timeout=0) == 3
    assert play.rows("select attempt, kind::text, key from kedge.failures order by id") == [
        (1, "s", "flaky"),
        (2, "s", "flaky"),
    ]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_transaction_is_tried_again_and_what_failed_left_nothing(
    play: Stage, clock: Clock, is_async: bool
) -> None:
    with psycopg.connect(play.url) as conn:
        conn.execute("create table ledger (id int primary key)")
        conn.execute("insert into ledger values (1)")
    tried: list[int] = []

    def number() -> int:
        tried.append(1)
        return 1 if len(tried) < 3 else 2

    async def write(conn: psycopg.AsyncConnection) -> int:
        await conn.execute("insert into ledger values (%s)", (len(tried) + 100,))
        await conn.execute("insert into ledger values (%s)", (number(),))
        return len(tried)

    def write_sync(conn: psycopg.Connection) -> int:
        conn.execute("insert into ledger values (%s)", (len(tried) + 100,))
        conn.execute("insert into ledger values (%s)", (number(),))
        return len(tried)

    async def handler(ctx: Context) -> int:
        return await ctx.transaction("ledger", write, retry=HOURLY)

    def sync_handler(ctx: SyncContext) -> int:
        return ctx.transaction("ledger", write_sync, retry=HOURLY)

    ref, made = handled(handler if is_async else sync_handler)
    run = await play.play(ref(), made)
    for _ in range(2):
        clock.advance("61m")
        await play.go_on()

    assert run.result(timeout=0) == 3
    assert play.rows("select id from ledger order by id") == [(1,), (2,), (102,)]
    assert play.rows("select attempt, kind::text, key from kedge.failures order by id") == [
        (1, "t", "ledger"),
        (2, "t", "ledger"),
    ]
    assert play.rows("select count(*) from kedge.waits") == [(0,)]


async def test_a_transaction_that_is_refused_for_good_says_how_often_it_was_tried(play: Stage) -> None:
    async def write(conn: psycopg.AsyncConnection) -> None:
        await conn.execute("select 1/0")

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(TransactionFailedError) as caught:
            await ctx.transaction("ledger", write, retry=AT_ONCE)
        assert caught.value.error is not None
        return [caught.value.sqlstate, caught.value.error.attempt]

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == ["22012", 3]


async def test_a_step_that_takes_too_long_is_tried_again_and_then_fails(play: Stage) -> None:
    calls: list[int] = []

    async def hang() -> None:
        calls.append(1)
        await asyncio.Event().wait()

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepTimedOutError) as caught:
            await ctx.step("hang", hang, timeout="10ms", retry=AT_ONCE)
        return [caught.value.attempts, len(calls)]

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == [3, 3]


# ---- attempts of a run


def with_policy(handler: Callable[..., Any], retry: Retry | None, **options: Any) -> tuple[Any, Any]:
    ref = WorkflowRef[Any, Any]("play", None, Any)
    return ref, workflow(ref, retry=retry, **options)(handler)


async def test_the_definitions_policy_reaches_runs_that_a_client_with_the_ref_only_has_started(
    play: Stage, clock: Clock
) -> None:
    attempts: list[int] = []
    kept, failing = Flaky(), Flaky(OSError("one"), OSError("two"))

    async def handler(ctx: Context) -> list[int]:
        attempts.append(ctx.attempt)
        return [await ctx.step("kept", kept), await ctx.step("failing", failing)]

    ref, made = with_policy(handler, HOURLY)
    run = await play.play(ref(), made)
    for _ in range(2):
        assert run.status() == "waiting"
        clock.advance("61m")
        await play.go_on()

    assert run.result(timeout=0) == [1, 3]
    assert attempts == [1, 2, 3]
    assert (kept.calls, failing.calls) == (1, 3), "kept steps stay kept, failed ones are done again"
    assert play.rows("select attempt, kind::text, key from kedge.failures order by id") == [
        (1, "r", ""),
        (1, "f", "failing"),
        (2, "r", ""),
        (2, "f", "failing"),
    ]


async def test_a_requests_policy_replaces_that_of_the_definition(play: Stage) -> None:
    attempts: list[int] = []

    async def handler(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise OSError("down")

    ref, made = with_policy(handler, Retry(5, initial=0))
    run = await play.play(ref(retry=Retry(2, initial=0)), made)

    with pytest.raises(RunFailedError, match="down"):
        run.result(timeout=0)
    assert attempts == [1, 2]
    with pytest.raises(RunFailedError):
        (await play.play(ref(retry=Retry.NEVER), made)).result(timeout=0)
    assert attempts == [1, 2, 1]


async def test_a_steps_final_error_is_final_for_the_run(play: Stage) -> None:
    attempts: list[int] = []

    async def handler(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        return await ctx.step("a", Flaky(NonRetryable("no use")), retry=AT_ONCE)

    ref, made = with_policy(handler, Retry(5, initial=0))
    run = await play.play(ref(), made)

    with pytest.raises(RunFailedError, match="no use"):
        run.result(timeout=0)
    assert attempts == [1]


async def test_a_handler_may_say_when_to_try_it_again(play: Stage, clock: Clock) -> None:
    async def handler(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise RetryAfter("3 days")
        return ctx.attempt

    ref, made = with_policy(handler, Retry(2, initial=0))
    run = await play.play(ref(), made)
    clock.advance("2 days 23 hours")
    await play.go_on()
    assert run.status() == "waiting"
    clock.advance("2h")
    await play.go_on()

    assert run.result(timeout=0) == 2


async def test_an_unlimited_policy_goes_on_and_on(play: Stage) -> None:
    async def handler(ctx: Context) -> int:
        if ctx.attempt < 30:
            raise OSError("down")
        return ctx.attempt

    ref, made = with_policy(handler, Retry(None, initial=0))
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == 30


async def test_the_runs_deadline_comes_before_its_next_attempt(play: Stage, clock: Clock) -> None:
    attempts: list[int] = []

    async def handler(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise OSError("down")

    ref, made = with_policy(handler, Retry(5, initial="2h", maximum="2h", jitter=False), timeout="1h")
    async with AsyncClient.connect(play.url) as client, Worker(play.url, workflows=[made]):
        run = await client.start(ref())
        while await run.status() != "waiting":
            await asyncio.sleep(0.01)
        clock.advance("61m")
        with pytest.raises(RunDeadlineError):
            await run.result(timeout="20s")
    assert attempts == [1]


async def test_a_cancel_ends_a_run_that_waits_for_its_next_attempt(play: Stage, clock: Clock) -> None:
    attempts: list[int] = []

    async def handler(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise OSError("down")

    ref, made = with_policy(handler, HOURLY)
    run = await play.play(ref(), made)
    run.cancel(reason="enough")
    await play.go_on()
    clock.advance("2h")
    await play.go_on()

    with pytest.raises(RunCancelledError, match="enough"):
        run.result(timeout=0)
    assert attempts == [1]


async def test_a_steps_budget_begins_anew_with_an_attempt_of_the_run(play: Stage) -> None:
    body = Flaky(*[OSError("down")] * 3)

    async def handler(ctx: Context) -> int:
        return await ctx.step("flaky", body, retry=Retry(2, initial=0))

    ref, made = with_policy(handler, Retry(2, initial=0))
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == 4


# ---- code that does not fit


async def test_a_run_whose_code_does_not_fit_waits_with_the_reason_and_goes_on_after_a_fixed_deploy(
    play: Stage, clock: Clock
) -> None:
    async def one() -> int:
        return 1

    async def before(ctx: Context) -> int:
        await ctx.step("a", one)
        await ctx.sleep("night", "8h")
        return await ctx.step("b", one)

    async def broken(ctx: Context) -> int:
        await ctx.sleep("a", 0)
        return 0

    ref, made = handled(before)
    _, wrong = handled(broken)
    run = await play.play(ref(), made)
    clock.advance("9h")
    play.cast(wrong)
    await play.go_on()
    reason = "'a' is a step in the journal (seq 1), and a sleep in the code"
    assert (run.status(), run.view().reason) == ("waiting", reason)

    clock.advance("31s")
    await play.go_on()
    assert run.view().reason == f"{reason} (put off 2 times)"
    clock.advance("31s")
    assert await play.go_on() == 0
    assert run.view().reason == f"{reason} (put off 2 times)", "a minute now"
    play.cast(made)
    clock.advance("30s")
    await play.go_on()

    assert run.result(timeout=0) == 1
    assert run.view().reason is None


# ---- polls


async def test_a_poll_looks_for_days_and_knows_what_it_has_seen(play: Stage, clock: Clock) -> None:
    seen: list[Any] = []

    async def look(order: str, *, state: int = 0) -> str | NotYet:
        seen.append(state)
        return f"{order} is there" if state == 3 else NotYet(state + 1)

    async def handler(ctx: Context) -> str:
        return await ctx.poll("parcel", look, "o-1", every="1 day", timeout="7 days")

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for _ in range(3):
        assert run.status() == "waiting"
        clock.advance("12h")
        await play.go_on()
        clock.advance("13h")
        await play.go_on()

    assert run.result(timeout=0) == "o-1 is there"
    assert seen == [0, 1, 2, 3]
    assert play.kinds(run) == ["parcel poll completed"]
    assert play.rows("select count(*) from kedge.waits") == [(0,)]


async def test_a_polls_time_is_the_databases_and_survives_its_workers(play: Stage, clock: Clock) -> None:
    calls: list[int] = []

    async def look() -> str | NotYet:
        calls.append(1)
        return NotYet()

    async def handler(ctx: Context) -> str:
        try:
            return await ctx.poll("parcel", look, every="1h", backoff=2, timeout="4h")
        except WaitTimeoutError as error:
            return f"{error.key} timed out"

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for _ in range(4):
        clock.advance("61m")
        await play.go_on()

    assert run.result(timeout=0) == "parcel timed out"
    assert len(calls) == 4, "at once, after 1 h, after 3 h, and when the time was up"


async def test_a_poll_is_fast_forwarded_by_a_client(play: Stage) -> None:
    async def look() -> int | NotYet:
        return NotYet()

    async def handler(ctx: Context) -> int:
        return await ctx.poll("parcel", look, every="1h")

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    assert run.fast_forward("no number")
    await play.go_on()
    assert run.status() == "waiting"
    assert run.fast_forward(7)
    await play.go_on()

    assert run.result(timeout=0) == 7


async def test_a_serving_worker_polls_quickly_in_memory_and_takes_a_cancel(play: Stage) -> None:
    calls: list[int] = []

    async def look() -> int | NotYet:
        calls.append(1)
        return len(calls) if len(calls) == 3 else NotYet()

    async def never() -> int | NotYet:
        return NotYet()

    async def handler(ctx: Context) -> int:
        return await ctx.poll("parcel", look, every="100ms")

    async def endless(ctx: Context) -> int:
        return await ctx.poll("parcel", never, every="100ms")

    ref, made = handled(handler)
    other, made_endless = handled(endless, name="endless")
    async with AsyncClient.connect(play.url) as client, Worker(play.url, workflows=[made, made_endless]):
        run, lasting = await client.start(ref()), await client.start(other())
        assert await run.result(timeout="20s") == 3
        await lasting.cancel(reason="enough")
        with pytest.raises(RunCancelledError):
            await lasting.result(timeout="20s")


async def test_a_polls_failures_are_seen_and_its_checks_go_on(play: Stage, clock: Clock) -> None:
    body = Flaky(OSError("one"), OSError("two"))

    async def handler(ctx: Context) -> int:
        return await ctx.poll("parcel", body, every="1 day", retry=HOURLY)

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for _ in range(2):
        clock.advance("61m")
        await play.go_on()

    assert run.result(timeout=0) == 3
    (seen,) = play.client.steps(run)
    assert [(one.attempt, one.error.message) for one in seen.attempts] == [(1, "one"), (2, "two")]
    assert play.rows("select attempt, kind::text, key from kedge.failures order by id") == [
        (1, "p", "parcel"),
        (2, "p", "parcel"),
    ]


async def test_a_sync_handler_polls_too(play: Stage, clock: Clock) -> None:
    seen: list[int] = []

    def look(state: int = 0) -> str | NotYet:
        seen.append(state)
        return "there" if state == 2 else NotYet(state + 1)

    def handler(ctx: SyncContext) -> str:
        return ctx.poll("parcel", look, every="1h", timeout="1 day")

    ref, made = handled(handler)
    run = await play.play(ref(), made)
    for _ in range(2):
        clock.advance("61m")
        await play.go_on()

    assert run.result(timeout=0) == "there"
    assert seen == [0, 1, 2]
