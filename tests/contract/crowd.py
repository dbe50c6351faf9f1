"""A database in the middle of its life: 20,000 ended runs, 20,000 that wait, 2,000 to claim, 200 in workers' hands."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import psycopg

WORKER: Final = UUID("0000000f-0000-7000-8000-000000000001")
QUEUE: Final = "default"
WORKFLOWS: Final = ("order", "invoice", "report")
EPOCH: Final = 1
"""Of the running runs."""

FINISHED: Final = 20_000
WAITING: Final = 20_000
PENDING: Final = 2_000
RUNNING: Final = 200
LETTERS: Final = 300
"""Cancel letters to waiting runs."""
WATCHERS: Final = 10_000

_KINDS: Final = {"finished": 1, "waiting": 2, "pending": 3, "running": 4}

_ID: Final = "lpad(to_hex({kind}), 8, '0') || '-0000-7000-8000-' || lpad(to_hex(n), 12, '0')"
_WORKFLOW: Final = "(array['order', 'invoice', 'report'])[n % 3 + 1]"


def run_id(kind: str, n: int) -> UUID:
    """Return the id of the n-th run, from 1, of a kind."""
    return UUID(f"{_KINDS[kind]:08x}-0000-7000-8000-{n:012x}")


def run_ids(kind: str, count: int) -> list[UUID]:
    return [run_id(kind, n) for n in range(1, count + 1)]


def fill(conn: psycopg.Connection) -> None:
    """Insert all of them, with their journals: the input and two steps, the input alone for those that never ran."""
    _insert_journal(conn, "finished", FINISHED, rows=3)
    _execute(
        conn,
        "finished",
        FINISHED,
        """insert into kedge.finished (id, ended_at, epoch, next_seq, rank, attempt, crashes, status, queue, workflow,
                                       resource, parent_id, output)
           select {id}, now() - interval '3 days', 1, 3, 0, 0, 0, case when n % 50 = 0 then 'f' else 'c' end::"char",
                  'default', {workflow}, 'customer-' || n % 500, null, '\\x0131'
             from generate_series(1, {count}) as n""",
    )
    _execute(
        conn,
        "finished",
        FINISHED,
        """insert into kedge.run_keys (workflow, resource, key, run_id, hash)
           select {workflow}, 'customer-' || n % 500, 'key-' || n, {id}, '\\x00'
             from generate_series(1, {count}) as n""",
    )
    _execute(
        conn,
        "finished",
        FINISHED,
        "insert into kedge.run_tags (tag, run_id) select 'tag-' || n % 200, {id} from generate_series(1, {count}) as n",
    )
    # Orders are deleted after a day, of invoices those that failed, reports never.
    conn.execute(
        """insert into kedge.definitions (workflow, at, options, keep_completed_s, keep_failed_s, keep_cancelled_s)
           values ('order', now(), '', 86400, 86400, 86400), ('invoice', now(), '', null, 86400, null),
                  ('report', now(), '', null, null, null)"""
    )
    # 50 of those that wait are due.
    _insert_journal(conn, "waiting", WAITING, rows=1)
    _insert_live(
        conn, "waiting", WAITING, "'w', now() + make_interval(hours => case when n <= 50 then -1 else 24 end), null"
    )
    _insert_journal(conn, "pending", PENDING, rows=1)
    _insert_live(conn, "pending", PENDING, "'p', null, null")
    conn.execute(
        """insert into kedge.workers (id, lease_until, lease, started_at, protocol, name, queues, workflows)
           select w, now() + interval '1 hour', interval '15 s', now(), 1, 'a worker', '{default}', '{order}'
             from unnest(%s::uuid[]) as w""",
        ([WORKER, *(UUID(int=n) for n in range(9))],),
    )
    _insert_journal(conn, "running", RUNNING, rows=3)
    # Two of three belong to others.
    owner = f"case when n % 3 = 0 then '{WORKER}'::uuid else '{UUID(int=1)}' end"
    _insert_live(conn, "running", RUNNING, f"'r', null, {owner}")
    _execute(
        conn,
        "waiting",
        LETTERS,
        """insert into kedge.inbox (run_id, id, sent_at, kind)
           select {id}, {id}, now(), 'x' from generate_series(1000, 999 + {count}) as n""",
    )
    # Each waits for an event, a hundred of them for that of a topic; has one that is unread and two that were read.
    _execute(
        conn,
        "waiting",
        WAITING,
        """insert into kedge.waits (run_id, opened_at, kind, key, slot)
           select {id}, now(), 'e', 'settled',
                  case when n % 200 = 0 then 't:orders' || chr(31) || 'settled' else 'e:settled' end
             from generate_series(1, {count}) as n""",
    )
    _execute(
        conn,
        "waiting",
        WAITING,
        """insert into kedge.events (run_id, id, seq, at, consumed_seq, slot, payload)
           select {id}, gen_random_uuid(), -m, now(), nullif(m, 0), 'e:other', '\\x'
             from generate_series(1, {count}) as n, generate_series(0, 2) as m""",
    )
    _execute(
        conn,
        "waiting",
        WAITING,
        """insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)
           select {id}, now(), 1, 20, case when m = 0 then 'n' else 'l' end::"char", 'a line', '\\x'
             from generate_series(1, {count}) as n, generate_series(0, 2) as m""",
    )
    _execute(
        conn,
        "waiting",
        WAITING,
        """insert into kedge.failures (run_id, at, epoch, attempt, took_ms, kind, key, error)
           select {id}, now(), 1, m, 1, 's', 'a', '\\x'
             from generate_series(1, {count}) as n, generate_series(1, 2) as m""",
    )
    for statement in (
        "insert into kedge.progress (run_id, at, done) select {id}, now(), 1 from generate_series(1, {count}) as n",
        "insert into kedge.run_metadata (run_id, metadata) select {id}, '' from generate_series(1, {count}) as n",
    ):
        _execute(conn, "waiting", WAITING, statement)
    _execute(
        conn,
        "waiting",
        WATCHERS,
        "insert into kedge.observers (run_id, channel) select {id}, 'a_client' from generate_series(1, {count}) as n",
    )
    _execute(
        conn,
        "waiting",
        WATCHERS,
        "insert into kedge.watchers (run_id, channel) select {id}, 'a_client' from generate_series(1, {count}) as n",
    )


def _insert_journal(conn: psycopg.Connection, kind: str, count: int, *, rows: int) -> None:
    _execute(
        conn,
        kind,
        count,
        f"""insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
            select {{id}}, now(), seq, least(seq, 1), 1, case seq when 0 then 'i' else 's' end::"char", 'a', '\\x01', ''
              from generate_series(1, {{count}}) as n, generate_series(0, {rows - 1}) as seq""",
    )


def _insert_live(conn: psycopg.Connection, kind: str, count: int, state: str) -> None:
    _execute(
        conn,
        kind,
        count,
        f"""insert into kedge.runs (id, since, epoch, queue, workflow, resource, state, due_at, worker_id)
            select {{id}}, now(), 1, 'default', {{workflow}}, 'customer-' || n % 500, {state}
              from generate_series(1, {{count}}) as n""",
    )


def _execute(conn: psycopg.Connection, kind: str, count: int, statement: str) -> None:
    identity = f"({_ID.format(kind=_KINDS[kind])})::uuid"
    conn.execute(statement.format(id=identity, workflow=_WORKFLOW, count=count).encode())
