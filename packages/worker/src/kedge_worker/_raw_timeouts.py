"""
Finds the timeouts that a handler's own code has open: `asyncio.timeout`, scopes of anyio with a deadline, `wait_for`.

Such a timeout keeps its meaning only while its task lives, so it must be found wherever it hides. There are three ways,
and the nearest deadline of all counts: objects that the task's coroutines refer to, through context managers and
generators around what they await; anyio's own notes; and timers that aim at a task, which the event loop of asyncio
shows, and uvloop does not. A shield is no reason to leave one out: it goes off all the same, only later.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from types import AsyncGeneratorType, BuiltinMethodType, CellType, FrameType, GeneratorType, MethodType
from typing import Any, Final, TypeGuard

import anyio

from kedge.errors import RawTimeoutError
from kedge_worker._awaits import (
    Task,
    frame_of,
    is_plumbing,
    is_task,
    joiners,
    place,
    running_links,
    suspended_links,
)
from kedge_worker._joins import FOLDERS

LIMIT_S: Final = 300.0
"""A raw timeout around a durable wait that lasts longer than this is a mistake: it keeps its run in memory."""

# Objects looked at behind the coroutines of one task; and how large a container may be to be looked into.
_MOST_OBJECTS: Final = 512
_LARGEST: Final = 64
_SCOPES: Final[frozenset[type]] = frozenset({asyncio.Timeout, anyio.CancelScope})
# These lead from a coroutine to what stands around its await, however deep; so do context managers.
_WAYS: Final = (MethodType, BuiltinMethodType, CellType, GeneratorType, AsyncGeneratorType)
_METHODS: Final = frozenset({MethodType, BuiltinMethodType})
_AIMING: Final = frozenset({"Timeout", "CancelScope", "Task"})
_CONTAINERS: Final[frozenset[type]] = frozenset({dict, list, tuple, set, deque})


def open_timeout(task: Task) -> float | None:
    """
    The nearest raw timeout, in the event loop's time, that is open around what a task does at this moment.

    Running coroutines do not show everything (see `running_links`): on an event loop that does not show its timers
    either, an `asyncio.timeout` of the current task may not be found until it is suspended.
    """
    return _around(task, None)


def open_timeout_in(task: Task, links: list[object]) -> float | None:
    """The same of a blocked task that is in these coroutines."""
    return _around(task, links)


def timer_of(tasks: Collection[Task], loop: asyncio.AbstractEventLoop) -> tuple[Task, float] | None:
    """
    A task of these that a timer of the event loop will cancel, and when: of many the next.

    It finds what hides in objects of third parties, but only on the event loop of asyncio itself.
    """
    return min(_timers(tasks, loop), key=lambda found: found[1], default=None)


def check_raw_timeout(task: Task, *, limit_s: float = LIMIT_S) -> None:
    """
    Refuse a durable wait that begins in the current task, if a raw timeout around it lies too far away.

    Asked are this task and those that are blocked until it ends. What is not found here, since the other tasks are not
    at their joins yet, keeps the run in memory and its meaning.

    Args:
        task: The current task.
        limit_s: In seconds from now.

    Raises:
        RawTimeoutError: It is further away than the limit.
    """
    when = _nearest((open_timeout(task), *(open_timeout(joiner) for joiner in joiners(task))))
    if when is None:
        return
    left_s = when - task.get_loop().time()
    if left_s > limit_s:
        where = _where(task)
        raise RawTimeoutError(
            f"a durable wait{where} has a raw timeout around it (asyncio.timeout, asyncio.wait_for, or a scope of "
            f"anyio) that goes off in {left_s:.0f} s: more than {limit_s:.0f} s are not allowed, for it holds the run "
            "in memory and begins anew in each life of the run; give the wait itself its timeout="
        )


def _around(task: Task, links: list[object] | None) -> float | None:
    loop = task.get_loop()
    found = [*_of_scopes(task)]
    if links is None:
        if asyncio.current_task(loop) is task:
            links, are_all = running_links(task)
            deadline = anyio.current_effective_deadline()
            if -math.inf < deadline < math.inf:
                found.append(deadline)
            if not are_all:
                found += (when for _, when in _timers((task,), loop))
        else:
            links, _ = suspended_links(task)
    found += _of_objects(task, links)
    return min(found, default=None)


def _nearest(deadlines: Iterable[float | None]) -> float | None:
    return min((when for when in deadlines if when is not None), default=None)


# ---- the three ways


def _of_objects(task: Task, links: list[object]) -> Iterator[float]:
    """Of what its coroutines refer to: locals, and what stands on their stacks between `with` and its end."""
    todo: deque[object] = deque()
    for link in links:
        todo.extend(each for each in gc.get_referents(link) if not _is_container(each))
        if (when := _of_wait_for(link)) is not None:
            yield when
    seen = {id(link) for link in links}
    alive: list[object] = []  # else an id might be another's soon
    while todo and len(alive) < _MOST_OBJECTS:
        each = todo.popleft()
        if id(each) in seen:
            continue
        if _is_scope(each):
            if (when := _deadline(each, task)) is not None:
                yield when
        elif _leads_on(each):
            seen.add(id(each))
            alive.append(each)
            todo.extend(gc.get_referents(each))


# Types are asked, never objects: those of a handler may do anything when they are asked for a name.


def _is_scope(thing: object) -> TypeGuard[asyncio.Timeout | anyio.CancelScope]:
    kind: Any = type(thing)
    return _is_scope_type(kind)


def _leads_on(thing: object) -> bool:
    kind: Any = type(thing)
    return _is_way_type(kind) or (_is_container(thing) and len(thing) <= _LARGEST)


def _is_container(thing: object) -> TypeGuard[Collection[object]]:
    return type(thing) in _CONTAINERS


@functools.lru_cache(maxsize=1024)
def _is_scope_type(kind: Any) -> bool:
    return not _SCOPES.isdisjoint(kind.__mro__)


@functools.lru_cache(maxsize=1024)
def _is_way_type(kind: Any) -> bool:
    return issubclass(kind, _WAYS) or hasattr(kind, "__exit__") or hasattr(kind, "__aexit__")


def _deadline(scope: asyncio.Timeout | anyio.CancelScope, task: Task) -> float | None:
    """When it goes off, if it is open and aims at the task."""
    if isinstance(scope, asyncio.Timeout):
        # Without a handle it is not entered, has no time, has gone off, or is left. Without the name: who knows.
        if getattr(scope, "_task", task) is task and getattr(scope, "_timeout_handler", scope) is not None:
            return scope.when()
    elif getattr(scope, "_host_task", task) is task and getattr(scope, "_active", True):
        return _scope_deadline(scope)
    return None


def _scope_deadline(scope: anyio.CancelScope) -> float | None:
    return None if scope.cancel_called or scope.deadline == math.inf else scope.deadline


def _of_wait_for(link: object) -> float | None:
    """asyncio.wait_for before Python 3.12 has a timer and no scope."""
    frame = frame_of(link)
    if frame is None or frame.f_code.co_qualname != "wait_for":
        return None
    if not frame.f_code.co_filename.startswith(FOLDERS["asyncio"]):
        return None
    handle = frame.f_locals.get("timeout_handle")
    return None if handle is None or handle.cancelled() else handle.when()


def _of_scopes(task: Task) -> Iterator[float]:
    """Of anyio's notes: the scopes that a task is in, those of its groups' hosts included."""
    backend = sys.modules.get("anyio._backends._asyncio")
    state = getattr(backend, "_task_states", {}).get(task)
    scope = getattr(state, "cancel_scope", None)
    while isinstance(scope, anyio.CancelScope):
        if (when := _scope_deadline(scope)) is not None:
            yield when
        scope = getattr(scope, "_parent_scope", None)


def _timers(tasks: Collection[Task], loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Task, float]]:
    handles: Any = getattr(loop, "_scheduled", ())
    for handle in handles:
        callback: Any = getattr(handle, "_callback", None)
        if type(callback) in _METHODS and type(callback.__self__).__name__ in _AIMING:
            aim = _aim(callback.__self__, handle)
            if is_task(aim) and aim in tasks and not handle.cancelled():
                yield aim, handle.when()


def _aim(owner: object, handle: Any) -> object:
    """The task that a timer will cancel; else anything."""
    match type(owner).__module__.partition(".")[0], type(owner).__name__:
        case "asyncio", "Timeout":
            return getattr(owner, "_task", None)
        case "async_timeout", "Timeout":  # which asyncio has its timeouts from
            return next(iter(getattr(handle, "_args", None) or ()), None)
        case "anyio", "CancelScope":
            return getattr(owner, "_host_task", None)
        case _:
            return owner


def _where(task: Task) -> str:
    root = frame_of(task.get_coro())
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  # inspect.currentframe() is this, too
    while frame is not None:
        if not is_plumbing(frame):
            return f" at {place(frame)}"
        if frame is root:
            break
        frame = frame.f_back
    return f" in task {task.get_name()!r}"
