"""
One life of a worker: one registration, one lease, and the tasks that live and die with it.

Order of start: register, beat, journal, inbox, claim. Order of stop: no more claims, handlers end or are given back,
the journal drains, the row goes, the beat ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID, uuid4

from kedge_worker._alone import Alone
from kedge_worker._attendant import Attendant
from kedge_worker._child_starts import Starter
from kedge_worker._claimer import Claimer
from kedge_worker._claims import ClaimAnswer, ClaimRequest
from kedge_worker._courier import Courier
from kedge_worker._errors import PostgresError, is_about_data, is_lease_lost
from kedge_worker._executor import Executor
from kedge_worker._flusher import Flusher
from kedge_worker._lease_keeper import LeaseKeeper
from kedge_worker._leased_store import LeasedStore
from kedge_worker._listener import Listener
from kedge_worker._remover import Remover
from kedge_worker._sealing import SealedJournal, Seals, read_mail, read_run
from kedge_worker._side_writes import SEND_LETTERS
from kedge_worker._signals import LeaseLostError
from kedge_worker._solo import Solo, Target
from kedge_worker._store import Store
from kedge_worker._strays import Strays
from kedge_worker._sweeper import Sweeper
from kedge_worker._transactions import TransactionRunner
from kedge_worker._watchman import Watchman

if TYPE_CHECKING:
    from kedge.codecs import PayloadCodec
    from kedge_worker._registry import Registry
    from kedge_worker._runs import Batch, ClaimedRun, Journal, LiveRun, Mail
    from kedge_worker._settings import WorkerSettings
    from kedge_worker._waits import RunWaits

_log: Final = logging.getLogger("kedge.worker")

_COMPARE_PERIOD_S: Final = 30.0
_DRAIN_S: Final = 5.0
_SILENCE_S: Final = 1.0
"""A database that has not answered for so long is taken for away: nobody waits for it at the end."""
_FAREWELL_S: Final = 0.5
_VAIN_FAREWELL_S: Final = 0.25
"""To a database that was away a moment ago; with the lease keeper's, what is left of two seconds behind the grace."""
_RING_PERIOD_S: Final = 0.02
_PARK_LINGER_S: Final = 0.1
_CHILD_S: Final = 35.0

T = TypeVar("T")


