"""
One function for many items: a map of steps, or of child runs.

Rows are those of its items, under `key[place]`. Nobody is told of one by itself, so only the map's end has a place in
the order of the run: that of its last row, or of the first failure.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_origin

from kedge.errors import DomainError, HandlerUseError, InvalidOptionError, PayloadError, StepError
from kedge.failures import encode_error
from kedge.refs import RunRequest, WorkflowRef
from kedge.result_types import MISSING, type_of_result
from kedge.shown import shown
from kedge_worker._branches import operation
from kedge_worker._child_maps import ChildMap, item_key
from kedge_worker._children import START, Children
from kedge_worker._definitions import definition_of
from kedge_worker._memo import RowMeta
from kedge_worker._racing import unwind
from kedge_worker._signals import ClosedError, NotAStep, ReplayMismatch
from kedge_worker._starting import child_start
from kedge_worker._steps import Steps

if TYPE_CHECKING:
    from uuid import UUID

    from kedge_worker._branches import Branch
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution
    from kedge_worker._outcomes import Operation
    from kedge_worker._runs import MemoRow

Makes: TypeAlias = Literal["values", "requests", "unknown"]
"""What the function answers for an item: its value, as a step; a request for a child; only a call will tell."""

_Recall: TypeAlias = "StepDefinition | Callable[[MemoRow], Any]"


class MapWork(NamedTuple):
    """What a handler asks for."""

    fn: Callable[[Any], Any]
    makes: Makes
    items: list[Any]
    limit: int | None


def map_work(fn: Any, items: Any, limit: object, *, is_sync: bool = False) -> MapWork:
    """
    Check what a handler asks for; items that are made on the way are all made here.

    Raises:
        HandlerUseError: It is no function of an item, or, of a sync handler, an async one; or these are no items.
        InvalidOptionError: The limit is no number from 1.
        DefinitionError: The function's annotation cannot be resolved.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidOptionError(f"limit={shown(limit)}: give a whole number from 1, or None")
    makes = _makes(fn, is_sync=is_sync)
    try:
        iterator = iter(items)
    except TypeError:
        advice = "give a list, or something else to iterate over"
        raise HandlerUseError(f"map: {shown(items)} are no items: {advice}") from None
    return MapWork(fn, makes, list(iterator), limit)


def _makes(fn: Any, *, is_sync: bool) -> Makes:
    if isinstance(fn, WorkflowRef):
        return "requests"
    if isinstance(getattr(fn, "ref", None), WorkflowRef):
        raise HandlerUseError(f"map: {shown(fn)} is a handler, or a request: give its ref")
    result = type_of_result(fn) if callable(fn) else MISSING
    is_request = result is RunRequest or get_origin(result) is RunRequest
    is_async = inspect.iscoroutinefunction(fn)
    if is_request and is_async:
        raise HandlerUseError(
            "map: what makes requests is a plain function, not an async one: it is part of the handler"
        )
    if is_request:
        return "requests"
    is_async = definition_of(fn).is_async
    if is_async and is_sync:
        raise HandlerUseError("a sync handler's steps are plain functions: make the handler async for this one")
    return "values" if is_async or result is not MISSING else "unknown"


