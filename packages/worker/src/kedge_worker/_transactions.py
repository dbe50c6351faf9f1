"""
Transactional steps: the application's SQL and the step's memo in one commit, on a pool with ordinary settings.

Order: the body first; then the run's gate shuts, so that no other outcome gets a seq, and everything that the run has
queued becomes durable; then the fence (the run's row, locked), the memo, COMMIT. An unanswered commit is settled by
reading before anything is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from kedge.schema import render
from kedge_worker._pipeline import UNREPLICATED, shut_down
from kedge_worker._signals import LeaseLostError
from kedge_worker._silence import Silence
from kedge_worker._statements import (
    KEEP_TRANSACTION,
    LOCK_RUN,
    SETTLE_TRANSACTION,
)

if TYPE_CHECKING:
    from uuid import UUID

    from kedge_worker._runs import Journal, LiveRun, TransactionBody

_log: Final = logging.getLogger("kedge.worker")

_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
_REPEATABLE: Final = frozenset(("40001", "40P01"))
# The disk is full, all connections are taken: rolled back, and no failure of the body, as memory and limits may be.
_NO_ROOM: Final = frozenset(("53100", "53300"))
# The server or an administrator ended the session, or nobody went on with its transaction in time.
_KEPT_WAITING: Final = frozenset(("57P05", "25P03"))
_OVER: Final = frozenset(("57P01", "57P02", "57P03")) | _KEPT_WAITING
_LOOK_S: Final = 10.0

T = TypeVar("T")

Meta: TypeAlias = Callable[[], bytes]
"""Answers the memo's column `meta`, asked for when the body is done."""
Sealed: TypeAlias = "Callable[[LiveRun, int, str, str, bytes, bytes], tuple[bytes, bytes]]"
"""Encrypts value and meta of a row, by its run, seq, kind and key."""


def _no_meta() -> bytes:
    return b""


