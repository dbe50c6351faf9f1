"""The moves that need a lease, and what settles them, on the one connection that locks the worker's row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

import psycopg

import kedge_worker._binary as _binary
from kedge.schema import render
from kedge_worker._claims import ClaimAnswer, ClaimRequest, read_claim
from kedge_worker._errors import is_gone
from kedge_worker._outcomes import End, GiveBack, Park, RetryLater
from kedge_worker._pipeline import Call, CutError, Pipeline, Statement, int_of, rows_of, value_of
from kedge_worker._runs import Batch, LiveRun, Row
from kedge_worker._side_writes import SIDE_WRITES
from kedge_worker._signals import LeaseLostError
from kedge_worker._statements import (
    AWAIT_STANDBY,
    CHARGE,
    CLAIM,
    END,
    HAS_MAIL,
    HOLD_WORKER,
    KEEP,
    LOCK_MOVING,
    NOTIFY_IF_ENDED,
    NOTIFY_OBSERVERS,
    NOTIFY_WATCHERS,
    OWNED,
    PARK,
    READ_CLAIMED,
    READ_MAIL,
    READ_WAITS,
    RELEASE,
    RETRY_LATER,
    RING_LANES,
    SERVER_LIFE,
    SETTLE_ROWS,
    SETTLE_RUNS,
    TAKE_OVER_JOURNAL,
)

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

# What the column holds: 24 days.
_LONGEST_MS: Final = 2**31 - 1

_STATEMENTS: Final = {
    "HOLD_WORKER": HOLD_WORKER,
    "CLAIM": CLAIM,
    "READ_CLAIMED": READ_CLAIMED,
    "READ_WAITS": READ_WAITS,
    "READ_MAIL": READ_MAIL,
    "KEEP": KEEP,
    **{side.name: side.sql for side in SIDE_WRITES},
    "END": END,
    "HAS_MAIL": HAS_MAIL,
    "PARK": PARK,
    "RETRY_LATER": RETRY_LATER,
    "RELEASE": RELEASE,
    "CHARGE": CHARGE,
    "LOCK_MOVING": LOCK_MOVING,
    "NOTIFY_WATCHERS": NOTIFY_WATCHERS,
    "NOTIFY_IF_ENDED": NOTIFY_IF_ENDED,
    "NOTIFY_OBSERVERS": NOTIFY_OBSERVERS,
    "RING_LANES": RING_LANES,
    "SETTLE_ROWS": SETTLE_ROWS,
    "SETTLE_RUNS": SETTLE_RUNS,
    "TAKE_OVER_JOURNAL": TAKE_OVER_JOURNAL,
    "AWAIT_STANDBY": AWAIT_STANDBY,
    "SERVER_LIFE": SERVER_LIFE,
    "OWNED": OWNED,
}


@dataclass(frozen=True, slots=True)
class FlushAnswer:
    """How many rows and moves the database took; fewer than were sent must be settled."""

    kept: int
    moved: int
    has_mail: bool
    """There are letters to be sorted: perhaps some that this flush has written, such as a child's end to its parent."""
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
        self._read_claimed = [Call(self._statements[name]) for name in ("READ_CLAIMED", "READ_WAITS", "READ_MAIL")]

    @property
    def timeline(self) -> str:
        """Of the server that this life began with, as names of WAL files say it; empty before the first connection."""
        return "" if self._timeline is None else self._timeline.decode()

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
            timeline = value_of(results[1], 0, 1)
            if self._timeline not in (None, timeline):
                raise LeaseLostError("the server was promoted: what the old one confirmed last may be missing here")
            self._timeline = timeline
            # Already now: if the standby stays away, the next one ends this one. Not libpq's word for the pid: behind a
            # pooler that is made up.
            self._predecessor = (value_of(results[1], 0, 2), value_of(results[1], 0, 0))
            await pipeline.roundtrip((Call(self._statements["AWAIT_STANDBY"]),), timeout_s=self._timeout_s)
        except psycopg.InternalError as error:
            pipeline.abort()
            if is_gone(error):  # it takes no writes
                raise CutError(str(error)) from error
            raise
        except BaseException:
            pipeline.abort()
            raise
        self._pipeline = pipeline

    def abort(self) -> None:
        """Close the connection at once."""
        if self._pipeline is not None:
            self._pipeline.abort()
            self._pipeline = None

    async def flush(
        self,
        batch: Batch,
        claim: ClaimRequest | None,
        *,
        only: frozenset[UUID] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> FlushAnswer:
        """
        Write the batch and claim in one transaction, then read what was claimed, and ring who waits for what has moved:
        one round trip, one commit.

        With `only` (the careful form, inside the transaction that `lock_moving` opened) no BEGIN is sent.
        `meanwhile` is called when all is on its way, if it comes to that.
        """
        calls = [] if only is not None else [Call(self._begin), self._hold]
        kept_at = None
        if batch.rows:
            kept_at = len(calls)
            calls.append(self._keep(batch.rows))
        calls += self._sides(batch)
        first_move = len(calls)
        calls += self._moves(batch)
        behind_moves = len(calls)
        if claim is not None:
            # Behind the moves: what they give back can be claimed. It skips what is locked, so it holds up no move.
            calls.append(self._claim(claim, is_alone=not batch))
        committed_at = len(calls)
        calls.append(Call(self._commit))
        if claim is not None:
            calls += self._read_claimed
        # Last, and in no transaction that writes data: NOTIFY holds one lock of the whole server across its commit.
        calls += self._bells(batch)
        looks = claim is None and bool(batch.moves)  # a claim looks by itself
        if looks:
            calls.append(Call(self._statements["HAS_MAIL"]))
        results = await self._roundtrip(calls, meanwhile)
        _check_commit(results[committed_at])
        answer = None
        if claim is not None:
            read = results[committed_at + 1 : committed_at + 1 + len(self._read_claimed)]
            answer = read_claim(claim, rows_of(results[behind_moves]), *map(rows_of, read))
        return FlushAnswer(
            kept=(results[kept_at].command_tuples or 0) if kept_at is not None else 0,
            moved=sum(int_of(results[at], 0, 0) for at in range(first_move, behind_moves)),
            has_mail=looks and value_of(results[-1], 0, 0) == b"\x01",
            claim=answer,
        )

    async def notify_ended(self, runs: Sequence[LiveRun]) -> None:
        """Ring who waits for those of these runs that have ended."""
        ids = _binary.uuids([run.packed_id for run in runs])
        await self._roundtrip([Call(self._statements["NOTIFY_IF_ENDED"], (ids,))])

    async def lock_moving(self, batch: Batch) -> frozenset[UUID]:
        """Open a transaction and lock the moving runs of the batch that nobody else holds; `flush(only=)` ends it."""
        ids = _binary.uuids([run.packed_id for run, _ in batch.moves])
        lock = Call(self._statements["LOCK_MOVING"], (self._worker, ids))
        results = await self._roundtrip([Call(self._begin), self._hold, lock])
        return frozenset(run_id for (run_id,) in rows_of(results[2]))

    async def settle(self, runs: Sequence[LiveRun], rows: Sequence[Row]) -> dict[UUID, Standing]:
        """Where these runs and these rows stand; final, since no older transaction of this worker lives."""
        results = await self._roundtrip(
            [
                Call(
                    self._statements["SETTLE_ROWS"],
                    (
                        _binary.uuids([row.run.packed_id for row in rows]),
                        _binary.ints([row.seq for row in rows]),
                    ),
                ),
                Call(
                    self._statements["SETTLE_RUNS"],
                    (self._worker, _binary.uuids([run.packed_id for run in runs])),
                ),
            ]
        )
        stored: dict[UUID, dict[int, int]] = {run.claimed.id: {} for run in runs}
        for run_id, seq, epoch in rows_of(results[0]):
            stored[run_id][seq] = epoch
        standing = {run_id: (epoch, mine) for run_id, epoch, mine in rows_of(results[1])}
        answer: dict[UUID, Standing] = {}
        for run in runs:
            run_id = run.claimed.id
            epoch, mine = standing.get(run_id, (None, None))
            is_mine = mine is True and epoch == run.claimed.epoch
            answer[run_id] = Standing(stored[run_id], epoch, is_mine, mine is not None)
        return answer

    async def owned(self) -> dict[UUID, int]:
        """Every run (and its epoch) that the database holds for this worker."""
        (result,) = await self._roundtrip([Call(self._statements["OWNED"], (self._worker,))])
        return dict(rows_of(result))

    async def give_back(self, runs: Mapping[UUID, int]) -> None:
        """
        Return runs (id -> epoch) that this process does not know, charging nobody. Those whose rows somebody else has
        locked stay: the next comparison finds them.
        """
        lock = Call(self._statements["LOCK_MOVING"], (self._worker, _binary.uuids([i.bytes for i in runs])))
        results = await self._roundtrip([Call(self._begin), self._hold, lock])
        free = [run_id for (run_id,) in rows_of(results[2])]
        none: list[None] = [None] * len(free)
        release = self._release_call(
            [run_id.bytes for run_id in free],
            [runs[run_id] for run_id in free],
            [0.0] * len(free),
            none,
            [0] * len(free),
        )
        await self._roundtrip([release, Call(self._commit)])

    async def charge(self, run: UUID) -> None:
        """Take a run out of this worker's hand as if that had died with it; one that somebody has locked stays."""
        ids = _binary.uuids([run.bytes])
        lock = Call(self._statements["LOCK_MOVING"], (self._worker, ids))
        results = await self._roundtrip([Call(self._begin), self._hold, lock])
        charging = [Call(self._statements["CHARGE"], (self._worker, ids))] if results[2].ntuples else []
        bell = Call(self._statements["NOTIFY_IF_ENDED"], (ids,))
        await self._roundtrip([*charging, Call(self._commit), bell])

    async def _roundtrip(self, calls: Sequence[Call], meanwhile: Callable[[], None] = lambda: None) -> list[PGresult]:
        pipeline = self._pipeline
        if pipeline is None or pipeline.closed:
            raise CutError("the journal's connection is closed")
        try:
            return await pipeline.roundtrip(calls, timeout_s=self._timeout_s, meanwhile=meanwhile)
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
                _binary.uuids([row.run.packed_id for row in rows]),
                _binary.ints([row.seq for row in rows]),
                _binary.ints([row.run.claimed.epoch for row in rows]),
                _binary.ints([min(row.took_ms, _LONGEST_MS) for row in rows]),
                _binary.chars([row.kind.encode() for row in rows]),
                _binary.texts([row.key for row in rows]),
                _binary.byteas([row.value for row in rows]),
                _binary.byteas([row.meta for row in rows]) if any(row.meta for row in rows) else None,
            ),
        )

    def _sides(self, batch: Batch) -> Iterator[Call]:
        if batch.sides:
            for side in SIDE_WRITES:
                if entries := batch.sides.get(side):
                    runs = [run.claimed for run, _ in entries]
                    whose = (_binary.uuids([run.id.bytes for run in runs]), _binary.ints([run.epoch for run in runs]))
                    columns = side.parameters([values for _, values in entries])
                    yield Call(self._statements[side.name], (self._worker, *whose, *columns))

    def _moves(self, batch: Batch) -> Iterator[Call]:
        if ends := [(run, move) for run, move in batch.moves if isinstance(move, End)]:
            yield self._end(ends, batch.rows)
        if len(ends) == len(batch.moves):
            return
        if parks := [(run, move) for run, move in batch.moves if isinstance(move, Park)]:
            yield self._park(parks)
        if retries := [(run, move) for run, move in batch.moves if isinstance(move, RetryLater)]:
            yield self._retry_later(retries)
        if releases := [(run, move) for run, move in batch.moves if isinstance(move, GiveBack)]:
            yield self._release(releases)

    def _park(self, parks: Sequence[tuple[LiveRun, Park]]) -> Call:
        stale = [(run.packed_id, key) for run, move in parks for key in move.stale]
        return Call(
            self._statements["PARK"],
            (
                self._worker,
                _binary.uuids([run.packed_id for run, _ in parks]),
                _binary.ints([run.claimed.epoch for run, _ in parks]),
                _binary.ints([run.next_seq - 1 for run, _ in parks]),
                _binary.uuids([run for run, _ in stale]),
                _binary.texts([key for _, key in stale]),
            ),
        )

    def _retry_later(self, retries: Sequence[tuple[LiveRun, RetryLater]]) -> Call:
        return Call(
            self._statements["RETRY_LATER"],
            (
                self._worker,
                _binary.uuids([run.packed_id for run, _ in retries]),
                _binary.ints([run.claimed.epoch for run, _ in retries]),
                _binary.floats([move.delay_s for _, move in retries]),
                _binary.byteas([move.error for _, move in retries]),
                _binary.texts([None for _ in retries]),
                _binary.ints([run.next_seq - 1 for run, _ in retries]),
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
                _binary.uuids([run.packed_id for run, _ in ends]),
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
            [run.packed_id for run, _ in releases],
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

    def _bells(self, batch: Batch) -> Iterator[Call]:
        if observed := batch.observed():
            ids = _binary.uuids([run.packed_id for run in observed])
            yield Call(self._statements["NOTIFY_OBSERVERS"], (ids,))
        if not batch.moves:
            return
        ended = [run.packed_id for run, move in batch.moves if isinstance(move, End)]
        if ended:
            yield Call(self._statements["NOTIFY_WATCHERS"], (_binary.uuids(ended),))
        if len(ended) == len(batch.moves):
            return
        rest = [run.packed_id for run, move in batch.moves if not isinstance(move, End)]
        yield Call(self._statements["NOTIFY_IF_ENDED"], (_binary.uuids(rest),))
        lanes = {
            (run.claimed.queue, run.claimed.workflow)
            for run, move in batch.moves
            if isinstance(move, GiveBack | RetryLater) and move.delay_s <= 0
        }
        queues, workflows = [queue for queue, _ in lanes], [workflow for _, workflow in lanes]
        yield Call(self._statements["RING_LANES"], (_binary.texts(queues), _binary.texts(workflows)))

    def _claim(self, claim: ClaimRequest, *, is_alone: bool) -> Call:
        lanes = list(claim.floors)
        return Call(
            self._statements["CLAIM"],
            (
                self._worker,
                _binary.texts([queue for queue, _ in lanes]),
                _binary.texts([workflow for _, workflow in lanes]),
                _binary.ints([rank for rank, _ in claim.floors.values()]),
                _binary.bigints([seq for _, seq in claim.floors.values()]),
                _binary.int4(claim.limit),
                _binary.optional_floats([claim.timeouts.get(lane) for lane in lanes]) if claim.timeouts else None,
                b"\x01" if is_alone else b"\0",
                _binary.int4(claim.candidates),
            ),
        )


def _check_commit(result: PGresult) -> None:
    # A COMMIT of a transaction that has failed answers ROLLBACK without an error.
    if result.command_status != b"COMMIT":
        raise CutError(f"the commit was answered {result.command_status!r}")
