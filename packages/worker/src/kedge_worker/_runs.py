"""A run as a worker holds it: what the claim brought, and the little state that lives as long as the lease on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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


@dataclass(slots=True, eq=False)
class LiveRun:
    """A claimed run while this worker executes it."""

    claimed: ClaimedRun
    next_seq: int
    batch: Batch | None = None
    """The last batch that carries rows, or the move, of this run."""
    lost: bool = False
    """Another worker owns it by now: everything is dropped."""
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
