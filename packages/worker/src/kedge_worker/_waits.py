"""
The open waits of one run in memory, and its unread mail: which wait takes what, and when a wait's time is up.

What ends a wait is kept at that moment, in the order of arrival, and gets its seq; the handler goes on with it as with
the outcome of a step. Parking only evicts: the next life begins the same waits again and finds what is stored of them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from kedge_worker._side_writes import CLOSE_WAITS, CONSUME_MAIL, OPEN_WAITS

if TYPE_CHECKING:
    from kedge_worker._outcomes import RowKind
    from kedge_worker._races import Race
    from kedge_worker._runs import Journal, LiveRun, Mail, StoredWait

KEY_SLOT: Final = "k:"
_SENT_EARLY: Final = frozenset({"e", "c"})
"""Kinds of waits whose mail may come before they begin: it counts even if they end at once."""


class Kept(NamedTuple):
    """What ended a wait, as a journal row."""

    kind: RowKind
    value: bytes
    of: str
    """The operation, for rows that do not say it by their kind."""


class Served(NamedTuple):
    """What a wait ended with. Without a row its time has come, and its operation goes on."""

    seq: int
    kept: Kept | None


class Wait:
    """What one operation waits for. Durations in seconds."""

    __slots__ = (
        "attempt",
        "delay_s",
        "due_at",
        "future",
        "group_key",
        "is_due",
        "key",
        "kind",
        "limit_s",
        "looked",
        "need",
        "race",
        "read",
        "slot",
        "state",
        "time_up",
        "timer",
    )

    def __init__(
        self,
        kind: str,
        key: str,
        *,
        read: Callable[[Mail], Kept | None],
        time_up: Callable[[], Kept | None],
        slot: str | None = None,
        delay_s: float | None = None,
        due_at: datetime | None = None,
        limit_s: float | None = None,
        attempt: int = 0,
        need: int = 0,
        group_key: str | None = None,
        state: bytes = b"",
    ) -> None:
        self.kind = kind
        self.key = key
        self.read = read
        """What mail becomes; None: nothing can be made of it, and it is dropped."""
        self.time_up = time_up
        """What the end of its time becomes; None: no row, the operation goes on."""
        self.slot = slot
        self.delay_s = delay_s
        self.due_at = due_at
        self.limit_s = limit_s
        self.attempt = attempt
        self.need = need
        self.group_key = group_key
        self.state = state
        self.future: asyncio.Future[Served] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.race: Race | None = None
        """It takes nothing when another wait of its race has been served."""
        self.is_due = False
        self.looked = False
        """All mail from before its time was up is known."""


class RunWaits:
    """
    Made when a run first waits, or was claimed with something to wait for.

    Args:
        run: Whose.
        journal: Keeps what ends a wait, and what is open.
        keep: Queues a journal row of the run and answers its seq; None: nothing may be kept any more.
        changed: Called when the run begins to wait, and when it no longer does.
        look: Asks for a look at the run's mail.
        look_at_clock: Asks for a look at the database's clock, which alone ends a time; None: there is no database.
    """

    def __init__(
        self,
        run: LiveRun,
        journal: Journal,
        loop: asyncio.AbstractEventLoop,
        keep: Callable[[Kept, str], int | None],
        changed: Callable[[], None],
        look: Callable[[], None],
        look_at_clock: Callable[[], None] | None = None,
    ) -> None:
        self._run = run
        self._journal = journal
        self._loop = loop
        self._keep = keep
        self._changed = changed
        self._look = look
        self._look_at_clock = look_at_clock
        self._stored = {wait.key: wait for wait in run.claimed.waits}
        self._asked: set[str] = set()
        self._mail: list[Mail] = []
        """Unread, in order of arrival."""
        self._slots: dict[str, list[Mail]] = {}
        """The same by whom it is for: of a map thousands wait."""
        self._known: set[UUID] = set()
        self._put(run.claimed.mail)
        self._claimed_at = loop.time()
        self.serves_soon = False
        """Waits of a race have begun, and are looked at in the event loop's next round."""
        self.open: dict[str, Wait] = {}
        """By key, in the order in which they began."""
        run.gate_opened = self.serve

    def stored(self, key: str) -> StoredWait | None:
        """What earlier lives have left of this wait."""
        return self._stored.get(key)

    def state_of(self, key: str) -> bytes | None:
        """What stands in the database beside an open wait; None: there is none."""
        wait = self.open.get(key)
        if wait is not None:
            return wait.state
        stored = self._stored.get(key)
        return None if stored is None else stored.state

    def left_s(self, seconds: float | None) -> float | None:
        """What is left now of a time that was stored, and read with the claim."""
        return None if seconds is None else seconds - (self._loop.time() - self._claimed_at)

    @property
    def is_served(self) -> bool:
        """Whether a wait has been served whose operation has not gone on yet."""
        return any(wait.future is not None and wait.future.done() for wait in self.open.values())

    def nearest_s(self) -> float | None:
        """Until the first of its times comes; None: there is none."""
        times = [wait.timer.when() for wait in self.open.values() if wait.timer is not None]
        return min(times) - self._loop.time() if times else None

    def has_begun(self, key: str) -> bool:
        """Whether this life has opened the wait, or gone on with a stored one."""
        return key in self._asked

    def stale(self) -> tuple[str, ...]:
        """The stored waits that this life's code has not asked for."""
        return tuple(key for key in self._stored if key not in self._asked)

    def known_mail(self) -> Iterable[UUID]:
        """What need not be fetched again."""
        batch = self._run.batch
        if len(self._known) > len(self._mail) and (batch is None or batch.stored):
            # What was taken is stored as read: nobody fetches it.
            self._known = {mail.id for mail in self._mail}
        return self._known

    # ---- a wait's life

    def begin(self, wait: Wait) -> bool:
        """Open the wait; answers whether earlier lives have stored it, so that nothing is written."""
        wait.future = self._loop.create_future()
        self.open[wait.key] = wait
        if len(self.open) == 1:
            self._changed()
        stored = self._stored.get(wait.key)
        self._asked.add(wait.key)
        is_stored = stored is not None and stored.attempt >= wait.attempt
        if is_stored and stored is not None and stored.left_s is not None and stored.left_s <= 0:
            # The claim has read its mail too. Served now: a worker without free slots would park it again.
            wait.is_due = wait.looked = True
        if wait.race is None:
            self._serve_begun(wait)
        else:
            # When the others have begun, too: one of them may know from an earlier life that it has won.
            self.serves_soon = True
            self._loop.call_soon(self.serve)
        if is_stored or wait.future.done():
            return True
        if wait.kind in _SENT_EARLY and not wait.looked:
            self._look()
        self._journal.add(
            self._run,
            OPEN_WAITS,
            wait.key,
            wait.kind,
            wait.slot,
            wait.delay_s,
            wait.due_at,
            wait.limit_s,
            wait.attempt,
            wait.need,
            wait.group_key,
            wait.state,
            size=200 + len(wait.state),
        )
        return False

    def arm(self, wait: Wait, seconds: float | None) -> None:
        """Let the wait's time begin: it is stored."""
        if seconds is not None and wait.future is not None and not wait.future.done():
            if wait.timer is not None:
                wait.timer.cancel()
            wait.timer = self._loop.call_later(max(seconds, 0.0), self._ring, wait.key, wait.attempt)

    def _ring(self, key: str, attempt: int) -> None:
        # This machine's clock may run faster than the database's: then it is asked again.
        if self._look_at_clock is None:
            self.come(key, attempt)
        else:
            self._look_at_clock()

    def comes_in(self, key: str, attempt: int, seconds: float) -> None:
        """What the database says of the time that is left."""
        if seconds <= 0:
            self.come(key, attempt)
        elif (wait := self.open.get(key)) is not None and wait.attempt == attempt and not wait.is_due:
            self.arm(wait, seconds)

    def end(self, wait: Wait) -> None:
        """The operation has been served, or has given up."""
        if wait.timer is not None:
            wait.timer.cancel()
        if self.open.get(wait.key) is wait:
            del self.open[wait.key]
            if not self.open:
                self._changed()

    # ---- what ends it

    def receive(self, mail: Iterable[Mail]) -> None:
        """Mail has come; what is known already is left alone."""
        new = [one for one in mail if one.id not in self._known]
        if new:
            self._put(new)
            self.serve()

    def come(self, key: str, attempt: int) -> None:
        """The time of this wait, or of its next attempt, has come; one that was stored before may be over."""
        if (wait := self.open.get(key)) is not None and wait.attempt <= attempt:
            wait.is_due = True
            if wait.looked or wait.kind not in _SENT_EARLY:
                self.serve()
            else:
                self._look()

    def due(self) -> list[Wait]:
        """Those whose time has come, and that end when the mail from before it is known."""
        return [wait for wait in self.open.values() if wait.is_due]

    def has_looked(self, due: Iterable[Wait]) -> None:
        """All mail that had come when these were due is received."""
        for wait in due:
            wait.looked = True
        self.serve()

    def serve(self) -> None:
        """End the waits for which there is something, as far as outcomes may be kept now."""
        self.serves_soon = False
        if self._run.gate is not None:
            return
        for mail in self._mail[:] if self._mail else ():
            if (taker := self._taker(mail)) is not None:
                self._take(taker, mail)
        for wait in self.open.values():
            self._end_if_due(wait)

    def _serve_begun(self, wait: Wait) -> None:
        """The same for one that begins."""
        if self._run.gate is not None:
            return
        if self._mail:
            mail = self._slots.get(KEY_SLOT + wait.key, []) + self._slots.get(wait.slot or "", [])
            for one in sorted(mail, key=_arrival):
                if self._taker(one) is wait:
                    self._take(wait, one)
        self._end_if_due(wait)

    def _taker(self, mail: Mail) -> Wait | None:
        if mail.slot.startswith(KEY_SLOT):
            waits: Iterable[Wait | None] = (self.open.get(mail.slot.removeprefix(KEY_SLOT)),)
        else:
            waits = (wait for wait in self.open.values() if wait.slot == mail.slot)
        return next((wait for wait in waits if wait is not None and _is_open(wait)), None)

    def _end_if_due(self, wait: Wait) -> None:
        if wait.is_due and _is_open(wait) and (wait.looked or wait.kind not in _SENT_EARLY):
            self._finish(wait, wait.time_up())

    def _put(self, mail: Iterable[Mail]) -> None:
        for one in mail:
            self._known.add(one.id)
            self._mail.append(one)
            self._slots.setdefault(one.slot, []).append(one)
        self._mail.sort(key=_arrival)

    def _take(self, wait: Wait, mail: Mail) -> None:
        kept = wait.read(mail)
        seq = 0
        if kept is not None:
            kept_seq = self._finish(wait, kept)
            if kept_seq is None:
                return
            seq = kept_seq
        place = bisect_left(self._mail, mail.seq, key=_arrival)
        while self._mail[place] is not mail:
            place += 1
        del self._mail[place]
        self._slots[mail.slot].remove(mail)
        self._journal.add(self._run, CONSUME_MAIL, seq, mail.id.bytes)

    def _finish(self, wait: Wait, kept: Kept | None) -> int | None:
        assert wait.future is not None  # noqa: S101  # it is open
        if kept is None:
            wait.future.set_result(Served(0, None))
            return None
        seq = self._keep(kept, wait.key)
        if seq is None:
            return None
        if wait.race is not None:
            wait.race.is_decided = True
        self._journal.add(self._run, CLOSE_WAITS, wait.key)
        wait.future.set_result(Served(seq, kept))
        return seq


def _is_open(wait: Wait) -> bool:
    if wait.race is not None and wait.race.is_decided:
        return False
    return wait.future is not None and not wait.future.done()


def _arrival(mail: Mail) -> int:
    return mail.seq
