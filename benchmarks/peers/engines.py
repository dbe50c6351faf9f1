"""Which engines are compared, what each can do, and how its tables are filled with what is old."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Final

PYTHON_VARIABLE: Final = "KEDGE_PEERS_PYTHON"
IN_FLIGHT: Final = 100


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine."""

    name: str
    module: str
    settings: str
    """As its documentation advises for throughput; printed with the result."""
    workloads: frozenset[str]
    runs_per_s: int
    """More than it can drain here: so many are prepared for each second of the window."""
    ten_runs_per_s: int
    left: str
    """A select of how many runs have not ended."""
    finished: tuple[str, ...] = ()
    """Multiplies one finished run into {n}."""
    waiting: tuple[str, ...] = ()
    """Makes {n} waiting runs of it."""
    in_flight: int = IN_FLIGHT
    is_ours: bool = False

    def command(self, *arguments: str) -> list[str]:
        """Of one process; the peers' are in an environment of their own."""
        python = sys.executable if self.is_ours else os.environ[PYTHON_VARIABLE]
        return [python, "-m", f"benchmarks.peers.{self.module}", *arguments]


DURABLE: Final = frozenset(
    {"one", "ten", "starts", "bulk", "latency", "half", "event", "fan", "finished", "waiting", "idle"}
)
QUEUE: Final = frozenset({"one", "starts", "bulk", "idle"})

_RUN: Final = "01900000-0000-7000-8000-"
_IDS: Final = f"('{_RUN}' || lpad(to_hex(n), 12, '0'))::uuid"

KEDGE: Final = Engine(
    name="kedge",
    module="with_kedge",
    is_ours=True,
    settings=f"defaults: {IN_FLIGHT} runs in flight; 8 client connections",
    workloads=DURABLE,
    runs_per_s=20_000,
    ten_runs_per_s=6_000,
    left="select count(*) from kedge.runs where state <> 'w'",
    finished=(
        f"""insert into kedge.finished (id, ended_at, epoch, next_seq, rank, attempt, crashes, status, queue, workflow,
                output)
            select {_IDS}, now(), 1, 2, 0, 0, 0, 'c', 'default', 'one', '\\x017b7d' from generate_series(1, {{n}}) n""",
        f"""insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
            select {_IDS}, now(), s, s, 0, case s when 0 then 'i' else 's' end::"char", '', '\\x017b7d', ''
              from generate_series(1, {{n}}) n, generate_series(0, 1) s""",
    ),
    waiting=(
        f"""insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
            select {_IDS}, now(), 0, 0, 0, 'i', '', '\\x016e756c6c', '' from generate_series(1, {{n}}) n""",
        f"""insert into kedge.runs (id, since, state, queue, workflow, epoch, has_waits)
            select {_IDS}, now(), 'w', 'default', 'event', 2, true from generate_series(1, {{n}}) n""",
        f"""insert into kedge.waits (run_id, opened_at, kind, key, slot)
            select {_IDS}, now(), 'e', 'event', 'e:happened' from generate_series(1, {{n}}) n""",
    ),
)

_DBOS: Final = """status, name, executor_id, created_at, updated_at, application_version, inputs, output, serialization,
    started_at_epoch_ms, completed_at, queue_name, application_name"""
