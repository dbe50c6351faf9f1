"""How an operation of an async handler goes: from the memo if it is known, else as its wait ends, kept in its turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from kedge_worker._branches import operation
from kedge_worker._outcomes import Mismatched
from kedge_worker._runs import MemoRow
from kedge_worker._side_writes import CLOSE_WAITS, SEND_LETTERS
from kedge_worker._signals import ClosedError, ReplayMismatch
from kedge_worker._suspension import check_raw_timeout
from kedge_worker._turns import LIVE

if TYPE_CHECKING:
    from kedge_worker._branches import Branch
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution
    from kedge_worker._memo import Memo
    from kedge_worker._outcomes import Operation, RowKind
    from kedge_worker._waits import Served, Wait

T = TypeVar("T")

_log: Final = logging.getLogger("kedge.worker")

_LONG_S: Final = 60.0
"""After so long a replay that waits says so, once."""

_WAITS: Final = frozenset({"e", "d", "p", "u", "c", "n"})
"""Operations that may have an open wait."""

_ATTEMPT: Final = "r"
"""A wait within a step, which may have any timeout around it."""

_NEVER: Final = datetime.min.replace(tzinfo=UTC)


def _nothing() -> None:
    pass


def _no_value(_: MemoRow) -> None:
    pass


class Operations:
    """The coroutines behind a context. Their keys were taken when they were made."""

    __slots__ = ("_execution",)

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    @operation
    async def branch(self, branch: Branch, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
        execution = self._execution
        outer = execution.here()
        execution.tasks.switch(outer, branch)
        try:
            return await fn(*args)
        finally:
            execution.tasks.switch(branch, outer)

    @operation
    async def wait(self, wait: Wait, of: Operation, branch: Branch, recall: Callable[[MemoRow], T]) -> T:
        """Wait for mail or a time; `recall` makes the value, or raises, of the row that ends the wait."""
        execution = self._execution
        here = execution.enter()
        try:
            if execution.memo is not None and (row := execution.memo.get(wait.key)) is not None:
                if here.race is not None and row.kind != "x":
                    here.race.is_decided = True
                return cast("T", await self._replay(row, of, branch, here, recall))
            execution.begin_anew(key=wait.key)
            wait.race = here.race
            served = await self.serve(wait, of, branch)
            return self.outcome(served, wait.key, recall)
        finally:
            execution.leave(here)

    async def serve(self, wait: Wait, of: Operation, branch: Branch) -> Served:
        """
        Begin the wait and answer what ends it; it is its turn to be handed out.

        It need not be stored: nobody else decides it, and nothing that is seen outside begins before it is.
        """
        execution = self._execution
        execution.check_wait(wait.key, wait.kind, wait.slot)
        waits = execution.open_waits()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # this is a coroutine
        if not execution.is_sync and wait.kind != _ATTEMPT:
            check_raw_timeout(task)
        served: Served | None = None
        is_stored = waits.begin(wait)
        assert wait.future is not None  # noqa: S101  # it has begun
        execution.active -= 1
        execution.waiting.add(task)
        try:
            try:
                if not execution.active:
                    execution.comes_to_rest()
                if not is_stored:
                    await execution.barrier()
                stored = waits.stored(wait.key) if is_stored else None
                waits.arm(wait, wait.delay_s if stored is None else waits.left_s(stored.left_s))
                served = await wait.future
            finally:
                execution.active += 1
                execution.waiting.discard(task)
                waits.end(wait)
        except asyncio.CancelledError:
            if not execution.closed:
                if wait.future.done() and not wait.future.cancelled():
                    execution.handed_out(wait.future.result().seq)
                await self._interrupted(of, wait.key, branch)
            raise
        if served.kept is not None:
            await self._hand_out(served.seq, of, wait.key, branch)
        return served

    def outcome(self, served: Served, key: str, recall: Callable[[MemoRow], T]) -> T:
        """What the handler gets for the row that has ended a wait."""
        assert served.kept is not None  # noqa: S101  # what goes on without a row is no outcome
        kind, value, _ = served.kept
        try:
            return recall(MemoRow(served.seq, kind, key, value, b"", _NEVER))
        except ReplayMismatch as mismatch:
            reason = mismatch.reason
            self._execution.in_loop(lambda: self._execution.stop(Mismatched(reason)))
            raise

    async def _hand_out(self, seq: int, of: Operation, key: str, branch: Branch) -> None:
        """Return when it is the turn of an outcome that has its seq already."""
        execution = self._execution
        try:
            if execution.branches.others:
                await execution.take_turn(seq)
        except asyncio.CancelledError:
            execution.handed_out(seq)
            await self._interrupted(of, key, branch)
            raise
        execution.handed_out(seq)
        if execution.closed:
            raise ClosedError
        branch.last = key

    @operation
    async def send(self, key: str, branch: Branch, letter: tuple[object, ...], size: int) -> None:
        """Let a letter go in the transaction that keeps its row: stored once is sent once."""
        execution = self._execution
        here = execution.enter()
        try:
            if execution.memo is not None and (row := execution.memo.get(key)) is not None:
                await self._replay(row, "m", branch, here, _no_value)
                return
            execution.begin_anew()

            def let_go() -> None:
                execution.journal.add(execution.run, SEND_LETTERS, *letter, size=size)

            await self._keep_in_turn("m", "m", key, branch, b"", 0, beside=let_go)
        finally:
            execution.leave(here)

    async def keep_outcome(self, of: Operation, key: str, branch: Branch, value: bytes) -> None:
        """Keep an outcome that has come of the handler's own doing, when it is its turn."""
        execution = self._execution
        here = execution.enter()
        try:
            execution.begin_anew()
            await self._keep_in_turn(of, of, key, branch, value, 0)
        finally:
            execution.leave(here)

    async def hand_out_again(self, row: MemoRow, branch: Branch) -> None:
        """Return when it is the turn of an outcome of an earlier life that nothing has to be done for."""
        execution = self._execution
        here = execution.enter()
        try:
            await execution.take_turn(row.seq, insist=True)
            if execution.closed:
                raise ClosedError
            assert execution.memo is not None  # noqa: S101  # the row came from it
            execution.memo.hand_out(row)
            execution.replaying = bool(execution.memo)
            branch.last = row.key
        finally:
            execution.leave(here)

    def mismatch(self, mismatch: ReplayMismatch) -> None:
        """The code does not fit what is stored: the run leaves with the reason."""
        self._execution.stop(Mismatched(mismatch.reason))

    async def _replay(
        self,
        row: MemoRow,
        operation: Operation,
        branch: Branch,
        here: Branch,
        recall: StepDefinition | Callable[[MemoRow], Any],
    ) -> Any:
        execution, memo = self._execution, self._execution.memo
        assert memo is not None  # noqa: S101  # the row came from it
        try:
            execution.check_row(row, operation)
            # The very error: anyio recognises its own.
            interruption = await self._interrupted_again(row, memo, here) if row.kind == "x" else None
            # What was kept as a value was not interrupted then: a cancellation that comes now came then, too, and the
            # body did not let itself be stopped; or a raw timeout came later then.
            swallowed = await execution.take_turn(row.seq, insist=True)
            if interruption is None:
                here.swallowed = here.swallowed or swallowed
            if execution.closed:
                raise ClosedError
            memo.hand_out(row)
            if not memo:
                execution.begin_anew()
            branch.last = row.key
            if interruption is not None:
                raise interruption
            return recall(row) if callable(recall) else execution.recall(row, recall)
        except ReplayMismatch as mismatch:
            execution.stop(Mismatched(mismatch.reason))
            raise

    async def _interrupted_again(self, row: MemoRow, memo: Memo, here: Branch) -> asyncio.CancelledError:
        """Answer with what the handler's own code has cancelled the operation by, again."""
        execution = self._execution
        swallowed, here.swallowed = here.swallowed, None
        if swallowed is not None and cancellations():  # nobody has taken it back, as a timeout does at its end
            return swallowed
        memo.expect_interruption(row)
        said = execution.loop.call_later(
            _LONG_S,
            _log.warning,
            "run %s: %r was interrupted by the handler's own code in an earlier life, and for %g s nothing has "
            "interrupted it now: if that code is gone, cancel the run or deploy it again",
            execution.run.claimed.id,
            row.key,
            _LONG_S,
        )
        try:
            while True:
                await execution.loop.create_future()
        except asyncio.CancelledError as interruption:
            if execution.closed:
                raise
            return interruption
        finally:
            said.cancel()

    async def _keep_in_turn(
        self,
        kind: RowKind,
        operation: Operation,
        key: str,
        branch: Branch,
        data: bytes,
        took_ms: int,
        inputs: tuple[bytes, ...] = (),
        *,
        beside: Callable[[], None] = _nothing,
    ) -> None:
        """Keep an outcome when it is its turn, and what `beside` adds to it."""
        execution = self._execution
        try:
            await execution.take_turn(LIVE)
        except asyncio.CancelledError:
            if execution.closed:
                if execution.may_keep():
                    execution.keep(kind, operation, key, branch, data, took_ms, inputs)
                    beside()
            else:
                await self._interrupted(operation, key, branch)
            raise
        if execution.closed:
            # What is done is done, though this life's handler does not get it any more.
            if execution.may_keep():
                execution.keep(kind, operation, key, branch, data, took_ms, inputs)
                beside()
            raise ClosedError
        execution.keep(kind, operation, key, branch, data, took_ms, inputs)
        beside()

    async def _interrupted(self, operation: Operation, key: str, branch: Branch) -> None:
        """Keep that the handler's own code cancelled an operation: on replay it must be interrupted again."""
        execution = self._execution
        if execution.closed:
            return
        await execution.take_turn(LIVE, insist=True)
        if not execution.closed:
            execution.keep("x", operation, key, branch, b"", 0)
            if operation in _WAITS or (execution.waits is not None and execution.waits.has_begun(key)):
                execution.journal.add(execution.run, CLOSE_WAITS, key)


class Never:
    """
    In the place of the operations for a handler that catches everything and asks again, for ever: what it awaits never
    ends, so it holds neither the event loop nor the other runs.
    """

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return self.wait

    async def wait(self, *_: object) -> Any:
        await asyncio.get_running_loop().create_future()


def cancellations() -> int:
    """How often somebody asked the current task to end. If nobody did, a body has raised CancelledError by itself."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