class Maps(Steps):
    """The coroutine behind `ctx.map`."""

    __slots__ = ("_children",)

    def __init__(self, execution: Execution, children: Children) -> None:
        super().__init__(execution)
        self._children = children

    @operation
    async def map(self, key: str, branch: Branch, work: MapWork) -> list[Any]:
        """Answer the values of the items in their order, or raise the first failure."""
        if not work.items:
            return []
        values: dict[int, Any] = {}
        makes = self._made_before(key, work)
        if makes == "unknown":
            self._execution.begin_anew(len(work.items))
            step_key, definition = item_key(key, 0), definition_of(work.fn)
            try:
                values[0] = await self.step(step_key, branch, definition, _probed(work.fn), (work.items[0],))
            except NotAStep:
                makes = "requests"
            except Exception as error:
                await self._keep_failure(key, branch, error)
                raise
        if makes == "requests":
            return await self._map_children(key, branch, work)
        return await self._map_steps(key, branch, work, values)

    async def in_thread(self, key: str, branch: Branch, work: MapWork) -> list[Any]:
        """The same for a sync handler, whose thread waits meanwhile."""
        with self._execution.tasks.as_root(branch):
            return await self.map(key, branch, work)

    def _made_before(self, key: str, work: MapWork) -> Makes:
        """What the function makes, if need be from what it has made in earlier lives."""
        if work.makes != "unknown":
            return work.makes
        if (whole := self._kept(key)) is not None:
            return "requests" if RowMeta.decode(whole.meta).operation == "c" else "values"
        for place in range(len(work.items)):
            if self._kept(item_key(key, place) + START) is not None:
                return "requests"
            if self._kept(item_key(key, place)) is not None:
                return "values"
        return "unknown"

    # ---- steps

    async def _map_steps(self, key: str, branch: Branch, work: MapWork, values: dict[int, Any]) -> list[Any]:
        count = len(work.items)
        definition = definition_of(work.fn)
        if not values:
            if (row := self._kept(item_key(key, 0) + START)) is not None:
                self._mismatch(ReplayMismatch(f"{row.key!r}: the map has started children, and runs steps in the code"))
            self._check_count(key, count)

            def recall(place: int) -> _Recall:
                return self._recall(definition, (work.items[place],))

            rows = self._rows(item_key(key, place) for place in range(count))
            if not rows and self._kept(key) is None:
                self._execution.begin_anew(count)
            values = await self._earlier(key, branch, "s", rows, recall, count)
        if len(values) < count:
            await self._run_steps(key, branch, definition, work, values)
        return [values[place] for place in range(count)]

    async def _run_steps(
        self, key: str, branch: Branch, definition: StepDefinition, work: MapWork, values: dict[int, Any]
    ) -> None:
        """Run what is left in as many tasks as there may be steps at once."""
        execution = self._execution
        left = [place for place in range(len(work.items)) if place not in values]
        places = iter(left)
        failures: list[BaseException] = []

        async def lane() -> None:
            for place in places:
                try:
                    values[place] = await self.step(
                        item_key(key, place), branch, definition, work.fn, (work.items[place],)
                    )
                except asyncio.CancelledError:
                    raise
                except BaseException as error:
                    failures.append(error)
                    raise

        here = execution.here()
        inside = here.inside(key)
        execution.tasks.switch(here, inside)
        lanes: list[asyncio.Task[None]] = []
        try:
            try:
                lanes = [execution.loop.create_task(lane()) for _ in range(min(work.limit or len(left), len(left)))]
                await asyncio.wait(lanes, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                await unwind(lanes)
        except asyncio.CancelledError:
            execution.tasks.switch(inside, here)
            await self._interrupted("s", key, branch)
            raise
        except BaseException:
            execution.tasks.switch(inside, here)
            raise
        execution.tasks.switch(inside, here)
        if execution.closed:
            raise ClosedError
        if failures:
            await self._keep_failure(key, branch, failures[0])
            raise failures[0]
        if len(values) < len(work.items):
            raise asyncio.CancelledError  # a body has cancelled its own task

    async def _keep_failure(self, key: str, branch: Branch, error: BaseException) -> None:
        """
        Keep that a map of steps has failed. That of its step came when others were still under way: what they did until
        they had unwound is before this in the order of the run.
        """
        if issubclass(type(error), (StepError, DomainError, PayloadError)):
            here = self._execution.enter()
            try:
                await self._keep_in_turn("f", "s", key, branch, encode_error(error, key=key), 0)
            finally:
                self._execution.leave(here)

    # ---- children

    async def _map_children(self, key: str, branch: Branch, work: MapWork) -> list[Any]:
        execution, children, count = self._execution, self._children, len(work.items)
        here = execution.enter()
        try:
            starts = [child_start(item_key(key, place) + START, work.fn(item)) for place, item in enumerate(work.items)]
        finally:
            execution.leave(here)
        self._check_count(key, count)
        started: dict[int, UUID] = {}
        rows = self._rows(item_key(key, place) for place in range(count))
        try:
            for place, row in self._rows(start.key for start in starts).items():
                if row.kind == "n":
                    started[place] = children.recall_start(starts[place], row)
                    children.pass_over(row)
                else:
                    rows.setdefault(place, row)
        except ReplayMismatch as mismatch:
            self.mismatch(mismatch)
            raise

        def recall(place: int) -> _Recall:
            row = rows[place]
            if row.key == starts[place].key:
                return functools.partial(children.recall_start, starts[place])
            return children.recall_end(started.get(place), starts[place].request.ref)

        values = await self._earlier(key, branch, "c", rows, recall, count)
        if len(values) == count:
            return [values[place] for place in range(count)]
        here = execution.enter()
        try:
            if rows or started:
                execution.replaying = False
            else:
                execution.begin_anew(2 * count)
            return await ChildMap(execution, children, key, branch, starts, started, values, work.limit).run()
        finally:
            execution.leave(here)

    # ---- what earlier lives know

    def _kept(self, key: str) -> MemoRow | None:
        memo = self._execution.memo
        return None if memo is None else memo.get(key)

    def _rows(self, keys: Iterable[str]) -> dict[int, MemoRow]:
        if not self._execution.memo:
            return {}
        return {place: row for place, key in enumerate(keys) if (row := self._kept(key)) is not None}

    def _check_count(self, key: str, count: int) -> None:
        for found in (item_key(key, count), item_key(key, count) + START):
            if (row := self._kept(found)) is not None:
                self._mismatch(
                    ReplayMismatch(
                        f"{found!r} is in the journal (seq {row.seq}), and {key!r} has {count} items in the code"
                    )
                )

    def _mismatch(self, mismatch: ReplayMismatch) -> None:
        self.mismatch(mismatch)
        raise mismatch

    async def _earlier(
        self,
        key: str,
        branch: Branch,
        of: Operation,
        rows: dict[int, MemoRow],
        recall: Callable[[int], _Recall],
        count: int,
    ) -> dict[int, Any]:
        """
        Answer the values that earlier lives have kept, by their places. If the map has ended then, it ends again, when
        it is its turn: with all of them, with its failure, or interrupted.
        """
        execution = self._execution
        memo, whole = execution.memo, self._kept(key)
        if memo is None or not (rows or whole):
            return {}
        failed = min((place for place, row in rows.items() if row.kind == "f"), key=lambda p: rows[p].seq, default=None)
        here = execution.enter()
        try:
            end = whole
            if end is None and failed is not None and of == "c":
                end = rows[failed]
            elif end is None and len(rows) == count and all(row.kind == of for row in rows.values()):
                end = max(rows.values(), key=_seq)
            values: dict[int, Any] = {}
            meaning: _Recall = _no_value
            for place, row in rows.items():
                if row is end:
                    meaning = recall(place)
                elif row.kind not in ("f", "x"):
                    execution.check_row(row, of)
                    memo.hand_out(row)
                    values[place] = self._value(row, recall(place))
                elif end is not None or failed is not None:
                    memo.hand_out(row)
            if failed is not None and end is not rows[failed]:
                meaning = functools.partial(self._value_of, rows[failed], recall(failed))
            if end is not None:
                # A start that was refused has a row, and an operation, of its own.
                was_start = end.kind == "f" and RowMeta.decode(end.meta).operation == "n"
                value = await self._replay(end, "n" if was_start else of, branch, here, meaning)
                values |= {place: value for place, row in rows.items() if row is end}
        except ReplayMismatch as mismatch:
            self.mismatch(mismatch)
            raise
        finally:
            execution.leave(here)
        if end is None and failed is not None:
            # That life ended before the map did.
            await self._fail_again(key, branch, rows[failed], recall(failed))
        return values

    async def _fail_again(self, key: str, branch: Branch, row: MemoRow, recall: _Recall) -> None:
        try:
            self._value(row, recall)
        except Exception as error:
            await self._keep_failure(key, branch, error)
            raise

    def _value_of(self, row: MemoRow, recall: _Recall, _: MemoRow) -> Any:
        return self._value(row, recall)

    def _value(self, row: MemoRow, recall: _Recall) -> Any:
        return recall(row) if callable(recall) else self._execution.recall(row, recall)


def _probed(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function as a step's body, which says so if it turns out to be none."""

    def body(item: Any) -> Any:
        value = fn(item)
        if isinstance(value, RunRequest):
            raise NotAStep
        return value

    return body


def _no_value(_: MemoRow) -> None:
    pass


def _seq(row: MemoRow) -> int:
    return row.seq
