"""What a child process of a worker does: executes what is in the solo lanes, one run at a time, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import msgspec

from kedge.names import solo_lane
from kedge_worker._errors import is_lease_lost
from kedge_worker._life import Life
from kedge_worker._migrator import check_schema
from kedge_worker._solo import LAPSED

if TYPE_CHECKING:
    from uuid import UUID

    from kedge.codecs import PayloadCodec
    from kedge_worker._child_process import Parent
    from kedge_worker._registry import Registry
    from kedge_worker._settings import WorkerSettings

_log: Final = logging.getLogger("kedge.worker")


async def work_alone(
    settings: WorkerSettings, registry: Registry, child_id: UUID, parent: Parent, codec: PayloadCodec | None
) -> int:
    """Answer the exit code when nothing is left to do, or when this is to end."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def gone() -> None:
        stop.set()
        hurry.set()

    with _stopped_by_signals(loop, stop):
        # Not by a second signal: a whole group of processes gets it from the terminal, and this one its parent's too.
        parent.when_gone(gone)
        queues = tuple(map(solo_lane, settings.queues))
        alone = msgspec.structs.replace(settings, queues=queues, concurrency=1)
        life = Life(alone, registry, child_id=child_id, codec=codec)
        try:
            check_schema(await life.store.schema_state(), schema=settings.schema)
            await life.start(serve=True)
            await _until_nothing_is_left(life, stop)
        except BaseException as error:
            await life.stop(0)
            if not is_lease_lost(error):
                raise
            _log.error("solo: lease lost (%s)", error)
            return LAPSED
        await life.stop(settings.grace_s, hurry=hurry)
    return 0


async def _until_nothing_is_left(life: Life, stop: asyncio.Event) -> None:
    working = asyncio.ensure_future(_work(life))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping, life.ended), return_when=asyncio.FIRST_COMPLETED)
        for one in (working, life.ended):
            if one.done():
                one.result()
    finally:
        working.cancel()
        stopping.cancel()


async def _work(life: Life) -> None:
    # With one slot: a look begins when the run before has left.
    while (await life.claimer.look()).runs:
        pass


@contextlib.contextmanager
def _stopped_by_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Generator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
