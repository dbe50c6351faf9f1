"""A child is started once, and its end is told once: live, on replay, and after every cut in between."""

import asyncio
import copy
import pickle
from typing import Any
from uuid import UUID

import msgspec
import pytest

from kedge.errors import (
    ChildCancelledError,
    ChildFailedError,
    DomainError,
    HandlerUseError,
    InputConflictError,
    InvalidOptionError,
    NestedStepError,
    RunActiveError,
    RunExistsError,
    StepFailedError,
)
from kedge.refs import WorkflowRef
from kedge.wire import decode
from kedge_worker._context import Context
from kedge_worker._outcomes import End, GiveBack, Park
from kedge_worker._runs import Started
from tests.unit.worker.families import (
    cancelled,
    children,
    closed,
    deliver,
    ended,
    failed,
    until,
    watch_letters,
)
from tests.unit.worker.journal import Lives, bound


class OutOfStock(DomainError):
    item: str


class Order(msgspec.Struct, frozen=True):
    item: str
    count: int = 1


ship = WorkflowRef("ship", Order, str, raises=(OutOfStock,))
pack = WorkflowRef("pack", Order, int, version="2", queue="slow", priority=7)
keyed = WorkflowRef("keyed", Order, str, key=lambda order: f"order:{order.item}")
HAT = Order("hat")


async def call_once(ctx: Context) -> str:
    return await ctx.call("ship", ship(HAT))


async def echo(value: Any) -> Any:
    return value


# ---- one flush, one child -------------------------------------------------------------------------------------------


async def test_a_call_is_started_watched_and_waited_for_in_one_flush() -> None:
    async with Lives(bound(call_once)) as lives:
        claimed, move = await lives.run()

        assert isinstance(move, Park)
        (child,) = children(lives.journal)
        assert (child.workflow, child.queue, child.input) == ("ship", "default", {"item": "hat", "count": 1})
        assert (child.key, child.watched, child.dependent) == ("ship", True, False)
        assert lives.journal.keys(claimed.id) == [("n", "ship/start")]
        assert child.seq == 1
        assert decode(lives.journal.memo(claimed.id)[0].value, str, where="row") == str(child.id)
        (wait,) = lives.journal.waits(claimed.id)
        assert (wait.key, wait.kind, wait.slot) == ("ship", "c", None)
        assert decode(wait.state, str, where="wait") == str(child.id)
        assert watch_letters(lives.journal) == []
        assert lives.journal.flushes <= 1


async def test_what_comes_of_a_child_is_answered_live_and_on_replay() -> None:
    async with Lives(bound(call_once), linger_s=60) as lives:
        claimed = lives.begin()
        await deliver(lives, claimed.id, ended("ship", "sent"))
        first = lives.result(await lives.journal.moved(claimed.id))
        again = lives.result(await lives.again(claimed))

        assert first == again == "sent"
        assert lives.journal.keys(claimed.id) == [("n", "ship/start"), ("c", "ship")]
        assert len(children(lives.journal)) == 1
        assert closed(lives.journal) == ["ship"]


async def test_a_parked_parent_takes_the_end_in_its_next_life_and_asks_nobody_again() -> None:
    async with Lives(bound(call_once)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed, mail=(ended("ship", "sent"),))

        assert lives.result(move) == "sent"
        assert len(children(lives.journal)) == 1
        assert watch_letters(lives.journal) == []


async def test_a_life_that_finds_a_start_without_a_wait_watches_and_starts_nothing() -> None:
    async with Lives(bound(call_once)) as lives:
        claimed, _ = await lives.run()
        (child,) = children(lives.journal)
        lives.journal.forget_waits(claimed.id)  # as the failure of an attempt does
        await lives.again(claimed)

        assert len(children(lives.journal)) == 1
        assert watch_letters(lives.journal) == [(child.id, "ship")]


