"""
The one fake of these tests: a journal in memory, in the place of the flusher and its database.

What it keeps becomes durable in batches as with the real one: a batch is stored when somebody waits for it, or when the
test says so. Lives of a run follow one another through `claim`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self, cast
from uuid import UUID, uuid4

import msgspec

from kedge.errors import ErrorInfo
from kedge.failures import decode_error
from kedge.refs import WorkflowRef
from kedge.run_meta import RunMeta
from kedge.start_terms import StartTerms
from kedge_worker._executor import Executor
from kedge_worker._outcomes import End, Move, Park, RetryLater, RowKind
from kedge_worker._registry import Registry
from kedge_worker._runs import Batch, ClaimedRun, LiveRun, MemoRow, Row, Started, StoredWait, TransactionBody
from kedge_worker._side_writes import SideWrite
from kedge_worker._signals import LeaseLostError
from kedge_worker._workflows import Workflow, workflow

START = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class KeptWait:
    """A row of waits; times on the clock of the journal."""

    key: str
    kind: str
    slot: str | None
    due_s: float | None
    until_s: float | None
    attempt: int
    state: bytes

    def stored(self, now_s: float) -> StoredWait:
        left_s, limit_s = (None if at is None else at - now_s for at in (self.due_s, self.until_s))
        return StoredWait(self.key, self.kind, self.slot, left_s, limit_s, self.attempt, self.state)


class MemoryJournal:
    """Implements `Journal`. `rows` is what is stored or on its way, in order."""

    def __init__(self) -> None:
        self.rows: dict[UUID, list[Row]] = {}
        self.moves: dict[UUID, Move] = {}
        self.sides: list[tuple[str, UUID, tuple[Any, ...]]] = []
        self.now_s = 0.0
        """The database's time; tests move it."""
        self._waits: dict[tuple[UUID, str], KeptWait] = {}
        self.left_open: list[str] = []
        """Waits that were still open when their runs ended: whoever has an outcome has none."""
        self.flushes = 0
        self.log: list[str] = []
        """What happened, in order: "keep charge", "durable", ..., and what tests add."""
        self.held = False
        """While True nothing becomes durable."""
        self._moved: dict[UUID, asyncio.Event] = {}
        self.settled: Callable[[list[LiveRun], list[LiveRun]], object] | None = None

    def keep(self, run: LiveRun, kind: RowKind, key: str, value: bytes, *, took_ms: int = 0, meta: bytes = b"") -> int:
        assert run.gate is None, "an outcome between a transaction's seq and its commit"
        assert run.claimed.id not in self.moves, f"{key!r} is kept behind the run's move"
        assert not run.lost, f"{key!r} is kept without a lease"
        if run.batch is None or run.batch.stored:
            run.batch = Batch()
        row = Row(run, run.take_seq(), kind, key, value, meta, took_ms)
        run.batch.rows.append(row)
        self.rows.setdefault(run.claimed.id, []).append(row)
        self.log.append(f"keep {key}")
        return row.seq

    def add(self, run: LiveRun, side: SideWrite, *values: Any, size: int = 100) -> None:  # noqa: ARG002  # the protocol's
        assert run.claimed.id not in self.moves, f"{side.name} behind the run's move"
        self.sides.append((side.name, run.claimed.id, values))
        if side.name == "OPEN_WAITS":
            self._open_wait(run.claimed.id, *values)
        elif side.name == "CLOSE_WAITS":
            self._waits.pop((run.claimed.id, values[0]), None)
        if run.batch is None or run.batch.stored:
            run.batch = Batch()

    async def durable(self, run: LiveRun) -> None:
        batch = run.batch
        if batch is not None and not batch.stored:
            await asyncio.sleep(0)
            while self.held:
                await asyncio.sleep(0)
            if run.lost:
                raise LeaseLostError
            batch.stored = True
            self.flushes += 1
            self.log.append("durable")

    def move(self, run: LiveRun, move: Move) -> None:
        assert run.claimed.id not in self.moves, "a run moves once a life"
        self.moves[run.claimed.id] = move
        self._leave_waits(run.claimed.id, move)
        if run.batch is not None:
            run.batch.stored = True
        self._event(run.claimed.id).set()
        if self.settled is not None:
            asyncio.get_running_loop().call_soon(self.settled, [run], list[LiveRun]())

    async def moved(self, run_id: UUID) -> Move:
        """Wait for the run's move."""
        await asyncio.wait_for(self._event(run_id).wait(), 10)
        return self.moves[run_id]

    def memo(self, run_id: UUID, *, up_to: int | None = None) -> tuple[MemoRow, ...]:
        """What a claim would answer now, or after a crash that only let rows up to a seq through."""
        rows = self.rows.get(run_id, [])
        return tuple(
            MemoRow(row.seq, row.kind, row.key, row.value, row.meta, START + timedelta(seconds=row.seq))
            for row in sorted(rows, key=lambda row: row.seq)
            if up_to is None or row.seq <= up_to
        )

    def waits(self, run_id: UUID) -> tuple[StoredWait, ...]:
        """The open waits as a claim would answer them now."""
        return tuple(wait.stored(self.now_s) for (run, _), wait in self._waits.items() if run == run_id)

    def forget_waits(self, run_id: UUID) -> None:
        """As another attempt of the run does."""
        for run, key in list(self._waits):
            if run == run_id:
                del self._waits[run, key]

    def _open_wait(
        self,
        run_id: UUID,
        key: str,
        kind: str,
        slot: str | None,
        delay_s: float | None,
        due_at: datetime | None,
        limit_s: float | None,
        attempt: int,
        need: int,  # noqa: ARG002  # as OPEN_WAITS has it
        group_key: str | None,  # noqa: ARG002
        state: bytes,
    ) -> None:
        due_s = None if delay_s is None else self.now_s + delay_s
        if due_at is not None:
            due_s = (due_at - START).total_seconds()
        until_s = None if limit_s is None else self.now_s + limit_s
        known = self._waits.get((run_id, key))
        if known is None:
            self._waits[run_id, key] = KeptWait(key, kind, slot, due_s, until_s, attempt, state)
        elif known.attempt < attempt:
            self._waits[run_id, key] = replace(known, kind=kind, due_s=due_s, attempt=attempt, state=state)

    def _leave_waits(self, run_id: UUID, move: Move) -> None:
        if isinstance(move, End):
            self.left_open += [key for run, key in self._waits if run == run_id]
        for run, key in list(self._waits):
            is_gone = isinstance(move, End | RetryLater) or (isinstance(move, Park) and key in move.stale)
            if run == run_id and is_gone:
                del self._waits[run, key]

    def keys(self, run_id: UUID) -> list[tuple[str, str]]:
        return [(row.kind, row.key) for row in self.memo(run_id)]

    def _event(self, run_id: UUID) -> asyncio.Event:
        return self._moved.setdefault(run_id, asyncio.Event())


