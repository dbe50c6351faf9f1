"""
What this machine could do at most: the same runs and steps with the least that is durable, and nothing else.

No fence, no lease, no replay, no errors: runs are claimed 50 at a time on one connection, and one writer on another
puts the rows of all steps and ends that have gathered while the last commit was on its way into one statement, as
binary arrays straight through libpq. A step goes on when its row is committed. Ratios to this loop, taken in the same
minutes on the same machine, mean something where absolute numbers do not.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec
import psycopg
from psycopg import pq

from benchmarks.drained_process import say_last_words, say_ready_and_wait, stop_at_sigterm

_TABLES: Final = """
    create table if not exists run (
        id uuid primary key, status smallint not null default 0, name text not null, input bytea, output bytea,
        worker int, created timestamptz default now(), updated timestamptz);
    create index if not exists run_ready on run (id) where status = 0;
    create table if not exists step (run_id uuid, seq int, name text, output bytea, primary key (run_id, seq));
"""
# Ids in the order of time, as those of runs are.
_RUNS: Final = """
    insert into run (id, name, input)
    select ('019a0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'w', '\\x80'
      from generate_series(1, %s) as n
"""
_CLAIM: Final = """
    update run set status = 1, worker = 1, updated = now()
     where id in (select id from run where status = 0 order by id limit %s for update skip locked)
    returning id
"""
_WRITE: Final = b"""
    with kept as (
        insert into step select * from unnest($1::uuid[], $2::int[], $3::text[], $4::bytea[]) on conflict do nothing)
    update run r set status = 2, output = e.output, updated = now()
      from unnest($5::uuid[], $6::bytea[]) as e(id, output) where r.id = e.id
"""
_BINARY: Final = [1] * 6
_UUID, _INT4, _TEXT, _BYTEA = 2950, 23, 25, 17
_BATCH: Final = 50

_encode: Final = msgspec.msgpack.Encoder().encode


def prepare(url: str, runs: int) -> None:
    """Make the two tables, with so many runs to execute."""
    make_tables(url)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(_RUNS, (runs,))


def make_tables(url: str) -> None:
    """Make the two tables, unless they are there."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(_TABLES)


class Writer:
    """One statement in flight; what comes meanwhile is the next one."""

    def __init__(self, conn: psycopg.AsyncConnection) -> None:
        self._pg = conn.pgconn
        self._loop = asyncio.get_running_loop()
        self._steps: list[tuple[UUID, int, bytes, bytes]] = []
        self._ends: list[tuple[UUID, bytes]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._answer: asyncio.Future[None] | None = None
        self.commits = 0
        self.rows = 0

    def step(self, run: UUID, seq: int, name: bytes, output: bytes) -> asyncio.Future[None]:
        self._steps.append((run, seq, name, output))
        return self._wait()

    def end(self, run: UUID, output: bytes) -> asyncio.Future[None]:
        self._ends.append((run, output))
        return self._wait()

    async def run(self) -> None:
        pg = self._pg
        pg.prepare(b"write", _WRITE)
        pg.nonblocking = 1
        self._loop.add_reader(pg.socket, self._readable)
        while True:
            await self._wake.wait()
            self._wake.clear()
            steps, ends, waiters = self._steps, self._ends, self._waiters
            self._steps, self._ends, self._waiters = [], [], []
            if not waiters:
                continue
            self.commits += 1
            self.rows += len(steps) + len(ends)
            self._answer = self._loop.create_future()
            pg.send_query_prepared(b"write", _parameters(steps, ends), _BINARY)
            while pg.flush():  # noqa: ASYNC110  # the socket is full: let the others go on for a moment
                await asyncio.sleep(0)
            await self._answer
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _wait(self) -> asyncio.Future[None]:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        self._wake.set()
        return waiter

    def _readable(self) -> None:
        pg, answer = self._pg, self._answer
        pg.consume_input()
        if answer is None:
            return
        while not pg.is_busy():
            result = pg.get_result()
            if result is None:
                if not answer.done():
                    answer.set_result(None)
                return
            if result.status != pq.ExecStatus.COMMAND_OK and not answer.done():
                answer.set_exception(RuntimeError(result.error_message.decode()))


async def drain(url: str, *, steps: int, in_flight: int) -> Writer:
    """Keep so many runs in flight until SIGTERM or until none are left."""
    stop = stop_at_sigterm()
    claiming = await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=0)
    writing = await psycopg.AsyncConnection.connect(url, autocommit=True)
    writer = Writer(writing)
    write = asyncio.create_task(writer.run())
    free = asyncio.Semaphore(in_flight)
    live: set[asyncio.Task[None]] = set()

    async def run(run_id: UUID) -> None:
        output = b""
        for seq in range(steps):
            output = _encode(await _work())
            await writer.step(run_id, seq, b"s", output)
        await writer.end(run_id, output)

    def ended(task: asyncio.Task[None]) -> None:
        live.discard(task)
        free.release()
        if not task.cancelled():
            task.result()

    while not stop.is_set():
        await free.acquire()
        wanted = 1
        while wanted < _BATCH and not free.locked():
            await free.acquire()
            wanted += 1
        cursor = await claiming.execute(_CLAIM, (wanted,), binary=True)
        claimed: list[UUID] = [row[0] for row in await cursor.fetchall()]
        for run_id in claimed:
            task = asyncio.create_task(run(run_id))
            live.add(task)
            task.add_done_callback(ended)
        for _ in range(wanted - len(claimed)):
            free.release()
        if not claimed:
            break
    await asyncio.gather(*live)
    write.cancel()
    await asyncio.gather(write, return_exceptions=True)
    await claiming.close()
    await writing.close()
    return writer


async def _work() -> dict[str, bool]:
    return {"ok": True}


def _parameters(steps: Sequence[tuple[UUID, int, bytes, bytes]], ends: Sequence[tuple[UUID, bytes]]) -> list[bytes]:
    return [
        _array(_UUID, [run.bytes for run, _, _, _ in steps]),
        _array(_INT4, [seq.to_bytes(4, "big") for _, seq, _, _ in steps]),
        _array(_TEXT, [name for _, _, name, _ in steps]),
        _array(_BYTEA, [output for _, _, _, output in steps]),
        _array(_UUID, [run.bytes for run, _ in ends]),
        _array(_BYTEA, [output for _, output in ends]),
    ]


def _array(oid: int, items: Sequence[bytes]) -> bytes:
    if not items:
        return struct.pack("!iiI", 0, 0, oid)
    parts = [struct.pack("!iiIii", 1, 0, oid, len(items), 1)]
    for item in items:
        parts.append(len(item).to_bytes(4, "big"))
        parts.append(item)
    return b"".join(parts)


def main() -> None:
    url, steps, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    say_ready_and_wait()
    writer = asyncio.run(drain(url, steps=steps, in_flight=in_flight))
    say_last_words({"rows": writer.rows, "statements": writer.commits, "round_trips": writer.commits})


if __name__ == "__main__":
    main()
