"""A workflow that goes on when a door is opened; a subprocess has it from `tests.scenarios.doors:worker`."""

import asyncio
import os
from pathlib import Path

from kedge import WorkflowRef
from kedge_worker import Context, Worker, workflow
from tests.scenarios.shop import note_body

wait_at_door = WorkflowRef("wait-at-door", str, str)


def open_door(folder: Path, name: str) -> None:
    """Let whoever waits at it go on."""
    (folder / name).touch()


async def stand_at(path: str) -> str:
    """Begin, and wait until the door is open."""
    note_body(Path(path).name, 0)
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return str(os.getpid())


@workflow(wait_at_door)
async def go_through(ctx: Context, path: str) -> str:
    """One step, as long as the door is closed; answers the process in which it ended."""
    return await ctx.step("stand", stand_at, path)


worker = Worker(workflows=[go_through]) if "KEDGE_DATABASE_URL" in os.environ else None