DBOS: Final = Engine(
    name="DBOS",
    module="with_dbos",
    settings=f"3.4.0; async workflows; queue worker_concurrency={IN_FLIGHT}, polled each 10 ms (default 1 s); pool 20",
    workloads=DURABLE,
    runs_per_s=800,
    ten_runs_per_s=100,
    left="select count(*) from dbos.workflow_status where status in ('ENQUEUED', 'PENDING')",
    finished=(
        f"""with r as (select * from dbos.workflow_status where status = 'SUCCESS' limit 1)
            insert into dbos.workflow_status (workflow_uuid, {_DBOS})
            select gen_random_uuid()::text, {_DBOS} from r, generate_series(1, {{n}})""",
        """insert into dbos.operation_outputs (workflow_uuid, function_id, function_name, output, started_at_epoch_ms,
                completed_at_epoch_ms, serialization)
            select w.workflow_uuid, o.function_id, o.function_name, o.output, o.started_at_epoch_ms,
                   o.completed_at_epoch_ms, o.serialization
              from dbos.workflow_status w, (select * from dbos.operation_outputs limit 1) o on conflict do nothing""",
    ),
    waiting=(
        """with r as (select * from dbos.workflow_status where status = 'SUCCESS' limit 1)
            insert into dbos.workflow_status (workflow_uuid, status, name, created_at, updated_at, inputs,
                serialization, queue_name, application_name, delay_until_epoch_ms)
            select gen_random_uuid()::text, 'DELAYED', name, created_at, updated_at, inputs, serialization, queue_name,
                   application_name, created_at + 86400000 from r, generate_series(1, {n})""",
    ),
)

_ABSURD_IDS: Final = """
    create temp table m as select absurd.portable_uuidv7() t, absurd.portable_uuidv7() r from generate_series(1, {n})
"""
ABSURD: Final = Engine(
    name="Absurd",
    module="with_absurd",
    settings=f"absurd-sdk 0.5.1; concurrency {IN_FLIGHT}, polled each 10 ms (default 250 ms); 8 one-connection clients",
    workloads=DURABLE,
    runs_per_s=1_500,
    ten_runs_per_s=250,
    left="select count(*) from absurd.r_default where state in ('pending', 'running')",
    finished=(
        _ABSURD_IDS,
        """insert into absurd.t_default select m.t, x.task_name, x.params, x.headers, x.retry_strategy, x.max_attempts,
                x.cancellation, x.enqueue_at, x.first_started_at, x.state, x.attempts, m.r, x.completed_payload
             from m, (select * from absurd.t_default where state = 'completed' limit 1) x""",
        """insert into absurd.r_default select m.r, m.t, x.attempt, x.state, x.claimed_by, x.claim_expires_at,
                x.available_at, x.wake_event, x.event_payload, x.started_at, x.completed_at, x.failed_at, x.result
             from m, (select * from absurd.r_default where state = 'completed' limit 1) x""",
        """insert into absurd.c_default select m.t, x.checkpoint_name, x.state, x.status, m.r
             from m, (select * from absurd.c_default limit 1) x""",
    ),
    waiting=(
        _ABSURD_IDS,
        """insert into absurd.t_default select m.t, x.task_name, x.params, x.headers, x.retry_strategy, x.max_attempts,
                x.cancellation, x.enqueue_at, x.first_started_at, 'sleeping', x.attempts, m.r
             from m, (select * from absurd.t_default where state = 'completed' limit 1) x""",
        """insert into absurd.r_default (run_id, task_id, attempt, state, available_at, wake_event)
            select m.r, m.t, 1, 'sleeping', 'infinity', 'event:' || m.t from m""",
        """insert into absurd.w_default (task_id, run_id, step_name, event_name)
            select m.t, m.r, 'event', 'event:' || m.t from m""",
    ),
)

PROCRASTINATE: Final = Engine(
    name="Procrastinate",
    module="with_procrastinate",
    settings=f"3.10.0, a plain queue; concurrency {IN_FLIGHT}, LISTEN, pool 8-20",
    workloads=QUEUE,
    runs_per_s=2_500,
    ten_runs_per_s=0,
    left="select count(*) from procrastinate_jobs where status in ('todo', 'doing')",
)

PGQUEUER: Final = Engine(
    name="PgQueuer",
    module="with_pgqueuer",
    settings=f"1.6.0, a plain queue; asyncpg, batch_size {IN_FLIGHT}, {2 * IN_FLIGHT} tasks at once",
    workloads=QUEUE,
    runs_per_s=20_000,
    ten_runs_per_s=0,
    left="select count(*) from pgqueuer",
)

ENGINES: Final = (KEDGE, DBOS, ABSURD, PROCRASTINATE, PGQUEUER)
