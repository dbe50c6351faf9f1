"""Ends runs as a worker's flush does, without a worker: through the one exit door, and then the watchers are told."""

from __future__ import annotations

from uuid import UUID

import psycopg

from kedge.failures import encode_error
from kedge.wire import encode


def complete(conn: psycopg.Connection, run_id: UUID, output: object = None, *, tell: bool = True) -> None:
    """End a run `completed`."""
    _end(conn, run_id, "c", output=encode(output, where="a test's output"), tell=tell)


def fail(conn: psycopg.Connection, run_id: UUID, error: Exception) -> None:
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
        "select kedge.end_runs(null, array[%s]::uuid[], array[0], array[%s], array[%s]::bytea[], array[%s]::bytea[],"
        " array[%s]::text[], array[0], array[0], array[0])",
        (run_id, status, output, error, reason),
    ).fetchone()
    assert ended == (1,), f"run {run_id} was not there to be ended"
    if tell:
        conn.execute("select kedge.notify_watchers(array[%s]::uuid[])", (run_id,))
