"""The moves that need a lease, and what settles them, on the one connection that locks the worker's row."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import psycopg

import kedge_worker._binary as _binary
from kedge.schema import render
from kedge_worker._outcomes import End, GiveBack
from kedge_worker._pipeline import Call, CutError, Pipeline, Statement
from kedge_worker._runs import Batch, ClaimedRun, LiveRun, MemoRow, Row
from kedge_worker._signals import LeaseLostError
from kedge_worker._statements import (
    CLAIM,
    END,
    HOLD_WORKER,
    KEEP,
    LOCK_MOVING,
    NOTIFY_WATCHERS,
    OWNED,
    READ_CLAIMED,
    RELEASE,
    SERVER_LIFE,
    SETTLE_ROWS,
    SETTLE_RUNS,
    TAKE_OVER_JOURNAL,
)

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

Lane = tuple[str, str]
"""A queue and a workflow."""

LOWEST: Final = (-32768, 0)
"""The floor (rank, seq) of a lane that is looked at from its beginning."""

# What the column holds: 24 days.
_LONGEST_MS: Final = 2**31 - 1

_UNSET: Final = datetime.min.replace(tzinfo=UTC)

_STATEMENTS: Final = {
    "HOLD_WORKER": HOLD_WORKER,
    "CLAIM": CLAIM,
    "READ_CLAIMED": READ_CLAIMED,
    "KEEP": KEEP,
    "END": END,
    "RELEASE": RELEASE,
    "LOCK_MOVING": LOCK_MOVING,
    "NOTIFY_WATCHERS": NOTIFY_WATCHERS,
    "SETTLE_ROWS": SETTLE_ROWS,
    "SETTLE_RUNS": SETTLE_RUNS,
    "TAKE_OVER_JOURNAL": TAKE_OVER_JOURNAL,
    "SERVER_LIFE": SERVER_LIFE,
    "OWNED": OWNED,
}


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker would take now."""

    limit: int
    floors: Mapping[Lane, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """What it got; `highest` is the last place taken in each lane, `has_mail` says that the inbox is not empty."""

    limit: int
    runs: list[ClaimedRun]
    highest: dict[Lane, tuple[int, int]]
    has_mail: bool


@dataclass(frozen=True, slots=True)
class FlushAnswer:
    """How many rows and moves the database took; fewer than were sent must be settled."""

    kept: int
    moved: int
    claim: ClaimAnswer | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database says of a run: which of its rows are stored (seq -> epoch), and in whose hand it is."""

    rows: dict[int, int]
    epoch: int | None
    mine: bool
    live: bool


class LeasedStore:
    """One method a move; executes, checks, returns. Errors pass through as psycopg raises them."""

    def __init__(self, conninfo: str, *, worker_id: UUID, schema: str, timeout_s: float) -> None:
        self._conninfo = conninfo
        self._worker = worker_id.bytes
        self._timeout_s = timeout_s
        self._pipeline: Pipeline | None = None
        self._predecessor: tuple[bytes, bytes] | None = None
        self._timeline: bytes | None = None
        self._begin = Statement("begin", "begin")
        self._commit = Statement("commit", "commit")
        self._rollback = Statement("rollback", "rollback")
        self._statements = {name: Statement(name.lower(), render(text, schema)) for name, text in _STATEMENTS.items()}
        self._hold = Call(self._statements["HOLD_WORKER"], (self._worker,))

    async def connect(self) -> None:
        """
        Open a connection in the place of the one before: ends that one's backend, and returns when no transaction
        of it lives any more.

        Raises:
            LeaseLostError: A failover happened since; nothing that is in memory can be trusted to be stored.
        """
        self.abort()
        pipeline = await Pipeline.connect(self._conninfo, timeout_s=self._timeout_s)
        try:
            await pipeline.prepare(
                (self._begin, self._commit, self._rollback, *self._statements.values()), timeout_s=self._timeout_s
            )
            old_pid, old_start = self._predecessor or (_binary.int4(0), b"\0" * 8)
            takeover = Call(self._statements["TAKE_OVER_JOURNAL"], (self._worker, old_pid, old_start))
            results = await pipeline.roundtrip(
                (takeover, Call(self._statements["SERVER_LIFE"])), timeout_s=self._timeout_s
            )
            timeline = _value(results[1], 0, 1)
            if self._timeline not in (None, timeline):
                raise LeaseLostError("the server was promoted: what the old one confirmed last may be missing here")
        except BaseException:
            pipeline.abort()
            raise
        self._timeline = timeline
        self._predecessor = (_binary.int4(pipeline.backend_pid), _value(results[1], 0, 0))
        self._pipeline = pipeline

    def abort(self) -> None:
        """Close the connection at once."""
        if self._pipeline is not None:
            self._pipeline.abort()
            self._pipeline = None

    async def flush(
        self, batch: Batch, claim: ClaimRequest | None, *, only: frozenset[UUID] | None = None
    ) -> FlushAnswer:
        """
        Write the batch in one transaction, then ring who waits for a run that ended, then claim, in one round trip.

        With `only` (the careful form, inside the transaction that `lock_moving` opened) no BEGIN is sent.
        """
        calls = [] if only is not None else [Call(self._begin), self._hold]
        kept_at = moved_at = None
        released_at = claimed_at = None
        if batch.rows:
            kept_at = len(calls)
            calls.append(self._keep(batch.rows))
        ends = [(run, move) for run, move in batch.moves if isinstance(move, End)]
        if ends:
            moved_at = len(calls)
            calls.append(self._end(ends, batch.rows))
        releases = [(run, move) for run, move in batch.moves if isinstance(move, GiveBack)]
        if releases:
            released_at = len(calls)
            calls.append(self._release(releases))
        calls.append(Call(self._commit))
        committed_at = len(calls)
        if ends:
            ids = _binary.uuids([run.claimed.id.bytes for run, _ in ends])
            calls.append(Call(self._statements["NOTIFY_WATCHERS"], (ids,)))
        if not batch.rows and not batch.moves and only is None:
            calls.clear()
        if claim is not None:
            claimed_at = len(calls) + 2
            calls += self._claim(claim)
        results = await self._roundtrip(calls)
        if batch.moves or batch.rows or only is not None:
            _check_commit(results[committed_at - 1])
        return FlushAnswer(
            kept=(results[kept_at].command_tuples or 0) if kept_at is not None else 0,
            moved=sum(_int(results[at], 0, 0) for at in (moved_at, released_at) if at is not None),
            claim=_claimed(claim, results[claimed_at], results[claimed_at + 2])
            if claim is not None and claimed_at is not None
            else None,
        )

    async def lock_moving(self, batch: Batch) -> frozenset[UUID]:
        """Open a transaction and lock the moving runs of the batch that nobody else holds; `flush(only=)` ends it."""
        ids = _binary.uuids([run.claimed.id.bytes for run, _ in batch.moves])
        lock = Call(self._statements["LOCK_MOVING"], (self._worker, ids))
        results = await self._roundtrip([Call(self._begin), self._hold, lock])
        return frozenset(UUID(bytes=_value(results[2], i, 0)) for i in range(results[2].ntuples))

    async def settle(self, runs: Sequence[LiveRun], rows: Sequence[Row]) -> dict[UUID, Standing]:
        """Where these runs and these rows stand; final, since no older transaction of this worker lives."""
        results = await self._roundtrip(
            [
                Call(
                    self._statements["SETTLE_ROWS"],
                    (
                        _binary.uuids([row.run.claimed.id.bytes for row in rows]),
                        _binary.ints([row.seq for row in rows]),
                    ),
                ),
                Call(
                    self._statements["SETTLE_RUNS"],
                    (self._worker, _binary.uuids([run.claimed.id.bytes for run in runs])),
                ),
            ]
        )
        stored: dict[bytes, dict[int, int]] = {run.claimed.id.bytes: {} for run in runs}
        for i in range(results[0].ntuples):
            stored[_value(results[0], i, 0)][_int(results[0], i, 1)] = _int(results[0], i, 2)
        standing: dict[bytes, tuple[int, bytes | None]] = {
            _value(results[1], i, 0): (_int(results[1], i, 1), results[1].get_value(i, 2))
            for i in range(results[1].ntuples)
        }
        answer: dict[UUID, Standing] = {}
        for run in runs:
            epoch, mine = standing.get(run.claimed.id.bytes, (None, None))
            answer[run.claimed.id] = Standing(
                stored[run.claimed.id.bytes], epoch, mine == b"\x01" and epoch == run.claimed.epoch, mine is not None
            )
        return answer

    async def owned(self) -> dict[UUID, int]:
        """Every run (and its epoch) that the database holds for this worker."""
        (result,) = await self._roundtrip([Call(self._statements["OWNED"], (self._worker,))])
        return {UUID(bytes=_value(result, i, 0)): _int(result, i, 1) for i in range(result.ntuples)}

    async def give_back(self, runs: Mapping[UUID, int]) -> None:
        """
        Return runs (id -> epoch) that this process does not know, charging nobody. Those whose rows somebody else has
        locked stay: the next comparison finds them.
        """
        lock = Call(self._statements["LOCK_MOVING"], (self._worker, _binary.uuids([i.bytes for i in runs])))
        results = await self._roundtrip([Call(self._begin), self._hold, lock])
        free = [_value(results[2], i, 0) for i in range(results[2].ntuples)]
        epochs = [runs[UUID(bytes=i)] for i in free]
        count = len(free)
        release = self._release_call(free, epochs, [0.0] * count, [None] * count, [0] * count)
        await self._roundtrip([release, Call(self._commit)])

    async def _roundtrip(self, calls: Sequence[Call]) -> list[PGresult]:
        pipeline = self._pipeline
        if pipeline is None or pipeline.closed:
            raise CutError("the journal's connection is closed")
        try:
            return await pipeline.roundtrip(calls, timeout_s=self._timeout_s)
        except CutError:
            raise
        except psycopg.Error:
            # The BEGIN in front of the failed statement still stands.
            with contextlib.suppress(psycopg.Error):
                await pipeline.roundtrip([Call(self._rollback)], timeout_s=self._timeout_s)
            raise

    def _keep(self, rows: Sequence[Row]) -> Call:
        return Call(
            self._statements["KEEP"],
            (
                self._worker,
                _binary.uuids([row.run.claimed.id.bytes for row in rows]),
                _binary.ints([row.seq for row in rows]),
                _binary.ints([row.run.claimed.epoch for row in rows]),
                _binary.ints([min(row.took_ms, _LONGEST_MS) for row in rows]),
                _binary.chars([row.kind.encode() for row in rows]),
                _binary.texts([row.key for row in rows]),
                _binary.byteas([row.value for row in rows]),
                _binary.byteas([row.meta for row in rows]) if any(row.meta for row in rows) else None,
            ),
        )

    def _end(self, ends: Sequence[tuple[LiveRun, End]], rows: Sequence[Row]) -> Call:
        first: dict[LiveRun, int] = {}
        count: dict[LiveRun, int] = {}
        for row in rows:
            first.setdefault(row.run, row.seq)
            count[row.run] = count.get(row.run, 0) + 1
        return Call(
            self._statements["END"],
            (
                self._worker,
                _binary.uuids([run.claimed.id.bytes for run, _ in ends]),
                _binary.ints([run.claimed.epoch for run, _ in ends]),
                _binary.texts([move.status for _, move in ends]),
                _binary.byteas([move.output for _, move in ends]),
                _binary.byteas([move.error for _, move in ends]),
                _binary.texts([move.reason for _, move in ends]),
                _binary.ints([first.get(run, 0) for run, _ in ends]),
                _binary.ints([run.next_seq - 1 for run, _ in ends]),
                _binary.ints([count.get(run, 0) for run, _ in ends]),
            ),
        )

    def _release(self, releases: Sequence[tuple[LiveRun, GiveBack]]) -> Call:
        return self._release_call(
            [run.claimed.id.bytes for run, _ in releases],
            [run.claimed.epoch for run, _ in releases],
            [move.delay_s for _, move in releases],
            [move.reason for _, move in releases],
            [run.next_seq - 1 for run, _ in releases],
        )

    def _release_call(
        self,
        ids: Sequence[bytes],
        epochs: Sequence[int],
        delays: Sequence[float],
        reasons: Sequence[str | None],
        last: Sequence[int],
    ) -> Call:
        arrays = (_binary.uuids(ids), _binary.ints(epochs), _binary.floats(delays), _binary.texts(reasons))
        return Call(self._statements["RELEASE"], (self._worker, *arrays, _binary.ints(last)))

    def _claim(self, claim: ClaimRequest) -> tuple[Call, ...]:
        lanes = list(claim.floors)
        take = Call(
            self._statements["CLAIM"],
            (
                self._worker,
                _binary.texts([queue for queue, _ in lanes]),
                _binary.texts([workflow for _, workflow in lanes]),
                _binary.ints([rank for rank, _ in claim.floors.values()]),
                _binary.bigints([seq for _, seq in claim.floors.values()]),
                _binary.int4(claim.limit),
            ),
        )
        return (
            Call(self._begin),
            self._hold,
            take,
            Call(self._commit),
            Call(self._statements["READ_CLAIMED"]),
        )


def _claimed(request: ClaimRequest, taken: PGresult, kept: PGresult) -> ClaimAnswer:
    inputs: dict[bytes, tuple[bytes, bytes, datetime]] = {}
    memos: dict[bytes, list[MemoRow]] = {}
    for i in range(kept.ntuples):
        owner, seq = _value(kept, i, 0), _int(kept, i, 1)
        value, meta = _value(kept, i, 4), _value(kept, i, 5)
        at = _binary.to_datetime(_value(kept, i, 6))
        if seq == 0:
            inputs[owner] = (value, meta, at)
        else:
            row = MemoRow(seq, _text(kept, i, 2), _text(kept, i, 3), value, meta, at)
            memos.setdefault(owner, []).append(row)
    runs: list[ClaimedRun] = []
    highest: dict[Lane, tuple[int, int]] = {}
    for i in range(taken.ntuples):
        run_id = taken.get_value(i, 1)
        if run_id is None:
            break  # nothing was claimed
        value, meta, at = inputs.get(run_id, (b"", b"", _UNSET))
        memo = tuple(memos.get(run_id, ()))
        queue, workflow = _text(taken, i, 10), _text(taken, i, 11)
        resource, reason = taken.get_value(i, 12), taken.get_value(i, 13)
        if taken.get_value(i, 14) == b"\0":  # beside due runs the places say nothing about the ready ones
            highest[queue, workflow] = (_int(taken, i, 6), _int(taken, i, 7))
        runs.append(
            ClaimedRun(
                id=UUID(bytes=run_id),
                epoch=_int(taken, i, 2),
                next_seq=max(_int(taken, i, 3), memo[-1].seq + 1 if memo else 1),
                attempt=_int(taken, i, 4),
                crashes=_int(taken, i, 5),
                cancel_asked=taken.get_value(i, 9) == b"x",
                queue=queue,
                workflow=workflow,
                resource=None if resource is None else resource.decode(),
                reason=None if reason is None else reason.decode(),
                input=value,
                meta=meta,
                created_at=at,
                claimed_at=_binary.to_datetime(_value(taken, i, 8)),
                memo=memo,
            )
        )
    return ClaimAnswer(request.limit, runs, highest, _value(taken, 0, 0) == b"\x01")


def _check_commit(result: PGresult) -> None:
    # A COMMIT of a transaction that has failed answers ROLLBACK without an error.
    if result.command_status != b"COMMIT":
        raise CutError(f"the commit was answered {result.command_status!r}")


def _value(result: PGresult, row: int, column: int) -> bytes:
    value = result.get_value(row, column)
    if value is None:
        raise TypeError(f"null in column {column} of {result.command_status!r}")
    return value


def _int(result: PGresult, row: int, column: int) -> int:
    return _binary.to_int(_value(result, row, column))


def _text(result: PGresult, row: int, column: int) -> str:
    return _value(result, row, column).decode()
