"""A run as a worker holds it: what the claim brought, and the little state that lives as long as the lease on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

    from kedge_worker._outcomes import Move, RowKind


@dataclass(frozen=True, slots=True)
class MemoRow:
    """One journal row of an earlier life of the run."""

    seq: int
    kind: str
    key: str
    value: bytes
    meta: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """What a claim answers for one run; `memo` is in the order of seq and does not hold the input."""

    id: UUID
    epoch: int
    next_seq: int
    attempt: int
    crashes: int
    cancel_asked: bool
    queue: str
    workflow: str
    resource: str | None
    reason: str | None
    input: bytes
    meta: bytes
    created_at: datetime
    claimed_at: datetime
    memo: tuple[MemoRow, ...]


class Waiter(Protocol):
    """The part of an asyncio.Future that the flusher needs."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class Batch:
    """The journal writes that share one commit; `stored` once the commit is answered and settled."""

    __slots__ = ("moves", "rows", "size", "stored", "waiters")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.moves: list[tuple[LiveRun, Move]] = []
        self.size = 0
        self.stored = False
        self.waiters: list[Waiter] = []

    def __bool__(self) -> bool:
        return bool(self.rows or self.moves)

    def runs(self) -> list[LiveRun]:
        return list(dict.fromkeys([row.run for row in self.rows] + [run for run, _ in self.moves]))

    def split(self, first: Container[LiveRun]) -> tuple[Batch, Batch]:
        """Two batches in the place of this one, each run whole in one of them."""
        one, other = Batch(), Batch()
        for row in self.rows:
            (one if row.run in first else other).rows.append(row)
        for run, move in self.moves:
            (one if run in first else other).moves.append((run, move))
        self.hand_over(one, other)
        return one, other

    def merged(self, other: Batch) -> Batch:
        """One batch in the place of two."""
        both = Batch()
        both.rows = self.rows + other.rows
        both.moves = self.moves + other.moves
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

    def wake(self) -> None:
        """Whoever waits looks again: its run is stored, lost, refused, or in another batch by now."""
        self.stored = True
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()


@dataclass(slots=True, eq=False)
class LiveRun:
    """A claimed run while this worker executes it."""

    claimed: ClaimedRun
    next_seq: int
    batch: Batch | None = None
    """The last batch that carries rows, or the move, of this run."""
    lost: bool = False
    """Another worker owns it by now: everything is dropped."""
    refused: bool = False
    """The database refuses its data: nothing that is queued for it becomes durable, but its end."""
    gate: asyncio.Event | None = None
    """Held shut by a transactional step between its seq and its commit: no other outcome may take a seq meanwhile."""

    def take_seq(self) -> int:
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq


@dataclass(slots=True)
class Row:
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

    async def run(self, run: LiveRun, key: str, body: TransactionBody, *, sync: bool) -> bytes:
        """
        Run the body on a connection of the application's pool and commit its effects together with its memo.

        Answers the encoded value. The body gets the connection and returns the encoded value.
        """
        ...

    async def aclose(self) -> None:
        """Close the pool."""
        ...


TransactionBody: TypeAlias = "Callable[[AsyncConnection[Any]], Awaitable[bytes]] | Callable[[Connection[Any]], bytes]"
