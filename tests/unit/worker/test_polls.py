"""A poll looks until there is an answer: durable between its checks, with what it carries and when its time is up."""

import asyncio
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from kedge.errors import (
    DefinitionError,
    InvalidDurationError,
    InvalidOptionError,
    NotEncodableError,
    RawTimeoutError,
    StepFailedError,
    StepTimedOutError,
    TooLargeError,
    WaitTimeoutError,
)
from kedge.event_refs import EventRef
from kedge.failures import decode_error
from kedge.retry import NonRetryable, Retry, RetryAfter
from kedge.wire import encode
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._not_yet import NotYet
from kedge_worker._outcomes import End, GiveBack, Park
from kedge_worker._polling import PollTerms
from kedge_worker._runs import ClaimedRun, Mail
from kedge_worker._sync_context import SyncContext
from tests.unit.worker.journal import Lives, bound, claim, failures, sides

MINUTE = 60.0
AT_ONCE = Retry(3, initial=0, jitter=False)


class Parcel(msgspec.Struct, frozen=True):
    name: str


class Cursor(msgspec.Struct, frozen=True):
    page: int


class Checks:
    """A poll's function: answers what it is given, one after the other, over all lives."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    async def __call__(self) -> Any:
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def lived_on(lives: Lives, claimed: ClaimedRun, seconds: float = MINUTE) -> Any:
    """The next life, so much later."""
    lives.journal.now_s += seconds
    return await lives.again(claimed)


async def only_result(handler: Callable[..., Any], **options: Any) -> Any:
    async with Lives(bound(handler), linger_s=60, **options) as lives:
        claimed, move = await lives.run()
        result = lives.result(move)
        assert lives.result(await lives.again(claimed)) == result
        assert lives.journal.left_open == []
        return result


# ---- what is an answer


@pytest.mark.parametrize("answer", [1, "yes", False, 0, "", [], {"a": 1}, None])
async def test_anything_but_not_yet_is_the_answer_at_the_first_check(answer: object) -> None:
    body = Checks(answer)

    async def handler(ctx: Context) -> Any:
        return await ctx.poll("p", body, every="1h")

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == answer
        assert lives.journal.keys(claimed.id) == [("p", "p")]
        assert sides(lives.journal) == [], "what does not wait pays for no wait"
        assert lives.result(await lives.again(claimed)) == answer
    assert body.calls == 1


async def test_the_answers_type_is_what_the_function_says_besides_not_yet() -> None:
    answers: list[Parcel | NotYet] = [NotYet(), Parcel("p-1")]

    async def shipped() -> Parcel | NotYet:
        return answers.pop(0)

    async def handler(ctx: Context) -> str:
        parcel = await ctx.poll("p", shipped, every="100ms")
        return parcel.name

    assert await only_result(handler) == "p-1"


async def test_output_says_the_type_where_the_function_does_not() -> None:
    async def handler(ctx: Context) -> str:
        parcel = await ctx.poll("p", lambda: Parcel("p-2"), every="1s", output=Parcel)
        return parcel.name

    assert await only_result(handler) == "p-2"


async def test_a_function_in_a_thread_may_be_polled_too() -> None:
    answers: list[int | NotYet] = [NotYet(), 2]

    def look(least: int) -> int | NotYet:
        answer = answers.pop(0)
        return answer if isinstance(answer, NotYet) or answer >= least else NotYet()

    async def handler(ctx: Context) -> int:
        return await ctx.poll("p", look, 2, every="100ms")

    assert await only_result(handler) == 2


# ---- between the checks


async def test_it_is_parked_between_checks_and_looks_again_when_that_is_due() -> None:
    body = Checks(NotYet(), NotYet(), "there")

    async def handler(ctx: Context) -> str:
        return str(await ctx.poll("p", body, every="1m"))

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert move == Park(())
        (wait,) = lives.journal.waits(claimed.id)
        assert (wait.kind, wait.key, wait.attempt, wait.left_s, wait.limit_s) == ("p", "p", 1, 60, None)

        assert await lived_on(lives, claimed, 30) == Park(())
        assert body.calls == 1, "a resume is no check"
        assert await lived_on(lives, claimed, 30) == Park(())
        assert body.calls == 2
        assert [(one.attempt, one.left_s) for one in lives.journal.waits(claimed.id)] == [(2, 60)]
        assert lives.result(await lived_on(lives, claimed)) == "there"
        assert lives.journal.left_open == []
        assert lives.journal.keys(claimed.id) == [("p", "p")]


@pytest.mark.parametrize(
    ("terms", "pauses"),
    [
        (PollTerms(60, None, None, 1), [60, 60, 60, 60]),
        (PollTerms(60, None, None, 2), [60, 120, 240, 480]),
        (PollTerms(3600, None, None, 10), [3600, 36000, 86400, 86400]),
        (PollTerms(200_000, None, None, 2), [200_000, 200_000, 200_000, 200_000]),
        (PollTerms(0.1, None, None, 100), [0.1, 10, 1000, 86400]),
    ],
)
def test_pauses_grow_by_the_backoff_up_to_a_day(terms: PollTerms, pauses: list[float]) -> None:
    assert [terms.pause_s(checks) for checks in range(1, 5)] == pytest.approx(pauses)
    assert terms.pause_s(10_000) == pytest.approx(pauses[-1] if terms.backoff == 1 else max(86_400, terms.every_s))


async def test_a_crash_between_two_checks_loses_neither_state_nor_count() -> None:
    seen: list[Any] = []

    async def look(*, state: Cursor | None = None) -> str | NotYet:
        seen.append(state)
        page = 0 if state is None else state.page
        return "end" if page == 3 else NotYet(Cursor(page + 1))

    async def handler(ctx: Context) -> str:
        return await ctx.poll("p", look, every="1m")

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        for _ in range(2):
            await lived_on(lives, claimed)
        move = await lived_on(lives, claimed)

        assert lives.result(move) == "end"
    assert seen == [None, Cursor(1), Cursor(2), Cursor(3)]


# ---- state


async def test_state_comes_back_to_a_function_that_has_a_parameter_for_it_and_to_no_other() -> None:
    seen: list[Any] = []

    async def positional(order: str, state: int = 0) -> str | NotYet:
        seen.append((order, state))
        return "done" if state == 2 else NotYet(state + 1)

    async def taken(state: str) -> str | NotYet:
        seen.append(state)
        return "done" if len(seen) > 4 else NotYet({"page": 7})

    async def without() -> str | NotYet:
        seen.append("without")
        return "done" if len(seen) > 6 else NotYet({"page": 7})

    async def partial(order: str, *, more: int, state: Any = None) -> str | NotYet:
        seen.append((order, more, state))
        return "done" if state else NotYet({"page": [more]})

    async def handler(ctx: Context) -> None:
        await ctx.poll("a", positional, "o-1", every="100ms")
        await ctx.poll("b", taken, "given", every="100ms")
        await ctx.poll("c", without, every="100ms")
        await ctx.poll("d", functools.partial(partial, more=5), "o-2", every="100ms")

    await only_result(handler)

    assert seen == [
        ("o-1", 0),
        ("o-1", 1),
        ("o-1", 2),
        "given",
        "given",
        "without",
        "without",
        ("o-2", 5, None),
        ("o-2", 5, {"page": [5]}),
    ]


async def test_a_check_that_carries_nothing_ends_what_was_carried() -> None:
    seen: list[int] = []

    async def look(state: int = -1) -> str | NotYet:
        seen.append(state)
        return {1: NotYet(5), 2: NotYet(), 3: NotYet(6), 4: "end"}[len(seen)]  # type: ignore[return-value]

    async def handler(ctx: Context) -> str:
        return await ctx.poll("p", look, every="100ms")

    await only_result(handler)

    assert seen == [-1, 5, -1, 6]


async def test_a_state_that_cannot_be_carried_is_the_polls_own_typed_error() -> None:
    async def nan(state: float = 0) -> str | NotYet:
        return NotYet(float("nan"))

    async def large() -> str | NotYet:
        return NotYet("x" * 65_536)

    async def untyped() -> str | NotYet:
        return NotYet(Cursor(1))

    async def handler(ctx: Context) -> list[str]:
        said: list[str] = []
        for name, look, kind in (("a", nan, NotEncodableError), ("b", large, TooLargeError), ("c", untyped, Exception)):
            with pytest.raises(kind) as caught:
                await ctx.poll(name, look, every="1s", retry=AT_ONCE)
            said.append(f"{type(caught.value).__name__} {getattr(caught.value, 'where', '')}")
        return said

    assert await only_result(handler) == [
        "NotEncodableError state of poll 'a'",
        "TooLargeError state of poll 'b'",
        "NotEncodableError state of poll 'c'",
    ]


async def test_a_state_that_a_deploy_can_no_longer_read_is_a_mismatch() -> None:
    async def before(state: int = 0) -> str | NotYet:
        return NotYet(state + 1)

    async def after(state: Cursor | None = None) -> str | NotYet:
        return "end"

    look: Any = before

    async def handler(ctx: Context) -> str:
        return str(await ctx.poll("p", look, every="1m"))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        look = after

        move = await lived_on(lives, claimed)

        assert isinstance(move, GiveBack)
        assert move.reason is not None
        assert move.reason.startswith("the kept state of poll 'p': ")
        look = before
        assert isinstance(await lives.again(claimed), Park), "and goes on with the code that can"


async def test_an_annotation_of_the_state_that_is_unknown_at_run_time_is_refused_at_the_call() -> None:
    async def look(state: Any = None) -> str | NotYet:
        return "end"

    look.__annotations__["state"] = "Unknown | None"  # as of an import under TYPE_CHECKING

    async def handler(ctx: Context) -> str:
        with pytest.raises(DefinitionError, match=r"the parameter 'state' of .*look is annotated") as caught:
            await ctx.poll("p", look, every="1m")
        return str(caught.value)

    assert "leave the annotation out" in await only_result(handler)


# ---- limits


async def test_after_so_many_checks_it_has_timed_out() -> None:
    body = Checks(NotYet(), NotYet(), NotYet(), "late")

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(WaitTimeoutError) as caught:
            await ctx.poll("p", body, every="100ms", max_attempts=3)
        return [type(caught.value).__name__, caught.value.key, isinstance(caught.value, StepFailedError)]

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()
        first = lives.result(move)

        assert first == lives.result(await lives.again(claimed)) == ["WaitTimeoutError", "p", False]
        (row,) = lives.journal.memo(claimed.id)
        assert (row.kind, decode_error(row.value).message) == ("f", "no answer in 3 checks")
        assert lives.journal.left_open == []
    assert body.calls == 3


async def test_its_time_is_counted_once_from_the_first_check_and_the_last_look_is_at_its_end() -> None:
    body = Checks(NotYet(), NotYet(), NotYet(), "late")

    async def handler(ctx: Context) -> str:
        with pytest.raises(WaitTimeoutError):
            await ctx.poll("p", body, every="1m", timeout="90s")
        return "timed out"

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        assert [one.limit_s for one in lives.journal.waits(claimed.id)] == [90]
        await lived_on(lives, claimed)
        (wait,) = lives.journal.waits(claimed.id)
        assert (wait.attempt, wait.limit_s) == (2, 30)
        assert wait.left_s == pytest.approx(30, abs=1)
        assert body.calls == 2

        assert lives.result(await lived_on(lives, claimed, 31)) == "timed out"
        (row,) = lives.journal.memo(claimed.id)
        assert decode_error(row.value).message == "no answer within 0:01:30, in 3 checks"
    assert body.calls == 3


async def test_after_an_outage_beyond_its_time_it_looks_once_more() -> None:
    body = Checks(NotYet(), "there")

    async def handler(ctx: Context) -> str:
        return str(await ctx.poll("p", body, every="1m", timeout="90s"))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()

        assert lives.result(await lived_on(lives, claimed, 86_400)) == "there"


async def test_a_timeout_of_no_length_makes_one_check() -> None:
    body = Checks(NotYet())

    async def handler(ctx: Context) -> str:
        with pytest.raises(WaitTimeoutError):
            await ctx.poll("p", body, every="1m", timeout=0)
        return "timed out"

    assert await only_result(handler) == "timed out"


async def test_a_crash_in_the_first_check_does_not_begin_its_time_anew() -> None:
    begun = asyncio.Event()
    calls = 0

    async def look() -> str | NotYet:
        nonlocal calls
        calls += 1
        if calls == 1:
            begun.set()
            await asyncio.Event().wait()
        return NotYet()

    async def handler(ctx: Context) -> str:
        with pytest.raises(WaitTimeoutError):
            await ctx.poll("p", look, every="1m", timeout="90s")
        return "timed out"

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await begun.wait()
        lives.executor.lose(claimed.id)

        assert lives.result(await lived_on(lives, claimed, 91)) == "timed out"
    assert calls == 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"every": 0.05}, InvalidDurationError, "every=0.05 is less than 100 ms"),
        ({"every": 0}, InvalidDurationError, "every=0 is less than 100 ms"),
        ({"every": "soon"}, InvalidDurationError, "every='soon'"),
        ({"every": "1s", "timeout": -1}, InvalidDurationError, "timeout=-1"),
        ({"every": "1s", "max_attempts": 0}, InvalidOptionError, "max_attempts=0"),
        ({"every": "1s", "max_attempts": True}, InvalidOptionError, "max_attempts=True"),
        ({"every": "1s", "backoff": 0.5}, InvalidOptionError, "backoff=0.5"),
        ({"every": "1s", "backoff": float("nan")}, InvalidOptionError, "backoff=nan"),
        ({"every": "1s", "backoff": 101}, InvalidOptionError, "backoff=101"),
        ({"every": "1s", "retry": 3}, InvalidOptionError, "retry=3"),
    ],
)
async def test_what_makes_no_sense_is_refused_at_the_call(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(error) as caught:
            await ctx.poll("p", Checks(), **options)
        return str(caught.value)

    assert said in await only_result(handler)


# ---- failing checks


async def test_an_error_is_no_not_yet_and_fails_the_poll_where_nothing_else_is_said() -> None:
    body = Checks(NotYet(), ValueError("down"), "never")

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            await ctx.poll("p", body, every="100ms")
        return [caught.value.attempts, caught.value.error.message]

    assert await only_result(handler) == [1, "down"]
    assert body.calls == 2


async def test_failed_checks_use_up_the_policy_and_each_check_has_it_anew() -> None:
    body = Checks(OSError("1"), OSError("2"), NotYet(), OSError("3"), OSError("4"), NotYet(), *[OSError("5")] * 3)

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(StepFailedError) as caught:
            await ctx.poll("p", body, every="100ms", retry=AT_ONCE, max_attempts=3)
        return [caught.value.attempts, caught.value.error.message]

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == [3, "5"]
        assert lives.result(await lives.again(claimed)) == [3, "5"]
        kept = failures(lives.journal)
        assert [(one.kind, one.attempt, one.error.message) for one in kept] == [
            ("p", 1, "1"),
            ("p", 2, "2"),
            ("p", 1, "3"),
            ("p", 2, "4"),
            ("p", 1, "5"),
            ("p", 2, "5"),
        ]
        assert [one.n for one in kept] == [1, 2, 3, 4, 5, 6]


async def test_failures_delays_and_state_survive_a_crash() -> None:
    seen: list[Any] = []

    async def look(state: int = 0) -> str | NotYet:
        seen.append(state)
        if len(seen) == 1:
            return NotYet(7)
        if len(seen) < 4:
            raise RetryAfter("10m")
        return "there"

    async def handler(ctx: Context) -> str:
        return await ctx.poll("p", look, every="1m", retry=Retry(3), max_attempts=2)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        await lived_on(lives, claimed)
        assert [(one.attempt, one.left_s) for one in lives.journal.waits(claimed.id)] == [(2, 600)]
        await lived_on(lives, claimed, 600)
        assert [(one.attempt, one.left_s) for one in lives.journal.waits(claimed.id)] == [(3, 600)]

        assert lives.result(await lived_on(lives, claimed, 600)) == "there"
    assert seen == [0, 7, 7, 7]


async def test_no_attempt_is_planned_beyond_the_polls_time() -> None:
    body = Checks(OSError("1"), OSError("2"))

    async def handler(ctx: Context) -> list[Any]:
        with pytest.raises(WaitTimeoutError) as caught:
            await ctx.poll("p", body, every="1m", timeout="30s", retry=Retry(5, initial="10m", maximum="10m"))
        return [type(caught.value).__name__]

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        (wait,) = lives.journal.waits(claimed.id)
        assert wait.left_s is not None
        assert wait.left_s <= 30

        assert lives.result(await lived_on(lives, claimed, 31)) == ["WaitTimeoutError"]
        (row,) = lives.journal.memo(claimed.id)
        cause = decode_error(row.value).cause
        assert cause is not None
        assert cause.message == "2"


async def test_a_final_error_of_a_check_ends_the_poll() -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(StepFailedError) as caught:
            await ctx.poll("p", Checks(NonRetryable("gone")), every="1m", retry=Retry(5))
        return caught.value.error.message

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert lives.result(move) == "gone"


async def test_the_functions_own_timeout_is_for_each_check() -> None:
    calls = 0

    @step(timeout=0.005, retry=Retry(2, initial=0))
    async def look() -> str | NotYet:
        nonlocal calls
        calls += 1
        if calls in (2, 4, 5):
            await asyncio.Event().wait()
        return NotYet()

    async def handler(ctx: Context) -> int:
        with pytest.raises(StepTimedOutError) as caught:
            await ctx.poll("p", look, every="100ms")
        return caught.value.attempts

    assert await only_result(handler) == 2
    assert calls == 5


# ---- whoever ends it


def fast_forward(key: str, value: object) -> Mail:
    return Mail(uuid4(), 1, f"k:{key}", encode(value, where="test"))


async def test_a_fast_forward_is_its_answer_without_another_check() -> None:
    body = Checks(NotYet())

    async def shipped() -> Parcel | NotYet:
        answer: Parcel | NotYet = await body()
        return answer

    async def handler(ctx: Context) -> str:
        return (await ctx.poll("p", shipped, every="1h")).name

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()

        move = await lives.again(claimed, mail=(fast_forward("p", {"name": "by hand"}),))

        assert lives.result(move) == "by hand"
        assert lives.journal.keys(claimed.id) == [("p", "p")]
        assert lives.journal.left_open == []
        assert lives.result(await lives.again(claimed)) == "by hand"


async def test_a_fast_forward_beats_the_check_that_is_due() -> None:
    body = Checks(NotYet())

    async def handler(ctx: Context) -> Any:
        return await ctx.poll("p", body, every="1m")

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        lives.journal.now_s += 3600

        move = await lives.again(claimed, mail=(fast_forward("p", "by hand"),))

        assert lives.result(move) == "by hand"


async def test_a_fast_forward_that_is_no_answer_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Parcel | NotYet] = [NotYet()]

    async def shipped() -> Parcel | NotYet:
        return answers.pop(0)

    async def handler(ctx: Context) -> str:
        return (await ctx.poll("p", shipped, every="1h")).name

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()

        assert await lives.again(claimed, mail=(fast_forward("p", 5),)) == Park(())
    assert "fast-forward of 'p' is dropped" in caplog.text


async def test_a_cancel_ends_it() -> None:
    async def handler(ctx: Context) -> Any:
        return await ctx.poll("p", Checks(NotYet()), every="1h")

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        while not lives.journal.waits(claimed.id):
            await asyncio.sleep(0)
        lives.executor.ask(claimed.id, "x", None)

        assert await lives.journal.moved(claimed.id) == End("x")


async def test_the_handlers_own_timeout_interrupts_it_also_on_replay() -> None:
    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.01):
                await ctx.poll("p", Checks(NotYet()), every="1h", timeout="1d")
        except TimeoutError:
            return "gave up"
        return "no"

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()

        assert lives.result(move) == "gave up"
        assert lives.journal.keys(claimed.id) == [("x", "p")]
        assert lives.journal.left_open == []
        assert lives.result(await lives.again(claimed)) == "gave up"


async def test_a_raw_timeout_that_is_too_long_for_a_wait_is_refused_before_the_first_check() -> None:
    body = Checks(1)

    async def handler(ctx: Context) -> str:
        async with asyncio.timeout(1000):
            with pytest.raises(RawTimeoutError) as caught:
                await ctx.poll("p", body, every="1m")
            return str(caught.value)

    assert "give the wait itself its timeout=" in await only_result(handler)
    assert body.calls == 0


async def test_polls_of_branches_and_a_race_of_polls() -> None:
    first, second = Checks(NotYet(), NotYet(), "a"), Checks(NotYet(), "b")
    slow, quick = Checks(*[NotYet()] * 50), Checks(NotYet(), "quick")

    async def handler(ctx: Context) -> list[Any]:
        both = await asyncio.gather(
            ctx.poll("a", first, every="100ms"), ctx.poll("b", second, every="100ms", backoff=2)
        )
        winner = await ctx.first("race", ctx.poll("s", slow, every="1h"), ctx.poll("q", quick, every="100ms"))
        return [*both, *winner]

    assert await only_result(handler) == ["a", "b", 1, "quick"]


async def test_a_poll_is_no_step() -> None:
    is_step = False

    async def handler(ctx: Context) -> Any:
        return await (ctx.step("p", Checks(2)) if is_step else ctx.poll("p", Checks(1), every="1s"))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        is_step = True

        move = await lives.again(claimed)

        assert isinstance(move, GiveBack)
        assert move.reason == "'p' is a poll in the journal (seq 1), and a step in the code"


# ---- sync handlers


async def test_a_sync_handler_polls_in_its_own_thread_and_holds_none_while_parked() -> None:
    seen: list[Any] = []

    def look(order: str, state: int = 0) -> str | NotYet:
        seen.append(state)
        if len(seen) == 2:
            raise OSError("down")
        return f"{order} there" if state == 2 else NotYet(state + 1)

    def handler(ctx: SyncContext) -> str:
        return ctx.poll("p", look, "o-1", every="1m", timeout=timedelta(hours=1), retry=Retry(2, initial=MINUTE))

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert move == Park(())
        for _ in range(2):
            assert await lived_on(lives, claimed) == Park(())

        assert lives.result(await lived_on(lives, claimed)) == "o-1 there"
        assert lives.result(await lives.again(claimed)) == "o-1 there"
        assert lives.journal.keys(claimed.id) == [("p", "p")]
        assert lives.journal.left_open == []
    assert seen == [0, 1, 1, 2]


async def test_a_sync_poll_times_out_and_takes_fast_forwards() -> None:
    def never() -> str | NotYet:
        return NotYet()

    def handler(ctx: SyncContext) -> list[str]:
        with pytest.raises(WaitTimeoutError):
            ctx.poll("p", never, every="1m", max_attempts=1)
        return [ctx.poll("q", never, every="1m")]

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert move == Park(())

        move = await lives.again(claimed, mail=(fast_forward("q", "by hand"),))

        assert lives.result(move) == ["by hand"]


# ---- races


async def test_of_a_race_of_a_poll_and_an_event_only_the_winner_takes_its_mail() -> None:
    approved = EventRef("approved", int)
    body = Checks(NotYet())

    async def handler(ctx: Context) -> list[Any]:
        return list(
            await ctx.first("race", ctx.poll("p", body, every="1h"), ctx.wait_for("e", approved, timeout="1 day"))
        )

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        event = Mail(uuid4(), 2, "e:approved", encode(7, where="test"))

        move = await lives.again(claimed, mail=(fast_forward("p", "by hand"), event))

        assert lives.result(move) == [0, "by hand"]
        consumed = [values for name, _, values in lives.journal.sides if name == "CONSUME_MAIL"]
        assert event.id.bytes not in [mail_id for _, mail_id in consumed]


@pytest.mark.parametrize("is_poll", [True, False])
async def test_an_event_is_left_alone_when_a_poll_or_step_had_won_before_the_crash(is_poll: bool) -> None:
    approved = EventRef("approved", int)

    async def handler(ctx: Context) -> list[Any]:
        quick = ctx.poll("q", Checks(1), every="1h") if is_poll else ctx.step("q", Checks(1))
        return list(await ctx.first("race", ctx.wait_for("e", approved), quick))

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, _ = await lives.run()
        (kept,) = [row for row in lives.journal.memo(claimed.id) if row.key == "q"]
        event = Mail(uuid4(), 2, "e:approved", encode(7, where="test"))

        move = await lives.again(claimed, up_to=kept.seq, mail=(event,))

        assert lives.result(move) == [1, 1]
        assert "CONSUME_MAIL" not in sides(lives.journal)
