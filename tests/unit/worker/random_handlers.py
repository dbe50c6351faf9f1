"""
Handlers made at random of everything that makes asyncio's order matter, which notice a wrong value by themselves.

A plan is data and depends on its seed alone. How many rounds of the event loop each body takes depends on the life, so
that lives differ in which body ends first, down to the single round.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from kedge.errors import StepFailedError
from kedge.refs import WorkflowRef
from kedge_worker._context import Context
from kedge_worker._workflows import workflow

JOINS = ("row", "gather", "group", "anyio", "as_completed", "branches")
CANCELLING_JOINS = ("first", "failing", "cancelled")


@dataclass(frozen=True)
class Plan:
    """A leaf does one thing, a join does its parts concurrently, a row one after the other."""

    kind: str
    name: str = ""
    parts: tuple[Plan, ...] = ()


def make_plan(seed: int) -> Plan:
    """
    Make a plan of some seven leaves.

    Negative seeds make handlers that also await things which are not kedge's, for another time in each life. Nothing is
    cancelled in those: how far somebody has come who waits for nothing durable is not known to a replay.
    """
    return _plan(random.Random(abs(seed)), 7, raw=seed < 0)


def _plan(rng: random.Random, size: int, *, raw: bool) -> Plan:
    if size <= 1:
        kind = rng.choices(("step", "thread", "failure", "transaction", "late"), (12, 1, 2, 2, 12 if raw else 0))[0]
        return Plan(kind, rng.choice("abc"))
    kind = rng.choice(JOINS if raw else JOINS + CANCELLING_JOINS)
    shares = [1 + rng.randrange(size) for _ in range(rng.randint(2, 3))]
    parts = [_plan(rng, max(1, size * share // sum(shares)), raw=raw) for share in shares]
    return Plan(kind, rng.choice("mno"), tuple(parts))


@dataclass
class World:
    """What is outside of the runs: how long bodies take in this life, and what they did."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    bodies: int = 0
    trace: list[str] = field(default_factory=list[str])
    """In which order the handler's own code ran."""

    def new_life(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bodies = 0
        self.trace = []


world = World()


async def some_rounds() -> None:
    for _ in range(world.rng.choice((0, 0, 1, 2, 3, 5, 8))):
        await asyncio.sleep(0)


async def echo(value: str) -> str:
    world.bodies += 1
    await some_rounds()
    return value


def echo_in_thread(value: str) -> str:
    world.bodies += 1
    return value


async def fail(value: str) -> str:
    await echo(value)
    raise ValueError(value)


async def insert(_conn: object, value: str) -> str:
    return await echo(value)


async def never(value: str) -> str:
    world.bodies += 1
    await asyncio.Event().wait()
    return value


LEAVES: dict[str, Callable[[Context, str, str], Awaitable[str]]] = {}
"""Other things that a leaf can do, given its name and path; they answer the path."""


async def perform(ctx: Context, plan: Plan, path: str) -> str:
    """Answer a text that depends on what was answered, and in which order."""
    world.trace.append(path)
    if plan.parts:
        return await _join(ctx, plan, path)
    match plan.kind:
        case "thread":
            value = await ctx.step(plan.name, echo_in_thread, path)
        case "transaction":
            value = await ctx.transaction(plan.name, insert, path)
        case "failure":
            try:
                value = await ctx.step(plan.name, fail, path)
            except StepFailedError as error:
                value = error.error.message
        case "late":
            await some_rounds()
            value = await ctx.step(plan.name, echo, path)
        case kind if kind in LEAVES:
            value = await LEAVES[kind](ctx, plan.name, path)
        case _:
            value = await ctx.step(plan.name, echo, path)
    world.trace.append(f"{path}!")
    # The value of another call is noticed here.
    assert value == path, f"{path} got the value of {value}"
    return value


async def _join(ctx: Context, plan: Plan, path: str) -> str:
    calls = [_call(ctx, part, f"{path}.{i}") for i, part in enumerate(plan.parts)]
    values = await _JOINERS[plan.kind](ctx, plan, calls)
    world.trace.append(f"{path}/")
    joined = f"({','.join(values)})"
    # What was joined goes into the next step: had it been another order then, its value would not fit now.
    assert await ctx.step("joined", echo, joined) == joined, f"{path} joined {joined} this time"
    return joined if len(joined) < 60 else str(sum(joined.encode()))


def _call(ctx: Context, part: Plan, path: str) -> Callable[[], Awaitable[str]]:
    return lambda: perform(ctx, part, path)


Calls = list[Callable[[], Awaitable[str]]]


async def _row(_ctx: Context, _plan: Plan, calls: Calls) -> list[str]:
    return [await call() for call in calls]


async def _gather(_ctx: Context, _plan: Plan, calls: Calls) -> list[str]:
    # Once one is cancelled, a gather goes on without the others: what they still do would have no place in the order.
    async with _tasks(calls) as tasks:
        return list(await asyncio.gather(*tasks))


async def _group(_ctx: Context, _plan: Plan, calls: Calls) -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_coroutine(call)) for call in calls]
    return [task.result() for task in tasks]