async def test_letters_of_different_lives_are_different_and_of_one_life_the_same() -> None:
    async def handler(ctx: Context) -> str:
        return await (await ctx.start("ship", ship(HAT))).result()

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        lives.journal.forget_waits(claimed.id)
        await lives.again(claimed)
        letters = [values for name, _, values in lives.journal.sides if name == "SEND_LETTERS"]

        assert len(letters) == len({letter[2] for letter in letters}) == 2
        assert {letter[5] for letter in letters} == {claimed.id.bytes}


async def test_a_start_goes_on_at_once_and_its_result_is_waited_for_when_it_is_asked_for() -> None:
    async def handler(ctx: Context) -> list[Any]:
        child = await ctx.start("ship", ship(HAT), on_parent_end="cancel")
        value = await ctx.step("meanwhile", echo, str(child.run_id))
        return [value, await child.result(), await child.result()]

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        (child,) = children(lives.journal)
        assert (child.dependent, child.watched) == (True, False)
        assert watch_letters(lives.journal) == [(child.id, "ship/result")]
        await lives.again(claimed, mail=(ended("ship/result", "sent"),))
        move = await lives.again(claimed, mail=(ended("ship/result#2", "sent"),))

        assert lives.result(move) == [str(child.id), "sent", "sent"]
        assert lives.journal.keys(claimed.id) == [
            ("n", "ship"),
            ("s", "meanwhile"),
            ("c", "ship/result"),
            ("c", "ship/result#2"),
        ]


async def test_a_child_is_its_id_to_people() -> None:
    shown: list[str] = []

    async def handler(ctx: Context) -> str:
        child = await ctx.start("ship", ship(HAT))
        shown.append(repr(child))
        return str(child.run_id)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert shown == [f"<Child ship {lives.result(move)}>"]
        assert UUID(lives.result(move)).version == 7


async def test_ids_in_loops_and_branches_are_numbered_like_those_of_steps() -> None:
    async def handler(ctx: Context) -> None:
        for _ in range(2):
            await ctx.start("ship", ship(HAT))
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(ctx.branch("b", part, ctx))

    async def part(ctx: Context) -> str:
        return await ctx.call("ship", ship(HAT))

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()

        assert isinstance(move, Park)
        keys = [key for _, key in lives.journal.keys(claimed.id)]
        assert keys == ["ship", "ship#2", "b/ship/start", "b#2/ship/start"]


# ---- what a child is given ------------------------------------------------------------------------------------------


async def test_a_child_inherits_resource_priority_and_tags_unless_something_else_is_said() -> None:
    async def handler(ctx: Context) -> None:
        await ctx.start("a", ship(HAT))
        await ctx.start("b", pack(HAT))
        await ctx.start("c", ship(HAT, resource=None, priority=0, tags=["x", "y"], queue="fast"))

    async with Lives(bound(handler)) as lives:
        await lives.run(resource="customer-7", rank=-5)

        a, b, c = children(lives.journal)
        assert (a.resource, a.priority, a.tags, a.queue) == ("customer-7", 5, None, "default")
        assert (b.resource, b.priority, b.queue, b.workflow) == ("customer-7", 7, "slow", "pack@2")
        assert (c.resource, c.priority, c.tags, c.queue) == (None, 0, "x\x1fy", "fast")


# ---- how it ends ----------------------------------------------------------------------------------------------------


async def both_lives(mail: Any) -> tuple[list[BaseException], Lives]:
    """What a handler catches, live and on replay."""
    caught: list[BaseException] = []

    async def handler(ctx: Context) -> str:
        try:
            await ctx.call("ship", ship(HAT))
        except (ChildFailedError, ChildCancelledError, DomainError) as error:
            caught.append(error)
        return await ctx.step("after", echo, "on")

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        assert lives.result(await lives.again(claimed, mail=(mail,))) == "on"
        assert lives.result(await lives.again(claimed)) == "on"
    return caught, lives


async def test_a_failed_child_raises_what_it_failed_with_live_and_on_replay() -> None:
    caught, lives = await both_lives(failed("ship"))

    (child,) = children(lives.journal)
    for error in caught:
        assert isinstance(error, ChildFailedError)
        assert (error.key, error.child_id) == ("ship", child.id)
        assert (error.error.kind, error.error.message) == ("shop.OutOfStock", "none left")
        for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert str(copied) == str(error)
    assert len(caught) == 2