class Connection:
    """What a transactional step's function gets: it remembers what was executed."""

    def __init__(self, executed: list[str]) -> None:
        self._executed = executed

    async def execute(self, statement: str) -> None:
        await asyncio.sleep(0)
        self._executed.append(statement)

    def execute_sync(self, statement: str) -> None:
        self._executed.append(statement)


class MemoryTransactions:
    """Implements `Transactions`: its statements and its memo are there together or not at all."""

    def __init__(self, journal: MemoryJournal, in_thread: Callable[[Callable[[], Any]], Any]) -> None:
        self._journal = journal
        self._in_thread = in_thread
        self.committed: list[str] = []
        self.closed = False
        self.rounds_of_commit = 2

    async def run(
        self, run: LiveRun, key: str, body: TransactionBody, *, sync: bool, meta: Callable[[], bytes] = bytes
    ) -> int:
        executed: list[str] = []
        conn = cast("Any", Connection(executed))
        value = await self._in_thread(lambda: body(conn)) if sync else await cast("Any", body(conn))
        while run.gate is not None:
            await run.gate.wait()
        run.gate = asyncio.Event()
        try:
            await self._journal.durable(run)
            if run.lost:
                raise LeaseLostError
            seq = run.take_seq()
            for _ in range(self.rounds_of_commit):
                await asyncio.sleep(0)
            row = Row(run, seq, "t", key, cast("bytes", value), meta())
            run.assigned.add(seq)
            self._journal.rows.setdefault(run.claimed.id, []).append(row)
            self._journal.log.append(f"commit {key}")
            self.committed += executed
        finally:
            run.open_gate()
        return seq

    async def aclose(self) -> None:
        self.closed = True


class MemoryChildStarts:
    """Implements `ChildStarts`: what is asked for, and the answers that a test has prepared."""

    def __init__(self) -> None:
        self.asked: list[tuple[UUID, StartTerms, bool]] = []
        self.answers: list[Started | Exception] = []
        """Taken one after the other; when there is none, the child is started."""
        self.open = asyncio.Event()
        """While it is not set, somebody else's transaction holds the key."""
        self.open.set()

    async def start(self, run: LiveRun, child_id: UUID, terms: StartTerms, *, is_dependent: bool) -> Started:  # noqa: ARG002  # the protocol's
        self.asked.append((child_id, terms, is_dependent))
        await self.open.wait()
        answer = self.answers.pop(0) if self.answers else Started(child_id, None)
        if isinstance(answer, Exception):
            raise answer
        return answer