async def _anyio(_ctx: Context, _plan: Plan, calls: Calls) -> list[str]:
    values: list[str] = []

    async def note(call: Callable[[], Awaitable[str]]) -> None:
        values.append(await call())

    async with anyio.create_task_group() as group:
        for call in calls:
            group.start_soon(note, call)
    return values


async def _as_completed(ctx: Context, plan: Plan, calls: Calls) -> list[str]:
    values: list[str] = []
    # Tasks, not coroutines: of those it makes tasks in the order of a set.
    async with _tasks(calls) as tasks:
        for ended in asyncio.as_completed(tasks):
            value = await ended
            values.append(value)
            assert await ctx.step(plan.name, echo, value) == value, f"{value} came at another time then"
    return values


async def _first(_ctx: Context, _plan: Plan, calls: Calls) -> list[str]:
    async with _tasks(calls) as tasks:
        done, _late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return [task.result() for task in tasks if task in done]


async def _failing(ctx: Context, plan: Plan, calls: Calls) -> list[str]:
    async def give_up() -> None:
        await ctx.step(plan.name, echo, "give up")
        raise LookupError

    values: list[str] = []
    tasks: list[asyncio.Task[str]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(_coroutine(call)) for call in calls]
            group.create_task(give_up())
    except* LookupError:
        values.append("gave up")
    # Which siblings had ended by then is part of the answer.
    return values + [task.result() for task in tasks if not task.cancelled()]


async def _cancelled(ctx: Context, plan: Plan, calls: Calls) -> list[str]:
    async def until_cancelled() -> str:
        try:
            return await ctx.step(plan.name, never, "never")
        except asyncio.CancelledError:
            world.trace.append("cancelled")
            return await ctx.step(plan.name, echo, "cancelled")

    async def cancel(task: asyncio.Task[str]) -> None:
        await asyncio.sleep(0)  # it has begun
        await some_rounds()  # nothing durable decides when this happens
        task.cancel()

    async with _tasks([until_cancelled]) as (task,), asyncio.TaskGroup() as group:
        values = group.create_task(_gather(ctx, plan, calls))
        group.create_task(cancel(task))
        last = await task
    return [*values.result(), last]


async def _branches(ctx: Context, plan: Plan, calls: Calls) -> list[str]:
    return await _gather(ctx, plan, [functools.partial(ctx.branch, plan.name, call) for call in calls])


@contextlib.asynccontextmanager
async def _tasks(calls: Calls) -> AsyncGenerator[list[asyncio.Task[str]]]:
    """Leave no task behind."""
    tasks = [asyncio.create_task(_coroutine(call)) for call in calls]
    try:
        yield tasks
    finally:
        while late := [task for task in tasks if not task.done()]:
            for task in late:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(late)


async def _coroutine(call: Callable[[], Awaitable[str]]) -> str:
    return await call()


_JOINERS: dict[str, Callable[[Context, Plan, Calls], Awaitable[list[str]]]] = {
    "row": _row,
    "gather": _gather,
    "group": _group,
    "anyio": _anyio,
    "as_completed": _as_completed,
    "first": _first,
    "failing": _failing,
    "cancelled": _cancelled,
    "branches": _branches,
}


@workflow(WorkflowRef("random-handler", int, str))
async def random_handler(ctx: Context, seed: int) -> str:
    return await perform(ctx, make_plan(seed), "p")
