"""
Keys: which task is which branch of a run, and how a branch numbers what it asks for.

A branch is a task that the handler's own code made, seen by the loop's task factory. It is known by the task, not by a
context variable: callbacks, and what a library starts later on its own account, inherit contexts but are no branch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from types import CodeType, FunctionType
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar, cast

from kedge.errors import ForeignTaskError, HandlerUseError, InvalidNameError, NestedStepError, WrongThreadError
from kedge.names import MAX_NAME_BYTES, check_step_id
from kedge_worker._joins import is_made_in_no_order
from kedge_worker._turns import Rounds, Turns

P = ParamSpec("P")
T = TypeVar("T")

Task: TypeAlias = "asyncio.Task[Any]"
Body: TypeAlias = "Coroutine[Any, Any, Any]"
TaskFactory: TypeAlias = Callable[..., Any]

NESTED: Final = (
    "the context is used inside a step's body: a step is one unit that is kept or repeated as a whole; "
    "call it from the handler, and pass values"
)
_FOREIGN: Final = (
    "the context is used in a task that is no branch of this run: use it in the handler, or in tasks that the handler "
    "itself makes (create_task, gather, a task group), not in callbacks or in other tasks"
)
_OTHER_THREAD: Final = "the context is used outside its event loop: call it from the handler, not from another thread"


_NO_ORDER: Final = (
    "as_completed() makes tasks of coroutines in no order, so a replay could not tell them apart: give it tasks, as in "
    "as_completed([asyncio.create_task(c) for c in ...])"
)

_operations: Final[set[CodeType]] = set()


def operation(function: Callable[P, T]) -> Callable[P, T]:
    """Mark an async function of a context whose key was taken before its coroutine was made."""
    _operations.add(cast("FunctionType", function).__code__)
    return function


def is_operation(awaited: object) -> bool:
    """Whether this is the coroutine of an operation."""
    return getattr(awaited, "cr_code", None) in _operations


_in_step: Final[ContextVar[bool]] = ContextVar("kedge_in_step", default=False)


def call_in_step(fn: Callable[..., T], args: tuple[Any, ...]) -> T:
    """Call a step's function in a thread, in context variables of its own: there is no task to know it by."""
    _in_step.set(True)
    return fn(*args)


class Branch:
    """One line of a run's execution. Its keys are `path` + id, with `#n` from an id's second use on."""

    __slots__ = ("_children", "_counts", "body", "busy", "last", "path", "race", "run", "swallowed", "task")

    def __init__(self, run: RunBranches | None, path: str, *, busy: bool = False) -> None:
        self.run = run
        """None: a task made inside a step's body, which is nobody's branch."""
        self.path = path
        self.busy = busy
        """An operation of the context is under way in this branch: what its task does meanwhile is a step's body."""
        self.last = path
        """The key of the latest outcome that this branch was given."""
        self.swallowed: asyncio.CancelledError | None = None
        """A cancellation came on replay where a value was kept: it belongs to what is interrupted next."""
        self.task: Task | None = None
        self.race: Any = None
        """Of a branch that is a single operation in a race."""
        self.body: Body | None = None
        self._counts: dict[str, int] = {}
        self._children = 0

    def key(self, step_id: str) -> str:
        """
        Take the next key for this id.

        Raises:
            InvalidNameError: The id cannot be one, or the key gets longer than 200 bytes.
        """
        counts = self._counts
        number = counts.get(step_id)
        if number is None:
            step_id = check_step_id(step_id)
            counts[step_id] = 1
            key = self.path + step_id
        else:
            counts[step_id] = number = number + 1
            key = f"{self.path}{step_id}#{number}"
        # A character has up to four bytes: nearly all keys are too short to be looked at.
        if len(key) > MAX_NAME_BYTES // 4 and len(key.encode()) > MAX_NAME_BYTES:
            raise InvalidNameError("key", key, f"is longer than {MAX_NAME_BYTES} bytes; use shorter ids, or nest less")
        return key

    def child(self) -> Branch:
        """The branch of the next task that this one makes."""
        self._children = number = self._children + 1
        return Branch(self.run, f"{self.path}~{number}/")

    def named(self, name: str) -> Branch:
        """A branch whose path does not depend on the order in which tasks are made."""
        check_step_id(name)
        number = self.number(name + "/")
        return Branch(self.run, f"{self.path}{name}/" if number == 1 else f"{self.path}{name}#{number}/")

    def indexed(self, key: str, place: int) -> Branch:
        """A branch that an operation of this one makes: its path is the operation's key and its place there."""
        return Branch(self.run, f"{key}[{place}]/")

    def inside(self, key: str) -> Branch:
        """A branch for an operation of this one whose tasks are not to be numbered with those of the handler."""
        return Branch(self.run, f"{key}/")

    def number(self, what: str) -> int:
        """How often this branch has asked for it, this time included. `what` holds a sign that no id may contain."""
        counts = self._counts
        counts[what] = number = counts.get(what, 0) + 1
        return number


