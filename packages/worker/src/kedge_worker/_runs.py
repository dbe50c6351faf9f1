"""A run as a worker holds it: what the claim brought, and the little state that lives as long as the lease on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias
from uuid import UUID

import msgspec

from kedge_worker._side_writes import START_CHILDREN, started_lane

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

    from kedge.start_terms import StartTerms
    from kedge_worker._outcomes import Move, RowKind
    from kedge_worker._side_writes import SideWrite

_LARGE: Final = 4096
_MIB: Final = 1024 * 1024
_ROW_BYTES: Final = 400
"""What a row takes in memory besides its payload, about; CLAIM counts the same."""


class MemoRow(msgspec.Struct, frozen=True, gc=False):
    """One journal row of an earlier life of the run."""

    seq: int
    kind: str
    key: str
    value: bytes
    meta: bytes
    at: datetime


class StoredWait(msgspec.Struct, frozen=True, gc=False):
    """A wait that an earlier life has begun. Times are what is left of them at the claim, in seconds."""

    key: str
    kind: str
    slot: str | None
    left_s: float | None
    """Until it ends, or its next check begins, by itself; None: never."""
    limit_s: float | None
    """Of a poll: until its time is up."""
    attempt: int
    state: bytes


class Mail(msgspec.Struct, frozen=True, gc=False):
    """What was sent to a run and is not consumed yet."""

    id: UUID
    seq: int
    """The order of arrival."""
    slot: str
    payload: bytes


class ClaimedRun(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a claim answers for one run; `memo` is in the order of seq and does not hold the input."""

    id: UUID
    epoch: int
    next_seq: int
    attempt: int
    crashes: int
    request: str | None
    rank: int
    deadline_s: float | None
    """Until its deadline, at the claim; None: it has none."""
    is_observed: bool
    queue: str
    workflow: str
    resource: str | None
    reason: str | None
    input: bytes
    meta: bytes
    claimed_at: datetime
    memo: tuple[MemoRow, ...]
    waits: tuple[StoredWait, ...] = ()
    mail: tuple[Mail, ...] = ()
    home: UUID | None = None
    """What its input and values are encrypted for; None: itself. Another one's, if it was started by a rerun."""


def slots_of(claimed: ClaimedRun) -> int:
    """How many slots of its worker a run takes: one, which has room for its input, and one for each MiB of its past."""
    size = sum(len(row.value) + len(row.meta) + _ROW_BYTES for row in claimed.memo)
    size += sum(len(wait.state) + _ROW_BYTES for wait in claimed.waits)
    size += sum(len(mail.payload) + _ROW_BYTES for mail in claimed.mail)
    return 1 + size // _MIB


class Waiter(Protocol):
    """The part of an asyncio.Future that the flusher needs."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class Batch:
    """The journal writes that share one commit; `stored` once the commit is answered and settled."""

    __slots__ = ("is_observed", "moves", "rows", "sides", "size", "stored", "waiters")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.moves: list[tuple[LiveRun, Move]] = []
        self.sides: dict[SideWrite, list[tuple[LiveRun, tuple[Any, ...]]]] = {}
        """What else rides along, by the statement that writes it."""
        self.is_observed = False
        """Some of its runs may be watched by a client."""
        self.size = 0
        self.stored = False
        self.waiters: list[Waiter] = []

    def __bool__(self) -> bool:
        return bool(self.rows or self.moves or self.sides)

    def observed(self) -> list[LiveRun]:
        """Those of its runs that a client watches."""
        return [run for run in self.runs() if run.is_observed] if self.is_observed else []

    def started_lanes(self) -> set[tuple[str, str]]:
        """Where (queue, workflow) children are started that can be claimed at once."""
        children = (started_lane(values) for _, values in self.sides.get(START_CHILDREN, ()))
        return {lane for lane in children if lane is not None}

    def weight(self) -> int:
        """How much there is to write."""
        return len(self.rows) + len(self.moves) + sum(map(len, self.sides.values()))

    def runs(self) -> list[LiveRun]:
        runs = [row.run for row in self.rows] + [run for run, _ in self.moves]
        return list(dict.fromkeys(runs + [run for entries in self.sides.values() for run, _ in entries]))

    def add(self, side: SideWrite, run: LiveRun, values: tuple[Any, ...]) -> None:
        """Let one entry of a side write ride along."""
        self.sides.setdefault(side, []).append((run, values))

    def drop(self, refused: Callable[[LiveRun], bool], *, keep_move: Callable[[Move], bool] = lambda _: False) -> None:
        """Take out everything of some runs, except such moves."""
        self.rows = [row for row in self.rows if not refused(row.run)]
        self.moves = [(run, move) for run, move in self.moves if not refused(run) or keep_move(move)]
        sides = {side: [entry for entry in entries if not refused(entry[0])] for side, entries in self.sides.items()}
        self.sides = {side: entries for side, entries in sides.items() if entries}

    def split(self, first: Container[LiveRun]) -> tuple[Batch, Batch]:
        """Two batches in the place of this one, each run whole in one of them."""
        one, other = Batch(), Batch()
        for row in self.rows:
            (one if row.run in first else other).rows.append(row)
        for run, move in self.moves:
            (one if run in first else other).moves.append((run, move))
        for side, entries in self.sides.items():
            for run, values in entries:
                (one if run in first else other).add(side, run, values)
        one.is_observed = other.is_observed = self.is_observed
        self.hand_over(one, other)
        return one, other

    def merged(self, other: Batch) -> Batch:
        """One batch in the place of two."""
        both = Batch()
        both.rows = self.rows + other.rows
        both.moves = self.moves + other.moves
        for batch in (self, other):
            for side, entries in batch.sides.items():
                both.sides.setdefault(side, []).extend(entries)
        both.is_observed = self.is_observed or other.is_observed
        self.hand_over(both)
        other.hand_over(both)
        return both

    def hand_over(self, *successors: Batch) -> None:
        """Let these carry on: whoever waits for a run that one of them holds waits there from now on."""
        for successor in successors:
            for run in successor.runs():
                if run.batch is self:
                    run.batch = successor
        self.wake()
        self.let_go()

    def let_go(self) -> None:
        """
        Hold nothing any more: what there was to write is stored, lost, or in another batch.

        A run names its last batch for as long as it lives, and the batch named the runs: with their payloads they would
        wait for the garbage collector, which counts objects and not bytes.
        """
        self.rows, self.moves, self.sides = [], [], {}

    def wake(self) -> None:
        """Whoever waits looks again: its run is stored, lost, refused, or in another batch by now."""
        self.stored = True
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()


class LiveRun(msgspec.Struct, eq=False):
    """A claimed run while this worker executes it."""

    claimed: ClaimedRun
    next_seq: int
    packed_id: bytes = b""
    """The run's id as Postgres has it."""
    is_observed: bool = False
    """A client watches all that happens to it."""
    slots: int = 1
    """How many of its worker's it takes."""
    goes_on: bool = False
    """Its move out of this worker's hand is not its end."""
    batch: Batch | None = None
    """The last batch that carries rows, or the move, of this run."""
    lost: bool = False
    """Another worker owns it by now: everything is dropped."""
    refused: bool = False
    """The database refuses its data: nothing that is queued for it becomes durable, but its end."""
    gate: asyncio.Event | None = None
    """Held shut by a transactional step between its seq and its commit: no other outcome may take a seq meanwhile."""
    assigned: set[int] = msgspec.field(default_factory=set[int])
    """Seqs of outcomes that are stored, or on their way, before the handler has them."""
    gate_opened: Callable[[], None] | None = None
    """What could not be kept meanwhile can be now."""
    notes: int = 0
    """Numbers what is written beside the journal, so that a repeated flush writes it once."""

    def __post_init__(self) -> None:
        self.packed_id = self.claimed.id.bytes

    def open_gate(self) -> None:
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.set()
            if self.gate_opened is not None:
                self.gate_opened()

    def forget_input(self) -> None:
        """The handler has it."""
        if len(self.claimed.input) > _LARGE:
            self.claimed = msgspec.structs.replace(self.claimed, input=b"")

    def forget_memo(self) -> None:
        """All of it is handed out."""
        self.claimed = msgspec.structs.replace(self.claimed, memo=())

    def take_note(self) -> int:
        self.notes += 1
        return self.notes

    def take_seq(self) -> int:
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq


