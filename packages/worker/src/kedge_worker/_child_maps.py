"""
The children of one map: a window of open waits that one task serves, so that hundreds of children cost no task each,
and their starts share a flush.

All waits of a map are a group. While the parent is parked, it is woken when so many of them have ended that it can do
much at once, and not for each of them: without a limit when all have, else when half of the window has. What does not
end well wakes it at once.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kedge.start_terms import starts_alone
from kedge_worker._signals import ClosedError

if TYPE_CHECKING:
    from uuid import UUID

    from kedge_worker._branches import Branch
    from kedge_worker._children import Children
    from kedge_worker._execution import Execution
    from kedge_worker._starting import ChildStart
    from kedge_worker._waits import Served, Wait


def item_key(key: str, place: int) -> str:
    """Of an item of a map."""
    return f"{key}[{place}]"


class ChildMap:
    """
    Args:
        execution: Of the parent.
        children: Start and watch.
        key: Of the map.
        branch: That asks for it.
        starts: One for each item.
        started: The children that earlier lives have started, by the places of their items.
        values: What is known of the results, likewise.
        limit: How many children may be under way at once; None: all.
    """

    def __init__(
        self,
        execution: Execution,
        children: Children,
        key: str,
        branch: Branch,
        starts: Sequence[ChildStart],
        started: Mapping[int, UUID],
        values: Mapping[int, Any],
        limit: int | None,
    ) -> None:
        self._execution = execution
        self._children = children
        self._key = key
        self._branch = branch
        self._starts = starts
        self._started = dict(started)
        self._values = dict(values)
        self._window = len(starts) if limit is None else min(limit, len(starts))
        self._need = self._window if limit is None else (self._window + 1) // 2
        # Those that are under way come first: they have their places in the window.
        left = [place for place in range(len(starts)) if place not in values]
        self._todo = deque(sorted(left, key=lambda place: place not in started))
        self._open: dict[int, Wait] = {}
        self._ended: deque[int] = deque()
        self._news: asyncio.Future[None] | None = None
        self._last: tuple[int, Served] | None = None

    async def run(self) -> list[Any]:
        """Return the results in the order of the items; the first that does not end well is raised."""
        execution, children = self._execution, self._children
        try:
            failed = None
            while failed is None and len(self._values) < len(self._starts):
                await self._fill()
                await self._until_one_ends()
                failed = self._take_ends()
            self._close_all()
            await execution.barrier()  # it counts when it is stored
            await self._take_turn()
        except asyncio.CancelledError:
            self._give_up()
            await children.interrupted(self._key, self._branch)
            raise
        except BaseException:
            self._give_up()
            raise
        if failed is not None:
            self._outcome(*failed)
        return [self._values[place] for place in range(len(self._starts))]

    # ---- one round

    async def _fill(self) -> None:
        """Let as many children be under way as the window has room for."""
        children = self._children
        await children.gate_opens()
        alone: list[tuple[int, UUID]] = []
        while self._todo and len(self._open) + len(alone) < self._window:
            place = self._todo.popleft()
            start = self._starts[place]
            if place in self._started:
                self._wait_for(place, self._started[place])
            elif starts_alone(start.request):
                alone.append((place, children.intend(start)))
            else:
                key = item_key(self._key, place)
                self._wait_for(place, children.begin_with_row(start, self._branch, watched=key), is_new=True)
        for place, child_id in alone:
            self._wait_for(place, await children.begin_alone(self._starts[place], self._branch, child_id))

    def _wait_for(self, place: int, child_id: UUID, *, is_new: bool = False) -> None:
        execution, children = self._execution, self._children
        key = item_key(self._key, place)
        self._started[place] = child_id
        execution.check_wait(key, "c", None)
        if not is_new:
            children.watch(key, child_id)
        wait = children.end_wait(key, child_id, is_new=is_new, need=self._need, group_key=self._key)
        self._open[place] = wait
        execution.open_waits().begin(wait)
        assert wait.future is not None  # noqa: S101  # it has begun
        wait.future.add_done_callback(functools.partial(self._served, place))

    def _served(self, place: int, _: asyncio.Future[Served]) -> None:
        self._ended.append(place)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _until_one_ends(self) -> None:
        if self._ended or not self._open:
            return
        execution = self._execution
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # this is a coroutine
        self._news = execution.loop.create_future()
        execution.active -= 1
        execution.waiting.add(task)
        try:
            if not execution.active:
                execution.comes_to_rest()
            await self._news
        finally:
            execution.active += 1
            execution.waiting.discard(task)

    def _take_ends(self) -> tuple[int, Served] | None:
        """Note the results that have come, in the order in which they came; answers the first that is none."""
        execution = self._execution
        while self._ended:
            place = self._ended.popleft()
            wait = self._open.pop(place)
            execution.open_waits().end(wait)
            assert wait.future is not None  # noqa: S101  # it has ended
            served = wait.future.result()
            if served.kept is not None and served.kept.kind == "f":
                self._last = place, served
                return self._last
            self._values[place] = self._outcome(place, served)
            if len(self._values) == len(self._starts):
                self._last = place, served
            else:
                execution.handed_out(served.seq)  # nobody is told of it by itself
        return None

    def _outcome(self, place: int, served: Served) -> Any:
        recall = self._children.recall_end(self._started[place], self._starts[place].request.ref)
        return self._children.outcome(served, item_key(self._key, place), recall)

    # ---- its end

    async def _take_turn(self) -> None:
        """Return when it is the map's turn: it has ended with its last row."""
        execution = self._execution
        assert self._last is not None  # noqa: S101  # something was left to wait for
        place, served = self._last
        if execution.branches.others:
            await execution.take_turn(served.seq)
        execution.handed_out(served.seq)
        if execution.closed:
            raise ClosedError
        self._branch.last = item_key(self._key, place)

    def _close_all(self) -> None:
        """Nobody waits for the others any more. They go on."""
        execution = self._execution
        for wait in self._open.values():
            execution.open_waits().end(wait)
            if wait.future is not None and wait.future.done():
                execution.handed_out(wait.future.result().seq)
            elif not execution.closed and not execution.run.lost:
                self._children.close_wait(wait.key)
        self._open.clear()

    def _give_up(self) -> None:
        self._close_all()
        if self._last is not None:
            self._execution.handed_out(self._last[1].seq)
