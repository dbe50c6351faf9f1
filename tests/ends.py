"""Ends runs as a worker's flush does, without a worker: through the one exit door, and then the watchers are told."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import psycopg

from kedge.errors import ErrorInfo
from kedge.failures import encode_error
from kedge.wire import encode

_WORKER: Final = UUID("00000000-0000-4000-8000-00000000000e")


def complete(conn: psycopg.Connection, run_id: UUID, output: object = None, *, tell: bool = True) -> None:
    """End a run `completed`."""
    _end(conn, run_id, "c", output=encode(output, where="a test's output"), tell=tell)


def fail(conn: psycopg.Connection, run_id: UUID, error: Exception | ErrorInfo) -> None:
    """End a run `failed`, with what a worker keeps of the exception."""
    _end(conn, run_id, "f", error=encode_error(error))


def cancel(conn: psycopg.Connection, run_id: UUID, reason: str | None = None) -> None:
    """End a run `cancelled`."""
    _end(conn, run_id, "x", reason=reason)


def _end(
    conn: psycopg.Connection,
    run_id: UUID,
    status: str,
    *,
    output: bytes | None = None,
    error: bytes | None = None,
    reason: str | None = None,
    tell: bool = True,
) -> None:
    ended = conn.execute(
        "select kedge.end_runs(%s, array[%s]::uuid[], array[%s], array[%s], array[%s]::bytea[], array[%s]::bytea[],"
        " array[%s]::text[], array[0], array[0], array[0])",
        (_WORKER, run_id, own(conn, run_id), status, output, error, reason),
    ).fetchone()
    assert ended == (1,)
    if tell:
        conn.execute("select kedge.notify_watchers(array[%s]::uuid[])", (run_id,))


def own(conn: psycopg.Connection, run_id: UUID) -> int:
    """Own the run, for only its owner ends it; answers the epoch."""
    conn.execute(
        "insert into kedge.workers (id, lease_until, lease, started_at, protocol, name, queues, workflows)"
        " values (%s, now() + interval '1 h', interval '1 h', now(), 1, 'test', '{}', '{}') on conflict do nothing",
        (_WORKER,),
    )
    claimed = conn.execute(
        "update kedge.runs set state = 'r', worker_id = %s, epoch = epoch + 1, started_at = now(), due_at = null"
        " where id = %s and state <> 'r' returning epoch",
        (_WORKER, run_id),
    ).fetchone()
    assert claimed is not None, f"run {run_id} is not there to be ended"
    epoch: int = claimed[0]
    return epoch
