"""
The SQL of every move that needs a lease, in the order of a run's life. Parameters are numbered and binary.

Plans are made once and kept, often while the tables are empty and every way costs the same; so there must be only one.
A correlated EXISTS ends in OFFSET 0: it is neither turned into a join nor into a hash of the whole table. A run that is
looked up by id is compared with its owner by IS NOT DISTINCT FROM, without its state: as a condition of an index the
owner finds all runs of the worker, dead entries included.
"""

from __future__ import annotations

from typing import Final

# ---- before the first move --------------------------------------------------------------------------------------

REGISTER_WORKER: Final = """
    insert into kedge.workers (id, lease_until, lease, started_at, protocol, name, queues, workflows)
    values (%(id)s, clock_timestamp() + %(lease)s, %(lease)s, clock_timestamp(), %(protocol)s, %(name)s, %(queues)s,
            %(workflows)s)
"""

# A beat tells no time test: whoever takes back deletes the row, and no row is the answer "lost".
# It brings back the runs that somebody wants ended.
BEAT: Final = """
    with beat as (
        update kedge.workers set lease_until = clock_timestamp() + lease where id = %(worker)s returning id)
    select beat.id, r.id, r.epoch, r.request::text, r.reason
      from beat
      left join lateral (
           select * from kedge.runs r
            where r.worker_id = beat.id and r.state = 'r' and r.request is not null offset 0) r on true
"""

# ---- claim ------------------------------------------------------------------------------------------------------

# First statement of every leased transaction.
HOLD_WORKER: Final = "select kedge.hold_worker($1::uuid)"

# Takes up to $7 runs. Candidates are read without locks, a lane (queue, workflow) at a time from its floor on; then
# just these are locked, skipping what somebody else holds. When ready and due runs compete, neither kind gets
# more than three quarters. A run with an unsorted cancel is left to the courier.
# One row comes back even when nothing was claimed (its id is null), so that the ids always reach the setting
# that READ_CLAIMED looks into: behind the commit, since a transaction that holds locks never sends payloads.
CLAIM: Final = """
    with lanes as materialized (
        select * from unnest($2::text[], $3::text[], $4::int[], $5::bigint[]) as l(queue, workflow, rank, seq)),
    ready as materialized (
        select r.id, r.rank, r.seq as place
          from lanes l
         cross join lateral (
               select r.id, r.rank, r.seq from kedge.runs r
                where r.state = 'p' and r.queue = l.queue and r.workflow = l.workflow
                  and (r.rank, r.seq) >= (l.rank, l.seq)
                order by r.rank, r.seq limit $6::int) r
         order by r.rank, r.seq limit $6::int),
    due as materialized (
        select r.id, r.rank, r.due_at
          from lanes l
         cross join lateral (
               select r.id, r.rank, r.due_at from kedge.runs r
                where r.state = 'w' and r.due_at <= kedge.clock() and r.queue = l.queue and r.workflow = l.workflow
                order by r.due_at limit $6::int) r
         order by r.due_at limit $6::int),
    picked as (
        select id from (
            select d.id, d.rank, 0 as kind, row_number() over (order by d.rank, d.due_at) as place from due d
            union all
            select y.id, y.rank, 1, row_number() over (order by y.rank, y.place) from ready y) c
         order by (c.place > greatest(1, $6::int * 3 / 4)), c.rank, c.kind, c.place limit $6::int),
    locked as materialized (
        select r.id from kedge.runs r
         where r.id = any (array(select id from picked))
           and (r.state = 'p' or r.state = 'w' and r.due_at <= kedge.clock())
           and not exists (select 1 from kedge.inbox i where i.run_id = r.id and i.kind = 'x' offset 0)
           for update of r skip locked),
    claimed as (
        update kedge.runs r
           set state = 'r', worker_id = $1::uuid, epoch = r.epoch + 1, since = kedge.instant(), due_at = null,
               started_at = coalesce(r.started_at, kedge.instant())
         where r.id = any (array(select id from locked))
        returning r.id, r.epoch, r.next_seq, r.attempt, r.crashes, r.rank, r.seq, r.since, r.request, r.queue,
                  r.workflow, r.resource, r.reason),
    noted as (
        select set_config('kedge_claim.ids', (select coalesce(array_agg(c.id), '{}')::text from claimed c), false))
    select exists (select 1 from kedge.inbox), c.id, c.epoch, c.next_seq, c.attempt::int, c.crashes::int,
           c.rank::int, c.seq, c.since, c.request, c.queue, c.workflow, c.resource, c.reason, exists (select 1 from due)
      from noted left join claimed c on true
     order by c.rank, c.seq
"""

