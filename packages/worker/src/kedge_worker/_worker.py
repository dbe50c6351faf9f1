"""The worker's front: settings in, lives one after the other, signals, and what tests and embedders use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from kedge.codecs import PayloadCodec
from kedge.durations import Duration, parse_duration
from kedge.errors import DefinitionError, InvalidOptionError, PrivilegesError, SchemaError, UnavailableError
from kedge.retry import Retry
from kedge.schema import SCHEMA_VERSION
from kedge_worker._child_process import Parent
from kedge_worker._definitions import check_retry
from kedge_worker._errors import (
    PostgresError,
    TroubleError,
    does_not_fit,
    is_gone,
    is_lease_lost,
    lacks_privileges,
    said,
)
from kedge_worker._life import Life
from kedge_worker._migrator import check_schema
from kedge_worker._registry import Registry, Workflow
from kedge_worker._retention import AnyRetention
from kedge_worker._settings import WorkerSettings, make_settings
from kedge_worker._solo import Target
from kedge_worker._solo_child import work_alone

_log: Final = logging.getLogger("kedge.worker")

# A database that is back has work again within three seconds.
_LONGEST_PAUSE_S: Final = 2.0

# PgBouncer's, to whoever sends settings with the start of a session.
_POOLERS_WORDS: Final = "unsupported startup parameter"
_POOLED: Final = (
    "the worker's database URL leads to a connection pooler: its sessions carry settings, prepared statements and"
    " LISTEN. Give it the server's own address; clients may use the pooler, with listen=False"
)


class Worker:
    """
    Executes runs of the given workflows until told to stop.

    A worker claims only workflows that it has registered, never more than `concurrency` runs at once, and goes on
    through restarts of the database. It needs an asyncio event loop.

    Args:
        dsn: libpq URL or key-value string; else `KEDGE_DATABASE_URL`, `DATABASE_URL`, libpq's own environment.
        workflows: What `@workflow(ref)` made of the handlers.
        queues: The lanes that it takes runs from.
        concurrency: Runs in memory at once.
        threads: Sync handlers and sync steps at once.
        schema: Where kedge's tables live.
        lease: How long a silent worker keeps its runs before others take them back.
        poll: The longest that a run waits when a doorbell is lost; more than two seconds is two.
        grace: How long handlers may go on after a stop was asked for.
        listen: False where LISTEN is not possible: everything works by polling. A pooler is refused all the same.
        transaction_connections: Transactional steps at once.
        retention: How long ended runs are kept of workflows that say nothing of it: one duration, or a `Retention` by
            status; in the environment such as `30d` or `completed=7d,failed=90d`. None: nothing is deleted.
        step_retry: The policy of steps for which neither their call nor `@step` says one; one attempt if nothing is
            said here either.
        codec: Encrypts payloads, such as `kedge.encryption.AesGcmCodec`; clients need it too. None: they are kept as
            they are, and a run with encrypted ones is put off.

    Every option but the workflows, `step_retry` and `codec` may also come from the environment: `KEDGE_QUEUES`,
    `KEDGE_CONCURRENCY`, ...

    Source: docs/explanation/data_walk.md.
    """

    def __init__(
        self,
        dsn: str | None = None,
        /,
        *,
        workflows: Iterable[Workflow[Any, Any]],
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
        threads: int | None = None,
        schema: str | None = None,
        lease: Duration | None = None,
        poll: Duration | None = None,
        grace: Duration | None = None,
        listen: bool | None = None,
        transaction_connections: int | None = None,
        retention: AnyRetention | None = None,
        step_retry: Retry | None = None,
        codec: PayloadCodec | None = None,
    ) -> None:
        self.settings: Final[WorkerSettings] = make_settings(
            dsn,
            schema=schema,
            queues=queues,
            concurrency=concurrency,
            threads=threads,
            lease=lease,
            poll=poll,
            grace=grace,
            listen=listen,
            transaction_connections=transaction_connections,
            retention=retention,
        )
        self._registry = Registry(
            workflows, step_retry=check_retry(step_retry) or Retry.NEVER, retention=self.settings.retention
        )
        if not self._registry.names:
            raise DefinitionError("workflows= is empty: a worker executes only what is registered with it")
        self._codec = codec
        self.target: Target | None = None
        """Where `kedge-worker run` has found this worker: children, which run poisonous runs, find it there too."""
        self._stop: asyncio.Event | None = None
        self._hurry: asyncio.Event | None = None
        self._stopped: asyncio.Event | None = None
        self._started: asyncio.Future[None] | None = None
        self._grace_s = self.settings.grace_s
        self._task: asyncio.Task[None] | None = None

    async def run(self, *, signals: bool = True) -> None:
        """
        Work until `stop`, SIGTERM or SIGINT; a second signal skips the grace.

        Raises:
            SchemaError: The database has no kedge schema, or one that does not fit; names the command to run.
            PrivilegesError: This role may not do a worker's work.
            InvalidOptionError: The URL leads to a connection pooler.
        """
        stop, hurry = self._begin()
        with self._handling_signals(stop, hurry) if signals else contextlib.nullcontext():
            await self._work(stop, hurry)

    async def stop(self, *, grace: Duration | None = None) -> None:
        """Stop claiming, let handlers end for as long as the grace allows, give the rest back, and return."""
        if grace is not None:
            self._grace_s = parse_duration(grace, option="grace").total_seconds()
        if self._stop is not None and self._stopped is not None:
            self._stop.set()
            await self._stopped.wait()

    async def run_as_one(self, parent: Parent) -> None:
        """Be one of several processes, `kedge-worker one`: as `run`, and who has started them hears when this works."""
        stop, hurry = self._begin()

        def gone() -> None:
            stop.set()
            hurry.set()

        self._started = asyncio.get_running_loop().create_future()
        self._started.add_done_callback(lambda _: parent.say_that_we_work())
        parent.when_gone(gone)
        # A second signal is none to hurry: who signals all processes reaches this one twice, the parent passes it on.
        with self._handling_signals(stop, asyncio.Event()):
            await self._work(stop, hurry)

    async def run_solo(self, child_id: UUID, parent: Parent) -> int:
        """Be the child process of a worker: `kedge-worker solo`. Answers the exit code."""
        self._begin()
        try:
            return await work_alone(self.settings, self._registry, child_id, parent, self._codec)
        finally:
            self._end()

    async def run_until_idle(self) -> int:
        """
        Execute everything that can be claimed now, and what that makes claimable; return how many runs have ended.

        For tests and scripts: nothing listens, and nothing is waited for that only time can bring.
        """
        async with self._one_life() as life:
            while True:
                life.progress.clear()
                await life.sweeper.expire()
                await life.courier.sort_all()
                answer = await life.claimer.look()
                if answer.runs or await life.store.has_mail() or life.progress.is_set():
                    continue  # what has left meanwhile may have been woken, or be due already
                if not life.executor.runs:
                    return life.finished_runs
                await _first(life.progress.wait(), life.ended)

    async def run_once(self, limit: int = 1) -> int:
        """Claim up to `limit` runs once, execute them to their end, and return how many there were."""
        async with self._one_life() as life:
            life.limit = limit
            answer = await life.claimer.look()
            while life.executor.runs:
                life.progress.clear()
                await _first(life.progress.wait(), life.ended)
            return answer.runs

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._task = loop.create_task(self.run(signals=False), name="kedge-worker")
        await asyncio.wait((self._started, self._task), return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._task is not None:
            await self._task

    # ---- inside

    def _begin(self) -> tuple[asyncio.Event, asyncio.Event]:
        if self._stop is not None:
            raise DefinitionError("this worker is running already: make another one")
        self._stop, self._hurry, self._stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        return self._stop, self._hurry

    def _end(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
        self._stop = None

    async def _work(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        if hosts := self.settings.hosts_in_clear():
            _log.warning(
                "worker: what goes to and from %s may go in clear, and nobody checks who answers there;"
                " say sslmode=verify-full and sslrootcert= in the database's URL",
                ", ".join(hosts),
            )
        try:
            await self._live_and_live_again(stop, hurry)
        finally:
            self._end()

    async def _live_and_live_again(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        pause_s = 0.05
        predecessors: set[UUID] = set()
        while not stop.is_set():
            life = Life(self.settings, self._registry, target=self.target, codec=self._codec)
            try:
                if await self._has_begun(life, predecessors, stop):
                    predecessors.clear()
                    pause_s = 0.05
                    if self.settings.listen:
                        await _first(life.listener.listening.wait(), life.ended, stop.wait())
                    if self._started is not None and not self._started.done():
                        self._started.set_result(None)
                    await _first(stop.wait(), life.ended)
            except (TroubleError, TimeoutError, OSError) as error:
                if _POOLERS_WORDS in str(error):
                    await life.stop(0)
                    raise InvalidOptionError(_POOLED) from error
                _log.warning("worker: no database yet: %s; next try in %.2g s", error, pause_s)
            except BaseException as error:
                if not is_lease_lost(error):
                    await life.stop(0)
                    explained = _explained(error)
                    if explained is error:
                        raise
                    raise explained from error
                _log.error("worker %s: lease lost (%s); starting a new life", life.name, error)
                predecessors.add(life.id)
            await life.stop(self._grace_s if stop.is_set() else 0, hurry=hurry)
            if life.orphan is not None:
                predecessors.add(life.orphan)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1)):  # noqa: S311  # jitter
                    await stop.wait()
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _has_begun(self, life: Life, predecessors: set[UUID], stop: asyncio.Event) -> bool:
        """Begin a life; False: a stop was asked for first, which a silent server must not delay."""

        async def begin() -> None:
            await self._check_schema(life)
            await life.start(serve=True, predecessors=predecessors)

        beginning = asyncio.create_task(begin())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((beginning, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            beginning.cancel()
            await asyncio.wait((beginning,))
        if beginning.cancelled():
            return False
        beginning.result()
        return True

    @contextlib.asynccontextmanager
    async def _one_life(self) -> AsyncGenerator[Life]:
        self._begin()
        life = Life(self.settings, self._registry, codec=self._codec)
        try:
            await self._check_schema(life)
            await life.start(serve=False)
            yield life
        except PostgresError as error:
            explained = _explained(error)
            if explained is error:
                raise
            raise explained from error
        finally:
            await life.stop(self._grace_s)
            self._end()

    async def _check_schema(self, life: Life) -> None:
        if not await life.store.is_direct():
            raise InvalidOptionError(_POOLED)
        check_schema(await life.store.schema_state(), schema=self.settings.schema)

    @contextlib.contextmanager
    def _handling_signals(self, stop: asyncio.Event, hurry: asyncio.Event) -> Generator[None]:
        loop = asyncio.get_running_loop()

        def received(number: signal.Signals) -> None:
            _log.info("worker: %s", number.name)
            if stop.is_set():
                hurry.set()
            stop.set()

        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        for number in numbers:
            loop.add_signal_handler(number, received, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def _explained(error: BaseException) -> BaseException:
    """An error that says what is wrong with the database, as one that says what to do."""
    if lacks_privileges(error):
        return PrivilegesError(f"this role may not do a worker's work: {said(error)}", "42501")
    if does_not_fit(error):
        return SchemaError(0, SCHEMA_VERSION, "kedge-worker migrate")
    if isinstance(error, TroubleError) and is_gone(error):
        return UnavailableError(f"the database was not reached: {said(error)}", error.sqlstate)
    return error


async def _first(*waited: Coroutine[Any, Any, object] | asyncio.Future[None]) -> None:
    """Return when the first is done, raising what it raised."""
    tasks = [asyncio.ensure_future(one) for one in waited]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task, one in zip(tasks, waited, strict=True):
            if task is not one:
                task.cancel()
