"""
What a worker says to Postgres outside of a flush: registration, courier, upkeep, sleep and wake. One method each.

One plain connection, opened when needed; each call is one autocommit statement that may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Final, NamedTuple, cast
from uuid import UUID

import psycopg

from kedge.schema import render
from kedge.start_terms import StartTerms
from kedge_worker._errors import is_gone
from kedge_worker._pipeline import CutError, shut_down
from kedge_worker._runs import Mail, Started
from kedge_worker._statements import (
    ABANDON,
    CLAIM_BYTES,
    FAIL_LETTER,
    GO_IDLE,
    HAS_MAIL,
    LEAVE,
    MIND_DEPENDENT,
    NEW_MAIL,
    NOTIFY_ENDED,
    REGISTER_DEFINITIONS,
    REGISTER_WORKER,
    REQUESTS,
    RING,
    RING_WORKERS,
    SORT_INBOX,
    START_ALONE,
    TAKE_BACK,
    TIMES_UP,
    WAKE_UP,
)
from kedge_worker._upkeep import (
    DELETE_ENDED,
    EXPIRE_RUNS,
    FINISH_REMOVALS,
    FORGET_WATCHERS,
    HAS_SOLO_RUNS,
    HAS_WORKER,
    LAPSE,
    LOOK,
    TO_CLEAR,
)

PROTOCOL: Final = 1
"""What this release's workers agree on; a worker touches only rows of its own protocol or an older one."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """What one round of the courier did."""

    letters: int
    remaining: bool
    mailed: list[UUID]
    """The workers whose runs have mail."""
    asked: list[UUID]
    """The workers of whose runs something is wanted."""
    ended: list[UUID]
    lanes: list[tuple[str, str]]
    """In which something became pending."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants of a running run."""

    run_id: UUID
    kind: str
    """`x` cancel, `d` its deadline has passed, `s` pause."""
    reason: str | None


@dataclass(frozen=True, slots=True)
class Expired:
    """The runs that have ended, and the workers of those that have been asked to."""

    ended: list[UUID]
    owners: list[UUID]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look has found; seconds from then, and None for never."""

    has_letters: bool
    lapse_s: float | None
    """When the next of the other workers is dead, unless it says something by then."""
    is_time_up: bool
    """Of some run."""
    has_solo_runs: bool
    is_ready: bool
    due_s: float | None
    """When the next run of its lanes can be claimed that nobody need wake."""
    is_registered: bool
    """Whether a doorbell finds this worker."""


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What one round of a take back did."""

    worker_id: UUID
    worker_name: str
    freed: int
    ended: list[UUID]
    lanes: list[tuple[str, str]]
    remaining: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """How far a batch of deletions came among the ended runs of one workflow."""

    workflow: str
    stopped_at: UUID
    deleted: int
    is_done: bool
    """There is nothing that can be old behind that."""


class Definition(NamedTuple):
    """What the database is told of a workflow."""

    name: str
    total_steps: int | None
    terms: bytes
    keep_s: tuple[float | None, float | None, float | None]
    """How long runs are kept that ended completed, failed, cancelled; None: for ever."""


