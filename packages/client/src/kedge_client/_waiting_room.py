"""
Where everybody sits who waits for a run's end, or watches all that happens to it: one listener, or one polling query.

Pushed: register the ids, look, then wait to be told and look again. Whoever ends a run takes the registrations after
the commit, so either the look sees the end or the end sees the registration. Both are unlogged and told without an
acknowledgement, so there is a look at all of them every five seconds too, and everything again after a reconnect.
Who watches looks for itself; here it is only rung for.
Works on one event loop; the sync client gives it a thread with a loop of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Final
from uuid import UUID, uuid4

import psycopg

from kedge.errors import ClosedClientError, KedgeError, RunNotFoundError, UnavailableError
from kedge.run_state import TERMINAL
from kedge_client._async_link import AsyncLink
from kedge_client._failures import first_line
from kedge_client._read_statements import OBSERVE, RESULTS, UNOBSERVE, UNWATCH, WATCH
from kedge_client._results import ResultRow
from kedge_client._round_trip import Answer, Command, Transaction
from kedge_client._statements import RING, Statement
from kedge_client._waiters import Waiter, ids_in

BACKSTOP_S: Final = 5.0
"""How often the listener looks at all runs that are waited for, told or not."""
FIRST_POLL_S: Final = 0.1
LAST_POLL_S: Final = 2.0
RENEW_S: Final = 30.0
"""How often an observer is registered again; forgotten after four times that."""
GOODBYE_S: Final = 1.0
"""How long close() tries to take back what is registered."""
LISTEN_AGAIN_S: Final = 1.0
"""How long to poll before the next attempt to listen."""
BATCH: Final = 1000
"""Ids in one look."""

_log: Final = logging.getLogger("kedge_client")


Look = Callable[[list[bytes]], Awaitable[list[ResultRow]]]
Ring = Callable[[], None]
_OBSERVED: Final = "observed:"


class WaitingRoom:
    """
    The waiters of one client. Runs are known here by the bytes of their ids, for a UUID is hashed in Python.

    Args:
        schema: The schema's name.
        look: One query for the results of these runs, on a connection of the client's.
        conninfo: How the listener gets its connection; None: poll.
        timeout_s: How long the server may take to answer.
        wake: Whether to ring for a worker that sorts the letter by which an observer asks to be told.
    """

    def __init__(
        self,
        *,
        schema: str,
        look: Look,
        conninfo: Callable[[], Awaitable[str]] | None,
        timeout_s: float,
        wake: bool = True,
    ) -> None:
        self._schema = schema
        self._look = look
        self._conninfo = conninfo
        self._timeout_s = timeout_s
        self._wake_worker = wake
        self._channel = f"kedge_c_{uuid4().hex}"
        self._waiters: dict[bytes, list[Waiter]] = {}
        self._fresh: set[bytes] = set()
        """Not registered yet."""
        self._told: set[bytes] = set()
        """Ended, says a notification."""
        self._registered: set[bytes] = set()
        """In the database, for all we know."""
        self._rings: dict[bytes, list[Ring]] = {}
        """Whom to tell that something has happened to a run."""
        self._observed: set[bytes] = set()
        """Runs of which we hear, for all we know."""
        self._observed_at = 0.0
        self._backstop: asyncio.TimerHandle | None = None
        self._is_late = False
        """The backstop says so: everything is to be looked at."""
        self._closing = False
        self._wake = asyncio.Event()
        self._server: asyncio.Task[None] | None = None

    async def wait(self, waiter: Waiter) -> ResultRow:
        """
        Wait until the run has ended. Cancelling the wait touches nothing else.

        Raises:
            RunNotFoundError: It must exist and does not, or it has been removed.
            ClosedClientError: The client was closed meanwhile.
        """
        self._begin()
        key = waiter.key
        self._waiters.setdefault(key, []).append(waiter)
        self._fresh.add(key)
        self._wake.set()
        try:
            return await waiter.ended
        finally:
            others = self._waiters[key]
            others.remove(waiter)
            if not others:
                del self._waiters[key]
                self._fresh.discard(key)

    def observe(self, run_id: UUID, ring: Ring) -> None:
        """Ring whenever something may have happened to a run, and once when its registration stands."""
        if self._closing:
            ring()
            return
        self._begin()
        self._rings.setdefault(run_id.bytes, []).append(ring)
        self._observed.discard(run_id.bytes)
        self._wake.set()

    def unobserve(self, run_id: UUID, ring: Ring) -> None:
        """Ring no longer."""
        rings = self._rings.get(run_id.bytes, [])
        if ring in rings:
            rings.remove(ring)
        if not rings and self._rings.pop(run_id.bytes, None) is not None:
            self._wake.set()

    async def close(self) -> None:
        """End the listener; whoever still waits gets ClosedClientError, and whoever watches is rung."""
        rung, self._rings = self._rings, {}
        if self._server is not None:
            self._closing = True
            self._wake.set()
            if self._observed:
                await asyncio.wait({self._server}, timeout=GOODBYE_S)
            self._server.cancel()
            await asyncio.gather(self._server, return_exceptions=True)
        for ring in (ring for rings in rung.values() for ring in rings):
            ring()
        self._fail_all(ClosedClientError("the client was closed while a result was awaited"))

    def _begin(self) -> None:
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve(), name="kedge results")

    async def _serve(self) -> None:
        try:
            while True:
                while not (self._waiters or self._rings or self._closing):
                    self._wake.clear()
                    await self._wake.wait()
                begun_at = monotonic()
                if self._conninfo is not None:
                    await self._listen(self._conninfo)
                if self._closing:
                    return
                if self._conninfo is None:
                    await self._poll(None)
                elif monotonic() - begun_at < LISTEN_AGAIN_S:
                    await self._poll(monotonic() + LISTEN_AGAIN_S)
        except Exception as error:  # noqa: BLE001  # whoever waits must hear of it, whatever it is
            _log.exception("waiting for results stopped")
            self._fail_all(error)

    async def _listen(self, conninfo: Callable[[], Awaitable[str]]) -> None:
        """Serve by notifications until the connection breaks, or there is none."""
        try:
            conn = await psycopg.AsyncConnection.connect(await conninfo(), autocommit=True)
        except (psycopg.Error, KedgeError) as error:
            _log.warning("no connection to listen on, polling for results: %s", first_line(error))
            return
        link = AsyncLink(conn, self._schema, prepares=True)
        try:
            await self._serve_by(link)
        except psycopg.OperationalError as error:
            _log.info("the connection that listens for results broke: %s", first_line(error))
        except psycopg.Error as error:
            # It can be had but not used, for want of a right perhaps: looks will say so, if they are refused as well.
            self._conninfo = None
            _log.warning("listening for results is refused, polling for them: %s", first_line(error))
        finally:
            self._observed.clear()
            if self._backstop is not None:
                self._backstop.cancel()
                self._backstop = None
            link.cut()

    async def _serve_by(self, link: AsyncLink) -> None:
        loop = asyncio.get_running_loop()
        link.conn.add_notify_handler(lambda notify: self._hear_of(notify.payload))
        await self._exchange(link, [[Command(Statement("listen", f"listen {self._channel}", {}, ()), ())]])
        self._fresh.update(self._waiters)
        self._registered.clear()
        self._observed.clear()
        link.on_words = partial(self._hear_and_wake, link)
        link.attach(loop)
        while True:
            self._wake.clear()
            self._hear(link)
            fresh, told = self._fresh, self._told
            self._fresh, self._told = set(), set()
            # The registration went with the notification.
            self._registered -= told
            for run_id in told & self._rings.keys():
                self._ring(run_id)
            if self._observed or self._rings:
                await self._unobserve(link)
            if self._closing:
                return
            if self._rings:
                await self._keep_observed(link)
            look_at = (fresh | told) & self._waiters.keys()
            if self._is_late:
                self._is_late = False
                look_at |= self._waiters.keys()
                await self._deregister(link, self._registered - self._waiters.keys() - self._rings.keys())
            await self._register_and_look(link, fresh, look_at)
            if self._wake.is_set() or self._told:
                continue
            if self._backstop is None and (self._waiters or self._registered or self._rings):
                self._backstop = loop.call_later(BACKSTOP_S, self._late)
            await self._wake.wait()

    def _late(self) -> None:
        self._backstop = None
        self._is_late = True
        self._wake.set()

    async def _register_and_look(self, link: AsyncLink, fresh: Collection[bytes], look_at: Collection[bytes]) -> None:
        for ids in _batches(look_at):
            transactions: list[Transaction] = []
            if register := [run_id for run_id in ids if run_id in fresh]:
                # In a transaction of its own: the look must begin when the registration can be seen.
                transactions.append([Command(WATCH, (register, self._channel))])
                self._registered.update(register)
            transactions.append([Command(RESULTS, (ids,))])
            answers = await self._exchange(link, transactions)
            self._settle(ids, map(ResultRow._make, answers[-1].rows[0]))

    async def _deregister(self, link: AsyncLink, ids: Collection[bytes]) -> None:
        for batch in _batches(ids):
            await self._exchange(link, [[Command(UNWATCH, (batch, self._channel))]])
            self._registered.difference_update(batch)

    async def _unobserve(self, link: AsyncLink) -> None:
        for ids in _batches(self._observed - self._rings.keys()):
            await self._exchange(link, [[Command(UNOBSERVE, (ids, self._channel))]])
            self._observed.difference_update(ids)

    async def _keep_observed(self, link: AsyncLink) -> None:
        """Register what is newly watched, and renew everything in time."""
        is_late = monotonic() - self._observed_at >= RENEW_S
        new = self._rings.keys() - self._observed
        for ids in _batches(self._rings.keys() if is_late else new):
            # Its end is told as to those who wait for it. One ring: any worker sorts the letters.
            transactions: list[Transaction] = [
                [Command(OBSERVE, (ids, self._channel))],
                [Command(WATCH, (ids, self._channel))],
            ]
            if self._wake_worker and not new.isdisjoint(ids):
                transactions.append([Command(RING, (None, None))])
            self._registered.update(ids)
            self._observed.update(ids)
            await self._exchange(link, transactions)
            for run_id in new.intersection(ids):
                self._ring(run_id)
        if is_late:
            self._observed_at = monotonic()

    def _ring(self, run_id: bytes) -> None:
        for ring in self._rings.get(run_id, ()):
            ring()

    async def _exchange(self, link: AsyncLink, transactions: Sequence[Transaction]) -> list[Answer]:
        answers: list[Answer] = []
        until = monotonic() + self._timeout_s
        await link.exchange(transactions, answers, until)
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        return answers

    def _hear_and_wake(self, link: AsyncLink) -> None:
        try:
            self._hear(link)
        except psycopg.OperationalError:
            # Whoever is woken hears it again.
            link.detach()
        self._wake.set()

    def _hear(self, link: AsyncLink) -> None:
        """Take what has come by itself."""
        pgconn = link.conn.pgconn
        pgconn.consume_input()
        while notify := pgconn.notifies():
            self._hear_of(notify.extra.decode())

    def _hear_of(self, payload: str) -> None:
        if payload.startswith(_OBSERVED):
            for run_id in ids_in(payload.removeprefix(_OBSERVED)):
                self._ring(run_id)
        else:
            self._told.update(ids_in(payload))

    async def _poll(self, until: float | None) -> None:
        """Serve by looking, every 0.1 s at first, doubling to 2 s; from the start again when somebody comes."""
        pause = FIRST_POLL_S
        while until is None or monotonic() < until:
            self._wake.clear()
            if self._fresh:
                pause = FIRST_POLL_S
            self._fresh.clear()
            for ids in _batches(self._waiters):
                try:
                    rows = await self._look(ids)
                except UnavailableError as error:
                    # An outage ends no wait: the runs go on when it is over, and a wait has its own time.
                    _log.info("a look for results failed: %s", first_line(error))
                    break
                except KedgeError as error:
                    self._fail_all(error)
                    break
                self._settle(ids, rows)
            await self._sleep(pause if self._waiters else None, until)
            pause = min(2 * pause, LAST_POLL_S)

    async def _sleep(self, pause: float | None, until: float | None) -> None:
        """Wait for the next poll, or until somebody comes; the first who comes after a pause waits for no other."""
        limits = [limit for limit in (pause, None if until is None else until - monotonic()) if limit is not None]
        try:
            async with asyncio.timeout(max(0.0, min(limits)) if limits else None):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _settle(self, looked_at: Iterable[bytes], rows: Iterable[ResultRow]) -> None:
        found = {row.id: row for row in rows}
        for run_id in looked_at:
            row = found.get(run_id)
            for waiter in self._waiters.get(run_id, ()):
                if waiter.ended.done():
                    continue
                if row is None:
                    if waiter.must_exist or waiter.status is not None:
                        waiter.ended.set_exception(RunNotFoundError(waiter.run_id))
                    continue
                waiter.status = row.status
                if row.status in TERMINAL:
                    waiter.ended.set_result(row)

    def _fail_all(self, error: Exception) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.ended.done():
                    waiter.ended.set_exception(error)


def _batches(ids: Iterable[bytes]) -> list[list[bytes]]:
    listed = list(ids)
    return [listed[start : start + BATCH] for start in range(0, len(listed), BATCH)]
