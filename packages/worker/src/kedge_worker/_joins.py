"""
What asyncio and anyio do with tasks, as far as it must be known: which wait for other tasks and nothing else, and which
were made in no order.

This looks behind the face of CPython's asyncio. A join that it does not recognise counts as something that comes from
outside: then a replay waits a while where it need not.
"""

from __future__ import annotations

import asyncio
import sys
from types import CodeType, FrameType
from typing import Any, Final

import anyio

# In which function of which package a task may stand: (package's folder, qualified name).
_JOINS: Final = frozenset(
    {
        ("asyncio", "TaskGroup.__aexit__"),
        ("asyncio", "TaskGroup._aexit"),
        ("asyncio", "_wait"),
        ("asyncio", "as_completed.<locals>._wait_for_one"),
        ("asyncio", "_AsCompletedIterator._wait_for_one"),
        ("anyio", "TaskGroup.__aexit__"),
    }
)
_UNORDERED: Final = frozenset({"as_completed", "as_completed.<locals>.<setcomp>", "_AsCompletedIterator.__init__"})
FOLDERS: Final = {
    "asyncio": asyncio.__file__.removesuffix("__init__.py"),
    "anyio": anyio.__file__.removesuffix("__init__.py"),
}


def joins_tasks_only(task: asyncio.Task[Any]) -> bool:
    """Whether the task is blocked by tasks only: by one, a gather, a group's end, an `asyncio.wait` without timeout."""
    awaited = getattr(task, "_fut_waiter", None)
    if isinstance(awaited, asyncio.Task):
        return True
    # A gather's future knows whom it gathers; other futures know nothing.
    if isinstance(getattr(awaited, "_children", None), list):
        return True
    return any(_is_join(frame) for frame in _frames(task))


def is_made_in_no_order() -> bool:
    """Whether the task that is being made comes from `as_completed`, which makes tasks of a set of coroutines."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  # inspect.currentframe() is this, too
    while frame is not None and frame.f_code.co_filename.startswith(FOLDERS["asyncio"]):
        if frame.f_code.co_qualname in _UNORDERED:
            return True
        frame = frame.f_back
    return False


def _frames(task: asyncio.Task[Any]) -> list[Any]:
    """The suspended coroutines of a task, the innermost last."""
    frames: list[Any] = []
    current: Any = task.get_coro()
    while current is not None:
        frame = getattr(current, "cr_frame", None)
        if frame is None:
            break
        frames.append(frame)
        current = getattr(current, "cr_await", None)
    # as_completed awaits a queue's get(): the join is the last but one.
    return frames[-2:]


def _is_join(frame: Any) -> bool:
    code: CodeType = frame.f_code
    for package, name in _JOINS:
        if code.co_qualname == name and code.co_filename.startswith(FOLDERS[package]):
            # asyncio.wait(timeout=...) and as_completed(timeout=...) go on by themselves.
            return frame.f_locals.get("timeout_handle") is None and frame.f_locals.get("timeout") is None
    return False