class RunBranches:
    """The branches of one run. Nearly every run has its root only, and pays for nothing else."""

    __slots__ = ("_make_turns", "loose", "others", "root", "tasks", "turns")

    def __init__(self, turns: Callable[[RunBranches], Turns]) -> None:
        self.root = Branch(self, "")
        self.others = 0
        """How many live tasks there are beside the root's."""
        self.tasks: set[Task] = set()
        """These tasks; one that begins eagerly counts before it can be here."""
        self.loose: set[Task] = set()
        """While there are several: those that are in the handler's own code, not in an operation of the context."""
        self.turns: Turns | None = None
        self._make_turns = turns

    def add(self, parent: Task, child: Task) -> None:
        self.tasks.add(child)
        self.loose.add(parent)
        self.loose.add(child)
        if self.turns is None:
            self.turns = self._make_turns(self)
        self.turns.stir()

    def end(self) -> None:
        """The handler has ended. Nothing of this refers to its execution, or to one another, any more."""
        self._make_turns = _no_turns
        self.root.run = None

    def remove(self, task: Task) -> None:
        self.others -= 1
        self.tasks.discard(task)
        self.loose.discard(task)
        if self.turns is not None:
            self.turns.stir()


def _no_turns(_: RunBranches) -> Turns:
    raise RuntimeError("the handler has ended: its first branch comes too late")


class BranchTasks:
    """All branches of one event loop, by their tasks."""

    __slots__ = ("_inner", "_newborn", "by_task", "loop", "rounds")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.rounds = Rounds(loop)
        self.by_task: dict[Task | None, Branch] = {}
        self._inner: TaskFactory | None = None
        self._newborn: _Newborn | None = None

    @contextlib.contextmanager
    def installed(self) -> Generator[None]:
        """
        Wrap the loop's own task factory, and put it back at the end.

        If somebody else has wrapped ours meanwhile, it stays in between, and does nothing any more.
        """
        loop = self.loop
        self._inner = inner = loop.get_task_factory()
        loop.set_task_factory(cast("Any", self._make))
        try:
            yield
        finally:
            if loop.get_task_factory() == self._make:
                loop.set_task_factory(inner)

    def here(self, run: RunBranches) -> Branch:
        """
        The branch of this run that asks.

        Raises:
            NestedStepError: A step's body asks.
            ForeignTaskError: A task asks that is no branch of this run.
            WrongThreadError: Another thread asks.
        """
        try:
            task = asyncio.current_task()
        except RuntimeError:
            if _in_step.get():
                raise NestedStepError(NESTED) from None
            raise WrongThreadError(_OTHER_THREAD) from None
        branch = self.by_task.get(task) or self._born(task)
        if branch is None or branch.run is not run:
            if branch is not None and branch.run is None:
                raise NestedStepError(NESTED)
            raise ForeignTaskError(_FOREIGN)
        if branch.busy:
            raise NestedStepError(NESTED)
        return branch

    @contextlib.contextmanager
    def as_root(self, root: Branch) -> Generator[None]:
        """Let the current task, which is nobody's branch, be that of a sync handler, which has none."""
        task = asyncio.current_task()
        self.by_task[task] = root
        root.task = task
        try:
            yield
        finally:
            del self.by_task[task]
            root.task = None
            if root.run is not None and task is not None:
                root.run.loose.discard(task)

    def switch(self, current: Branch, other: Branch) -> None:
        """Let the task of one branch be another one from now on."""
        task = current.task
        other.task = task
        self.by_task[task] = other

    def _make(self, loop: asyncio.AbstractEventLoop, body: Body, **options: Any) -> Any:
        inner = self._inner
        parent_task = asyncio.current_task(loop)
        parent = self.by_task.get(parent_task) or self._born(parent_task)
        if parent is None or parent_task is None or not asyncio.iscoroutine(body):
            return asyncio.Task(body, loop=loop, **options) if inner is None else inner(loop, body, **options)
        # An operation has its key already, whichever branch it runs in.
        if not parent.busy and getattr(body, "cr_code", None) not in _operations and is_made_in_no_order():
            raise HandlerUseError(_NO_ORDER)
        branch = Branch(None, "", busy=True) if parent.busy else parent.child()
        branch.body = body
        if branch.run is not None:
            branch.run.others += 1
        contained = _contained(body)
        # An eager task runs its first part in here, before anybody can know it.
        self._newborn = newborn = _Newborn(branch, parent_task)
        try:
            task = asyncio.Task(contained, loop=loop, **options) if inner is None else inner(loop, contained, **options)
        except BaseException:
            contained.close()
            if branch.run is not None:
                branch.run.others -= 1
            raise
        finally:
            self._newborn = None
        if not newborn.is_known:
            self._register(task, newborn)
        task.add_done_callback(self._gone)
        return task

    def _born(self, task: Task | None) -> Branch | None:
        """A task that nobody knows, while one is being made, is this one: it begins eagerly."""
        newborn, self._newborn = self._newborn, None
        if newborn is None or task is None:
            return None
        self._register(task, newborn)
        return newborn.branch

    def _register(self, task: Task, newborn: _Newborn) -> None:
        branch = newborn.branch
        newborn.is_known = True
        self.by_task[task] = branch
        branch.task = task
        if branch.run is not None:
            branch.run.add(newborn.parent, task)

    def _gone(self, task: Task) -> None:
        branch = self.by_task.pop(task)
        if branch.body is not None:
            branch.body.close()  # else one that never began is reported as never awaited
        if branch.run is not None:
            branch.run.remove(task)


class _Newborn:
    """A branch whose task is being made."""

    __slots__ = ("branch", "is_known", "parent")

    def __init__(self, branch: Branch, parent: Task) -> None:
        self.branch = branch
        self.parent = parent
        self.is_known = False


async def _contained(body: Body) -> Any:
    """Keep from the event loop what would end it: a run must not end its worker."""
    try:
        return await body
    except (SystemExit, KeyboardInterrupt) as error:
        raise HandlerUseError(f"{type(error).__name__} raised in a task: a run cannot end its worker") from error
