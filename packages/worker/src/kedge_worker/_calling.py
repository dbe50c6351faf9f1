"""The part of an async handler's context that has to do with other runs, and with many items at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from kedge.refs import RunRequest, WorkflowRef
from kedge_worker._children import START, Child, Children, OnParentEnd
from kedge_worker._facts import RunFacts
from kedge_worker._mapping import Maps, map_work
from kedge_worker._starting import child_start

if TYPE_CHECKING:
    from kedge_worker._execution import Execution

A = TypeVar("A")
T = TypeVar("T")


class Calls(RunFacts):
    """Starts runs, waits for them, and maps functions over items."""

    __slots__ = ("_children", "_operations")

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self._children = Children(execution)
        self._operations = Maps(execution, self._children)

    def call(
        self, step_id: str, request: RunRequest[T], /, *, on_parent_end: OnParentEnd = "abandon"
    ) -> Coroutine[object, None, T]:
        """
        Start another run, wait until it has ended, and answer its result, now and on replay.

        It is started once, whatever happens to this run, and what its ref or the request leaves open of resource,
        priority and tags is this run's. While nothing else goes on here, this run leaves memory. If the handler's own
        code interrupts the wait, by a raw timeout for example, the child goes on.

        Args:
            step_id: As in `step`.
            request: ref(input). With a key or singleton an existing run may be the answer.
            on_parent_end: What becomes of the child when this run ends before it, in whatever way: "abandon" lets it
                go on, "cancel" cancels it.

        Raises:
            ChildFailedError: It failed; `.error` says how. Kept like a value.
            DomainError: It failed with one of the errors that its ref declares with `raises=`.
            ChildCancelledError: Somebody cancelled it.
            RunExistsError: Its key is taken, and the request says on_conflict="raise" or singleton="raise".
            InvalidOptionError: There is no such policy.
            HandlerUseError: As in `sleep`, or it is no request.

        Source: docs/how-to/child-runs.md.
        """
        branch = self._here()
        key = branch.key(step_id)
        return self._children.call(key, child_start(key + START, request, on_parent_end), branch)

    def start(
        self, step_id: str, request: RunRequest[T], /, *, on_parent_end: OnParentEnd = "abandon"
    ) -> Coroutine[object, None, Child[T]]:
        """
        Start another run and go on; `.run_id` of what it answers is its id, `.result()` waits for its end.

        As `call`; there is nothing that has to be awaited later.

        Args:
            step_id: As in `step`.
            request: As in `call`.
            on_parent_end: As in `call`.

        Raises:
            RunExistsError: As in `call`.
            InvalidOptionError: As in `call`.
            HandlerUseError: As in `step`, or it is no request.

        Source: docs/how-to/child-runs.md.
        """
        branch = self._here()
        return self._children.start(child_start(branch.key(step_id), request, on_parent_end), branch)

    @overload
    def map(
        self, step_id: str, fn: WorkflowRef[A, T], items: Iterable[A], /, *, limit: int | None = None
    ) -> Coroutine[object, None, list[T]]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[A], RunRequest[T]], items: Iterable[A], /, *, limit: int | None = None
    ) -> Coroutine[object, None, list[T]]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[A], Awaitable[T]], items: Iterable[A], /, *, limit: int | None = None
    ) -> Coroutine[object, None, list[T]]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[A], T], items: Iterable[A], /, *, limit: int | None = None
    ) -> Coroutine[object, None, list[T]]: ...
    def map(
        self, step_id: str, fn: Any, items: Iterable[Any], /, *, limit: int | None = None
    ) -> Coroutine[object, None, list[Any]]:
        """
        Do one thing for each of many items, concurrently, and answer what came of them in the order of the items.

        Each item is a step, or a child run; its key is `step_id[0]`, `step_id[1]`, ... The first that fails is raised:
        of the other steps those under way are cancelled, the other children go on, and nobody waits for them.

        ::

            bodies = await ctx.map("fetch", fetch, urls, limit=10)
            receipts = await ctx.map("orders", process_order, orders)
            invoices = await ctx.map("bills", lambda bill: invoice(bill, queue="slow"), bills)

        Args:
            step_id: As in `step`.
            fn: What is called with each item: a step's function, on the terms that `@step` gives it; or a ref, or a
                plain function that returns a request, for a child each. Such a function is part of the handler: it is
                called for every item again on replay.
            items: All of them are made at once.
            limit: How many may be under way at a time. None: all.

        Raises:
            StepFailedError: As in `step`; or whatever else that raises.
            ChildFailedError: As in `call`; or whatever else that raises.
            InvalidOptionError: The limit is no number from 1.
            HandlerUseError: As in `step`.

        Source: docs/how-to/child-runs.md.
        """
        branch = self._here()
        work = map_work(fn, items, limit)
        return self._operations.map(branch.key(step_id), branch, work)
