"""A run without a journal: real branches and tasks, and durable waits that never end, to be looked at while they do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from uuid import uuid4

from kedge.errors import RawTimeoutError
from kedge_worker._branches import BranchTasks, RunBranches
from kedge_worker._suspension import Blocker, check_raw_timeout, find_blocker
from kedge_worker._turns import Turns


class Suspended:
    """What a handler is given here: `wait` is a durable wait."""

    def __init__(self, tasks: BranchTasks) -> None:
        self.tasks = tasks
        self.branches = RunBranches(lambda made: Turns(uuid4(), made.loose, None, set(), tasks.rounds, tasks.loop))
        self.waiting: set[asyncio.Task[Any]] = set()
        self.bodies = 0
        self.limit_s: float | None = None
        """Checked when a wait begins, unless None."""
        self.refused: list[str] = []

    async def wait(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self.limit_s is not None:
            try:
                check_raw_timeout(task, limit_s=self.limit_s)
            except RawTimeoutError as error:
                self.refused.append(str(error))
                raise
        self.waiting.add(task)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.waiting.discard(task)

    def look(self) -> Blocker | None:
        return find_blocker(self.branches, self.waiting, bodies=self.bodies)

    @property
    def blocker(self) -> str | None:
        found = self.look()
        return None if found is None else found.what


async def rounds(number: int = 40) -> None:
    """Let everything happen that needs no time."""
    for _ in range(number):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def suspended(
    handler: Callable[[Suspended], Awaitable[object]], *, settle: bool = True
) -> AsyncGenerator[Suspended]:
    """Begin the handler as a run's root task, and go on when it has come to rest; at the end it is cancelled."""
    loop = asyncio.get_running_loop()
    tasks = BranchTasks(loop)
    run = Suspended(tasks)

    async def root() -> None:
        await handler(run)

    with tasks.installed():
        task = asyncio.Task(root(), loop=loop)
        run.branches.root.task = task
        tasks.by_task[task] = run.branches.root
        if settle:
            await rounds()
        try:
            yield run
        finally:
            left = {task, *run.branches.tasks}
            while left := {each for each in left if not each.done()}:
                for each in left:
                    each.cancel()
                await asyncio.wait(left, timeout=1)
            await asyncio.gather(task, return_exceptions=True)
            tasks.by_task.pop(task, None)
            await rounds()