def claim(made: Workflow[Any, Any], value: object = None, **changes: Any) -> ClaimedRun:
    """A claimed run of a workflow, as if it had just been started with this input."""
    request = made.ref(value)
    claimed = ClaimedRun(
        id=uuid4(),
        epoch=1,
        next_seq=1,
        attempt=0,
        crashes=0,
        request=None,
        rank=0,
        deadline_s=None,
        is_observed=False,
        queue="default",
        workflow=made.ref.qualified_name,
        resource=None,
        reason=None,
        input=request.payload,
        meta=RunMeta().encode(),
        claimed_at=START,
        memo=(),
    )
    return msgspec.structs.replace(claimed, **changes)


def bound(handler: Callable[..., Any], *, name: str = "test") -> Workflow[Any, Any]:
    """A handler without an input, sync or async, whose result may be anything that JSON holds."""
    made: Workflow[Any, Any] = workflow(WorkflowRef[Any, Any](name, None, Any))(handler)
    return made


class Lives:
    """An executor on a memory journal: `async with Lives(workflow) as lives`."""

    def __init__(self, *workflows: Workflow[Any, Any], threads: int = 4, linger_s: float = 0.0, **options: Any) -> None:
        self.journal = MemoryJournal()
        self.transactions: MemoryTransactions
        self.freed = 0
        self.child_starts = MemoryChildStarts()
        self.executor = Executor(
            self.journal,
            self._make_transactions,
            Registry(workflows, **options),
            child_starts=self.child_starts,
            threads=threads,
            on_free=self._count,
            linger_s=lambda: linger_s,
        )
        self.journal.settled = self.executor.settled
        self.workflow = workflows[0]

    async def __aenter__(self) -> Self:
        self.executor.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.executor.lose_all()
        await self.executor.shutdown(0)
        await self.executor.aclose()

    def begin(self, value: object = None, **changes: Any) -> ClaimedRun:
        """Begin to execute a new run."""
        claimed = claim(self.workflow, value, **changes)
        self.executor.start(claimed)
        return claimed

    async def run(self, value: object = None, **changes: Any) -> tuple[ClaimedRun, Move]:
        """Execute a new run to its move."""
        claimed = self.begin(value, **changes)
        return claimed, await self.journal.moved(claimed.id)

    async def again(self, claimed: ClaimedRun, *, up_to: int | None = None, **changes: Any) -> Move:
        """Execute the run in another life, as if the worker had crashed after `up_to`."""
        return await self.journal.moved(self.begin_again(claimed, up_to=up_to, **changes).id)

    def begin_again(self, claimed: ClaimedRun, *, up_to: int | None = None, **changes: Any) -> ClaimedRun:
        memo = self.journal.memo(claimed.id, up_to=up_to)
        again = msgspec.structs.replace(
            claimed,
            epoch=claimed.epoch + 1,
            memo=memo,
            next_seq=1 + max((r.seq for r in memo), default=0),
            waits=self.journal.waits(claimed.id),
            **changes,
        )
        rows = self.journal.rows.get(claimed.id, [])
        self.journal.rows[claimed.id] = [row for row in rows if up_to is None or row.seq <= up_to]
        self.journal.moves.pop(claimed.id, None)
        self.journal._event(claimed.id).clear()
        self.executor.start(again)
        return again

    def result(self, move: Move) -> Any:
        """The decoded result of a run that completed."""
        assert isinstance(move, End), move
        assert move.status == "c", move
        assert move.output is not None
        return self.workflow.ref.decode_output(move.output)

    def _make_transactions(self, in_thread: Any) -> MemoryTransactions:
        self.transactions = MemoryTransactions(self.journal, in_thread)
        return self.transactions

    def _count(self) -> None:
        self.freed += 1


class Failure(NamedTuple):
    """A row of failures, as a flush writes it."""

    n: int
    attempt: int
    took_ms: int
    kind: str
    key: str
    error: ErrorInfo


def failures(journal: MemoryJournal) -> list[Failure]:
    """What is kept of attempts that were followed by others."""
    entries = [values for name, _, values in journal.sides if name == "KEEP_FAILURES"]
    return [Failure(n, attempt, ms, kind, key, decode_error(error)) for n, attempt, ms, kind, key, error in entries]


def sides(journal: MemoryJournal) -> list[str]:
    """Which side writes there were, in order."""
    return [name for name, _, _ in journal.sides]
