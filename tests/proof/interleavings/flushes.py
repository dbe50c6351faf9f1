"""A worker's flush and claim, statement by statement: the real flusher and store, their calls sent one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch
from uuid import UUID

from kedge_worker._claims import ClaimAnswer, ClaimRequest
from kedge_worker._errors import PostgresError
from kedge_worker._flusher import Flusher
from kedge_worker._leased_store import FlushAnswer, LeasedStore
from kedge_worker._outcomes import Move
from kedge_worker._pipeline import Call
from kedge_worker._runs import Batch, ClaimedRun, LiveRun, Row
from kedge_worker._side_writes import SideWrite
from kedge_worker._signals import LeaseLostError
from tests import moves
from tests.proof.interleavings.actors import Actor
from tests.writer import lanes

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from kedge_worker._outcomes import RowKind

# An optimistic flush, then its careful form; what is still locked then is tried again when the others have gone on.
_TRIES = 2


@dataclass
class Flushed:
    """What a worker knows of its runs behind a flush."""

    moved: list[UUID] = field(default_factory=list[UUID])
    lost: list[UUID] = field(default_factory=list[UUID])
    claimed: list[ClaimedRun] = field(default_factory=list[ClaimedRun])
    lease_lost: bool = False
    refused: list[PostgresError] = field(default_factory=list[PostgresError])


class _Steps:
    """In the place of the pipeline."""

    closed = False

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    async def roundtrip(
        self,
        calls: Sequence[Call],
        *,
        timeout_s: float,  # noqa: ARG002  # the pipeline's
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[PGresult]:
        meanwhile()
        return [self._actor.execute(call) for call in calls]


class SteppedStore(LeasedStore):
    """Sends one call at a time, and rests where it has tried in vain."""

    def __init__(self, actor: Actor, worker: UUID) -> None:
        super().__init__("", worker_id=worker, schema="kedge", timeout_s=1)
        self._pipeline = cast("Any", _Steps(actor))
        self._actor = actor
        self._tries = 0

    async def flush(
        self,
        batch: Batch,
        claim: ClaimRequest | None,
        *,
        only: frozenset[UUID] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> FlushAnswer:
        if only is None:
            self._try()
        return await super().flush(batch, claim, only=only, meanwhile=meanwhile)

    async def lock_moving(self, batch: Batch) -> frozenset[UUID]:
        self._try()
        return await super().lock_moving(batch)

    def _try(self) -> None:
        self._tries += 1
        if self._tries > _TRIES:
            self._actor.rest("a row is locked")


class _Worker:
    """Implements `FlushEvents`: notes what it is told."""

    def __init__(self) -> None:
        self.flushed = Flushed()

    def wanted_claim(self, ending: int, *, coming: int) -> ClaimRequest | None:  # noqa: ARG002  # the protocol's
        return None

    def claimed(self, answer: ClaimAnswer) -> None:
        self.flushed.claimed += answer.runs

    def begin(self, runs: Sequence[ClaimedRun]) -> None:
        """They are known from the answer."""

    def unclaimed(self, error: PostgresError) -> None:
        """Asked for again when it was not about the lease, which `flush` tells."""

    async def reconnected(self) -> None:
        raise AssertionError("no connection was lost")

    def settled(self, moved: Sequence[LiveRun], lost: Sequence[LiveRun]) -> None:
        self.flushed.moved += [run.claimed.id for run in moved]
        self.flushed.lost += [run.claimed.id for run in lost]

    def sent(self, batch: Batch) -> None:
        """Nobody sleeps here."""

    def has_mail(self) -> None:
        """The courier is an actor."""

    def refused(self, run: LiveRun, error: PostgresError) -> None:  # noqa: ARG002  # the protocol's
        self.flushed.refused.append(error)


def flush(actor: Actor, worker: UUID, batch: Batch, *, claims: int = 0) -> Flushed:
    """Write the batch as the worker's flusher does, then claim so many."""
    events = _Worker()
    request = ClaimRequest(claims, lanes(), {}) if claims else None

    async def write() -> None:
        flusher = Flusher(SteppedStore(actor, worker), events)
        await flusher._write(batch, request)
        while flusher._put_off:
            await flusher._try_again()

    try:
        # Who is locked out goes on when it is let, not when some time has passed.
        with patch("kedge_worker._backoff._FIRST_S", 0.0):
            asyncio.run(write())
    except LeaseLostError:
        events.flushed.lease_lost = True
    return events.flushed


def claim(actor: Actor, worker: UUID, limit: int = 10) -> Flushed:
    """Claim as the worker's flusher does."""
    return flush(actor, worker, Batch(), claims=limit)


def claiming(worker: UUID, limit: int = 10) -> Callable[[Actor], Flushed]:
    """The program of a claim."""
    return lambda actor: claim(actor, worker, limit)


def give_back(actor: Actor, worker: UUID, run: moves.Claimed) -> None:
    """Return a run that the process does not know."""
    asyncio.run(SteppedStore(actor, worker).give_back({run.id: run.epoch}))


def live(run: moves.Claimed) -> LiveRun:
    """A run in its owner's memory."""
    now = datetime.now(UTC)
    claimed = ClaimedRun(
        id=run.id,
        epoch=run.epoch,
        next_seq=run.next_seq,
        attempt=run.attempt,
        crashes=run.crashes,
        request=run.request,
        rank=run.rank,
        deadline_s=None,
        is_observed=False,
        queue=run.queue,
        workflow=run.workflow,
        resource=None,
        reason=None,
        input=b"",
        meta=b"",
        claimed_at=now,
        memo=(),
    )
    return LiveRun(claimed, run.next_seq)


class Writes:
    """One batch in the making."""

    def __init__(self) -> None:
        self.batch = Batch()

    def keep(self, run: LiveRun, key: str, kind: RowKind = "s", value: bytes = b"\x011") -> int:
        """A row; its seq."""
        seq = run.take_seq()
        self.batch.rows.append(Row(run, seq, kind, key, value))
        run.batch = self.batch
        return seq

    def side(self, run: LiveRun, side: SideWrite, *values: Any) -> Writes:
        self.batch.add(side, run, values)
        run.batch = self.batch
        return self

    def move(self, run: LiveRun, move: Move) -> Writes:
        self.batch.moves.append((run, move))
        run.batch = self.batch
        return self
