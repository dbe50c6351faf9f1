"""Where as much is deleted as comes, the tables stay as large as what is kept."""

from __future__ import annotations

from typing import Final

from kedge_worker.testing import Clock
from tests.retention import DAY_S, delete, keep
from tests.sessions import Session

RUNS: Final = 400
"""A day."""
KEPT_DAYS: Final = 3
TABLES: Final = ("journal", "finished", "run_keys", "run_tags", "failures", "events", "run_log")

_ID: Final = (
    "(select (substr(h, 1, 8) || '-' || substr(h, 9) || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
    " from lpad(to_hex((extract(epoch from kedge.clock()) * 1000)::bigint + n), 12, '0') as h)"
)
_DAY: Final = (
    f"""create table public.day as
        select {_ID} as id, n from generate_series($1::int * {RUNS} + 1, ($1::int + 1) * {RUNS}) as n""",
    """insert into kedge.journal select d.id, kedge.clock(), s, 0, 0, case s when 0 then 'i' else 's' end::"char",
              'a step', sha256(d.n::text::bytea), '' from public.day d, generate_series(0, 3) s""",
    """insert into kedge.finished (id, ended_at, epoch, next_seq, rank, attempt, crashes, status, queue, workflow, key,
                                   output)
       select d.id, kedge.clock(), 0, 4, 0, 0, 0, 'c', 'default', 'order', 'key ' || d.n, '\\x01' from public.day d""",
    """insert into kedge.run_keys (workflow, key, run_id, hash)
       select 'order', 'key ' || d.n, d.id, '' from public.day d""",
    """insert into kedge.run_tags (tag, run_id) select 'tag ' || d.n % 7, d.id from public.day d""",
    """insert into kedge.failures (run_id, at, epoch, attempt, took_ms, kind, key, error)
       select d.id, kedge.clock(), 0, 1, 0, 's', 'a step', '' from public.day d""",
    """insert into kedge.events (run_id, id, seq, at, slot, payload)
       select d.id, d.id, d.n, kedge.clock(), 'e:a', '' from public.day d""",
    """insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)
       select d.id, kedge.clock(), 0, 20, 'l', 'a line', '' from public.day d""",
    "drop table public.day",
)


def sizes(db: Session) -> dict[str, int]:
    """Bytes of each table with its indexes."""
    return {table: db.value(f"select pg_total_relation_size('kedge.{table}')") for table in TABLES}


def test_under_steady_churn_tables_and_indexes_stop_growing(db: Session) -> None:
    clock = Clock(db.url)
    keep(db, completed_s=KEPT_DAYS * DAY_S)
    early: dict[str, int] = {}

    for day in range(5 * KEPT_DAYS):
        for statement in _DAY:
            db.rows(statement.replace("$1", str(day)))
        while not delete(db, limit=200, rows=2000)[0][3] or db.value("select kedge.finish_removals(2000)"):
            pass
        for table in TABLES:
            db.rows(f"vacuum kedge.{table}")  # as autovacuum does, at its own times
        if day == 2 * KEPT_DAYS:
            early = sizes(db)
        clock.advance("1 day")

    kept = db.value("select count(*) from kedge.finished")
    assert RUNS * KEPT_DAYS <= kept <= RUNS * (KEPT_DAYS + 1)
    grown = {table: size / early[table] for table, size in sizes(db).items() if size > 1.1 * early[table]}
    assert grown == {}


def test_autovacuum_comes_to_the_tables_of_history_before_a_twentieth_is_dead(db: Session) -> None:
    lazy = db.rows(
        "select c.relname::text from pg_class c where c.relnamespace = 'kedge'::regnamespace and c.relname = any ($1)"
        " and not c.reloptions && array['autovacuum_vacuum_scale_factor=0.05']",
        ([*TABLES, "progress", "run_metadata"],),
    )

    assert lazy == []
