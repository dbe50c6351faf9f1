"""Workflows that wait; a subprocess runs them as `kedge-worker run tests.scenarios.waiters:worker`."""

import asyncio

from kedge import EventRef, WorkflowRef
from kedge_worker import Context, SyncContext, Worker, workflow
from tests.scenarios.shop import note_body

collect = WorkflowRef("collect", int, list[int])
collect_sync = WorkflowRef("collect-sync", int, list[int])
came = EventRef("came", int)
rang = EventRef("rang", int)


async def noted(number: int) -> int:
    """A step's body, which says that it began."""
    note_body("noted", number)
    return number


def noted_sync(number: int) -> int:
    """The same in a thread."""
    note_body("noted", number)
    return number


@workflow(collect)
async def collect_events(ctx: Context, number: int) -> list[int]:
    """Take so many events, with other waits and steps in between and beside them."""

    async def takes() -> list[int]:
        taken: list[int] = []
        for place in range(number):
            taken.append(await ctx.step("note", noted, await ctx.wait_for("came", came)))
            if place % 5 == 0:
                await ctx.sleep("nap", 0.05)
        return taken

    async def rings() -> None:
        for _ in range(number // 5):
            await ctx.first("ring", ctx.wait_for("rang", rang), ctx.sleep("late", 0.2))

    taken, _ = await asyncio.gather(takes(), rings())
    return taken


@workflow(collect_sync)
def collect_events_in_a_thread(ctx: SyncContext, number: int) -> list[int]:
    """The same without branches."""
    taken: list[int] = []
    for place in range(number):
        taken.append(ctx.step("note", noted_sync, ctx.wait_for("came", came)))
        if place % 5 == 0:
            ctx.sleep("nap", 0.05)
    return taken


worker = Worker(workflows=[collect_events, collect_events_in_a_thread], queues=["default"], concurrency=5)