class Row(msgspec.Struct, eq=False):
    """One outcome on its way into the journal."""

    run: LiveRun
    seq: int
    kind: RowKind
    key: str
    value: bytes
    meta: bytes = b""
    took_ms: int = 0


class Journal(Protocol):
    """What the executor and the context need of the flusher."""

    def keep(self, run: LiveRun, kind: RowKind, key: str, value: bytes, *, took_ms: int = 0, meta: bytes = b"") -> int:
        """Queue one outcome and answer its seq; it is durable after `durable`. The run's gate must be open."""
        ...

    def add(self, run: LiveRun, side: SideWrite, *values: Any, size: int = 100) -> None:
        """
        Queue what is written beside the journal, in the same transaction as the row that was queued just before.

        Args:
            run: Whose it is; it is written only while this worker owns it.
            side: Which statement writes it.
            values: Its columns behind the run's id and epoch.
            size: About how many bytes it has.
        """
        ...

    async def durable(self, run: LiveRun) -> None:
        """
        Return when every queued row of this run is stored; at once when none is on its way.

        Raises:
            LeaseLostError: The run belongs to another worker by now.
            ClosedError: The database refuses the run's data; it ends failed.
        """
        ...

    def move(self, run: LiveRun, move: Move) -> None:
        """Queue the one move that ends this worker's hold on the run; it rides with the run's last rows."""
        ...


class Transactions(Protocol):
    """What the context needs for transactional steps."""

    async def run(
        self, run: LiveRun, key: str, body: TransactionBody, *, sync: bool, meta: Callable[[], bytes] = ...
    ) -> int:
        """
        Run the body on a connection of the application's pool and commit its effects together with its memo.

        Answers the memo's seq, which stays in `run.assigned` until the handler has the value. The body gets the
        connection and returns the encoded value; `meta` is asked for the memo's column of that name.
        """
        ...

    async def aclose(self) -> None:
        """Close the pool."""
        ...


class Started(NamedTuple):
    """What became of a start that had to go alone."""

    run_id: UUID
    """The run that was started, or that holds the key."""
    conflict: str | None
    """Nothing was started: `exists`, `input`, `active`."""


class ChildStarts(Protocol):
    """What the context needs for children with a key or singleton, whose starts may have to wait for others."""

    async def start(self, run: LiveRun, child_id: UUID, terms: StartTerms, *, is_dependent: bool) -> Started:
        """
        Start the child, or find out who holds its key; repeated with the same id until that is known.

        Raises:
            LeaseLostError: The parent belongs to another worker by now.
            Exception: The database refuses it for good.
        """
        ...


TransactionBody: TypeAlias = "Callable[[AsyncConnection[Any]], Awaitable[bytes]] | Callable[[Connection[Any]], bytes]"
