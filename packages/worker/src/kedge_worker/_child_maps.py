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
from uuid import UUID

from kedge.start_terms import starts_alone
from kedge_worker._signals import ClosedError

if TYPE_CHECKING:
    from kedge.errors import ErrorInfo
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
        self._alone: deque[tuple[int, UUID]] = deque()
        """Those that have to start alone, and the ids under which they will."""
        self._asking: asyncio.Task[UUID | ErrorInfo] | None = None
        """The first of them is being started."""
        self._last: tuple[int, Served] | None = None
        """With which the map ends."""
        self._refusal: tuple[int, ErrorInfo] | None = None

    async def run(self) -> list[Any]:
        """Return the results in the order of the items; the first that does not end well is raised."""
        execution, children = self._execution, self._children
        try:
            while self._last is None and self._refusal is None:
                await self._fill()
                await self._until_news()
                self._take_ends()
                await self._take_answer()
            self._give_up_the_others()
            if self._last is None and self._refusal is not None:
                place, info = self._refusal
                await children.refuse(self._starts[place], self._branch, info)
            await execution.barrier()  # an end counts when it is stored
            place, served = await self._take_turn()
        except asyncio.CancelledError:
            self._give_up_the_others()
            if self._last is not None:
                execution.handed_out(self._last[1].seq)
            await children.interrupted(self._key, self._branch)
            raise
        except BaseException:
            self._give_up_the_others()
            raise
        self._values[place] = self._outcome(place, served)
        return [self._values[place] for place in range(len(self._starts))]

    # ---- one round

    async def _fill(self) -> None:
        """Let as many children be under way as the window has room for."""
        children = self._children
        await children.gate_opens()
        while self._todo and len(self._open) + len(self._alone) < self._window:
            place = self._todo.popleft()
            start = self._starts[place]
            if place in self._started:
                self._wait_for(place, self._started[place])
            elif starts_alone(start.request):
                self._alone.append((place, children.intend(start)))
            else:
                key = item_key(self._key, place)
                self._wait_for(place, children.begin_with_row(start, self._branch, watched=key), is_new=True)
        if self._alone and self._asking is None:
            place, child_id = self._alone[0]
            # A task of its own, which is nobody's branch: what ends meanwhile must not wait for it.
            self._asking = self._execution.loop.create_task(children.ask_alone(self._starts[place], child_id))
            self._asking.add_done_callback(self._tell)

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

    def _served(self, place: int, ended: asyncio.Future[Served]) -> None:
        self._ended.append(place)
        self._tell(ended)

    def _tell(self, _: asyncio.Future[Any]) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _until_news(self) -> None:
        """Return when a child has ended, or a start is answered."""
        if self._ended or (self._asking is not None and self._asking.done()):
            return
        execution = self._execution
        self._news = execution.loop.create_future()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # this is a coroutine
        if self._asking is not None:
            await self._news
            return
        execution.active -= 1
        execution.waiting.add(task)
        try:
            if not execution.active:
                execution.comes_to_rest()
            await self._news
        finally:
            execution.active += 1
            execution.waiting.discard(task)

    def _take_ends(self) -> None:
        """Note the results that have come, in the order in which they came, up to the one that ends the map."""
        execution = self._execution
        while self._ended and self._last is None:
            place = self._ended.popleft()
            wait = self._open.pop(place)
            execution.open_waits().end(wait)
            assert wait.future is not None  # noqa: S101  # it has ended
            served = wait.future.result()
            has_failed = served.kept is not None and served.kept.kind == "f"
            if has_failed or len(self._values) + 1 == len(self._starts):
                self._last = place, served
            else:
                self._values[place] = self._outcome(place, served)
                execution.handed_out(served.seq)  # nobody is told of it by itself

    async def _take_answer(self) -> None:
        """Note what has come of a start."""
        if self._last is not None or self._asking is None or not self._asking.done():
            return
        answer = self._asking.result()
        self._asking = None
        place, _ = self._alone.popleft()
        if isinstance(answer, UUID):
            await self._children.gate_opens()
            self._children.keep_alone(self._starts[place], self._branch, answer)
            self._wait_for(place, answer)
            return
        # An end that is kept already came before.
        came = sorted((wait for wait in self._open.values() if _is_done(wait)), key=_seq)
        places = {wait.key: place for place, wait in self._open.items()}
        self._ended = deque(places[wait.key] for wait in came)
        self._take_ends()
        self._refusal = place, answer

    def _outcome(self, place: int, served: Served) -> Any:
        recall = self._children.recall_end(self._started[place], self._starts[place].request.ref)
        return self._children.outcome(served, item_key(self._key, place), recall)

    # ---- its end

    async def _take_turn(self) -> tuple[int, Served]:
        """Answer with what the map ends, when it is its turn."""
        execution = self._execution
        assert self._last is not None  # noqa: S101  # something was left to wait for
        place, served = self._last
        if execution.branches.others:
            await execution.take_turn(served.seq)
        execution.handed_out(served.seq)
        if execution.closed:
            raise ClosedError
        self._branch.last = item_key(self._key, place)
        return self._last

    def _give_up_the_others(self) -> None:
        """
        Nobody waits for them any more. They go on. At once: what came while this took its time would come before the
        map's end here, and behind it on replay.
        """
        execution = self._execution
        asking, self._asking = self._asking, None
        for wait in self._open.values():
            execution.open_waits().end(wait)
            if _is_done(wait):
                execution.handed_out(_seq(wait))
            elif not execution.closed and not execution.run.lost:
                self._children.close_wait(wait.key)
        self._open.clear()
        if not execution.closed and not execution.run.lost:
            for place, _ in self._alone:
                self._children.close_wait(self._starts[place].key)
        self._alone.clear()
        if asking is not None:
            asking.cancel()
            asking.add_done_callback(_look_at)


def _look_at(asking: asyncio.Task[Any]) -> None:
    if not asking.cancelled():
        asking.exception()


def _is_done(wait: Wait) -> bool:
    return wait.future is not None and wait.future.done()


def _seq(wait: Wait) -> int:
    return 0 if wait.future is None else wait.future.result().seq