class InThread(Protocol):
    """Runs a function in one of the worker's threads."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


class TransactionRunner:
    """Implements `Transactions`; the pools open with the first step that needs them."""

    def __init__(
        self,
        conninfo: str,
        *,
        worker_id: UUID,
        schema: str,
        journal: Journal,
        connections: int,
        in_thread: InThread,
        sealed: Sealed | None = None,
        timeline: Callable[[], str] = str,
    ) -> None:
        self._conninfo = conninfo
        self._worker_id = worker_id
        self._journal = journal
        self._connections = connections
        self._in_thread = in_thread
        self._sealed = sealed
        self._timeline = timeline
        self._keep = render(KEEP_TRANSACTION, schema).encode()
        self._lock_run = render(LOCK_RUN, schema).encode()
        self._settle = render(SETTLE_TRANSACTION, schema).encode()
        self._silence = Silence(conninfo)
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._sync_pool: ConnectionPool[psycopg.Connection[Any]] | None = None

    async def run(self, run: LiveRun, key: str, body: TransactionBody, *, sync: bool, meta: Meta = _no_meta) -> int:
        """
        Answer the memo's seq, which stays in `run.assigned` until the handler has the value.

        Raises:
            psycopg.Error: The application's SQL failed, for good or too often; nothing is kept.
            LeaseLostError: Another worker owns the run; nothing is kept.
        """
        races = endings = 0
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if sync:
                    return await self._run_sync(run, key, cast("SyncBody", body), meta)
                return await self._run_async(run, key, cast("AsyncBody", body), meta)
            except _NotDoneError as gone:
                # Nothing was committed, and a database that is away is no failure of the body, however long it takes.
                endings += gone.by_body
                if endings == _TRIES:
                    raise gone.error from None
                _log.warning("run %s: transaction %r: %s; again in %.2g s", run.claimed.id, key, gone, pause_s)
            except psycopg.Error as error:
                if error.sqlstate not in _NO_ROOM:
                    races += 1
                    if error.sqlstate not in _REPEATABLE or races == _TRIES:
                        raise
                _log.warning("run %s: transaction %r: %s; again in %.2g s", run.claimed.id, key, error, pause_s)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  # jitter
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def aclose(self) -> None:
        await self._silence.aclose()
        if self._pool is not None:
            await self._pool.close()
        if self._sync_pool is not None:
            await asyncio.to_thread(self._sync_pool.close)

    async def _run_async(self, run: LiveRun, key: str, body: AsyncBody, meta: Meta) -> int:
        if self._pool is None:
            self._pool = AsyncConnectionPool(self._conninfo, min_size=0, max_size=self._connections, open=False)
            await self._pool.open()
        self._silence.start()
        started = time.monotonic()
        seq: int | None = None
        is_stored = False
        with _not_done(PoolTimeout):
            while self._silence.is_suspect(conn := await self._pool.getconn()):
                await conn.close()
                await self._pool.putconn(conn)
        try:
            with self._silence.watch(conn):
                async with _replicated(conn), conn.transaction():
                    value = await body(conn)
                    seq = await self._shut_gate(run)
                    stored = await conn.execute(self._keep, self._memo(run, seq, key, value, meta(), started))
                    if stored.rowcount == 0:
                        raise LeaseLostError
            is_stored = True
        except psycopg.Error as error:
            if not _is_over(conn, error):
                raise
            if seq is None or not await self._was_committed(run, seq):
                raise _NotDoneError(error, by_body=_is_ended_by_body(conn, error)) from error
            is_stored = True
        finally:
            if seq is not None:
                _leave_gate(run, seq, is_stored=is_stored)
            await self._pool.putconn(conn)
        assert seq is not None  # noqa: S101  # the body is done
        return seq

    async def _run_sync(self, run: LiveRun, key: str, body: SyncBody, meta: Meta) -> int:
        if self._sync_pool is None:
            self._sync_pool = ConnectionPool(self._conninfo, min_size=0, max_size=self._connections, open=True)
        pool = self._sync_pool
        self._silence.start()
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        abandoned = threading.Event()

        def work() -> int:
            seq: int | None = None
            is_stored = False
            with _not_done(PoolTimeout):
                while self._silence.is_suspect(conn := pool.getconn()):
                    conn.close()
                    pool.putconn(conn)
            try:
                with self._silence.watch(conn), _replicated_sync(conn), conn.transaction():
                    value = body(conn)
                    if abandoned.is_set():
                        raise LeaseLostError
                    seq = asyncio.run_coroutine_threadsafe(self._shut_gate(run), loop).result()
                    # While the gate is shut nobody else changes what it reads.
                    if conn.execute(self._keep, self._memo(run, seq, key, value, meta(), started)).rowcount == 0:
                        raise LeaseLostError
                is_stored = True
            except psycopg.Error as error:
                if not _is_over(conn, error):
                    raise
                settled = None if seq is None else asyncio.run_coroutine_threadsafe(self._was_committed(run, seq), loop)
                if settled is None or seq is None or not settled.result():
                    raise _NotDoneError(error, by_body=_is_ended_by_body(conn, error)) from error
                is_stored = True
            finally:
                if seq is not None:
                    loop.call_soon_threadsafe(functools.partial(_leave_gate, run, seq, is_stored=is_stored))
                pool.putconn(conn)
            assert seq is not None  # noqa: S101  # as above
            return seq

        task = asyncio.ensure_future(self._in_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # A thread cannot be stopped: it ends by itself, before its commit if it has not come that far.
            abandoned.set()
            await asyncio.wait((task,))
            if not task.cancelled() and task.exception() is None:
                run.assigned.discard(task.result())  # it was committed; the cancellation counts all the same
            raise

    def _memo(self, run: LiveRun, seq: int, key: str, value: bytes, meta: bytes, started: float) -> dict[str, object]:
        if self._sealed is not None:
            value, meta = self._sealed(run, seq, "t", key, value, meta)
        return {
            "run": run.claimed.id,
            "epoch": run.claimed.epoch,
            "worker": self._worker_id,
            "seq": seq,
            "took_ms": min(int((time.monotonic() - started) * 1000), 2**31 - 1),
            "key": key,
            "value": value,
            "meta": meta,
            "timeline": self._timeline(),
        }

    async def _shut_gate(self, run: LiveRun) -> int:
        """The run's next seq, once all before it is durable; nothing else of the run gets one until it is opened."""
        while run.gate is not None:
            await run.gate.wait()
        run.gate = asyncio.Event()
        try:
            await self._journal.durable(run)
        except BaseException:
            run.open_gate()
            raise
        seq = run.take_seq()
        run.assigned.add(seq)
        return seq

    async def _was_committed(self, run: LiveRun, seq: int) -> bool:
        """
        What became of an unanswered commit; read behind the run's lock, when no older transaction holds it.

        Raises:
            LeaseLostError: Another worker owns the run, or this one's lease was lost before the database answered.
        """
        fence = {"run": run.claimed.id, "epoch": run.claimed.epoch, "worker": self._worker_id, "seq": seq}
        pause_s = 0.05
        while not run.lost:
            try:
                mine, row = await self._look(fence)
            except (psycopg.OperationalError, TimeoutError) as error:
                _log.warning("run %s: cannot settle a transaction yet: %s", run.claimed.id, error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            if row is not None and row[0] == run.claimed.epoch:
                return True
            if mine is None:
                break
            return False
        raise LeaseLostError

    async def _look(self, fence: Mapping[str, object]) -> tuple[tuple[object, ...] | None, tuple[object, ...] | None]:
        """Whether the run is still ours, and the memo's row; bounded, so that a silent server is asked again."""
        opening = psycopg.AsyncConnection.connect(self._conninfo)
        conn: psycopg.AsyncConnection[tuple[object, ...]] = await asyncio.wait_for(opening, _LOOK_S)
        watchdog = asyncio.get_running_loop().call_later(_LOOK_S, shut_down, conn.pgconn)
        try:
            async with _replicated(conn), conn:
                # What was committed while the first statement waited for the lock must be visible to the second.
                await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
                mine = await (await conn.execute(self._lock_run, fence)).fetchone()
                return mine, await (await conn.execute(self._settle, fence)).fetchone()
        finally:
            watchdog.cancel()


class _NotDoneError(Exception):
    """The connection went, or there was none; nothing was committed."""

    def __init__(self, error: psycopg.Error, *, by_body: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.by_body = by_body


def _is_over(conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], error: psycopg.Error) -> bool:
    # By the state only where no application's SQL can raise it: 55000 or 25006 may be its own fault.
    return conn.closed or error.sqlstate in _OVER


def _is_ended_by_body(conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], error: psycopg.Error) -> bool:
    """Whether the body has closed its connection, or kept the server waiting longer than that likes."""
    return (conn.closed and not conn.broken) or error.sqlstate in _KEPT_WAITING


