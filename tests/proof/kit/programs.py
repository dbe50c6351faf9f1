"""
The workflows of the proof's processes: `python -m kedge_worker run tests.proof.kit.programs:worker`.

They say in the journal of their process (PROOF_FOLDER) when a handler and a body begin, and what the handler is told.
Every body answers a value that no other execution of it would answer, so what was kept can be told from what was not.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
import psycopg

from kedge import EventRef, Retry, WorkflowRef
from kedge_worker import Context, Worker, workflow
from tests.proof.kit.journal import Journal

FOLDER_VARIABLE: Final = "PROOF_FOLDER"
TABLES: Final = """
    create table if not exists effects (
        id bigint generated always as identity primary key, run uuid not null, step text not null, value text not null,
        at timestamptz not null default clock_timestamp())
"""


class Work(msgspec.Struct, frozen=True):
    """How much, and how long each body takes."""

    n: int = 1
    pause_s: float = 0.0


steps = WorkflowRef("steps", Work, list[str])
parallel = WorkflowRef("parallel", Work, list[str])
charge = WorkflowRef("charge", Work, list[str])
event = WorkflowRef("event", Work, list[int])
impatient = WorkflowRef("impatient", Work, str)
nap = WorkflowRef("nap", Work, str)
parent = WorkflowRef("parent", Work, list[str])
flaky = WorkflowRef("flaky", Work, list[str])
patient = WorkflowRef("patient", Work, str)
go = EventRef("go", int)

REFS: Final = {ref.name: ref for ref in (steps, parallel, charge, event, impatient, nap, parent, flaky, patient)}


@cache
def journal() -> Journal:
    """The journal of this process; another one after a fork."""
    return Journal(Path(os.environ[FOLDER_VARIABLE]), f"worker-{os.getpid()}")


class Life:
    """One execution of a handler: what it is told, in order."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.run = str(ctx.run_id)
        self._about = {"run": self.run, "life": uuid4().hex}

    def told(self, step: str, value: Any) -> Any:
        journal().write("told", step=step, value=value, **self._about)
        return value

    async def step(self, name: str, pause_s: float) -> str:
        return str(self.told(name, await self.ctx.step(name, body, self.run, name, pause_s)))

    def began(self) -> None:
        journal().write("life", **self._about)

    def ended(self) -> None:
        journal().write("life.end", **self._about)


@asynccontextmanager
async def life(ctx: Context) -> AsyncGenerator[Life]:
    """Say that the handler begins, and that it came to its end: not when it is interrupted or its process dies."""
    now = Life(ctx)
    now.began()
    yield now
    now.ended()


async def body(run: str, step: str, pause_s: float) -> str:
    """Say that it begins, take a while, answer something unique."""
    journal().write("body", run=run, step=step)
    if pause_s:
        await asyncio.sleep(pause_s)
    return f"{step}.{random.getrandbits(60):x}"


async def fickle(run: str, step: str, pause_s: float) -> str:
    """Fail more often than not."""
    answer = await body(run, step, pause_s)
    if random.random() < 0.6:
        raise ConnectionError("the other side is moody")
    return answer


async def effect(conn: psycopg.AsyncConnection, run: str, step: str) -> str:
    """Have an effect in the database."""
    journal().write("body", run=run, step=step)
    value = f"{step}.{random.getrandbits(60):x}"
    await conn.execute("insert into effects (run, step, value) values (%s, %s, %s)", (run, step, value))
    return value


@workflow(steps)
async def do_steps(ctx: Context, work: Work) -> list[str]:
    """One step after the other."""
    async with life(ctx) as now:
        return [await now.step(f"s{i}", work.pause_s) for i in range(work.n)]


@workflow(parallel)
async def do_parallel(ctx: Context, work: Work) -> list[str]:
    """All at once, then one more."""
    async with life(ctx) as now:
        await asyncio.gather(*(now.step(f"p{i}", work.pause_s) for i in range(work.n)))
        return [await now.step("last", work.pause_s)]


@workflow(charge)
async def do_charge(ctx: Context, work: Work) -> list[str]:
    """A plain step, then effects in the database."""
    async with life(ctx) as now:
        done = [await now.step("before", work.pause_s)]
        for i in range(work.n):
            value = await ctx.transaction(f"t{i}", effect, now.run, f"t{i}")
            done.append(str(now.told(f"t{i}", value)))
        return done


@workflow(event)
async def do_event(ctx: Context, work: Work) -> list[int]:
    """Take so many events, with a step behind each."""
    async with life(ctx) as now:
        taken: list[int] = []
        for i in range(work.n):
            taken.append(now.told(f"e{i}", await ctx.wait_for(f"e{i}", go)))
            await now.step(f"s{i}", work.pause_s)
        return taken


@workflow(impatient)
async def do_impatient(ctx: Context, work: Work) -> str:
    """Wait for an event, but not for long; -1 says that it did not come."""
    async with life(ctx) as now:
        came = now.told("e", await ctx.wait_for("e", go, timeout=work.pause_s, default=-1))
        await now.step("after", 0)
        return "late" if came == -1 else "came"


@workflow(nap)
async def do_nap(ctx: Context, work: Work) -> str:
    """Sleep between steps."""
    async with life(ctx) as now:
        for i in range(work.n):
            await now.step(f"s{i}", 0)
            await ctx.sleep(f"nap{i}", work.pause_s)
        return await now.step("last", 0)


@workflow(parent)
async def do_parent(ctx: Context, work: Work) -> list[str]:
    """Children, one after the other."""
    async with life(ctx) as now:
        done: list[str] = []
        for i in range(work.n):
            answers = await ctx.call(f"c{i}", steps(Work(2, work.pause_s)))
            done += now.told(f"c{i}", answers)
        return done


@workflow(flaky)
async def do_flaky(ctx: Context, work: Work) -> list[str]:
    """Steps that fail and are tried again."""
    async with life(ctx) as now:
        retry = Retry(200, initial="20ms", maximum="50ms")
        done: list[str] = []
        for i in range(work.n):
            value = await ctx.step(f"f{i}", fickle, now.run, f"f{i}", work.pause_s, retry=retry)
            done.append(str(now.told(f"f{i}", value)))
        return done


@workflow(patient)
async def do_patient(ctx: Context, work: Work) -> str:
    """A step, then wait until somebody cancels."""
    async with life(ctx) as now:
        await now.step("before", work.pause_s)
        await ctx.wait_for("never", go)
        return "never"


ALL: Final = (do_steps, do_parallel, do_charge, do_event, do_impatient, do_nap, do_parent, do_flaky, do_patient)
worker = Worker(workflows=ALL) if "KEDGE_DATABASE_URL" in os.environ else None