class Store:
    """Not a pool: calls wait for each other; none of them is long."""

    def __init__(self, conninfo: str, *, worker_id: UUID, schema: str, timeout_s: float) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._worker = worker_id
        self._timeout_s = timeout_s
        self._conn: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        self._lock = asyncio.Lock()

    async def schema_state(self) -> dict[int, tuple[str, str, str]]:
        """The applied migrations, number -> (name, kind, hash); empty when there is no schema."""
        found = await self._execute("select to_regclass(%(name)s)::text", {"name": f'"{self._schema}".migrations'})
        if found == [(None,)]:
            return {}
        rows = await self._execute("select number, name, kind, hash from kedge.migrations", {})
        return {cast("int", n): (str(name), str(kind), str(digest)) for n, name, kind, digest in rows}

    async def is_direct(self) -> bool:
        """Whether this is a session of the server itself: a pooler makes up the pid that it tells its clients."""
        rows = await self._execute("select pg_backend_pid()", {})
        return self._conn is not None and rows == [(self._conn.pgconn.backend_pid,)]

    async def register(self, *, lease_s: float, name: str, queues: Sequence[str], workflows: Sequence[str]) -> None:
        await self._execute(
            REGISTER_WORKER,
            {
                "id": self._worker,
                "lease": timedelta(seconds=lease_s),
                "protocol": PROTOCOL,
                "name": name,
                "queues": list(queues),
                "workflows": list(workflows),
            },
        )

    async def register_definitions(self, definitions: Sequence[Definition]) -> None:
        """Say what is known of workflows."""
        kept = [one.keep_s for one in definitions]
        parameters = {
            "names": [one.name for one in definitions],
            "total_steps": [one.total_steps for one in definitions],
            "options": [one.terms for one in definitions],
            "keep_completed_s": [completed for completed, _, _ in kept],
            "keep_failed_s": [failed for _, failed, _ in kept],
            "keep_cancelled_s": [cancelled for _, _, cancelled in kept],
        }
        await self._execute(REGISTER_DEFINITIONS, parameters)

    async def sort_inbox(self, limit: int) -> Sorted:
        (row,) = await self._execute(SORT_INBOX, {"limit": limit})
        letters, remaining, mailed, asked, ended, queues, workflows = row
        return Sorted(
            cast("int", letters),
            bool(remaining),
            cast("list[UUID]", mailed),
            cast("list[UUID]", asked),
            cast("list[UUID]", ended),
            _lanes(queues, workflows),
        )

    async def fail_letter(self, error: str) -> None:
        await self._execute(FAIL_LETTER, {"error": error})

    async def has_mail(self) -> bool:
        return await self._execute(HAS_MAIL, {}) == [(True,)]

    async def requests(self) -> list[Request]:
        """What somebody wants of this worker's runs."""
        rows = await self._execute(REQUESTS, {"worker": self._worker})
        return [Request(cast("UUID", run), str(kind), cast("str | None", reason)) for run, kind, reason in rows]

    async def new_mail(self, runs: Sequence[UUID], known: Sequence[UUID]) -> dict[UUID, list[Mail]]:
        """
        Unread mail of these runs, in order of arrival, without what is known: all of it, or the beginning, of which the
        payloads have `CLAIM_BYTES` or more.
        """
        mail: dict[UUID, list[Mail]] = {}
        for run, mail_id, seq, slot, payload in await self._execute(
            NEW_MAIL, {"runs": list(runs), "known": list(known), "bytes": CLAIM_BYTES}
        ):
            one = Mail(cast("UUID", mail_id), cast("int", seq), str(slot), cast("bytes", payload))
            mail.setdefault(cast("UUID", run), []).append(one)
        return mail

    async def times_up(self, runs: Sequence[UUID], *, within_s: float) -> list[tuple[UUID, str, int, float]]:
        """The waits (key, attempt, seconds left) of these runs whose time has come or is near, by its clock."""
        rows = await self._execute(TIMES_UP, {"runs": list(runs), "within_s": within_s})
        return [
            (cast("UUID", run), str(key), cast("int", attempt), cast("float", left_s))
            for run, key, attempt, left_s in rows
        ]

    async def start_child(
        self, parent: UUID, epoch: int, child: UUID, terms: StartTerms, *, is_dependent: bool, timeline: str = ""
    ) -> Started | None:
        """
        Start a child that may have to wait for others; None: somebody else owns the parent, or the server is on another
        timeline than the one that is given.
        """
        whose = {"parent": parent, "epoch": epoch, "worker": self._worker}
        if is_dependent:
            await self._execute(MIND_DEPENDENT, whose)
        asked = terms._asdict() | {"tags": None if terms.tags is None else list(terms.tags)}
        rows = await self._execute(
            START_ALONE, {**whose, **asked, "id": child, "is_dependent": is_dependent, "timeline": timeline}
        )
        if not rows:
            return None
        ((run_id, _, _, conflict, _),) = rows
        return Started(cast("UUID", run_id), cast("str | None", conflict))

    async def take_back(self, but: Sequence[UUID] = ()) -> TakenBack | None:
        """Free the runs of one dead worker, but not of these; None: nobody else is dead."""
        rows = await self._execute(TAKE_BACK, {"protocol": PROTOCOL, "but": list(but)})
        if not rows:
            return None
        ((worker, name, freed, ended, queues, workflows, remaining),) = rows
        ended_ids = cast("list[UUID]", ended)
        lanes = _lanes(queues, workflows)
        return TakenBack(cast("UUID", worker), str(name), cast("int", freed), ended_ids, lanes, bool(remaining))

    async def go_idle(self, queues: Sequence[str], workflows: Sequence[str]) -> None:
        await self._execute(GO_IDLE, {"worker": self._worker, "queues": list(queues), "workflows": list(workflows)})

    @property
    def is_connected(self) -> bool:
        """False: there was nothing to ask yet, or the last question got no answer."""
        return self._conn is not None and not self._conn.closed

    async def wake_up(self) -> None:
        await self._execute(WAKE_UP, {"worker": self._worker})

    async def expire_runs(self, limit: int) -> Expired:
        """End runs whose time is up; those that are executed are asked to."""
        ((ended, owners),) = await self._execute(EXPIRE_RUNS, {"limit": limit})
        return Expired(cast("list[UUID]", ended), cast("list[UUID]", owners))

    async def has_solo_runs(self, queues: Sequence[str], workflows: Sequence[str]) -> bool:
        """Whether something in the solo lanes of these queues waits for a worker."""
        asked = {"queues": list(queues), "workflows": list(workflows), "patience": timedelta()}
        return await self._execute(HAS_SOLO_RUNS, asked) == [(True,)]

    async def has_worker(self, worker: UUID) -> bool:
        return await self._execute(HAS_WORKER, {"worker": worker}) == [(True,)]

    async def lapse(self, worker: UUID) -> bool:
        """End the lease of a worker whose process has died; answers False when it had left."""
        return bool(await self._execute(LAPSE, {"worker": worker}))

    async def forget_watchers(self) -> int:
        """Delete registrations of clients that have died; answers how many of one table went at most."""
        ((watchers, observers),) = await self._execute(FORGET_WATCHERS, {})
        return max(cast("int", watchers), cast("int", observers))

    async def workflows_to_clear(self) -> tuple[int, list[str]]:
        """How many workers live, and the workflows whose ended runs are deleted some day."""
        ((workers, workflows),) = await self._execute(TO_CLEAR, {})
        return max(cast("int", workers), 1), cast("list[str]", workflows)

    async def delete_ended(self, places: Sequence[tuple[str, UUID]], limit: int, rows: int) -> list[Cleared]:
        """Delete what is old of these workflows behind these ids: so many runs, and rows of each kind, at most."""
        asked = {"workflows": [name for name, _ in places], "after": [after for _, after in places]}
        found = await self._execute(DELETE_ENDED, {**asked, "limit": limit, "rows": rows})
        return [
            Cleared(str(name), cast("UUID", stopped_at), cast("int", deleted), bool(is_done))
            for name, stopped_at, deleted, is_done in found
        ]

    async def finish_removals(self, rows: int) -> bool:
        """Delete rows of runs that had too many; answers False when nothing is left to do."""
        return await self._execute(FINISH_REMOVALS, {"rows": rows}) == [(True,)]

    async def look(self, queues: Sequence[str], workflows: Sequence[str], *, patience_s: float) -> Seen:
        """What there is to do, in these lanes and for everybody; a run in a solo lane has been there for so long."""
        lanes = {"queues": list(queues), "workflows": list(workflows), "patience": timedelta(seconds=patience_s)}
        (row,) = await self._execute(LOOK, {**lanes, "worker": self._worker, "protocol": PROTOCOL})
        letters, lapse_s, expired, solo, ready, due_s, is_registered = row
        return Seen(
            has_letters=bool(letters),
            lapse_s=cast("float | None", lapse_s),
            is_time_up=bool(expired),
            has_solo_runs=bool(solo),
            is_ready=bool(ready),
            due_s=cast("float | None", due_s),
            is_registered=bool(is_registered),
        )

    async def ring_workers(self, workers: Sequence[UUID]) -> None:
        await self._execute(RING_WORKERS, {"workers": list(workers)})

    async def ring(self, queue: str | None, workflow: str | None) -> None:
        """Wake at most one sleeping worker that suits."""
        await self._execute(RING, {"queue": queue, "workflow": workflow})

    async def notify_ended(self, runs: Sequence[UUID]) -> None:
        await self._execute(NOTIFY_ENDED, {"runs": list(runs)})

    async def abandon(self, predecessor: UUID) -> None:
        """Free what an earlier life of this process still holds, charging nobody."""
        await self._execute(ABANDON, {"worker": predecessor})

    async def leave(self) -> None:
        await self._execute(LEAVE, {"worker": self._worker})

    async def aclose(self) -> None:
        if self._conn is not None:
            await self._conn.close()
            self._conn = None

    async def _execute(self, query: str, parameters: Mapping[str, object]) -> list[tuple[object, ...]]:
        async with self._lock:
            conn = await self._connection()
            # Cancelling does not help against a silent server: only closing the socket does.
            watchdog = asyncio.get_running_loop().call_later(self._timeout_s, shut_down, conn.pgconn)
            asking = asyncio.ensure_future(_ask(conn, _rendered(query, self._schema), parameters))
            try:
                return await asyncio.shield(asking)
            except asyncio.CancelledError:
                # psycopg would ask the server to stop, and wait for its answer: whoever cancels us may be in a hurry.
                shut_down(conn.pgconn)
                await asyncio.wait((asking,))
                if not asking.cancelled():
                    asking.exception()  # seen
                await conn.close()
                raise
            except psycopg.OperationalError:
                await conn.close()
                raise
            except psycopg.InternalError as error:
                if not is_gone(error):
                    raise
                await conn.close()  # demoted or made read-only: another host may be the primary by now
                raise CutError(str(error)) from error
            finally:
                watchdog.cancel()

    async def _connection(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        if self._conn is None or self._conn.closed:
            opening = psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            try:
                conn = await asyncio.wait_for(opening, self._timeout_s)
            except TimeoutError as error:
                raise CutError("Postgres does not answer") from error
            self._conn = conn
            return conn
        return self._conn


@cache
def _rendered(query: str, schema: str) -> bytes:
    return render(query, schema).encode()


async def _ask(
    conn: psycopg.AsyncConnection[tuple[object, ...]], query: bytes, parameters: Mapping[str, object]
) -> list[tuple[object, ...]]:
    cursor = await conn.execute(query, parameters)
    return await cursor.fetchall() if cursor.description is not None else []


def _lanes(queues: object, workflows: object) -> list[tuple[str, str]]:
    return list(zip(cast("list[str]", queues), cast("list[str]", workflows), strict=True))
