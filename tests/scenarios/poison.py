"""Workflows that are the death of their worker; a subprocess has them from `tests.scenarios.poison:worker`."""

import asyncio
import os
import signal
import sys
import time

import msgspec

from kedge import WorkflowRef
from kedge_worker import Context, Worker, workflow
from tests.scenarios.shop import note_body, work


class Poison(msgspec.Struct, frozen=True):
    """How a handler kills the process that executes it."""

    how: str = "kill"
    after_s: float = 0.3
    steps: int = 0
    deaths: int = 1_000_000
    """After so many it completes."""


poison = WorkflowRef("poison", Poison, str)
innocent = WorkflowRef("innocent", str, str)
slow = WorkflowRef("slow", float, str)
stuck = WorkflowRef("stuck", float, str)

PLACE = "solo" if "solo" in sys.argv else "shared"
"""Where this process executes its runs."""


def deaths() -> int:
    """How often a handler has killed its process."""
    with open(os.environ["SHOP_BODIES"], encoding="utf-8") as file:
        return sum(line.startswith("death") for line in file)


@workflow(poison)
async def die(ctx: Context, order: Poison) -> str:
    """Take a few steps, then take the process along."""
    for i in range(order.steps):
        await ctx.step("before", work, "before", i, 0.0)
    await asyncio.sleep(order.after_s)
    if (number := deaths()) >= order.deaths:
        return f"survived in {PLACE}"
    note_body(f"death in {PLACE}", number)
    if order.how == "exit":
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@workflow(innocent)
async def live(ctx: Context, name: str) -> str:
    """Some steps."""
    for i in range(3):
        await ctx.step("work", work, name, i, 0.1)
    return name


async def take_time(seconds: float) -> str:
    """Begin, and take a while."""
    note_body(f"slow in {PLACE}", 0)
    await asyncio.sleep(seconds)
    return PLACE


@workflow(slow)
async def wait(ctx: Context, seconds: float) -> str:
    """One step, so long that nothing is kept when a neighbour kills the process; then something that parks the run."""
    place = await ctx.step("slow", take_time, seconds)
    await ctx.sleep("rest", 1.5)
    return f"{place}, then {PLACE}"


@workflow(stuck)
async def block(ctx: Context, seconds: float) -> str:
    """Block the event loop: no signal is heard."""
    note_body(f"stuck in {PLACE}", os.getpid())
    time.sleep(seconds)
    return PLACE


ALL = (die, live, wait, block)
worker = Worker(workflows=ALL) if "KEDGE_DATABASE_URL" in os.environ else None
