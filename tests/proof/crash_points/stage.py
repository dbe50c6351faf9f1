"""One database, with one case in it at a time: what a case asks of it, and what stands in it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg

import tests.proof.crash_points.plays as plays
from kedge_client import AsyncClient
from tests.proof.crash_points.nursery import Child
from tests.proof.crash_points.scenes import Scene
from tests.proof.kit.journal import Line, read_journals
from tests.proof.kit.programs import TABLES

HISTORY: Final = (
    *("run_keys", "run_tags", "finished", "journal", "failures", "events"),
    *("run_log", "progress", "run_metadata", "removals"),
)
"""What is left of runs that have ended."""

_LOOK_S: Final = 0.01
_PATIENCE_S: Final = 60.0

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was kept, and which bodies had begun, at one moment."""

    rows: dict[tuple[UUID, int], Row]
    """(run, seq) -> epoch, kind, key, value."""
    begun: Counter[str]
    """Step -> how often its body had begun."""

    def kept(self, *, kinds: str = "stpf") -> dict[str, Any]:
        """Step -> its value, of all runs of the case."""
        return {step_of(key): value for _, kind, key, value in self.rows.values() if kind in kinds}


def step_of(key: str) -> str:
    """The step's name in its key: without branch and number."""
    return key.rsplit("/", 1)[-1].split("#", 1)[0]


@dataclass(slots=True)
class Stage:
    """Belongs to one task; opened by `stage`."""

    url: str
    conn: psycopg.AsyncConnection[Row]
    client: AsyncClient
    folder: Path
    began: Any = None
    played: list[UUID] = field(default_factory=list[UUID])

    async def clear(self, folder: Path) -> None:
        """A new case begins, with a folder of its own."""
        self.folder = folder
        ((self.began,),) = await self.rows("select clock_timestamp()")

    async def rows(self, query: str, *values: object) -> list[Row]:
        """What a query answers."""
        cursor = await self.conn.execute(query.encode(), values)
        return await cursor.fetchall() if cursor.description is not None else []

    # ---- what a case does

    async def start(self, scene: Scene) -> UUID:
        """Start the scene's run."""
        if not scene.mail_ahead:
            run = await self.client.start(scene.ref())
        else:
            async with self.conn.transaction():
                run = await self.client.start(scene.ref(), conn=self.conn)
                for name in scene.mail_ahead:
                    await self.client.send(plays.go(name, key=name), run=run.id, conn=self.conn)
        self.played.append(run.id)
        return run.id

    async def end_session(self, pid: int) -> None:
        """End a session of the server, and return when it is gone."""
        await self.rows("select pg_terminate_backend(%s)", pid)
        await self.gone({pid})

    async def gone(self, pids: set[int]) -> None:
        """Return when none of these sessions is there any more."""
        await self._until("select not exists (select 1 from pg_stat_activity where pid = any (%s))", list(pids))

    async def lapse(self, worker: Child) -> None:
        """End the lease of a worker whose process is dead for certain: nobody need wait for it."""
        await self.rows(
            "update kedge.workers set lease_until = clock_timestamp() where name like %s", f"%:{worker.pid}"
        )

    async def forget_lapsed(self) -> None:
        """Bury lives whose short lease has lapsed when nobody was there any more to do so."""
        await self._until("select not exists (select 1 from kedge.workers where lease_until > clock_timestamp())")
        await self.rows(
            "delete from kedge.workers w where not exists (select 1 from kedge.runs where worker_id = w.id)"
        )

    # ---- what it waits for

    async def is_idle(self, worker: Child) -> None:
        """The worker has nothing to do, and sleeps."""
        await self._until(
            "select exists (select 1 from kedge.idle i join kedge.workers w on w.id = i.worker_id"
            " where w.name like %s)",
            f"%:{worker.pid}",
            alive=worker,
        )

    async def is_buried(self, worker: Child) -> None:
        """The runs of a dead worker have been taken back, and its row has gone."""
        await self._until("select not exists (select 1 from kedge.workers where name like %s)", f"%:{worker.pid}")

    async def is_alone(self) -> None:
        """There is one worker's life and no other."""
        await self._until("select count(*) = 1 from kedge.workers")

    async def waits_for(self, run: UUID, name: str) -> None:
        """The run waits for this."""
        await self._until("select exists (select 1 from kedge.waits where run_id = %s and key = %s)", run, name)

    async def is_in(self, run: UUID, state: str) -> None:
        """The run is in this state."""
        await self._until("select exists (select 1 from kedge.runs where id = %s and state = %s)", run, state)

    async def has_ended(self) -> None:
        """No run of the case is live."""
        await self._until("select not exists (select 1 from kedge.runs)")

    async def has_begun(self, step: str) -> None:
        """The body of a step has begun."""
        while not self.begun()[step]:
            await asyncio.sleep(_LOOK_S)

    async def _until(self, query: str, *values: object, alive: Child | None = None) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while (await self.rows(query, *values))[0] != (True,):
                if alive is not None and not alive.is_alive:
                    raise AssertionError(f"a process has ended:\n{alive.log()}")
                await asyncio.sleep(_LOOK_S)

    # ---- what stands there

    def lines(self) -> list[Line]:
        """All that the processes of the case have said."""
        return read_journals(self.folder)

    def begun(self) -> Counter[str]:
        """Step -> how often its body has begun."""
        return Counter(str(line["step"]) for line in self.lines() if line["what"] == "body")

    async def snapshot(self) -> Snapshot:
        """Read the journal of the case's runs, and the bodies."""
        rows = await self.rows(
            "select run_id, seq, epoch, kind::text, key, value from kedge.journal where at >= %s and seq > 0",
            self.began,
        )
        return Snapshot(
            {(run, seq): (epoch, kind, key, _read(value)) for run, seq, epoch, kind, key, value in rows}, self.begun()
        )


def _read(value: bytes) -> Any:
    return msgspec.json.decode(value[1:]) if value else None


@asynccontextmanager
async def stage(url: str, folder: Path) -> AsyncGenerator[Stage]:
    """Open it on a database, which gets the plays' table."""
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as conn,
        AsyncClient.connect(url, listen=False) as client,
    ):
        await conn.execute(TABLES)
        for table in HISTORY:
            await conn.execute(f"delete from kedge.{table}".encode())  # of an earlier test
        await conn.execute("delete from effects")
        yield Stage(url, conn, client, folder)
