"""A map does one thing for each of many items: concurrently, in few flushes, and once."""

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from kedge.errors import (
    ChildCancelledError,
    ChildFailedError,
    HandlerUseError,
    InvalidOptionError,
    NestedStepError,
    RunExistsError,
    StepFailedError,
    TooLargeError,
)
from kedge.refs import RunRequest, WorkflowRef
from kedge.retry import Retry
from kedge_worker._context import Context
from kedge_worker._definitions import step
from kedge_worker._outcomes import End, GiveBack, Park
from kedge_worker._runs import Mail, Started
from tests.unit.worker.families import (
    cancelled,
    children,
    closed,
    deliver,
    ended,
    failed,
    groups,
    until,
    watch_letters,
)
from tests.unit.worker.journal import Lives, bound

double = WorkflowRef("double", int, int)
keyed = WorkflowRef("keyed", int, int, key=lambda n: f"n:{n}")


class Bodies:
    """Step bodies that wait until the test lets them go on."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.doors: dict[int, asyncio.Event] = {}

    def open(self, *items: int) -> None:
        for item in items:
            self.doors.setdefault(item, asyncio.Event()).set()

    async def __call__(self, item: int) -> int:
        self.begun.append(item)
        try:
            await self.doors.setdefault(item, asyncio.Event()).wait()
        finally:
            self.ended.append(item)
        if item < 0:
            raise ValueError(f"no {item}")
        return 10 * item


async def times_ten(item: int) -> int:
    return 10 * item


def unannotated(fn: Callable[[int], Any]) -> Any:
    """A lambda: only a call tells what it makes."""
    return fn


by_lambda = unannotated(lambda n: double(n, tags=["mapped"]))


def mapping(fn: Any, items: Any, *, limit: int | None = None) -> Callable[[Context], Awaitable[Any]]:
    async def handler(ctx: Context) -> Any:
        return await ctx.map("m", fn, items, limit=limit)

    return handler


# ---- steps ----------------------------------------------------------------------------------------------------------


async def test_values_come_in_the_order_of_the_items_whatever_ends_first_and_again_on_replay() -> None:
    bodies = Bodies()
    async with Lives(bound(mapping(bodies, [3, 1, 2]))) as lives:
        claimed = lives.begin()
        await until(lambda: len(bodies.begun) == 3)
        for item in (2, 3, 1):
            bodies.open(item)
            await until(lambda: item in bodies.ended)  # noqa: B023
        first = lives.result(await lives.journal.moved(claimed.id))
        again = lives.result(await lives.again(claimed))

        assert first == again == [30, 10, 20]
        assert sorted(lives.journal.keys(claimed.id)) == [("s", "m[0]"), ("s", "m[1]"), ("s", "m[2]")]
        assert bodies.begun == [3, 1, 2]


async def test_a_map_over_nothing_is_nothing() -> None:
    for fn in (times_ten, double, by_lambda):
        async with Lives(bound(mapping(fn, []))) as lives:
            claimed, move = await lives.run()

            assert lives.result(move) == []
            assert lives.journal.keys(claimed.id) == []


async def test_no_more_than_the_limit_are_under_way() -> None:
    bodies = Bodies()
    async with Lives(bound(mapping(bodies, range(5), limit=2))) as lives:
        claimed = lives.begin()
        seen: list[list[int]] = []
        for item in range(5):
            await until(lambda: len(bodies.begun) == min(5, len(bodies.ended) + 2))
            seen.append(list(bodies.begun))
            bodies.open(item)
            await until(lambda: item in bodies.ended)  # noqa: B023

        assert lives.result(await lives.journal.moved(claimed.id)) == [0, 10, 20, 30, 40]
        assert seen == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("up_to", [0, 1, 2, 3])
async def test_what_is_kept_is_not_done_again(up_to: int) -> None:
    done: list[int] = []

    async def note(item: int) -> int:
        done.append(item)
        return 10 * item

    async with Lives(bound(mapping(note, range(3)))) as lives:
        claimed, _ = await lives.run()
        done.clear()
        again = await lives.again(claimed, up_to=up_to)

        assert lives.result(again) == [0, 10, 20]
        assert len(done) == 3 - up_to


async def test_the_first_failure_is_raised_and_the_others_are_cancelled() -> None:
    bodies = Bodies()
    caught: list[StepFailedError] = []

    async def handler(ctx: Context) -> str:
        try:
            await ctx.map("m", bodies, [1, -2, 3])
        except StepFailedError as error:
            caught.append(error)
        return await ctx.step("after", echo, "on")

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin()
        await until(lambda: len(bodies.begun) == 3)
        bodies.open(-2)
        move = await lives.journal.moved(claimed.id)
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "on"
        assert [error.key for error in caught] == ["m[1]", "m[1]"]
        assert sorted(bodies.ended) == [-2, 1, 3]
        rows = [("f", "m[1]"), ("x", "m[0]"), ("x", "m[2]"), ("f", "m"), ("s", "after")]
        assert lives.journal.keys(claimed.id) == rows
        assert len(bodies.begun) == 3


async def test_a_failure_leaves_what_was_not_begun_alone() -> None:
    bodies = Bodies()
    bodies.open(-1)
    async with Lives(bound(mapping(bodies, [-1, 2, 3], limit=1))) as lives:
        _, move = await lives.run()

        assert isinstance(move, End)
        assert move.status == "f"
        assert bodies.begun == [-1]


async def test_a_map_that_the_handler_interrupts_is_interrupted_again() -> None:
    bodies = Bodies()
    bodies.open(1)

    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.02):
                await ctx.map("m", bodies, [1, 2])
        except TimeoutError:
            return await ctx.step("after", echo, "late")
        return "in time"

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        bodies.open(2)
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "late"
        assert lives.journal.keys(claimed.id) == [("s", "m[0]"), ("x", "m[1]"), ("x", "m"), ("s", "after")]
        assert bodies.begun == [1, 2]


async def test_two_maps_at_once_end_in_the_same_order_on_replay() -> None:
    orders: list[list[str]] = []
    bodies = Bodies()

    async def handler(ctx: Context) -> list[str]:
        order: list[str] = []
        orders.append(order)

        async def one(name: str, items: list[int]) -> None:
            await ctx.map(name, bodies, items)
            order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(one("a", [1, 2]))
            group.create_task(one("b", [3, 4]))
        return order

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin()
        await until(lambda: len(bodies.begun) == 4)
        for item in (1, 4, 3, 2):
            bodies.open(item)
            await until(lambda: item in bodies.ended)  # noqa: B023
            await asyncio.sleep(0.005)
        move = await lives.journal.moved(claimed.id)
        await lives.again(claimed)

        assert lives.result(move) == ["b", "a"]
        assert orders == [["b", "a"], ["b", "a"]]


async def test_tasks_behind_a_map_keep_their_keys_on_replay() -> None:
    async def handler(ctx: Context) -> list[int]:
        await ctx.map("m", times_ten, range(3), limit=2)
        return list(await asyncio.gather(*(part(ctx, n) for n in range(2))))

    async def part(ctx: Context, n: int) -> int:
        return await ctx.step("s", times_ten, n)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        for up_to in (1, 3, 4):
            move = await lives.again(claimed, up_to=up_to)
            assert lives.result(move) == [0, 10]
        assert [key for _, key in lives.journal.keys(claimed.id)][3:] == ["~1/s", "~2/s"]


async def test_functions_in_threads_are_steps_too_and_an_unannotated_one_shows_by_its_first_value() -> None:
    threads: set[int] = set()

    def plain(item: int):  # type: ignore[no-untyped-def]  # that is the point
        threads.add(threading.get_ident())
        return 10 * item

    for fn in (functools.partial(in_thread, threads), plain, unannotated(lambda item: 10 * item)):
        async with Lives(bound(mapping(fn, range(3)))) as lives:
            claimed, move = await lives.run()
            again = await lives.again(claimed)

            assert lives.result(move) == lives.result(again) == [0, 10, 20]
            assert len(lives.journal.keys(claimed.id)) == 3
    assert threading.get_ident() not in threads


def in_thread(threads: set[int], item: int) -> int:
    threads.add(threading.get_ident())
    return 10 * item


async def test_an_unannotated_function_that_fails_at_once_fails_the_map() -> None:
    async with Lives(bound(mapping(unannotated(lambda item: 1 // item), [0, 1]))) as lives:
        claimed, move = await lives.run()

        assert isinstance(move, End)
        assert move.status == "f"
        assert lives.journal.keys(claimed.id) == [("f", "m[0]"), ("f", "m")]


async def test_items_that_are_made_on_the_way_are_made_once() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for n in range(3):
            made.append(n)
            yield n

    async def handler(ctx: Context) -> list[int]:
        return await ctx.map("m", times_ten, items(), limit=1)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert lives.result(move) == [0, 10, 20]
        assert made == [0, 1, 2]


async def test_the_context_is_not_used_in_the_function_of_a_map() -> None:
    async def handler(ctx: Context) -> str:
        async def body(item: int) -> int:
            return await ctx.step("s", times_ten, item)

        try:
            await ctx.map("m", body, [1])
        except StepFailedError as error:
            return error.error.kind
        return ""

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert lives.result(move) == f"kedge.errors.{NestedStepError.__name__}"


async def test_what_step_says_of_a_function_holds_in_a_map() -> None:
    @step(check_input=True)
    async def checked(item: int) -> int:
        return 10 * item

    lists = [[1, 2], [1, 3]]

    async def handler(ctx: Context) -> list[int]:
        return await ctx.map("m", checked, lists.pop(0))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed)

        assert isinstance(move, GiveBack)
        assert "'m[1]' was called with another argument" in str(move.reason)


async def test_steps_of_a_map_that_are_to_be_tried_again_much_later_leave_memory() -> None:
    tried: list[int] = []

    @step(retry=Retry(3, initial="1h", maximum="1h", jitter=False))
    async def flaky(item: int) -> int:
        tried.append(item)
        if item == 1 and tried.count(1) < 2:
            raise ValueError("not yet")
        return 10 * item

    async with Lives(bound(mapping(flaky, range(3)))) as lives:
        claimed, move = await lives.run()
        assert isinstance(move, Park)
        lives.journal.now_s += 3600
        move = await lives.again(claimed)

        assert lives.result(move) == [0, 10, 20]
        assert sorted(tried) == [0, 1, 1, 2]
        assert lives.result(await lives.again(claimed)) == [0, 10, 20]


async def test_the_time_after_a_map_is_that_of_its_last_row() -> None:
    times: list[Any] = []
    bodies = Bodies()

    async def handler(ctx: Context) -> None:
        await ctx.map("m", bodies, [1, 2])
        times.append(ctx.now())
        await ctx.step("after", echo, 1)

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin()
        await until(lambda: len(bodies.begun) == 2)
        bodies.open(2)
        await until(lambda: 2 in bodies.ended)
        bodies.open(1)
        await lives.journal.moved(claimed.id)
        await lives.again(claimed)

        assert times[0] == times[1]


# ---- children -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [double, by_lambda, functools.partial(unannotated(lambda n: double(n, queue="slow")))],
    ids=["ref", "lambda", "partial"],
)
async def test_many_children_are_started_and_waited_for_in_one_flush(fn: Any) -> None:
    async with Lives(bound(mapping(fn, range(300)))) as lives:
        claimed, move = await lives.run()

        assert isinstance(move, Park)
        started = children(lives.journal)
        assert [child.input for child in started] == list(range(300))
        assert [child.key for child in started] == [f"m[{n}]" for n in range(300)]
        assert all(child.watched for child in started)
        assert groups(lives.journal) == [(f"m[{n}]", 300, "m") for n in range(300)]
        assert lives.journal.flushes <= 1
        assert watch_letters(lives.journal) == []

        mail = tuple(ended(f"m[{n}]", 2 * n) for n in reversed(range(300)))
        assert lives.result(await lives.again(claimed, mail=mail)) == [2 * n for n in range(300)]
        assert lives.result(await lives.again(claimed)) == [2 * n for n in range(300)]
        assert len(children(lives.journal)) == 300


async def request_of(item: int) -> RunRequest[int]:
    return double(item)


def annotated(item: int) -> RunRequest[int]:
    return double(item)


async def test_an_annotated_function_makes_requests_without_being_tried() -> None:
    async with Lives(bound(mapping(annotated, range(2)))) as lives:
        claimed, _ = await lives.run()

        assert len(children(lives.journal)) == 2
        assert lives.journal.keys(claimed.id) == [("n", "m[0]/start"), ("n", "m[1]/start")]


async def test_ends_are_taken_one_by_one_in_memory() -> None:
    async with Lives(bound(mapping(double, range(3))), linger_s=60) as lives:
        claimed = lives.begin()
        for n in (2, 0, 1):
            await deliver(lives, claimed.id, ended(f"m[{n}]", n))
        move = await lives.journal.moved(claimed.id)

        assert lives.result(move) == [0, 1, 2]
        keys = [key for kind, key in lives.journal.keys(claimed.id) if kind == "c"]
        assert keys == ["m[2]", "m[0]", "m[1]"]


async def test_a_window_goes_on_with_each_end_and_wants_half_of_itself_before_it_wakes() -> None:
    async with Lives(bound(mapping(double, range(10), limit=5)), linger_s=60) as lives:
        claimed = lives.begin()
        await until(lambda: len(children(lives.journal)) == 5)
        await deliver(lives, claimed.id, ended("m[3]", 6), ended("m[0]", 0))
        await until(lambda: len(children(lives.journal)) == 7)

        assert [child.input for child in children(lives.journal)] == [0, 1, 2, 3, 4, 5, 6]
        assert {need for _, need, _ in groups(lives.journal)} == {3}
        await deliver(lives, claimed.id, *(ended(f"m[{n}]", 2 * n) for n in (1, 2, 4, 5, 6)))
        await until(lambda: len(children(lives.journal)) == 10)
        await deliver(lives, claimed.id, *(ended(f"m[{n}]", 2 * n) for n in (7, 8, 9)))
        assert lives.result(await lives.journal.moved(claimed.id)) == [2 * n for n in range(10)]


async def test_the_lives_of_a_parked_parent_are_few() -> None:
    async with Lives(bound(mapping(double, range(100), limit=10))) as lives:
        claimed, move = await lives.run()
        count, told = 1, 0
        while isinstance(move, Park):
            started = len(children(lives.journal))
            assert started - told <= 10
            mail = tuple(ended(f"m[{n}]", 2 * n) for n in range(told, min(told + 5, started)))
            told += len(mail)
            move = await lives.again(claimed, mail=mail)
            count += 1

        assert lives.result(move) == [2 * n for n in range(100)]
        assert count == 21
        assert len(children(lives.journal)) == 100


@pytest.mark.parametrize("up_to", range(1, 8))
async def test_a_life_that_was_cut_starts_what_was_not_started_and_watches_the_rest(up_to: int) -> None:
    async with Lives(bound(mapping(double, range(4)))) as lives:
        claimed, _ = await lives.run()
        lives.journal.forget_waits(claimed.id)
        ends = tuple(ended(f"m[{n}]", 2 * n) for n in range(4))
        await lives.again(claimed, mail=ends)
        before = len(children(lives.journal))
        move = await lives.again(claimed, up_to=up_to, mail=ends)

        assert lives.result(move) == [0, 2, 4, 6]
        assert len(children(lives.journal)) - before == max(0, 4 - up_to)


async def test_the_first_bad_end_is_raised_now_and_on_replay_and_the_others_are_not_waited_for() -> None:
    for bad, expected in ((failed("m[2]"), ChildFailedError), (cancelled("m[2]", "no"), ChildCancelledError)):
        caught: list[Any] = []

        async def handler(ctx: Context) -> str:
            try:
                await ctx.map("m", double, range(4))
            except (ChildFailedError, ChildCancelledError) as error:
                caught.append(error)  # noqa: B023
            return await ctx.step("after", echo, "on")

        async with Lives(bound(handler)) as lives:
            claimed, _ = await lives.run()
            move = await lives.again(claimed, mail=(ended("m[0]", 0), bad, ended("m[1]", 2)))
            again = await lives.again(claimed)

            assert lives.result(move) == lives.result(again) == "on"
            assert [type(error) for error in caught] == [expected, expected]
            assert [error.key for error in caught] == ["m[2]", "m[2]"]
            assert {error.child_id for error in caught} == {children(lives.journal)[2].id}
            assert lives.journal.waits(claimed.id) == ()
            assert "m[3]" in closed(lives.journal)
            assert len(children(lives.journal)) == 4


async def test_an_interrupted_map_of_children_is_interrupted_again() -> None:
    async def handler(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.02):
                await ctx.map("m", double, range(3))
        except TimeoutError:
            return await ctx.step("after", echo, "late")
        return "in time"

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed = lives.begin()
        await deliver(lives, claimed.id, ended("m[1]", 2))
        move = await lives.journal.moved(claimed.id)
        again = await lives.again(claimed, mail=(ended("m[0]", 0), ended("m[2]", 4)))

        assert lives.result(move) == lives.result(again) == "late"
        kinds = [row for row in lives.journal.keys(claimed.id) if row[0] != "n"]
        assert kinds == [("c", "m[1]"), ("x", "m"), ("s", "after")]
        assert lives.journal.waits(claimed.id) == ()
        assert len(children(lives.journal)) == 3


async def test_a_map_beside_other_waits_leaves_memory_with_them() -> None:
    async def handler(ctx: Context) -> Any:
        return [list(part) for part in await asyncio.gather(ctx.map("a", double, [1]), ctx.map("b", double, [2, 3]))]

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert isinstance(move, Park)
        move = await lives.again(claimed, mail=(ended("b[1]", 6), ended("a[0]", 2), ended("b[0]", 4)))

        assert lives.result(move) == [[2], [4, 6]]


async def test_outcomes_of_other_branches_do_not_wait_for_the_whole_map() -> None:
    async def handler(ctx: Context) -> list[Any]:
        seen: list[Any] = []

        async def other() -> None:
            seen.append(await ctx.call("other", double(9)))

        async def mapped() -> None:
            seen.append(await ctx.map("m", double, range(2)))

        async with asyncio.TaskGroup() as group:
            group.create_task(mapped())
            group.create_task(other())
        return seen

    async with Lives(bound(handler), linger_s=60) as lives:
        claimed = lives.begin()
        await deliver(lives, claimed.id, ended("~1/m[0]", 0), ended("~2/other", 18))
        await until(lambda: "~2/other" not in lives.executor.waiting[claimed.id].open)
        await deliver(lives, claimed.id, ended("~1/m[1]", 2))
        move = await lives.journal.moved(claimed.id)

        assert lives.result(move) == lives.result(await lives.again(claimed)) == [18, [0, 2]]


async def test_keyed_children_of_a_map_start_alone_behind_one_flush_of_intents() -> None:
    async with Lives(bound(mapping(keyed, range(3)))) as lives:
        claimed, move = await lives.run()

        assert isinstance(move, Park)
        assert children(lives.journal) == []
        assert [terms.key for _, terms, _ in lives.child_starts.asked] == ["n:0", "n:1", "n:2"]
        ids = [child for child, _, _ in lives.child_starts.asked]
        assert watch_letters(lives.journal) == [(child, f"m[{n}]") for n, child in enumerate(ids)]
        move = await lives.again(claimed, mail=tuple(ended(f"m[{n}]", n) for n in range(3)))
        assert lives.result(move) == [0, 1, 2]
        assert len(lives.child_starts.asked) == 3


async def test_a_refused_start_is_the_maps_failure_now_and_on_replay() -> None:
    caught: list[RunExistsError] = []

    async def handler(ctx: Context) -> str:
        try:
            await ctx.map("m", keyed, range(3))
        except RunExistsError as error:
            caught.append(error)
        return await ctx.step("after", echo, "on")

    async with Lives(bound(handler)) as lives:
        lives.child_starts.answers = [Started(uuid4(), "exists")]
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "on"
        assert caught[0].args == caught[1].args
        assert lives.journal.keys(claimed.id)[0] == ("f", "m[0]/start")


# ---- what does not fit ----------------------------------------------------------------------------------------------


async def reason_of(first: Any, second: Any, items: Any = ((1, 2), (1, 2)), mail: tuple[Mail, ...] = ()) -> str:
    """Why a run waits whose code maps something else now."""
    works = list(zip((first, second), items, strict=True))

    async def handler(ctx: Context) -> Any:
        fn, mapped = works.pop(0)
        return await ctx.map("m", fn, mapped)

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        move = await lives.again(claimed, mail=mail)
    return str(move.reason) if isinstance(move, GiveBack) else ""


async def test_steps_in_the_place_of_children_are_a_mismatch_both_ways() -> None:
    assert "'m[0]' is a step in the journal" in await reason_of(times_ten, double)
    assert "has started children, and runs steps in the code" in await reason_of(double, times_ten)


async def test_fewer_items_than_before_are_a_mismatch() -> None:
    for fn in (times_ten, double):
        assert "'m' has 1 items in the code" in await reason_of(fn, fn, items=((1, 2), (1,)))


async def test_another_input_for_an_item_is_a_mismatch() -> None:
    reason = await reason_of(double, double, items=((1, 2), (1, 3)))

    assert "'m[1]/start' has started 'double' with another input" in reason


@pytest.mark.parametrize("fn", [times_ten, double, by_lambda], ids=["steps", "children", "unknown"])
async def test_a_map_that_would_be_longer_than_a_journal_is_refused_before_anything_begins(fn: Any) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(TooLargeError, match="the limit is 10,000"):
            await ctx.map("m", fn, range(10_001))
        return await ctx.step("after", echo, "on")

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        again = await lives.again(claimed)

        assert lives.result(move) == lives.result(again) == "on"
        assert lives.journal.keys(claimed.id) == [("s", "after")]
        assert children(lives.journal) == []


# ---- wrong uses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "items", "limit", "problem"),
    [
        (times_ten, [1], 0, "limit=0"),
        (times_ten, [1], True, "limit=True"),
        (times_ten, 7, None, "are no items"),
        (7, [1], None, "is no function"),
        (bound(mapping(times_ten, [])), [1], None, "give its ref"),
        (double(1), [1], None, "give its ref"),
        (request_of, [1], None, "is a plain function"),
    ],
)
async def test_what_cannot_be_mapped_is_refused_where_it_is_written(
    fn: Any, items: Any, limit: Any, problem: str
) -> None:
    async def handler(ctx: Context) -> None:
        with pytest.raises((HandlerUseError, InvalidOptionError), match=problem):
            await ctx.map("m", fn, items, limit=limit)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

        assert isinstance(move, End)
        assert move.status == "c", move.error


async def echo(value: Any) -> Any:
    return value
