"""
What a suspended task is in the middle of: the chain of its coroutines, the tasks that it joins, the line it stands in.

This looks behind the face of CPython's asyncio, as `_joins` does. Where it does not recognise something it says so, and
who asks must take that for something from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import BuiltinMethodType, FrameType, FunctionType, MethodType
from typing import Any, Final, TypeAlias, TypeGuard

from kedge_worker._joins import FOLDERS

Task: TypeAlias = "asyncio.Task[Any]"
Future: TypeAlias = "asyncio.Future[Any]"

# A coroutine, a generator, an asynchronous generator: its frame, what it awaits, whether it runs. By name, for compiled
# coroutines are of types of their own.
_KINDS: Final = (
    ("cr_frame", "cr_await", "cr_running"),
    ("gi_frame", "gi_yieldfrom", "gi_running"),
    ("ag_frame", "ag_await", "ag_running"),
)
_RESUMABLE: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR
_DEEPEST: Final = 10_000
_PLUMBING: Final = (
    FOLDERS["asyncio"],
    FOLDERS["anyio"],
    __file__.removesuffix("_awaits.py"),
    contextlib.__file__,
)


# ---- chains


def suspended_links(task: Task) -> tuple[list[object], bool]:
    """
    The coroutines and generators that a blocked task is in, the outermost first; and whether these are all.

    They are all when the last one awaits the very future that blocks the task.
    """
    waiter = getattr(task, "_fut_waiter", None)
    links: list[object] = []
    current: object = task.get_coro()
    while current is not None and waiter is not None and len(links) < _DEEPEST:
        if current is waiter:
            return links, True
        kind = _kind(current)
        if kind is not None:
            links.append(current)
            inner: object = getattr(current, kind[1])
            if inner is None:  # it yields to the event loop by itself
                return links, any(each is waiter for each in gc.get_referents(current))
            current = inner
        else:
            # What C code awaits by: a future's iterator, a wrapper, `__anext__` of an asynchronous generator.
            referents = gc.get_referents(current)
            if any(each is waiter for each in referents):
                return links, True
            current = next((each for each in referents if _is_awaitable(each) and not _has(links, each)), None)
    return links, False


def running_links(task: Task) -> tuple[list[object], bool]:
    """
    The same of the current task.

    A running coroutine tells what it refers to only from Python 3.12 on, and not when C code is between it and what it
    awaits, as with asynchronous generators: then the list ends early.
    """
    links: list[object] = []
    current: object = task.get_coro()
    root = frame_of(current)
    while current is not None and len(links) < _DEEPEST:
        links.append(current)
        current = next((each for each in _reach(current) if _is_running(each) and not _has(links, each)), None)
    running = 0
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # inspect.currentframe() is this, too
    while frame is not None:
        running += bool(frame.f_code.co_flags & _RESUMABLE)
        if frame is root:
            break
        frame = frame.f_back
    return links, sys.version_info >= (3, 12) and len(links) >= running


def frame_of(link: object) -> FrameType | None:
    """The frame of a coroutine or generator; None: it has ended, or has none."""
    kind = _kind(link)
    frame: object = None if kind is None else getattr(link, kind[0])
    return frame if isinstance(frame, FrameType) else None


# Types are asked, never objects: what a handler has in its locals may do anything when it is asked for a name.


def _kind(link: object) -> tuple[str, str, str] | None:
    kind: Any = type(link)
    return _kind_of(kind)


@functools.lru_cache(maxsize=1024)
def _kind_of(kind: Any) -> tuple[str, str, str] | None:
    return next((names for names in _KINDS if hasattr(kind, names[0]) and hasattr(kind, names[1])), None)


def _is_running(link: object) -> bool:
    kind = _kind(link)
    return kind is not None and getattr(link, kind[2], False) is True


def _is_awaitable(link: object) -> bool:
    return _kind(link) is not None or _is_step(link) or hasattr(type(link), "__await__")


def _is_step(link: object) -> bool:
    return hasattr(type(link), "send")


def _reach(link: object) -> Iterator[object]:
    """What it refers to, also through the objects by which C code awaits."""
    for each in gc.get_referents(link):
        yield each
        if _kind(each) is None and _is_step(each):
            yield from gc.get_referents(each)


def _has(links: list[object], link: object) -> bool:
    return any(each is link for each in links)


# ---- joins


def joined(task: Task, links: list[object], tasks: Iterable[Task]) -> Collection[Future] | None:
    """
    The futures whose ends a blocked task waits for; None: it waits for something else.

    Args:
        task: A task.
        links: What it is in.
        tasks: The tasks of its run. Before Python 3.13 they are needed to recognise `as_completed`.
    """
    waiter = getattr(task, "_fut_waiter", None)
    if is_task(waiter):
        return (waiter,)
    if _children(waiter) is not None:
        return _gathered(waiter)
    # as_completed awaits a queue's get(): the join is the last but one.
    for link in reversed(links[-2:]):
        frame = frame_of(link)
        if frame is None:
            continue
        code = frame.f_code
        for folder, name, join in _JOINS:
            if code.co_qualname == name and code.co_filename.startswith(FOLDERS[folder]):
                return join(frame.f_locals, waiter, tasks)
    return None


def joiners(task: Task) -> Iterator[Task]:
    """The tasks that are blocked until this one ends, directly or through others."""
    seen: list[object] = [task]
    for future in seen:
        for parent in _parents(future):
            if not _has(seen, parent):
                seen.append(parent)
                if is_task(parent):
                    yield parent


def is_task(thing: object) -> TypeGuard[Task]:
    return issubclass(type(thing), asyncio.Task)


def _is_future(thing: object) -> bool:
    return hasattr(type(thing), "_asyncio_future_blocking")


def _is_theirs(thing: object) -> bool:
    return type(thing).__module__.partition(".")[0] in FOLDERS


def _is_list(thing: object) -> TypeGuard[list[Any]]:
    return isinstance(thing, list)


def _is_set(thing: object) -> TypeGuard[set[Future]]:
    return isinstance(thing, set)


def _children(future: object) -> list[Any] | None:
    # A gather's future knows whom it gathers; other futures know nothing.
    children: object = getattr(future, "_children", None)
    return children if _is_list(children) else None


def _gathered(future: object) -> list[Future]:
    found: list[Future] = []
    todo = list(_children(future) or ())
    while todo:
        child = todo.pop()
        inner = _children(child)
        if inner is None or _has_failed(child):
            found.append(child)
        elif not child.done():
            todo += inner
    return found


def _has_failed(future: Future) -> bool:
    # Asking for an exception counts as having seen it: then asyncio does not report it any more.
    return future.done() and (future.cancelled() or getattr(future, "_exception", None) is not None)


def _of_group(scope: Mapping[str, Any], waiter: object, _tasks: Iterable[Task]) -> Collection[Future] | None:
    group = scope.get("self")
    members: object = getattr(group, "_tasks", None)
    return members if _is_set(members) and getattr(group, "_on_completed_fut", None) is waiter else None


def _of_wait(scope: Mapping[str, Any], waiter: object, _tasks: Iterable[Task]) -> Collection[Future] | None:
    # With a timeout it goes on by itself.
    if scope.get("waiter") is not waiter or scope.get("timeout_handle", _MISSING) is not None:
        return None
    futures = scope.get("fs")
    return None if futures is None else list(futures)


def _of_iterator(scope: Mapping[str, Any], _waiter: object, _tasks: Iterable[Task]) -> Collection[Future] | None:
    """as_completed, from Python 3.13 on."""
    iterator = scope.get("self")
    todo: object = getattr(iterator, "_todo", None)
    return todo if _is_set(todo) and getattr(iterator, "_timeout_handle", _MISSING) is None else None


def _of_queue(scope: Mapping[str, Any], _waiter: object, tasks: Iterable[Task]) -> Collection[Future] | None:
    """as_completed before: what is left, and whether there is a timeout, stands in the callbacks of its tasks."""
    queue = scope.get("done")
    for task in tasks:
        for callback in _callbacks(task):
            if getattr(callback, "__qualname__", None) == "as_completed.<locals>._on_completion":
                cells = _closure(callback)
                if cells.get("done") is queue and cells.get("timeout_handle", _MISSING) is None:
                    todo: object = cells.get("todo")
                    return todo if _is_set(todo) else None
    return None


_MISSING: Final = object()
_Join: TypeAlias = Callable[[Mapping[str, Any], object, Iterable[Task]], "Collection[Future] | None"]
_JOINS: Final[tuple[tuple[str, str, _Join], ...]] = (
    ("asyncio", "TaskGroup.__aexit__", _of_group),
    ("asyncio", "TaskGroup._aexit", _of_group),
    ("anyio", "TaskGroup.__aexit__", _of_group),
    ("asyncio", "_wait", _of_wait),
    ("asyncio", "as_completed.<locals>._wait_for_one", _of_queue),
    ("asyncio", "_AsCompletedIterator._wait_for_one", _of_iterator),
)


def _parents(future: object) -> Iterator[object]:
    """Tasks, and futures that become done when this one does."""
    for callback in _callbacks(future):
        known: list[object] = [_owner_of(callback)]
        if isinstance(callback, functools.partial):
            known += callback.args
        elif isinstance(callback, FunctionType) and not callback.__qualname__.startswith("shield."):
            known += _closure(callback).values()
        for each in known:
            if _is_future(each):
                yield each
            elif _is_theirs(each):  # a queue of as_completed, its iterator, a group
                yield from getattr(each, "_getters", ())
                yield from getattr(getattr(each, "_done", None), "_getters", ())
                if _is_future(ended := getattr(each, "_on_completed_fut", None)):
                    yield ended


def _callbacks(future: object) -> list[object]:
    return [callback for callback, _ in getattr(future, "_callbacks", None) or ()]


def _owner_of(callback: object) -> object:
    """Whose method it is; None: it is no method."""
    return callback.__self__ if isinstance(callback, MethodType | BuiltinMethodType) else None


def _closure(function: object) -> dict[str, Any]:
    if not isinstance(function, FunctionType):
        return {}
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not set yet
            found[name] = cell.cell_contents
    return found


# ---- words


def describe(task: Task, links: list[object]) -> tuple[str, str]:
    """What a blocked task awaits, and in which line of whose code: ("asyncio.sleep", "shop.py:41 handler")."""
    frames = [frame for link in links if (frame := frame_of(link)) is not None]
    theirs = next((n for n in range(len(frames) - 1, -1, -1) if not is_plumbing(frames[n])), None)
    where = f"task {task.get_name()!r}" if theirs is None else place(frames[theirs])
    inner = frames[0 if theirs is None else theirs + 1 :]
    if theirs is None:
        inner = [frame for frame in inner if not frame.f_code.co_filename.startswith(_PLUMBING[2])]
    if inner:
        # Lock.acquire says more than the mixin that calls it.
        frame = next((each for each in inner if not each.f_code.co_qualname.startswith("_")), inner[0])
        module = str(frame.f_globals.get("__name__", "?"))
        if is_plumbing(frame):
            module = module.partition(".")[0]
        return f"{module}.{frame.f_code.co_qualname}", where
    waiter = getattr(task, "_fut_waiter", None)
    if is_task(waiter):
        return f"task {waiter.get_name()!r}", where
    return "asyncio.gather" if _children(waiter) is not None else f"a {type(waiter).__qualname__}", where


def place(frame: FrameType) -> str:
    """A line of code, for people: "shop.py:41 handler"."""
    file = frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f"{file}:{frame.f_lineno} {frame.f_code.co_qualname}"


def is_plumbing(frame: FrameType) -> bool:
    """Whether it is no code of the application: ours, asyncio's, anyio's, contextlib's."""
    return frame.f_code.co_filename.startswith(_PLUMBING)
