"""Puts rows where a worker and a courier would, for tests of what a client reads."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import msgspec
import psycopg

from kedge.definitions import DefinitionTerms
from kedge.failures import encode_error
from kedge.wire import JSON_CODEC, encode

_NOTHING: Final = object()
_WHERE: Final = "a test's value"


def note_rings(conn: psycopg.Connection) -> None:
    """Instead of ringing, write down in which transaction (table `rung`, column `xid`)."""
    conn.execute("create table rung (xid text); grant insert on rung to public")
    conn.execute(
        "create or replace function kedge.ring_v1(p_queue text, p_workflow text) returns void language sql"
        " as 'insert into rung values (pg_current_xact_id()::text)'"
    )


def keep(
    conn: psycopg.Connection,
    run: UUID,
    key: str,
    value: object = None,
    *,
    kind: str = "s",
    seq: int | None = None,
    took_ms: int = 0,
    operation: str | None = None,
) -> int:
    """Keep an outcome; an exception as the error that it is. Answers its seq."""
    if isinstance(value, BaseException):
        payload = encode_error(value, key=key)
    else:
        payload = b"" if kind == "x" else encode(value, where=_WHERE)
    meta = b"" if operation is None else JSON_CODEC + msgspec.json.encode({"operation": operation})
    row = conn.execute(
        "with taken as (update kedge.runs set next_seq = greatest(next_seq, coalesce(%(seq)s, next_seq)) + 1"
        " where id = %(run)s returning next_seq - 1 as seq, epoch)"
        " insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)"
        " select %(run)s, kedge.instant(), coalesce(%(seq)s, seq), epoch, %(took)s, %(kind)s, %(key)s, %(value)s,"
        " %(meta)s from taken returning seq",
        {"run": run, "seq": seq, "took": took_ms, "kind": kind, "key": key, "value": payload, "meta": meta},
    ).fetchone()
    assert row is not None
    kept: int = row[0]
    return kept


def wait(
    conn: psycopg.Connection,
    run: UUID,
    key: str,
    kind: str,
    *,
    slot: str | None = None,
    due_in: timedelta | None = None,
    attempt: int = 0,
    state: object = _NOTHING,
) -> None:
    """Open a wait, and let the run rest."""
    conn.execute(
        "insert into kedge.waits (run_id, opened_at, due_at, attempt, kind, key, slot, state)"
        " select %s, t.now, t.now + %s, %s, %s, %s, %s, %s from (select kedge.instant() as now offset 0) t",
        (run, due_in, attempt, kind, key, slot, b"" if state is _NOTHING else encode(state, where=_WHERE)),
    )
    conn.execute(
        "update kedge.runs r set state = 'w', has_waits = true,"
        " due_at = (select min(w.due_at) from kedge.waits w where w.run_id = r.id) where id = %s",
        (run,),
    )


def mail(conn: psycopg.Connection, run: UUID, slot: str, *, consumed_seq: int | None = None) -> None:
    """Sort an event into the run's mail; of a waiting run that nobody waits for, so that it goes on waiting."""
    conn.execute(
        "insert into kedge.events (run_id, id, seq, at, consumed_seq, slot, payload)"
        " values (%s, %s, nextval('kedge.inbox_seq'), kedge.instant(), %s, %s, '')",
        (run, uuid4(), consumed_seq, slot),
    )
    conn.execute("update kedge.runs set has_waits = true where id = %s", (run,))


def letter(conn: psycopg.Connection, run: UUID, kind: str, *, slot: str | None = None) -> None:
    """Put a letter into the inbox."""
    conn.execute(
        "insert into kedge.inbox (run_id, id, sent_at, kind, slot) values (%s, %s, kedge.instant(), %s, %s)",
        (run, uuid4(), kind, slot),
    )


def fail_attempt(
    conn: psycopg.Connection,
    run: UUID,
    key: str,
    error: Exception,
    attempt: int,
    *,
    kind: str = "s",
    took_ms: int = 0,
) -> None:
    """Keep an attempt that failed."""
    conn.execute(
        "insert into kedge.failures (run_id, at, epoch, attempt, took_ms, kind, key, error)"
        " values (%s, kedge.instant(), 0, %s, %s, %s, %s, %s)",
        (run, attempt, took_ms, kind, key, encode_error(error, key=key or None, attempt=attempt)),
    )


def note(conn: psycopg.Connection, run: UUID, message: str) -> None:
    """Say what became of a letter."""
    conn.execute(
        "insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)"
        " values (%s, kedge.instant(), 0, 20, 'n', %s, '')",
        (run, message),
    )


def line(conn: psycopg.Connection, run: UUID, message: str, *, level: int = 20, **fields: object) -> None:
    """Write a line of the run's log."""
    conn.execute(
        "insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)"
        " values (%s, kedge.instant(), 0, %s, 'l', %s, %s)",
        (run, level, message, encode(fields, where=_WHERE) if fields else b""),
    )


def say(
    conn: psycopg.Connection,
    run: UUID,
    done: int,
    total: int | None = None,
    percent: float | None = None,
    message: str | None = None,
) -> None:
    """Set the run's progress."""
    conn.execute(
        "insert into kedge.progress (run_id, at, done, total, percent, message)"
        " values (%s, kedge.instant(), %s, %s, %s, %s)"
        " on conflict (run_id) do update set done = excluded.done, total = excluded.total,"
        " percent = greatest(progress.percent, excluded.percent), message = excluded.message",
        (run, done, total, percent, message),
    )


def define(
    conn: psycopg.Connection, workflow: str, terms: DefinitionTerms | None = None, *, total_steps: int | None = None
) -> None:
    """Register a definition."""
    conn.execute(
        "select kedge.register_definitions(array[%s]::text[], array[%s]::int[], array[%s]::bytea[])",
        (workflow, total_steps, (terms or DefinitionTerms()).encode()),
    )
