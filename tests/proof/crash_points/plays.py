"""
The workflows whose workers die: small, each with another kind of operation.

Every body says that it begins, and what values of earlier steps it was given: those must be the kept ones, for no side
effect may begin before what it stands on is durable. Every execution of a body answers something else.
"""

from __future__ import annotations

import asyncio
import os
import random
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg

from kedge import EventRef, Retry, StepFailedError, WorkflowRef
from kedge_worker import Context, NotYet, SyncContext, workflow
from tests.proof.kit.journal import Journal, read_journals
from tests.proof.kit.programs import FOLDER_VARIABLE

Told: TypeAlias = dict[str, str]
"""Step -> the value that the handler got for it."""

steps = WorkflowRef("steps", None, Told)
parallel = WorkflowRef("parallel", None, Told)
charge = WorkflowRef("charge", None, Told)
charge_sync = WorkflowRef("charge-sync", None, Told)
event = WorkflowRef("event", None, Told)
impatient = WorkflowRef("impatient", None, Told)
nap = WorkflowRef("nap", None, Told)
parent = WorkflowRef("parent", None, Told)
shelf = WorkflowRef("shelf", str, Told)
flaky = WorkflowRef("flaky", None, Told)
again = WorkflowRef("again", None, Told)
poll = WorkflowRef("poll", None, Told)
race = WorkflowRef("race", None, Told)
mailer = WorkflowRef("mailer", None, Told)
failing = WorkflowRef("failing", None, Told)
sayings = WorkflowRef("sayings", None, Told)
stuck = WorkflowRef("stuck", None, Told)
go = EventRef("go", str)


@cache
def journal() -> Journal:
    """The journal of this process."""
    return Journal(Path(os.environ[FOLDER_VARIABLE]), f"process-{os.getpid()}")


def begin(run: str, step: str, told: Told) -> str:
    """Say that a body begins; answers its value."""
    value = f"{step}.{random.getrandbits(60):x}"
    journal().write("body", run=run, step=step, given=told, value=value)
    return value


async def body(run: str, step: str, told: Told) -> str:
    """A body."""
    return begin(run, step, told)


def body_sync(run: str, step: str, told: Told) -> str:
    """A body in a thread."""
    return begin(run, step, told)


def before(run: str, step: str) -> int:
    """How often the body of a step has begun, in all processes together."""
    lines = read_journals(Path(os.environ[FOLDER_VARIABLE]))
    return sum(line["what"] == "body" and line["run"] == run and line["step"] == step for line in lines)


async def fickle(run: str, step: str, told: Told) -> str:
    """Fail at the first call."""
    value = begin(run, step, told)
    if before(run, step) == 1:
        raise ConnectionError("the first call")
    return value


async def broken(run: str, step: str, told: Told) -> str:
    """Fail at every call."""
    raise ConnectionError(begin(run, step, told))


async def look(run: str, step: str, told: Told) -> str | NotYet:
    """No answer at the first call."""
    value = begin(run, step, told)
    return NotYet() if before(run, step) == 1 else value


async def hang(run: str, step: str, told: Told) -> str:
    """Wait for ever."""
    begin(run, step, told)
    await asyncio.Event().wait()
    return "never"


async def effect(conn: psycopg.AsyncConnection[Any], run: str, step: str, told: Told) -> str:
    """Have an effect in the database."""
    value = begin(run, step, told)
    await conn.execute("insert into effects (run, step, value) values (%s, %s, %s)", (run, step, value))
    return value


def effect_sync(conn: psycopg.Connection[Any], run: str, step: str, told: Told) -> str:
    """Have an effect in the database, in a thread."""
    value = begin(run, step, told)
    conn.execute("insert into effects (run, step, value) values (%s, %s, %s)", (run, step, value))
    return value