@contextlib.asynccontextmanager
async def _replicated(conn: psycopg.AsyncConnection[Any]) -> AsyncGenerator[None]:
    """
    Close the connection, and raise, when a commit in this block did not get the standby's word: it may be lost with
    this server, and is settled as if no answer had come. That takes the run's lock, whose commit waits for the standby.
    """
    with _watched(conn) as warnings:
        yield
    if warnings:
        await conn.close()
        raise psycopg.OperationalError(warnings[0])


@contextlib.contextmanager
def _replicated_sync(conn: psycopg.Connection[Any]) -> Generator[None]:
    with _watched(conn) as warnings:
        yield
    if warnings:
        conn.close()
        raise psycopg.OperationalError(warnings[0])


@contextlib.contextmanager
def _watched(conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> Generator[list[str]]:
    warnings: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if UNREPLICATED in (diagnostic.message_primary or ""):
            warnings.append(diagnostic.message_primary or "")

    conn.add_notice_handler(note)
    try:
        yield warnings
    finally:
        conn.remove_notice_handler(note)


@contextlib.contextmanager
def _not_done(kind: type[psycopg.Error]) -> Generator[None]:
    try:
        yield
    except kind as error:
        raise _NotDoneError(error) from error


AsyncBody: TypeAlias = Callable[["psycopg.AsyncConnection[Any]"], Awaitable[bytes]]
SyncBody: TypeAlias = Callable[["psycopg.Connection[Any]"], bytes]


def _leave_gate(run: LiveRun, seq: int, *, is_stored: bool) -> None:
    if not is_stored:
        run.assigned.discard(seq)  # a gap: it is never used again
    run.open_gate()
