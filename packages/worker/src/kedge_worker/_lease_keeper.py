"""
Keeps the worker's lease from a thread of its own, with a connection of its own, so that no blocked loop and no full
pool can cost it.

The lease is valid until (send time of the last accepted beat) + lease - 10 %: the local view always ends first. A
failed beat is "unknown" and is repeated; no row, or the end of that time, is "lost". A loop that has not answered for
two leases is dead, and the thread stops beating for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, cast
from uuid import UUID

import psycopg

from kedge.schema import render
from kedge_worker._pipeline import shut_down
from kedge_worker._statements import (
    BEAT,
)

_log: Final = logging.getLogger("kedge.worker")

_BEATS_A_LEASE: Final = 3
_MARGIN: Final = 0.1
_PATIENCE_LEASES: Final = 2
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
# A thread that connects to a silent server cannot be woken; nothing that it still does can harm.
_FAREWELL_S: Final = 0.25


class LeaseKeeper:
    """`start` it after the worker's row exists; `lost` and `asked` are called in the loop."""

    def __init__(
        self,
        conninfo: str,
        *,
        worker_id: UUID,
        schema: str,
        lease_s: float,
        lost: Callable[[str], None],
        asked: Callable[[UUID, str, str | None], None],
    ) -> None:
        self._conninfo = conninfo
        self._beat = render(BEAT, schema).encode()
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._lost = lost
        self._asked = asked
        self._conn: psycopg.Connection[tuple[object, ...]] | None = None
        self._stop = threading.Event()
        self._accepted_at = 0.0
        self._sending_since: float | None = None
        self._failed_at = -1e9
        self._loop_alive_at = 0.0
        self._thread: threading.Thread | None = None
        self._watch: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def may_take_back(self) -> bool:
        """False for one lease after a failed beat, and while one is overdue: perhaps only the database was away."""
        now = time.monotonic()
        overdue = now - self._accepted_at > 2 * self._lease_s / _BEATS_A_LEASE
        return not overdue and now - self._failed_at > self._lease_s

    @property
    def valid_until(self) -> float:
        """On the monotonic clock."""
        return self._accepted_at + self._lease_s * (1 - _MARGIN)

    def start(self, registered_at: float) -> None:
        """Begin to beat; `registered_at` is when the registration was sent, on the monotonic clock."""
        self._accepted_at = self._loop_alive_at = registered_at
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="kedge-lease", daemon=True)
        self._thread.start()
        self._watch = asyncio.create_task(self._watch_it(), name="kedge-lease-watch")

    async def stop(self) -> None:
        """End the thread; the row is the caller's."""
        self._stop.set()
        if self._watch is not None:
            self._watch.cancel()
        if self._thread is not None:
            self._cut()
            await asyncio.to_thread(self._thread.join, _FAREWELL_S)

    # ---- in the loop

    async def _watch_it(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 20)
            now = time.monotonic()
            self._loop_alive_at = now
            since = self._sending_since
            if since is not None and now - since > self._lease_s / _BEATS_A_LEASE:
                self._cut()  # a silent server; the thread connects anew
            if now > self.valid_until:
                self._end(f"no beat was accepted for {now - self._accepted_at:.1f} s")
                return

    def _end(self, why: str) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._lost(why)

    def _cut(self) -> None:
        conn = self._conn
        if conn is not None and not conn.closed:
            shut_down(conn.pgconn)

    # ---- in the thread

    def _run(self) -> None:
        period_s = self._lease_s / _BEATS_A_LEASE
        pause_s = _FIRST_PAUSE_S
        while not self._stop.wait(period_s if self._sending_since is None else min(pause_s, period_s)):
            if time.monotonic() - self._loop_alive_at > _PATIENCE_LEASES * self._lease_s:
                _log.error("lease: the event loop has not answered for %d leases; no more beats", _PATIENCE_LEASES)
                break
            sent_at = time.monotonic()
            if self._sending_since is None:
                self._sending_since = sent_at
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=max(2, int(period_s)))
                rows = self._conn.execute(self._beat, {"worker": self._worker_id}).fetchall()
            except psycopg.Error as error:
                self._failed_at = time.monotonic()
                if not self._stop.is_set():
                    _log.warning("lease: a beat failed, trying again: %s", error)
                if self._conn is not None:
                    self._conn.close()
                self._sending_since = time.monotonic()
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            self._sending_since = None
            pause_s = _FIRST_PAUSE_S
            self._answered(rows, sent_at)
        if self._conn is not None:
            self._conn.close()

    def _answered(self, rows: list[tuple[object, ...]], sent_at: float) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if not rows:
            loop.call_soon_threadsafe(self._end, "the worker's row is gone: another worker took its runs back")
            return
        self._accepted_at = sent_at
        for _, run_id, _, request, reason in rows:
            if request is not None:
                asked = (cast("UUID", run_id), str(request), cast("str | None", reason))
                loop.call_soon_threadsafe(self._asked, *asked)