async def test_a_declared_error_of_a_child_comes_back_as_its_class() -> None:
    caught, _ = await both_lives(failed("ship", f"{__name__}.OutOfStock", "hat", item="hat"))

    assert [type(error) for error in caught] == [OutOfStock, OutOfStock]
    assert [getattr(error, "item", None) for error in caught] == ["hat", "hat"]


@pytest.mark.parametrize(("reason", "expected"), [("too late", "too late"), ("", None)])
async def test_a_cancelled_child_raises_its_reason_live_and_on_replay(reason: str, expected: str | None) -> None:
    caught, lives = await both_lives(cancelled("ship", reason))

    (child,) = children(lives.journal)
    for error in caught:
        assert isinstance(error, ChildCancelledError)
        assert (error.key, error.child_id, error.reason) == ("ship", child.id, expected)
    assert len(caught) == 2


async def test_a_child_whose_own_child_was_cancelled_has_failed() -> None:
    caught, _ = await both_lives(failed("ship", "kedge.errors.ChildCancelledError", "child 'x' was cancelled"))

    assert [type(error) for error in caught] == [ChildFailedError, ChildFailedError]


async def test_an_uncaught_failure_of_a_child_ends_the_parent_and_names_the_call() -> None:
    async with Lives(bound(call_once)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed, mail=(failed("ship"),))

        assert isinstance(move, End)
        assert move.status == "f"
        assert b'"key":"ship"' in (move.error or b"")
        assert b"none left" in (move.error or b"")


async def test_a_result_of_another_type_than_the_refs_puts_the_parent_off() -> None:
    async with Lives(bound(call_once)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed, mail=(ended("ship", 7),))

        assert isinstance(move, GiveBack)
        assert "'ship'" in str(move.reason)
        assert "result of workflow 'ship'" in str(move.reason)


# ---- the same child on replay ---------------------------------------------------------------------------------------


async def reason_of(first: Any, second: Any) -> str:
    """Why a run waits whose code asks for something else now."""
    requests = [first, second]

    async def handler(ctx: Context) -> Any:
        return await ctx.call("ship", requests.pop(0))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)
        assert len(children(lives.journal)) == 1
    return str(move.reason) if isinstance(move, GiveBack) else ""


async def test_another_workflow_in_a_childs_place_is_a_mismatch_that_names_both() -> None:
    reason = await reason_of(ship(HAT), pack(HAT))

    assert "'ship/start' has started workflow 'ship' (seq 1), and starts 'pack@2' in the code" in reason


async def test_another_input_in_a_childs_place_is_a_mismatch() -> None:
    reason = await reason_of(ship(HAT), ship(Order("shoe")))

    assert "'ship/start' has started 'ship' with another input (seq 1" in reason


async def test_an_input_type_that_has_grown_is_no_mismatch() -> None:
    class Grown(msgspec.Struct, frozen=True):
        item: str
        count: int = 1
        gift: bool = False

    grown = WorkflowRef("ship", Grown, str)

    assert await reason_of(ship(HAT), grown(Grown("hat"))) == ""


@pytest.mark.parametrize(
    ("before", "problem"),
    [
        ("step", "'ship' is a step in the journal (seq 1), and a child's result in the code"),
        ("call", "'ship' has begun as a wait for a child, and is a step that is to be repeated in the code"),
    ],
)
async def test_a_child_in_the_place_of_a_step_is_a_mismatch_both_ways(before: str, problem: str) -> None:
    kinds = ["step", "call"] if before == "step" else ["call", "step"]

    async def handler(ctx: Context) -> Any:
        if kinds.pop(0) == "step":
            return await ctx.step("ship", echo, 1)
        return await ctx.call("ship", ship(HAT))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

        assert isinstance(move, GiveBack)
        assert problem in str(move.reason)


# ---- what the handler's own code interrupts -------------------------------------------------------------------------


