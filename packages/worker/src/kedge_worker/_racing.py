"""
The first of several: whoever has its outcome first, by the order of the journal, wins; the others are cancelled.

The winner is an outcome of its own, so a replay runs the winner's branch only.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from kedge.errors import HandlerUseError
from kedge.wire import decoder, encode
from kedge_worker._branches import is_operation, operation
from kedge_worker._races import Race
from kedge_worker._signals import ClosedError, ReplayMismatch

if TYPE_CHECKING:
    from kedge_worker._branches import Branch
    from kedge_worker._execution import Execution
    from kedge_worker._operations import Operations
    from kedge_worker._runs import MemoRow

_decode_winner: Final = decoder(int)

FEWEST: Final = 2
MOST: Final = 5


def check_branches(branches: Sequence[object]) -> None:
    """
    Refuse what cannot race.

    Raises:
        HandlerUseError: There are too few, too many, or something that cannot be awaited.
    """
    if not FEWEST <= len(branches) <= MOST or not all(inspect.isawaitable(one) for one in branches):
        discard(branches)
        raise HandlerUseError(
            f"first() takes {FEWEST} to {MOST} awaitables, as ctx.first('answer', ctx.wait_for('yes', approved), "
            "ctx.sleep('late', '1h'))"
        )


@operation
async def first(
    operations: Operations, execution: Execution, key: str, branch: Branch, branches: Sequence[Awaitable[Any]]
) -> tuple[int, Any]:
    """Run the branches until one of them has ended; answer which, and its value, or raise what it raised."""
    here = execution.here()
    row = None if execution.memo is None else execution.memo.get(key)
    if row is not None and row.kind != "x":
        return await _again(operations, execution, row, branch, here, branches)
    race = Race()
    tasks = [
        asyncio.ensure_future(_run(execution, one, branch.indexed(key, place), race))
        for place, one in enumerate(branches)
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        winner = next((place for place, task in enumerate(tasks) if task.done()), None)
        race.is_decided = True
        await unwind([task for place, task in enumerate(tasks) if place != winner])
    if execution.closed:
        raise ClosedError
    assert winner is not None  # noqa: S101  # wait has returned
    if tasks[winner].cancelled():
        raise asyncio.CancelledError
    await operations.keep_outcome("o", key, branch, encode(winner, where=key))
    return winner, tasks[winner].result()


async def _again(
    operations: Operations,
    execution: Execution,
    row: MemoRow,
    branch: Branch,
    here: Branch,
    branches: Sequence[Awaitable[Any]],
) -> tuple[int, Any]:
    try:
        execution.check_row(row, "o")
        winner = _decode_winner(row.value, where=row.key)
        if winner >= len(branches):
            raise ReplayMismatch(f"{row.key!r} was won by branch {winner}, and has {len(branches)} in the code")
    except ReplayMismatch as mismatch:
        operations.mismatch(mismatch)
        raise
    discard([one for place, one in enumerate(branches) if place != winner])
    # As many as the tasks of the first time: the branches behind them are numbered.
    for _ in branches:
        here.child()
    error: BaseException | None = None
    value = None
    indexed = branch.indexed(row.key, winner)
    execution.tasks.switch(here, indexed)
    try:
        value = await branches[winner]
    except Exception as raised:  # noqa: BLE001  # it is raised when it is its turn
        error = raised
    finally:
        execution.tasks.switch(indexed, here)
    await operations.hand_out_again(row, branch)
    if error is not None:
        raise error
    return winner, value


async def _run(execution: Execution, awaited: Awaitable[Any], branch: Branch, race: Race) -> Any:
    outer = execution.here()
    execution.tasks.switch(outer, branch)
    # Only what is an operation itself decides the race with its outcome; code may await several.
    branch.race = race if is_operation(awaited) else None
    try:
        return await awaited
    finally:
        execution.tasks.switch(branch, outer)


async def unwind(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait until they have unwound, however often somebody cancels this."""
    for task in tasks:
        task.cancel()
    interruption: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            interruption = error
            for task in pending:
                task.cancel()
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at: it has lost
    if interruption is not None:
        raise interruption


def discard(branches: Sequence[object]) -> None:
    """Nobody will await these."""
    for one in branches:
        if isinstance(one, Coroutine):
            one.close()
        elif isinstance(one, asyncio.Future):
            one.cancel()