class Life:
    """
    Implements `FlushEvents`. `start`, then `ended` (what killed it) or `stop`, once each.

    Args:
        settings: The worker's.
        registry: Its handlers.
        target: From where a child process can import the worker.
        child_id: In a child process, which is named by its parent and works for nobody but the solo lanes.
        codec: Encrypts payloads; None: they are kept as they are.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        registry: Registry,
        *,
        target: Target | None = None,
        child_id: UUID | None = None,
        codec: PayloadCodec | None = None,
    ) -> None:
        self.id: Final = child_id or uuid4()
        self.name: Final = f"{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._registry = registry
        timeout_s = self._timeout_s = max(2.0, min(10.0, settings.lease_s / 2))
        self.store = Store(settings.control_conninfo(), worker_id=self.id, schema=settings.schema, timeout_s=timeout_s)
        self._leased = LeasedStore(
            settings.journal_conninfo(), worker_id=self.id, schema=settings.schema, timeout_s=timeout_s
        )
        self._flusher = Flusher(self._leased, self)
        seals = self._seals = None if codec is None else Seals(codec)
        journal: Journal = self._flusher
        if seals is not None:
            journal = SealedJournal(self._flusher, seals, lambda: self.executor)
        self._starter = Starter(
            Store(settings.starts_conninfo(), worker_id=self.id, schema=settings.schema, timeout_s=timeout_s),
            self._started,
            None if seals is None else seals.start,
            timeline=lambda: self._leased.timeline,
        )
        self.executor = Executor(
            journal,
            lambda in_thread: TransactionRunner(
                settings.transaction_conninfo(),
                worker_id=self.id,
                schema=settings.schema,
                journal=self._flusher,
                connections=settings.transaction_connections,
                in_thread=in_thread,
                timeline=lambda: self._leased.timeline,
                sealed=None if seals is None else seals.row,
            ),
            registry,
            child_starts=self._starter,
            threads=settings.threads,
            on_free=self._slot_freed,
            linger_s=self._linger_s,
            look=self._look,
            look_at_clock=self._look_at_clock,
        )
        self._attendant = Attendant(self.store, self.executor.waiting, self._opened_mail)
        self.claimer = Claimer(
            self.store,
            queues=settings.queues,
            workflows=registry.names,
            free=self._free,
            poke=self._flusher.poke,
            timeouts=registry.timeouts_s,
            slots=settings.concurrency,
        )
        self.courier = Courier(
            self.store,
            worker_id=self.id,
            ask=self.executor.ask,
            sorted_some=self.claimer.ring,
            sorted_own=self.claimer.ring_soon,
            has_mail=self._look,
            takes=self._takes,
        )
        self._keeper = LeaseKeeper(
            settings.beat_conninfo(),
            worker_id=self.id,
            schema=settings.schema,
            lease_s=settings.lease_s,
            lost=self._lease_lost,
            asked=self.executor.ask,
        )
        self._alone = Alone(
            queues=settings.queues,
            workflows=registry.names,
            timeouts=registry.timeouts_s,
            is_empty=lambda: not self.executor.runs,
            poke=self._flusher.poke,
        )
        self._solo = Solo(
            self.store,
            queues=settings.queues,
            workflows=registry.names,
            target=target,
            work_alone=self._work_alone,
            crashed=self._child_died,
        )
        self.sweeper = Sweeper(
            self.store,
            may_take_back=lambda: self._keeper.may_take_back,
            found=self.claimer.ring,
            found_solo=self._solo.ring,
            sent=self.courier.ring,
        )
        self._is_child = child_id is not None
        self._strays = Strays(
            self._leased,
            known=lambda: {run_id: run.claimed.epoch for run_id, run in self.executor.runs.items()},
            crashed=self._solo.ring,
        )
        self._watchman = Watchman(
            self.store,
            queues=settings.queues,
            workflows=registry.names,
            poll_s=settings.poll_s,
            sleeps=lambda: self.claimer.sleeps and self.listener.listening.is_set(),
            letters=self.courier.ring,
            sweep=self.sweeper.ring,
            solo=self._solo.ring,
            claim=self.claimer.ring,
            cut_off=self._flusher.compare_soon,
        )
        self.listener = Listener(settings.listen_conninfo(), worker_id=self.id, ring=self._rung)
        self._tasks: list[asyncio.Task[None]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finished_runs = 0
        self._serves = False
        self.progress = asyncio.Event()
        self.limit: int | None = None
        self._rang_at = 0.0
        self._ringing: asyncio.Task[None] | None = None
        self._to_ring: set[tuple[str, str]] = set()
        self._claims_alone = False

    async def start(self, *, serve: bool, predecessors: Iterable[UUID] = ()) -> None:
        """
        Register and begin to work; without `serve` nothing is claimed by itself and nothing listens. What
        predecessors, earlier lives of this process and of its children, still hold is freed.

        Raises:
            PostgresError: The database is not there, or does not fit.
        """
        for predecessor in predecessors:
            await self.store.abandon(predecessor)
        registered_at = time.monotonic()
        await self.store.register(
            lease_s=self._settings.lease_s,
            name=self.name,
            queues=self._settings.queues,
            workflows=self._registry.names,
        )
        self._keeper.start(registered_at)
        await self.store.register_definitions(self._registry.definitions())
        await self._leased.connect()
        self.executor.open()
        self._spawn(self._flusher.run(), "flusher")
        await self.courier.sort_all()  # a cancel that was accepted before must not be overtaken by a claim
        self._spawn(self._compare(), "compare")
        self._spawn(self._attendant.run(), "attendant")
        self._serves = serve
        if serve:
            self._spawn(self._watchman.run(), "watchman")
            self._spawn(self.courier.run(), "courier")
            if not self._is_child:
                self._spawn(self.sweeper.run(), "sweeper")
                self._spawn(self.claimer.run(), "claimer")
                self._spawn(self._solo.run(), "solo")
                if self._registry.forgets:
                    self._spawn(Remover(self._removal_store).run(), "remover")
            if self._settings.listen:
                self._spawn(self.listener.run(), "listener")
        _log.info(
            "worker %s (%s) started: queues %s, workflows %s",
            self.name,
            self.id,
            ", ".join(self._settings.queues),
            ", ".join(self._registry.names),
        )

    async def stop(self, grace_s: float, *, hurry: asyncio.Event | None = None) -> None:
        """Give back what has not ended within the grace, and leave. Bounded, also with the database down."""
        self.claimer.stopped = True
        for task in self._tasks:
            if task.get_name() not in ("flusher", "attendant"):  # runs go on within the grace, and some of them wait
                task.cancel()
        owned: Sequence[UUID] = ()
        is_away = False
        seeing_off = asyncio.create_task(self._solo.stop(0 if self.ended.done() else grace_s, hurry=hurry))
        if not self.ended.done():
            # What is given back rings a sleeper, which must not be this worker.
            begun = time.monotonic()
            await _bounded(self.store.wake_up(), _FAREWELL_S)
            is_away = not self.store.is_connected
            owned = await self.executor.shutdown(max(0.0, grace_s - (time.monotonic() - begun)), hurry=hurry)
            await _bounded(self._drained(), _DRAIN_S)
        else:
            self.executor.lose_all()
        self._flusher.close()
        await _bounded(seeing_off, grace_s + _CHILD_S)
        error = self.ended.exception() if self.ended.done() else None
        farewell_s = _VAIN_FAREWELL_S if is_away or self._flusher.silent_s > _FAREWELL_S else _DRAIN_S
        if error is None:
            await _bounded(self.store.leave(), farewell_s)
        elif not is_lease_lost(error):  # the schema does not fit any more: nobody has crashed
            await _bounded(self.store.abandon(self.id), farewell_s)
        if owned:
            _log.warning(
                "worker %s leaves %d runs whose bodies have not ended; their lease lapses", self.name, len(owned)
            )
        await self._keeper.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        self._leased.abort()
        await _bounded(self.executor.aclose(), _DRAIN_S)
        await _bounded(self._starter.aclose(), _DRAIN_S)
        await _bounded(self.store.aclose(), _DRAIN_S)
        _log.info("worker %s (%s) stopped", self.name, self.id)

    @property
    def orphan(self) -> UUID | None:
        """A child of this life, which has ended, and which the database does not know of yet."""
        return self._solo.orphan

    async def _drained(self) -> None:
        """
        Wait until all is written.

        Raises:
            TimeoutError: The database does not answer.
        """
        draining = asyncio.create_task(self._flusher.drained())
        try:
            while not draining.done():
                if self._flusher.silent_s > _SILENCE_S:
                    raise TimeoutError("the database does not answer: what is not written is left to the lease")
                await asyncio.wait((draining,), timeout=_SILENCE_S / 10)
        finally:
            draining.cancel()

    # ---- FlushEvents

    def wanted_claim(self, ending: int, *, coming: int) -> ClaimRequest | None:
        self._claims_alone = self._alone.is_on
        if self._claims_alone:
            return None if coming else self._alone.wanted()
        return self.claimer.wanted(ending - coming)

    def claimed(self, answer: ClaimAnswer) -> None:
        if self.limit is not None:
            self.limit -= len(answer.runs)
        if answer.has_mail:
            self.courier.ring()
        if answer.runs and answer.is_full:
            self._ring_next(answer.runs[-1].queue, answer.runs[-1].workflow)
        (self._alone if self._claims_alone else self.claimer).answered(answer)

    def begin(self, runs: Sequence[ClaimedRun]) -> None:
        for run in runs:
            opened, unreadable = read_run(self._seals, run)
            self.executor.start(opened, unreadable=unreadable)

    def unclaimed(self, error: PostgresError) -> None:
        (self._alone if self._claims_alone else self.claimer).unanswered()
        if is_about_data(error) and (self._claims_alone or self._is_child or self.claimer.narrow()):
            self._strays.suspect()

    async def reconnected(self) -> None:
        await self._strays.free()

    def settled(self, moved: Sequence[LiveRun], lost: Sequence[LiveRun]) -> None:
        for run in lost:
            _log.warning("run %s epoch %d: lease lost, dropped", run.claimed.id, run.claimed.epoch)
        going_on = self.executor.settled(moved, lost)
        if going_on:
            self._watchman.ring()  # what was parked may be due soon, or have been woken on the way
        self.finished_runs += len(moved) - going_on

    def sent(self, batch: Batch) -> None:
        if SEND_LETTERS in batch.sides:
            self.courier.ring()
            self.progress.set()
        for queue, workflow in batch.started_lanes():
            self._started(queue, workflow)

    def has_mail(self) -> None:
        self.courier.ring()
        self.progress.set()

    def refused(self, run: LiveRun, error: PostgresError) -> None:
        self.executor.fail(run, error)
        if run.lost:  # not even its failure can be stored
            self._strays.charge(run.claimed.id, run.claimed.epoch)
            self._flusher.compare_soon()

    # ---- inside

    def _removal_store(self) -> Store:
        settings = self._settings
        return Store(settings.removal_conninfo(), worker_id=self.id, schema=settings.schema, timeout_s=self._timeout_s)

    def _opened_mail(self, run_id: UUID, waits: RunWaits, mail: Sequence[Mail]) -> Sequence[Mail]:
        """What has come for a run in memory; one that cannot read it is put off."""
        opened, unreadable = read_mail(self._seals, run_id, mail, waits.state_of)
        if unreadable is not None:
            self.executor.put_off(run_id, unreadable)
        return opened

    def _free(self, ending: int) -> int:
        free = self._settings.concurrency - len(self.executor.runs) - self.executor.more_slots + ending
        return free if self.limit is None else min(free, self.limit)

    def _linger_s(self) -> float:
        """How long a run that waits stays, to be found by mail that comes at once: unless somebody wants its slot."""
        may_stay = self._serves and not self.claimer.stopped and not self.claimer.is_full
        return _PARK_LINGER_S if may_stay else 0.0

    def _look(self) -> None:
        self._attendant.ring()

    def _look_at_clock(self) -> None:
        self._attendant.ring_clock()

    def _takes(self, queue: str, workflow: str) -> bool:
        return not self._alone.is_on and self.claimer.takes(queue, workflow)

    async def _work_alone(self) -> None:
        await self.store.wake_up()  # a start that rang this worker would wait until it is done
        await self._alone.work()
        self.claimer.ring()  # it takes itself for idle

    def _child_died(self) -> None:
        self.sweeper.ring()

    def _slot_freed(self) -> None:
        self.progress.set()
        self.claimer.slot_freed()
        self._alone.freed()

    def _rung(self, payload: str) -> None:
        if payload == "mail":
            self.courier.ring()
        else:
            self.claimer.ring()

    def _ring_next(self, queue: str, workflow: str) -> None:
        """A claim that came back full may have left something: wake the next sleeper, at most one at a time."""
        now = asyncio.get_running_loop().time()
        if now - self._rang_at > _RING_PERIOD_S and (self._ringing is None or self._ringing.done()):
            self._rang_at = now
            self._ring(queue, workflow)

    def _started(self, queue: str, workflow: str) -> None:
        """A child can be claimed, by this worker if it has room."""
        if self._takes(queue, workflow):
            self.claimer.ring()
            self.progress.set()
        else:
            self._ring(queue, workflow)

    def _ring(self, queue: str, workflow: str) -> None:
        self._to_ring.add((queue, workflow))
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring_all())

    async def _ring_all(self) -> None:
        while self._to_ring:
            await _bounded(self.store.ring(*self._to_ring.pop()), _DRAIN_S)

    def _lease_lost(self, why: str) -> None:
        self._end(LeaseLostError(why))

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(_COMPARE_PERIOD_S)
            self._flusher.compare_soon()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
            self.claimer.stopped = True
            self.executor.lose_all()


async def _bounded(work: Awaitable[T], seconds: float) -> T | None:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except (TimeoutError, PostgresError, OSError) as error:
        _log.warning("stopping: %s", error or "no answer from the database")
        return None