async def test_an_interrupted_call_leaves_its_child_running_and_is_interrupted_again() -> None:
    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.01):
                return await ctx.call("ship", ship(HAT), on_parent_end="cancel")
        except TimeoutError:
            return await ctx.step("after", echo, "late")

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed, mail=(ended("ship", "sent"),))

        assert lives.result(move) == lives.result(again) == "late"
        assert lives.journal.keys(claimed.id) == [("n", "ship/start"), ("x", "ship"), ("s", "after")]
        assert closed(lives.journal) == ["ship"]
        assert len(children(lives.journal)) == 1


async def test_a_sibling_that_fails_interrupts_the_wait_for_a_child() -> None:
    async def bad() -> None:
        raise ValueError("no")

    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.call("ship", ship(HAT)))
                group.create_task(ctx.step("bad", bad))
        except* StepFailedError:
            pass
        return "on"

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "on"
        assert ("x", "ship") in lives.journal.keys(claimed.id)


async def test_of_two_racing_children_one_wins_now_and_on_replay() -> None:
    async def handler(ctx: Context) -> Any:
        return list(await ctx.first("f", ctx.call("a", ship(HAT)), ctx.call("b", ship(HAT))))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        assert len(children(lives.journal)) == 2
        move = await lives.again(claimed, mail=(ended("b", "second"), ended("a", "first")))
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == [1, "second"]


# ---- keys and singletons --------------------------------------------------------------------------------------------


async def test_a_keyed_child_is_started_alone_behind_its_intent() -> None:
    async def handler(ctx: Context) -> str:
        await ctx.step("before", echo, 1)
        return await ctx.call("keyed", keyed(HAT), on_parent_end="cancel")

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run(resource="r", rank=-3)

        assert isinstance(move, Park)
        assert children(lives.journal) == []
        ((child, terms, dependent),) = lives.child_starts.asked
        assert (terms.key, terms.resource, terms.priority, terms.tags, dependent) == ("order:hat", "r", 3, None, True)
        assert lives.journal.keys(claimed.id) == [("s", "before"), ("n", "keyed/start")]
        assert watch_letters(lives.journal) == [(child, "keyed")]
        assert [wait.key for wait in lives.journal.waits(claimed.id)] == ["keyed"]
        assert lives.journal.log.index("durable") < lives.journal.log.index("keep keyed/start")
        result = await lives.again(claimed, mail=(ended("keyed", "sent"),))
        assert lives.result(result) == "sent"
        assert len(lives.child_starts.asked) == 1


async def test_the_run_that_holds_the_key_is_the_child() -> None:
    existing = UUID("01900000-0000-7000-8000-000000000001")

    async def handler(ctx: Context) -> list[str]:
        child = await ctx.start("keyed", keyed(HAT))
        return [str(child.run_id), await child.result()]

    async with Lives(bound(handler)) as lives:
        lives.child_starts.answers = [Started(existing, None)]
        claimed, _ = await lives.run()
        assert watch_letters(lives.journal) == [(existing, "keyed/result")]
        move = await lives.again(claimed, mail=(ended("keyed/result", "sent"),))

        assert lives.result(move) == [str(existing), "sent"]


async def test_a_life_that_ends_while_a_keyed_start_waits_repeats_it_with_the_same_id() -> None:
    async def handler(ctx: Context) -> str:
        return await ctx.call("keyed", keyed(HAT))

    async with Lives(bound(handler)) as lives:
        lives.child_starts.open.clear()
        claimed = lives.begin()
        await until(lambda: lives.child_starts.asked)
        lives.executor.lose(claimed.id)
        await until(lambda: claimed.id not in lives.executor.runs)
        lives.child_starts.open.set()
        move = await lives.again(claimed)

        assert isinstance(move, Park)
        (first, _, _), (second, _, _) = lives.child_starts.asked
        assert first == second
        assert lives.journal.keys(claimed.id) == [("n", "keyed/start")]