# What the claim just before in this session took: every kept row, the input (seq 0) first.
READ_CLAIMED: Final = """
    select j.run_id, j.seq, j.kind, j.key, j.value, j.meta, j.at
      from unnest(current_setting('kedge_claim.ids')::uuid[]) as i(id)
     cross join lateral (select * from kedge.journal j where j.run_id = i.id order by j.seq offset 0) j
"""

# ---- flush ------------------------------------------------------------------------------------------------------

# Outcomes of steps. A row that is missing from the count was refused by the fence (somebody else owns the run) or
# stands there already: settled by SETTLE_ROWS.
KEEP: Final = """
    insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
    select x.run_id, kedge.instant(), x.seq, x.epoch, x.took_ms, x.kind, x.key, x.value, coalesce(x.meta, '')
      from unnest($2::uuid[], $3::int[], $4::int[], $5::int[], $6::"char"[], $7::text[], $8::bytea[], $9::bytea[])
           as x(run_id, seq, epoch, took_ms, kind, key, value, meta)
     cross join lateral (
           select 1 from kedge.runs r
            where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid offset 0) fence
    on conflict do nothing
"""

END: Final = """
    select kedge.end_runs($1::uuid, $2::uuid[], $3::int[], $4::text[], $5::bytea[], $6::bytea[], $7::text[],
                          $8::int[], $9::int[], $10::int[])
"""

RELEASE: Final = "select kedge.release_runs($1::uuid, $2::uuid[], $3::int[], $4::float8[], $5::text[], $6::int[])"

# The careful form of a flush begins with this: the moving runs that nobody else has locked.
LOCK_MOVING: Final = """
    select r.id from kedge.runs r
     where r.id = any ($2::uuid[]) and r.worker_id is not distinct from $1::uuid
       for update skip locked
"""

# After the commit, in the same round trip, and behind a claim too: nothing that a transaction with NOTIFY has to wait
# for the disk with.
NOTIFY_WATCHERS: Final = "select kedge.notify_watchers($1::uuid[])"

# The same where it is not known whether a run has ended: given back, a run with a cancel request has.
NOTIFY_IF_ENDED: Final = """
    select kedge.notify_watchers(array(
        select i.id from unnest($1::uuid[]) as i(id)
         cross join lateral (select 1 from kedge.finished f where f.id = i.id offset 0) f))
"""

# What was given back is there for whoever sleeps.
RING_LANES: Final = (
    "select kedge.ring_v1(l.queue, l.workflow) from unnest($1::text[], $2::text[]) as l(queue, workflow)"
)

# ---- settling an outcome that is not known ------------------------------------------------------------------------

SETTLE_ROWS: Final = """
    select j.run_id, j.seq, j.epoch
      from unnest($1::uuid[], $2::int[]) as x(run_id, seq)
     cross join lateral (select * from kedge.journal j where j.run_id = x.run_id and j.seq = x.seq offset 0) j
"""

# Where these runs stand: live with an owner or without, or ended (state null).
SETTLE_RUNS: Final = """
    select s.*
      from unnest($2::uuid[]) as i(id)
     cross join lateral (
           (select r.id, r.epoch, r.worker_id is not distinct from $1::uuid
              from kedge.runs r where r.id = i.id offset 0)
           union all
           (select f.id, f.epoch, null from kedge.finished f where f.id = i.id offset 0)) s
"""

