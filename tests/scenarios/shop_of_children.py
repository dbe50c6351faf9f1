"""Families of runs for workers that are killed; a subprocess runs them."""

import asyncio
import os

from kedge import WorkflowRef
from kedge_worker import Context, Worker, workflow

family = WorkflowRef("family", int, int)
shelf = WorkflowRef("shelf", int, int)


@workflow(family)
async def handle_family(ctx: Context, size: int) -> int:
    """Children in a window, one after the other and all at once."""
    third = size // 3
    values = [await ctx.call("one", shelf(number)) for number in range(third // 3)]
    values += await ctx.map("some", shelf, range(third // 3, third), limit=4)
    values += await ctx.map("all", shelf, range(third, size))
    return sum(values)


@workflow(shelf)
async def handle_shelf(ctx: Context, number: int) -> int:
    """A child that takes a moment."""
    return await ctx.step("look", look, number)


async def look(number: int) -> int:
    """A moment."""
    await asyncio.sleep(0.02)
    return number


worker = Worker(workflows=[handle_family, handle_shelf]) if "KEDGE_DATABASE_URL" in os.environ else None
