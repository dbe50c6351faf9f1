"""
Handlers and steps that answer, or raise, whatever the zoo has; and innocents, which must not notice.

A play's input says where what happens: the object itself never passes through the database on its way in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec

from kedge.event_refs import EventRef
from kedge.refs import WorkflowRef
from kedge_worker import Context, NotYet, SyncContext, workflow

MADE: Final[dict[int, Callable[[], Any]]] = {}
"""What a play's number makes."""
GOT: Final[dict[UUID, Any]] = {}
"""What a handler got of its step, by the run."""
RAISED: Final[dict[UUID, str]] = {}


class Play(msgspec.Struct):
    place: str
    number: int
    raises: bool = False


def happen(play: Play) -> Any:
    """Answer or raise it."""
    made = MADE[play.number]()
    if play.raises:
        raise made
    return made


def happen_in_transaction(_: Any, play: Play) -> Any:
    return happen(play)


async def happen_async(play: Play) -> Any:
    return happen(play)


async def happen_in_async_transaction(_: Any, play: Play) -> Any:
    return happen(play)


async def happen_after_all(ctx: Context, play: Play) -> Any:
    await ctx.step("before", int)
    return happen(play)


play_ref: Final = WorkflowRef[Play, Any]("play", Play, Any)
sync_play_ref: Final = WorkflowRef[Play, Any]("sync play", Play, Any)
ANYTHING: Final[Any] = dict[str, Any] | list[Any] | str | int | float | None

child_ref: Final = WorkflowRef[dict[str, Any] | list[Any] | str | int | float, Any]("child", Any, Any)
anything: Final = EventRef[Any]("anything", Any)
innocent_ref: Final = WorkflowRef[int, int]("innocent", int, int)

PLACES: Final = (
    "handler",
    "async step",
    "thread step",
    "timed step",
    "timed thread step",
    "typed step",
    "transaction",
    "thread transaction",
    "branches",
    "named branch",
    "own task",
    "task group",
    "map",
    "poll",
    "first",
)
"""Where a function of the user's answers or raises."""
NOT_KEPT_PLACES: Final = frozenset({"named branch", "own task", "task group"})
"""What comes of these stays in memory."""
SYNC_PLACES: Final = ("handler", "step", "transaction", "poll")
GIVEN_PLACES: Final = (
    "metadata",
    "log message",
    "log field",
    "log level",
    "progress",
    "progress total",
    "progress message",
    "patched",
    "token",
    "sleep",
    "sleep until",
    "poll state",
    "step id",
    "argument",
    "event",
    "to whom",
    "topic",
    "call",
    "child's key",
    "map items",
    "branch name",
)
"""Where a value is given to the context."""


@workflow(play_ref)
async def play_handler(ctx: Context, play: Play) -> Any:
    if play.place == "handler":
        return happen(play)
    try:
        GOT[ctx.run_id] = await play_in(ctx, play)
    except Exception as error:
        RAISED[ctx.run_id] = type(error).__name__
        raise
    return "played"


async def play_in(ctx: Context, play: Play) -> Any:
    match play.place:
        case "async step":
            return await ctx.step("s", happen_async, play)
        case "thread step":
            return await ctx.step("s", happen, play)
        case "timed step":
            return await ctx.step("s", happen_async, play, timeout="1m")
        case "timed thread step":
            return await ctx.step("s", happen, play, timeout="1m")
        case "typed step":
            return await ctx.step("s", happen_async, play, output=ANYTHING)
        case "transaction":
            return await ctx.transaction("s", happen_in_async_transaction, play)
        case "thread transaction":
            return await ctx.transaction("s", happen_in_transaction, play)
        case "branches":
            _, got = await asyncio.gather(ctx.step("a", int), ctx.step("s", happen_async, play))
            return got
        case "named branch":
            return await ctx.branch("b", happen_after_all, ctx, play)
        case "own task":
            _, got = await asyncio.gather(ctx.step("a", int), happen_async(play))
            return got
        case "task group":
            async with asyncio.TaskGroup() as group:
                task = group.create_task(happen_async(play))
                group.create_task(ctx.step("a", int))
            return task.result()
        case "map":
            return await ctx.map("s", happen_async, [play], limit=2)
        case "poll":
            return await ctx.poll("s", happen_async, play, every="1s", max_attempts=1)
        case "first":
            return await ctx.first("s", ctx.step("a", happen_async, play), ctx.sleep("z", "1 day"))
        case _:
            return await play_with(ctx, play)


async def play_with(ctx: Any, play: Play) -> Any:
    value = happen(play)
    match play.place:
        case "metadata":
            return ctx.set_metadata(value=value)
        case "log message":
            return ctx.log.info(value)
        case "log field":
            return ctx.log.info("said", field=value)
        case "log level":
            return ctx.log(value, "said")
        case "progress":
            return ctx.progress(value)
        case "progress total":
            return ctx.progress(1, value)
        case "progress message":
            return ctx.progress(1, None, value)
        case "patched":
            return ctx.patched(value)
        case "token":
            return ctx.token(value)
        case "sleep":
            return await ctx.sleep("s", value)
        case "sleep until":
            return await ctx.sleep_until("s", value)
        case "poll state":
            return await ctx.poll("s", NotYet, value, every="1 day")
        case "event":
            return await ctx.send("s", anything(value), run=ctx.run_id)
        case "to whom":
            return await ctx.send("s", anything(1), run=value)
        case "topic":
            return await ctx.send("s", anything(1), topic=value)
        case "call":
            return await ctx.call("s", child_ref(value))
        case "child's key":
            return await ctx.call("s", child_ref(1, key=value))
        case "map items":
            return await ctx.map("s", happen_async, value)
        case "branch name":
            return await ctx.branch(value, happen_after_all, ctx, play)
        case "step id":
            return await ctx.step(value, int)
        case "argument":
            return await ctx.step("s", type, value)
        case _:
            raise AssertionError(play.place)


@workflow(sync_play_ref)
def sync_play_handler(ctx: SyncContext, play: Play) -> Any:
    context: Any = ctx
    match play.place:
        case "handler":
            return happen(play)
        case "step":
            GOT[ctx.run_id] = context.step("s", happen, play)
        case "transaction":
            GOT[ctx.run_id] = context.transaction("s", happen_in_transaction, play)
        case "poll":
            GOT[ctx.run_id] = context.poll("s", happen, play, every="1s", max_attempts=1)
        case _:
            raise AssertionError(play.place)
    return "played"


@workflow(innocent_ref)
async def innocent_handler(ctx: Context, number: int) -> int:
    one = await ctx.step("one", int, number)
    return one + await ctx.step("two", abs, -1)


@workflow(child_ref)
async def child_handler(_: Context, value: Any) -> Any:
    return value


HANDLERS: Final = (play_handler, sync_play_handler, innocent_handler, child_handler)