TAKE_OVER_JOURNAL: Final = "select kedge.take_over_journal($1::uuid, $2::int, $3::timestamptz)"

# This backend's start, and the timeline: another one than before means that a standby was promoted.
SERVER_LIFE: Final = """
    select a.backend_start, left(pg_walfile_name(pg_current_wal_lsn()), 8)
      from pg_stat_activity a where a.pid = pg_backend_pid()
"""

OWNED: Final = "select r.id, r.epoch from kedge.runs r where r.worker_id = $1::uuid and r.state = 'r'"

# ---- transactional step -------------------------------------------------------------------------------------------

# The memo, behind the fence: the run's row, locked until the commit. No lock on the worker's row: a take back needs the
# run's. No row in the count: somebody else owns the run. A client that stops here, before its COMMIT, would hold the
# run beyond its lease: from now on the session may stand idle for a third of it.
KEEP_TRANSACTION: Final = """
    insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
    select r.id, kedge.instant(), %(seq)s, r.epoch, %(took_ms)s, 't', %(key)s, %(value)s, ''
      from (select id, epoch from kedge.runs
             where id = %(run)s and epoch = %(epoch)s and worker_id is not distinct from %(worker)s
               for no key update) r
     where set_config(
           'idle_in_transaction_session_timeout',
           (select (extract(epoch from w.lease) * 1000 / 3)::int::text from kedge.workers w where w.id = %(worker)s),
           true) is not null
"""

LOCK_RUN: Final = """
    select 1 from kedge.runs
     where id = %(run)s and epoch = %(epoch)s and worker_id is not distinct from %(worker)s for no key update
"""

SETTLE_TRANSACTION: Final = "select epoch from kedge.journal where run_id = %(run)s and seq = %(seq)s"

# ---- sleep and wake -----------------------------------------------------------------------------------------------

GO_IDLE: Final = """
    insert into kedge.idle (worker_id, queues, workflows) values (%(worker)s, %(queues)s, %(workflows)s)
    on conflict do nothing
"""

WAKE_UP: Final = "delete from kedge.idle where worker_id = %(worker)s"

# How long until the next run of these lanes becomes due, in seconds; null: none.
NEXT_DUE: Final = """
    select extract(epoch from min(d.due_at) - kedge.clock())::float8
      from unnest(%(queues)s::text[]) as q cross join unnest(%(workflows)s::text[]) as w
     cross join lateral (
           select r.due_at from kedge.runs r
            where r.state = 'w' and r.due_at is not null and r.queue = q and r.workflow = w
            order by r.due_at limit 1) d
"""

SORT_INBOX: Final = "select sorted, remaining, owners, ended from kedge.sort_inbox(%(limit)s)"
FAIL_LETTER: Final = "select kedge.fail_letter(%(error)s)"
HAS_MAIL: Final = "select exists (select 1 from kedge.inbox)"
RING_WORKERS: Final = "select kedge.ring_workers(%(workers)s)"
RING: Final = "select kedge.ring_v1(%(queue)s, %(workflow)s)"
NOTIFY_ENDED: Final = "select kedge.notify_watchers(%(runs)s)"

REQUESTS: Final = """
    select r.id, r.reason from kedge.runs r where r.worker_id = %(worker)s and r.state = 'r' and r.request = 'x'
"""

# ---- the end of a worker ------------------------------------------------------------------------------------------

TAKE_BACK: Final = """
    select worker_id, worker_name, freed, ended, queues, workflows, remaining
      from kedge.take_back(%(protocol)s::smallint, %(but)s::uuid[])
"""

# The row goes only when nothing is owned; else it lapses, and its take back charges nobody.
LEAVE: Final = "select kedge.leave(%(worker)s)"

# For a life that lapsed while the database was away: its runs are free at once, and nobody is charged.
ABANDON: Final = """
    update kedge.workers set leaving = true, lease_until = least(lease_until, clock_timestamp()) where id = %(worker)s
"""
