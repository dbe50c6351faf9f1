"""
Transactional steps: the application's SQL and the step's memo in one commit, on a pool with ordinary settings.

Order: the body first; then the run's gate shuts, so that no other outcome gets a seq, and everything that the run has
queued becomes durable; then the fence (the run's row, locked), the memo, COMMIT. An unanswered commit is settled by
reading before anything is repeated.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from kedge.schema import render
from kedge_worker import _statements
from kedge_worker._signals import LeaseLostError

if TYPE_CHECKING:
    from uuid import UUID

    from kedge_worker._runs import Journal, LiveRun, TransactionBody

_log: Final = logging.getLogger("kedge.worker")

_TRIES: Final = 5
_REPEATABLE: Final = frozenset(("40001", "40P01"))

T = TypeVar("T")


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
    ) -> None:
        self._conninfo = conninfo
        self._worker_id = worker_id
        self._journal = journal
        self._connections = connections
        self._in_thread = in_thread
        self._keep = render(_statements.KEEP_TRANSACTION, schema).encode()
        self._lock_run = render(_statements.LOCK_RUN, schema).encode()
        self._settle = render(_statements.SETTLE_TRANSACTION, schema).encode()
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._sync_pool: ConnectionPool[psycopg.Connection[Any]] | None = None

    async def run(self, run: LiveRun, key: str, body: TransactionBody, *, sync: bool) -> bytes:
        """
        Raises:
            psycopg.Error: The application's SQL failed, for good or too often; nothing is kept.
            LeaseLostError: Another worker owns the run; nothing is kept.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                if sync:
                    return await self._run_sync(run, key, cast("SyncBody", body))
                return await self._run_async(run, key, cast("AsyncBody", body))
            except psycopg.Error as error:
                # Rolled back for certain, or the connection went before the commit: the body did only SQL.
                state = error.sqlstate
                again = state in _REPEATABLE or (state is None and isinstance(error, psycopg.OperationalError))
                if not again or attempt == _TRIES:
                    raise
                _log.warning("run %s: transaction %r rolled back (%s), again", run.claimed.id, key, state or error)
            await asyncio.sleep(0.02 * 2**attempt * random.uniform(0.5, 1))  # noqa: S311  # jitter
        raise AssertionError("unreachable")

    async def aclose(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        if self._sync_pool is not None:
            await asyncio.to_thread(self._sync_pool.close)

    async def _run_async(self, run: LiveRun, key: str, body: AsyncBody) -> bytes:
        if self._pool is None:
            self._pool = AsyncConnectionPool(self._conninfo, min_size=0, max_size=self._connections, open=False)
            await self._pool.open()
        started = time.monotonic()
        seq = None
        async with self._pool.connection() as conn:
            try:
                async with conn.transaction():
                    value = await body(conn)
                    seq = await self._shut_gate(run)
                    stored = await conn.execute(self._keep, self._memo(run, seq, key, value, started))
                    if stored.rowcount == 0:
                        raise LeaseLostError
            except psycopg.OperationalError as error:
                if seq is None or error.sqlstate is not None or not await self._was_committed(run, seq):
                    raise
            finally:
                if seq is not None:
                    _open_gate(run)
        return value

    async def _run_sync(self, run: LiveRun, key: str, body: SyncBody) -> bytes:
        if self._sync_pool is None:
            self._sync_pool = ConnectionPool(self._conninfo, min_size=0, max_size=self._connections, open=True)
        pool = self._sync_pool
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        abandoned = threading.Event()

        def work() -> bytes:
            seq = None
            with pool.connection() as conn:
                try:
                    with conn.transaction():
                        value = body(conn)
                        if abandoned.is_set():
                            raise LeaseLostError
                        seq = asyncio.run_coroutine_threadsafe(self._shut_gate(run), loop).result()
                        memo = self._memo(run, seq, key, value, started)
                        if conn.execute(self._keep, memo).rowcount == 0:
                            raise LeaseLostError
                except psycopg.OperationalError as error:
                    if seq is None or error.sqlstate is not None:
                        raise
                    settled = asyncio.run_coroutine_threadsafe(self._was_committed(run, seq), loop)
                    if not settled.result():
                        raise
                finally:
                    if seq is not None:
                        loop.call_soon_threadsafe(_open_gate, run)
            return value

        task = asyncio.ensure_future(self._in_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # A thread cannot be stopped: it ends by itself, before its commit if it has not come that far.
            abandoned.set()
            await asyncio.wait((task,))
            raise

    def _memo(self, run: LiveRun, seq: int, key: str, value: bytes, started: float) -> dict[str, object]:
        return {
            "run": run.claimed.id,
            "epoch": run.claimed.epoch,
            "worker": self._worker_id,
            "seq": seq,
            "took_ms": int((time.monotonic() - started) * 1000),
            "key": key,
            "value": value,
        }

    async def _shut_gate(self, run: LiveRun) -> int:
        """The run's next seq, once all before it is durable; nothing else of the run gets one until `_open_gate`."""
        while run.gate is not None:
            await run.gate.wait()
        run.gate = asyncio.Event()
        try:
            await self._journal.durable(run)
        except BaseException:
            _open_gate(run)
            raise
        return run.take_seq()

    async def _was_committed(self, run: LiveRun, seq: int) -> bool:
        """What became of an unanswered commit; read behind the run's lock, when no older transaction holds it."""
        fence = {"run": run.claimed.id, "epoch": run.claimed.epoch, "worker": self._worker_id, "seq": seq}
        pause_s = 0.05
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo) as conn:
                    mine = await (await conn.execute(self._lock_run, fence)).fetchone()
                    row = await (await conn.execute(self._settle, fence)).fetchone()
            except psycopg.OperationalError as error:
                _log.warning("run %s: cannot settle a transaction yet: %s", run.claimed.id, error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 5.0)
                continue
            if row is not None and row[0] == run.claimed.epoch:
                return True
            if mine is None:
                raise LeaseLostError
            return False


AsyncBody: TypeAlias = Callable[["psycopg.AsyncConnection[Any]"], Awaitable[bytes]]
SyncBody: TypeAlias = Callable[["psycopg.Connection[Any]"], bytes]


def _open_gate(run: LiveRun) -> None:
    gate, run.gate = run.gate, None
    if gate is not None:
        gate.set()