class Way:
    """What a handler has been told so far."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.run = str(ctx.run_id)
        self.told: Told = {}

    async def step(self, name: str, fn: Any = body, **options: Any) -> None:
        given = dict(self.told)
        self.told[name] = await self.ctx.step(name, fn, self.run, name, given, **options)

    async def charge(self, name: str) -> None:
        given = dict(self.told)
        self.told[name] = await self.ctx.transaction(name, effect, self.run, name, given)


@workflow(steps)
async def do_steps(ctx: Context) -> Told:
    """Three steps."""
    way = Way(ctx)
    for name in ("one", "two", "three"):
        await way.step(name)
    return way.told


@workflow(parallel)
async def do_parallel(ctx: Context) -> Told:
    """Three steps at once, twice, then one that was given what all have answered."""
    way = Way(ctx)
    await asyncio.gather(*(way.step(f"a{i}") for i in range(3)))
    await asyncio.gather(*(way.step(f"b{i}") for i in range(3)))
    await way.step("last")
    return way.told


@workflow(charge)
async def do_charge(ctx: Context) -> Told:
    """Effects in the database, with steps before and in between."""
    way = Way(ctx)
    await way.step("before")
    await way.charge("first")
    await way.step("between")
    await way.charge("second")
    return way.told


@workflow(charge_sync)
def do_charge_sync(ctx: SyncContext) -> Told:
    """The same in a thread."""
    run, told = str(ctx.run_id), Told()
    told["before"] = ctx.step("before", body_sync, run, "before", dict(told))
    told["first"] = ctx.transaction("first", effect_sync, run, "first", dict(told))
    told["between"] = ctx.step("between", body_sync, run, "between", dict(told))
    told["second"] = ctx.transaction("second", effect_sync, run, "second", dict(told))
    return told


@workflow(event)
async def do_event(ctx: Context) -> Told:
    """Two events, with steps around them."""
    way = Way(ctx)
    await way.step("before")
    way.told["event"] = await ctx.wait_for("event", go)
    await way.step("between")
    way.told["other"] = await ctx.wait_for("other", go)
    await way.step("after")
    return way.told


@workflow(impatient)
async def do_impatient(ctx: Context) -> Told:
    """An event that does not come in time."""
    way = Way(ctx)
    await way.step("before")
    way.told["late"] = await ctx.wait_for("late", go, timeout="200 ms", default="late")
    await way.step("after")
    return way.told


@workflow(nap)
async def do_nap(ctx: Context) -> Told:
    """A sleep in memory, and one that outlasts it."""
    way = Way(ctx)
    await way.step("before")
    await ctx.sleep("short", "30 ms")
    await way.step("between")
    await ctx.sleep("long", "250 ms")
    await way.step("after")
    return way.told


@workflow(parent)
async def do_parent(ctx: Context) -> Told:
    """Children: one that is called, one with a key, two beside each other."""
    way = Way(ctx)
    await way.step("before")
    called = await ctx.call("called", shelf("called"))
    keyed = await ctx.start("keyed", shelf("keyed", key=way.run))
    await way.step("beside")
    for told in (called, await keyed.result(), *await ctx.map("some", shelf, ["left", "right"])):
        way.told.update(told)
    return way.told


@workflow(shelf)
async def do_shelf(ctx: Context, name: str) -> Told:
    """A child, with a step that is named like it."""
    way = Way(ctx)
    await way.step(name)
    return way.told


@workflow(flaky)
async def do_flaky(ctx: Context) -> Told:
    """A step that fails once."""
    way = Way(ctx)
    await way.step("before")
    await way.step("fickle", fickle, retry=Retry(9, initial="20 ms"))
    await way.step("after")
    return way.told


@workflow(again, retry=Retry(9, initial="20 ms"))
async def do_again(ctx: Context) -> Told:
    """A handler whose first attempt fails."""
    way = Way(ctx)
    await way.step("before")
    if ctx.attempt == 1:
        raise ConnectionError("the first attempt")
    await way.step("after")
    return way.told


@workflow(poll)
async def do_poll(ctx: Context) -> Told:
    """A poll that has its answer at the second look."""
    way = Way(ctx)
    way.told["poll"] = await ctx.poll("poll", look, way.run, "poll", dict(way.told), every="150 ms")
    await way.step("after")
    return way.told


@workflow(race)
async def do_race(ctx: Context) -> Told:
    """A race of an event and a step behind a sleep, which wins."""
    way = Way(ctx)

    async def slow() -> str:
        await ctx.sleep("late", "150 ms")
        await way.step("slow")
        return "slow"

    _, way.told["race"] = await ctx.first("race", ctx.wait_for("event", go), slow())
    way.told["event"] = await ctx.wait_for("event", go, timeout=0, default="none")
    await way.step("after")
    return way.told


@workflow(mailer)
async def do_mailer(ctx: Context) -> Told:
    """Letters to itself, and one to whom nobody listens."""
    way = Way(ctx)
    await way.step("before")
    await ctx.send("topic", go("nobody"), topic="nobody")
    await ctx.send("letter", go("first"), run=way.run)
    await ctx.send("letter", go("second"), run=way.run)
    way.told["event"] = await ctx.wait_for("event", go)
    way.told["other"] = await ctx.wait_for("other", go)
    way.told["none"] = await ctx.wait_for("none", go, timeout="150 ms", default="none")
    await way.step("after")
    return way.told


@workflow(failing)
async def do_failing(ctx: Context) -> Told:
    """A failure that the handler catches, and one that it does not."""
    way = Way(ctx)
    await way.step("before")
    try:
        await way.step("broken", broken)
    except StepFailedError:
        await way.step("after")
    raise ValueError("it ends like this")


@workflow(sayings)
async def do_sayings(ctx: Context) -> Told:
    """What a run says of itself."""
    way = Way(ctx)
    ctx.progress(0, 2, "begun")
    await way.step("one")
    ctx.set_metadata(mood="good")
    ctx.log.info("half of it")
    ctx.progress(1, 2)
    await ctx.sleep("nap", "150 ms")
    ctx.log.info("more than half of it")
    await way.step("two")
    ctx.progress(2, 2)
    return way.told


@workflow(stuck)
async def do_stuck(ctx: Context) -> Told:
    """A body that ends only by being cancelled."""
    way = Way(ctx)
    await way.step("before")
    await way.step("hang", hang)
    return way.told


ALL: Final = (
    do_steps,
    do_parallel,
    do_charge,
    do_charge_sync,
    do_event,
    do_impatient,
    do_nap,
    do_parent,
    do_shelf,
    do_flaky,
    do_again,
    do_poll,
    do_race,
    do_mailer,
    do_failing,
    do_sayings,
    do_stuck,
)
