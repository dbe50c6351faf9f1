"""The part of a sync handler's context that has to do with other runs, and with many items at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from kedge.refs import RunRequest, WorkflowRef
from kedge_worker._children import START, Children, OnParentEnd, StartedRun
from kedge_worker._mapping import Maps, map_work
from kedge_worker._signals import ReplayMismatch
from kedge_worker._starting import ChildStart, child_start
from kedge_worker._sync_operations import SyncOperations

if TYPE_CHECKING:
    from uuid import UUID

    from kedge_worker._execution import Execution

A = TypeVar("A")
T = TypeVar("T")
Out_co = TypeVar("Out_co", covariant=True)


class SyncChild(StartedRun[Out_co]):
    """A run that `ctx.start` of a sync handler has started."""

    __slots__ = ("_context",)

    def __init__(self, start: ChildStart, run_id: UUID, context: SyncCalls) -> None:
        super().__init__(start, run_id)
        self._context = context

    def result(self) -> Out_co:
        """Wait until the child has ended, and answer its result, as `ctx.call` does; see `Child.result`."""
        return cast("Out_co", self._context.result_of(self._next_result, self._run_id, self._ref))


class SyncCalls(SyncOperations):
    """Starts runs, waits for them, and maps functions over items."""

    __slots__ = ("_children",)

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self._children = Children(execution)

    def call(self, step_id: str, request: RunRequest[T], /, *, on_parent_end: OnParentEnd = "abandon") -> T:
        """Start another run, wait until it has ended, and answer its result; as `Context.call`."""
        key = self._here().key(step_id)
        start = child_start(key + START, request, on_parent_end)
        try:
            known = self._children.known_call(key, start)
        except ReplayMismatch as mismatch:
            self._mismatch(mismatch)
            raise
        if known.row is not None:
            return cast("T", self._replay(known.row, known.of, known.recall))
        if known.child_id is None:
            self._execution.begin_anew()
        else:
            self._execution.replaying = False
        return cast(
            "T", self._await(self._entered(self._children.end_of_call(key, start, self._branch, known.child_id)))
        )

    def start(self, step_id: str, request: RunRequest[T], /, *, on_parent_end: OnParentEnd = "abandon") -> SyncChild[T]:
        """Start another run and go on; as `Context.start`."""
        start = child_start(self._here().key(step_id), request, on_parent_end)
        row = self._kept(start.key)
        if row is not None:
            child_id = self._replay(row, "n", functools.partial(self._children.recall_start, start))
        else:
            child_id = self._await(self._entered(self._children.begin(start, self._branch)))
        return SyncChild(start, child_id, self)

    @overload
    def map(
        self, step_id: str, fn: WorkflowRef[A, T], items: Iterable[A], /, *, limit: int | None = None
    ) -> list[T]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[A], RunRequest[T]], items: Iterable[A], /, *, limit: int | None = None
    ) -> list[T]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[A], T], items: Iterable[A], /, *, limit: int | None = None
    ) -> list[T]: ...
    def map(self, step_id: str, fn: Any, items: Iterable[Any], /, *, limit: int | None = None) -> list[Any]:
        """
        Do one thing for each of many items, concurrently, and answer what came of them in the order of the items.

        As `Context.map`; steps run in other threads of the worker's, as many at once as it has, and async functions are
        refused.
        """
        key = self._here().key(step_id)
        work = map_work(fn, items, limit, is_sync=True)
        return self._await(Maps(self._execution, self._children).in_thread(key, self._branch, work))

    def result_of(self, next_key: Callable[[], str], child_id: UUID, ref: WorkflowRef[Any, Any]) -> Any:
        """For a child that was started before."""
        self._here()
        key = next_key()
        row = self._kept(key)
        if row is not None:
            return self._replay(row, "c", self._children.recall_end(child_id, ref))
        return self._await(self._entered(self._children.end(key, self._branch, child_id, ref)))

    async def _entered(self, work: Coroutine[Any, Any, T]) -> T:
        """In the event loop: an operation is under way."""
        self._execution.active += 1
        try:
            return await work
        finally:
            self._execution.active -= 1
