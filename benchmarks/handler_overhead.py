"""
What Python costs a run on its way through executor and context: a journal in memory, no database.

    .venv/bin/python -m benchmarks.handler_overhead
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from kedge.refs import WorkflowRef
from kedge.start_terms import StartTerms
from kedge_worker._context import Context
from kedge_worker._executor import Executor
from kedge_worker._outcomes import End, Move, RowKind
from kedge_worker._registry import Registry
from kedge_worker._runs import Batch, ClaimedRun, LiveRun, MemoRow, Row, Started, TransactionBody
from kedge_worker._side_writes import SideWrite
from kedge_worker._workflows import Workflow, workflow

IN_FLIGHT: Final = 50
START: Final = datetime(2030, 1, 1, tzinfo=UTC)


async def add(value: int, more: int) -> int:
    return value + more


def steps(count: int) -> Workflow[int, int]:
    @workflow(WorkflowRef(f"steps-{count}", int, int))
    async def handle(ctx: Context, value: int) -> int:
        for _ in range(count):
            value = await ctx.step("add", add, value, 1)
        return value

    return handle


def gathered(count: int) -> Workflow[int, int]:
    @workflow(WorkflowRef(f"gathered-{count}", int, int))
    async def handle(ctx: Context, value: int) -> int:
        return sum(await asyncio.gather(*(ctx.step("add", add, value, i) for i in range(count))))

    return handle


class Journal:
    """Everything is stored at once; what was kept can be read back as a memo."""

    def __init__(self) -> None:
        self.kept: dict[UUID, list[Row]] = {}
        self.moved: list[LiveRun] = []
        self.failed = 0

    def keep(self, run: LiveRun, kind: RowKind, key: str, value: bytes, *, took_ms: int = 0, meta: bytes = b"") -> int:
        seq = run.take_seq()
        batch = run.batch = Batch()
        batch.rows.append(Row(run, seq, kind, key, value, meta, took_ms))
        batch.stored = True
        self.kept.setdefault(run.claimed.id, []).append(batch.rows[0])
        return seq

    def add(self, run: LiveRun, side: SideWrite, *values: Any, size: int = 100) -> None:
        raise AssertionError(f"run {run.claimed.id} writes nothing beside its steps: {side.name} {values} {size}")

    async def durable(self, run: LiveRun) -> None:
        raise AssertionError(f"everything of run {run.claimed.id} is stored")

    def move(self, run: LiveRun, move: Move) -> None:
        self.moved.append(run)
        self.failed += not (isinstance(move, End) and move.status == "c")


class NoTransactions:
    async def run(
        self, run: LiveRun, key: str, body: TransactionBody, *, sync: bool, meta: Callable[[], bytes] = bytes
    ) -> int:
        raise NotImplementedError(run, key, body, sync, meta)

    async def aclose(self) -> None:
        pass


class NoChildren:
    async def start(self, run: LiveRun, child_id: UUID, terms: StartTerms, *, is_dependent: bool) -> Started:
        raise NotImplementedError(run, child_id, terms, is_dependent)


async def measure(made: Workflow[int, int], runs: int, *, replay: bool) -> float:
    """Microseconds a run."""
    journal = Journal()
    executor = Executor(journal, lambda _: NoTransactions(), Registry([made]), child_starts=NoChildren(), threads=1)
    executor.open()
    payload = made.ref(1).payload
    claimed = [_claimed(made, payload, ()) for _ in range(runs)]
    if replay:
        await _drive(executor, journal, claimed[:1])
        memo = tuple(
            MemoRow(row.seq, row.kind, row.key, row.value, row.meta, START) for row in journal.kept[claimed[0].id]
        )
        claimed = [_claimed(made, payload, memo) for _ in range(runs)]
    gc.collect()
    started = time.perf_counter()
    await _drive(executor, journal, claimed)
    seconds = time.perf_counter() - started
    assert not journal.failed
    await executor.aclose()
    return seconds / runs * 1e6


async def _drive(executor: Executor, journal: Journal, claimed: list[ClaimedRun]) -> None:
    at = 0
    while at < len(claimed) or executor.runs:
        while at < len(claimed) and len(executor.runs) < IN_FLIGHT:
            executor.start(claimed[at])
            at += 1
        await asyncio.sleep(0)
        moved, journal.moved = journal.moved, []
        executor.settled(moved, ())


def _claimed(made: Workflow[int, int], payload: bytes, memo: tuple[MemoRow, ...]) -> ClaimedRun:
    name, seq = made.ref.qualified_name, len(memo) + 1
    return ClaimedRun(
        id=uuid4(),
        epoch=1,
        next_seq=seq,
        attempt=0,
        crashes=0,
        request=None,
        rank=0,
        deadline_s=None,
        is_observed=False,
        queue="default",
        workflow=name,
        resource=None,
        reason=None,
        input=payload,
        meta=b"",
        claimed_at=START,
        memo=memo,
    )


def best(make: Callable[[], Coroutine[Any, Any, float]], rounds: int = 5) -> float:
    return min(asyncio.run(make()) for _ in range(rounds))


def main() -> None:
    one = best(lambda: measure(steps(1), 5_000, replay=False))
    ten = best(lambda: measure(steps(10), 1_000, replay=False))
    ten_again = best(lambda: measure(steps(10), 1_000, replay=True))
    wide = best(lambda: measure(gathered(10), 1_000, replay=False))
    wide_again = best(lambda: measure(gathered(10), 1_000, replay=True))
    very_wide = best(lambda: measure(gathered(1000), 10, replay=False), 3)
    print(f"one-step run                     {one:8.1f} us   (budget 40)")
    print(f"each further step                {(ten - one) / 9:8.1f} us   (budget 15)")
    print(f"each further step, from the memo {(ten_again - one) / 9:8.1f} us")
    print(f"each of 10 gathered steps        {(wide - one) / 9:8.1f} us")
    print(f"the same, from the memo          {(wide_again - one) / 9:8.1f} us")
    print(f"each of 1000 gathered steps      {(very_wide - one) / 999:8.1f} us")


if __name__ == "__main__":
    main()
