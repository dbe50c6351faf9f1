"""
Says whether a run that is in memory may be parked: whether nothing but its own durable waits can make it go on.

Parking is never needed for anything to be right, so what is not recognised keeps the run in memory. Only raw timeouts
would be lost by it: `_raw_timeouts` looks for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kedge_worker._awaits import Task, describe, joined, suspended_links
from kedge_worker._raw_timeouts import LIMIT_S, check_raw_timeout, open_timeout, open_timeout_in, timer_of

if TYPE_CHECKING:
    from kedge_worker._branches import RunBranches

__all__ = ["LIMIT_S", "Blocker", "check_raw_timeout", "find_blocker", "open_timeout"]


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why a run cannot be parked now."""

    task: Task | None
    """None: the run as a whole."""
    what: str
    """For a line of the log: "awaits asyncio.sleep in shop.py:41 handler"."""
    timeout: float | None = None
    """It is a raw timeout: when it goes off, in the event loop's time."""


def find_blocker(branches: RunBranches, waiting: Set[Task], *, bodies: int) -> Blocker | None:
    """
    Find something that keeps a run in memory; None: it may be parked now.

    A look at one moment, from outside of the run's tasks: what is true now may be over after the next await.

    Args:
        branches: The run's tasks. Without any, it is a sync handler, whose thread waits or does not.
        waiting: Those that are in a durable wait of this run.
        bodies: How many operations of the engine are under way: bodies of steps, waits for a flush.
    """
    if bodies:
        return Blocker(None, f"has {bodies} operations under way")
    if len(branches.tasks) != branches.others:
        return Blocker(None, "has a task that begins")
    root = branches.root.task
    tasks = branches.tasks if root is None else branches.tasks | {root}
    for task in tasks:
        if (blocker := _of_task(task, tasks, waits=task in waiting)) is not None:
            return blocker
    if not (waiting if root is None else waiting & tasks):
        return Blocker(None, "has no task in a durable wait")
    if tasks and (timer := timer_of(tasks, next(iter(tasks)).get_loop())) is not None:
        task, when = timer
        return Blocker(task, _open_timeout(task, suspended_links(task)[0], when), when)
    return None


def _of_task(task: Task, tasks: Set[Task], *, waits: bool) -> Blocker | None:
    if task.done():
        return Blocker(task, f"has a task that has just ended: {task.get_name()!r}")
    waiter = getattr(task, "_fut_waiter", None)
    if waiter is None or waiter.done():
        return Blocker(task, f"has a task that is about to run: {task.get_name()!r}")
    links, are_all = suspended_links(task)
    if not waits:
        futures = joined(task, links, tasks)
        if futures is None:
            return Blocker(task, _awaits(task, links))
        if not _are_ours(futures, tasks):
            return Blocker(task, f"{_awaits(task, links)}, and not tasks of the run only")
    if (when := open_timeout_in(task, links)) is not None:
        return Blocker(task, _open_timeout(task, links, when), when)
    if not are_all:
        return Blocker(task, f"{_awaits(task, links)}, in a way that cannot be looked through")
    return None


def _are_ours(futures: Collection[asyncio.Future[object]], tasks: Set[Task]) -> bool:
    """
    Whether some task of the run must end before the join does.

    A task that has ended counts no longer. Another future that is done may be news that nobody has heard yet, and so
    may the last one of all.
    """
    left = [future for future in futures if not (isinstance(future, asyncio.Task) and future.done())]
    return bool(left) and all(future in tasks for future in left)


def _awaits(task: Task, links: list[object]) -> str:
    awaited, where = describe(task, links)
    return f"awaits {awaited} in {where}"


def _open_timeout(task: Task, links: list[object], when: float) -> str:
    _, where = describe(task, links)
    return f"has an open raw timeout around {where} ({max(0.0, when - task.get_loop().time()):.1f} s left)"
