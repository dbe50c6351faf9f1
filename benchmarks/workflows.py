"""The runs that are measured: no work of their own, so that only the engine's is left."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec import Struct

from kedge import EventRef, WorkflowRef
from kedge_worker import Context, workflow

STEPS: Final = 10
PAGES: Final = 32
PAGE_BYTES: Final = 256 * 1024


class Task(Struct, frozen=True):
    number: int


class Done(Struct, frozen=True):
    ok: bool


one_step = WorkflowRef("one-step", Task, Done)
ten_steps = WorkflowRef("ten-steps", Task, Done)
holding = WorkflowRef("holding", Task, Done)
large = WorkflowRef("large", str, str)
shelved = WorkflowRef("shelved", None, int)
taken_out = EventRef("taken-out", None)


@workflow(one_step)
async def handle_one_step(ctx: Context, task: Task) -> Done:
    return await ctx.step("work", work, task)


@workflow(ten_steps)
async def handle_ten_steps(ctx: Context, task: Task) -> Done:
    done = Done(False)
    for _ in range(STEPS):
        done = await ctx.step("work", work, task)
    return done


@workflow(holding)
async def handle_holding(ctx: Context, task: Task) -> Done:
    return await ctx.step("hold", hold, task)


@workflow(large)
async def handle_large(ctx: Context, text: str) -> str:
    return await ctx.step("echo", echo, text)


@workflow(shelved)
async def handle_shelved(ctx: Context) -> int:
    """Keep 8 MiB, leave memory, and come back when somebody asks."""
    for _ in range(PAGES):
        await ctx.step("page", page)
    await ctx.wait_for("taken-out", taken_out)
    return PAGES


async def page() -> str:
    return "0" * PAGE_BYTES


async def work(task: Task) -> Done:
    del task
    return Done(True)


async def hold(task: Task) -> Done:
    """Keep the run in flight until its process ends."""
    await asyncio.Event().wait()
    return await work(task)


async def echo(text: str) -> str:
    return text
