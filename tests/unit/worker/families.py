"""Parents on the memory journal: what they have started, and the letters of their children's ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from kedge.errors import ErrorInfo
from kedge.failures import encode_error
from kedge.wire import decode, encode
from kedge_worker._runs import Mail
from kedge_worker._waits import KEY_SLOT
from tests.unit.worker.journal import Lives, MemoryJournal

_seqs = itertools.count(1)


class StartedChild(NamedTuple):
    """One entry of START_CHILDREN."""

    seq: int
    key: str
    id: UUID
    workflow: str
    queue: str
    priority: int
    input: Any
    resource: str | None
    tags: str | None
    dependent: bool
    watched: bool


def children(journal: MemoryJournal) -> list[StartedChild]:
    """All that were started with a row, in order."""
    found: list[StartedChild] = []
    for name, _, values in journal.sides:
        if name == "START_CHILDREN":
            seq, key, child, workflow, queue, priority, payload, _, resource, _, _, _, tags, dependent, watched = values
            found.append(
                StartedChild(
                    seq,
                    key,
                    UUID(bytes=child),
                    workflow,
                    queue,
                    priority,
                    decode(payload, Any, where="input"),
                    resource,
                    tags,
                    dependent,
                    watched,
                )
            )
    return found


def watch_letters(journal: MemoryJournal) -> list[tuple[UUID, str]]:
    """To whom, and for which key."""
    return [
        (UUID(bytes=values[1]), values[3].removeprefix(KEY_SLOT))
        for name, _, values in journal.sides
        if name == "SEND_LETTERS" and values[0] == "w"
    ]


def groups(journal: MemoryJournal) -> list[tuple[str, int, str | None]]:
    """Of the waits that were opened: key, how many of their group are needed, which group."""
    return [(values[0], values[7], values[8]) for name, _, values in journal.sides if name == "OPEN_WAITS"]


def closed(journal: MemoryJournal) -> list[str]:
    return [values[0] for name, _, values in journal.sides if name == "CLOSE_WAITS"]


def ended(key: str, value: object = None) -> Mail:
    """A child has completed."""
    return _mail(key, b"c" + encode(value, where="test"))


def failed(key: str, kind: str = "shop.OutOfStock", message: str = "none left", **data: Any) -> Mail:
    """A child has failed."""
    return _mail(key, b"f" + encode_error(ErrorInfo(kind, message, data=data or None)))


def cancelled(key: str, reason: str = "") -> Mail:
    """A child was cancelled."""
    return _mail(key, b"x" + reason.encode())


def _mail(key: str, payload: bytes) -> Mail:
    return Mail(uuid4(), next(_seqs), KEY_SLOT + key, payload)


async def deliver(lives: Lives, run_id: UUID, *mail: Mail) -> None:
    """Letters reach a run in memory, as soon as it waits."""
    await until(lambda: run_id in lives.executor.waiting)
    lives.executor.waiting[run_id].receive(mail)


async def until(question: Callable[[], object]) -> None:
    """Let the event loop go round until it is so."""
    for _ in range(2000):
        if question():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to this")


async def interrupt(work: Coroutine[Any, Any, Any], when: asyncio.Event) -> None:
    """Cancel it when the event is set, as a raw timeout would."""
    task = asyncio.ensure_future(work)
    await when.wait()
    task.cancel()
    await asyncio.wait([task])