async def test_a_parent_whose_keyed_start_waits_is_not_parked() -> None:
    async def handler(ctx: Context) -> str:
        return await ctx.call("keyed", keyed(HAT))

    async with Lives(bound(handler)) as lives:
        lives.child_starts.open.clear()
        claimed = lives.begin()
        await until(lambda: lives.child_starts.asked)
        await asyncio.sleep(0.02)

        assert claimed.id not in lives.journal.moves
        lives.child_starts.open.set()
        assert isinstance(await lives.journal.moved(claimed.id), Park)


@pytest.mark.parametrize(
    ("conflict", "expected"),
    [("exists", RunExistsError), ("input", InputConflictError), ("active", RunActiveError)],
)
@pytest.mark.parametrize("how", ["call", "start"])
async def test_a_refused_start_is_the_same_error_live_and_on_replay(
    conflict: str, expected: type[RunExistsError], how: str
) -> None:
    existing = UUID("01900000-0000-7000-8000-000000000001")
    caught: list[RunExistsError] = []

    async def handler(ctx: Context) -> str:
        try:
            await (ctx.call if how == "call" else ctx.start)("keyed", keyed(HAT))
        except RunExistsError as error:
            caught.append(error)
        return await ctx.step("after", echo, "on")

    async with Lives(bound(handler)) as lives:
        lives.child_starts.answers = [Started(existing, conflict)]
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "on"
        assert [type(error) for error in caught] == [expected, expected]
        first, second = caught
        assert first.args == second.args
        assert (first.existing_id, first.workflow, first.key) == (existing, "keyed", "order:hat")
        assert first.run_id == lives.child_starts.asked[0][0]
        assert len(lives.child_starts.asked) == 1
        assert lives.journal.waits(claimed.id) == ()


async def test_what_the_database_refuses_for_good_is_a_failure_of_the_call() -> None:
    kinds: list[str] = []

    async def handler(ctx: Context) -> None:
        try:
            await ctx.call("keyed", keyed(HAT))
        except StepFailedError as error:
            kinds.append(error.error.kind)

    async with Lives(bound(handler)) as lives:
        lives.child_starts.answers = [ValueError("a name is empty or too long")]
        claimed, _ = await lives.run()
        await lives.again(claimed)

    assert kinds == ["builtins.ValueError", "builtins.ValueError"]


async def test_an_interrupted_keyed_start_is_interrupted_again() -> None:
    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.01):
                return await ctx.call("keyed", keyed(HAT))
        except TimeoutError:
            return "late"

    async with Lives(bound(handler)) as lives:
        lives.child_starts.open.clear()
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "late"
        assert lives.journal.keys(claimed.id) == [("x", "keyed/start")]
        assert closed(lives.journal) == ["keyed/start"]
        assert len(lives.child_starts.asked) == 1


# ---- wrong uses -----------------------------------------------------------------------------------------------------


async def test_what_is_no_request_is_refused_where_it_is_written() -> None:
    problems: list[str] = []
    handler_of_ship = bound(call_once, name="ship")

    async def handler(ctx: Context) -> None:
        for wrong in (ship, handler_of_ship, "ship", None):
            with pytest.raises(HandlerUseError) as caught:
                await ctx.call("ship", wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            problems.append(str(caught.value))

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()
        assert isinstance(move, End)
        assert move.status == "c"

    assert "call the ref with the input" in problems[0]
    assert ".ref" in problems[1]
    assert all("is no request" in problem for problem in problems)


async def test_an_unknown_policy_is_refused() -> None:
    async def handler(ctx: Context) -> None:
        with pytest.raises(InvalidOptionError, match="'abandon' or 'cancel'"):
            await ctx.start("ship", ship(HAT), on_parent_end="detach")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert isinstance(move, End)
        assert move.status == "c"


async def test_children_are_not_started_from_a_steps_body() -> None:
    async def handler(ctx: Context) -> None:
        async def body() -> None:
            await ctx.call("ship", ship(HAT))

        with pytest.raises(StepFailedError) as caught:
            await ctx.step("body", body)
        assert caught.value.error.kind.endswith(NestedStepError.__name__)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert isinstance(move, End)
        assert move.status == "c"
        assert children(lives.journal) == []
