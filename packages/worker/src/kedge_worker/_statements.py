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

REGISTER_DEFINITIONS: Final = """
    select kedge.register_definitions(
        %(names)s::text[], %(total_steps)s::int[], %(options)s::bytea[], %(keep_completed_s)s::float8[],
        %(keep_failed_s)s::float8[], %(keep_cancelled_s)s::float8[])
"""

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

CLAIM_BYTES: Final = 8 * 1024 * 1024
"""What an answer may have, about: of a claim behind its first run, of a look for mail behind its first letter."""

# First statement of every leased transaction.
HOLD_WORKER: Final = "select kedge.hold_worker($1::uuid)"

# Takes up to $6 runs. $9 candidates are read without locks, a lane (queue, workflow) at a time from its floor on; then
# the first $6 of them that nobody else holds are locked. Whoever claims at the same moment sees the same candidates: if
# that left too few, while there may be others behind them, the last column says so, and the next claim reads more. When
# ready and due runs compete, neither kind gets more than three quarters. A run with an unsorted cancel or pause
# is left to the courier.
# One row comes back even when nothing was claimed (its id is null), so that the ids always reach the setting
# that READ_CLAIMED looks into: behind the commit, since a transaction that holds locks never sends payloads.
# $8 says that the transaction does nothing else. With nothing claimed it has then written nothing but a lock on the
# worker's row, and a lock does not outlive a crash: such a commit waits neither for the disk nor for a standby. One
# that has claimed, or that has a flush before it, waits for both.
# Of several runs only so many are taken that what is kept of them, and unread, has 8 MiB (CLAIM_BYTES) behind the
# first; the others stay where they are. Runs without a past have only an input, which one slot has room for: that is
# not looked at here, and the claimer asks for fewer when inputs are large.
# $7 are the timeouts of the lanes' definitions, null when none has one: a run that says nothing of its own gets it with
# its first claim, counted from when it was due.
CLAIM: Final = """
    with lanes as materialized (
        select * from unnest($2::text[], $3::text[], $4::int[], $5::bigint[], $7::float8[])
                   as l(queue, workflow, rank, seq, timeout_s)),
    ready as materialized (
        select r.id, r.rank, r.seq as place
          from lanes l
         cross join lateral (
               select r.id, r.rank, r.seq from kedge.runs r
                where r.state = 'p' and r.queue = l.queue and r.workflow = l.workflow
                  and (r.rank, r.seq) >= (l.rank, l.seq)
                order by r.rank, r.seq limit $9::int) r
         order by r.rank, r.seq limit $9::int),
    due as materialized (
        select r.id, r.rank, r.due_at
          from lanes l
         cross join lateral (
               select r.id, r.rank, r.due_at from kedge.runs r
                where r.state = 'w' and r.due_at <= kedge.clock() and r.queue = l.queue and r.workflow = l.workflow
                order by r.due_at limit $9::int) r
         order by r.due_at limit $9::int),
    picked as materialized (
        select id from (
            select d.id, d.rank, 0 as kind, row_number() over (order by d.rank, d.due_at) as place from due d
            union all
            select y.id, y.rank, 1, row_number() over (order by y.rank, y.place) from ready y) c
         order by (c.place - 1) / greatest(1, $6::int * 3 / 4), c.rank, c.kind, c.place limit $9::int),
    locked as materialized (
        select r.*
          from picked p
         cross join lateral (
               select r.id, r.rank, r.seq, r.epoch > 0 or r.next_seq > 1 or r.has_waits as has_past from kedge.runs r
                where r.id = p.id
                  and (r.state = 'p' or r.state = 'w' and r.due_at <= kedge.clock())
                  and not exists (select 1 from kedge.inbox i where i.run_id = r.id and i.kind in ('x', 's') offset 0)
                limit 1 for update of r skip locked) r
         limit $6::int),
    claimed as (
        update kedge.runs r
           set state = 'r', worker_id = $1::uuid, epoch = r.epoch + 1, since = kedge.instant(), due_at = null,
               started_at = coalesce(r.started_at, kedge.instant()),
               timeout_s = case when $7::float8[] is null or r.timeout_s is not null then r.timeout_s
                                else (select l.timeout_s from lanes l
                                       where l.queue = r.queue and l.workflow = r.workflow) end,
               deadline_at = case when $7::float8[] is null or r.timeout_s is not null then r.deadline_at
                                  else coalesce(r.due_at, r.since) + (
                                       select make_interval(secs => l.timeout_s) from lanes l
                                        where l.queue = r.queue and l.workflow = r.workflow) end
         where r.id = any (
               case when exists (select 1 from locked where has_past) and (select count(*) from locked) > 1
                    then kedge.fit_together(array(select l.id from locked l order by l.rank, l.seq), 8388608)
                    else array(select l.id from locked l) end)
        returning r.id, r.epoch, r.next_seq, r.attempt, r.crashes, r.rank, r.seq, r.since, r.request, r.queue,
                  r.workflow, r.resource, r.reason, r.has_waits, r.is_observed, r.deadline_at),
    noted as (
        select set_config('kedge_claim.ids', (select coalesce(array_agg(c.id), '{}')::text from claimed c), false),
               set_config('kedge_claim.waiting', (
                   select coalesce(array_agg(c.id) filter (where c.has_waits), '{}')::text from claimed c), false),
               case when $8::bool and not exists (select 1 from claimed)
                    then set_config('synchronous_commit', 'off', true) end)
    select exists (select 1 from kedge.inbox), c.id, uuid_send(c.id), c.epoch, c.next_seq, c.attempt, c.crashes,
           c.rank, c.seq, c.since, c.request, c.queue, c.workflow, c.resource, c.reason,
           exists (select 1 from due),
           c.is_observed, extract(epoch from nullif(c.deadline_at, 'infinity') - kedge.clock())::float8,
           exists (select 1 from locked where has_past)
               and (select count(*) from locked) > (select count(*) from claimed),
           (select count(*) from picked) = $9::int and (select count(*) from locked) < $6::int
      from noted left join claimed c on true
     order by c.rank, c.seq
"""

# What the claim just before in this session took: every kept row, the input (seq 0) first. Runs are named by the bytes
# of their ids here and below: dictionaries of the worker find them faster.
READ_CLAIMED: Final = """
    select uuid_send(j.run_id), j.seq, j.kind, j.key, j.value, j.meta, j.at
      from unnest(current_setting('kedge_claim.ids')::uuid[]) as i(id)
     cross join lateral (select * from kedge.journal j where j.run_id = i.id order by j.seq offset 0) j
"""

# Of those that wait, or have been sent something: what is open, and what is unread.
READ_WAITS: Final = """
    select uuid_send(w.run_id), w.key, w.kind, w.slot, extract(epoch from w.due_at - kedge.clock())::float8,
           extract(epoch from w.until_at - kedge.clock())::float8, w.attempt, w.state
      from unnest(current_setting('kedge_claim.waiting')::uuid[]) as i(id)
     cross join lateral (select * from kedge.waits w where w.run_id = i.id offset 0) w
"""

READ_MAIL: Final = """
    select uuid_send(m.run_id), m.id, m.seq, m.slot, m.payload
      from unnest(current_setting('kedge_claim.waiting')::uuid[]) as i(id)
     cross join lateral (
           select * from kedge.events e where e.run_id = i.id and e.consumed_seq is null order by e.seq offset 0) m
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

# ---- what a flush writes beside rows and moves: $2 runs, $3 epochs, then its own columns --------------------------

START_CHILDREN: Final = """
    select kedge.start_children(
        $1::uuid, $2::uuid[], $3::int[], $4::int[], $5::text[], $6::uuid[], $7::text[], $8::text[], $9::int[],
        $10::bytea[], $11::bytea[], $12::text[], $13::timestamptz[], $14::float8[], $15::float8[], $16::text[],
        $17::bool[], $18::bool[])
"""

# A wait that begins, or whose next check or attempt is planned: that one has a higher number. A repeat moves nothing.
OPEN_WAITS: Final = """
    insert into kedge.waits (run_id, opened_at, due_at, until_at, attempt, need, kind, key, slot, group_key, state)
    select x.run_id, t.now, coalesce(x.due_at, t.now + make_interval(secs => x.delay_s)),
           t.now + make_interval(secs => x.limit_s), x.attempt, x.need, x.kind, x.key, x.slot, x.group_key,
           x.state
      from unnest($2::uuid[], $3::int[], $4::text[], $5::"char"[], $6::text[], $7::float8[], $8::timestamptz[],
                  $9::float8[], $10::int[], $11::int[], $12::text[], $13::bytea[])
           as x(run_id, epoch, key, kind, slot, delay_s, due_at, limit_s, attempt, need, group_key, state)
     cross join (select kedge.instant() as now offset 0) t
     cross join lateral (
           select 1 from kedge.runs r
            where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid offset 0) fence
    on conflict (run_id, key) do update
       set due_at = excluded.due_at, attempt = excluded.attempt, kind = excluded.kind, state = excluded.state
     where waits.attempt < excluded.attempt
"""

CLOSE_WAITS: Final = """
    delete from kedge.waits
     where ctid = any (array(
           select w.ctid
             from unnest($2::uuid[], $3::int[], $4::text[]) as x(run_id, epoch, key)
            cross join lateral (
                  select 1 from kedge.runs r
                   where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid
                  offset 0) fence
            cross join lateral (
                  select w.ctid from kedge.waits w where w.run_id = x.run_id and w.key = x.key offset 0) w))
"""

# Mail that a journal row of this flush holds (its seq), or that nothing can be made of (0). The row stays, so that a
# repeat of the letter is refused.
CONSUME_MAIL: Final = """
    update kedge.events e
       set consumed_seq = m.seq, payload = ''
      from (select x.seq, e.ctid
              from unnest($2::uuid[], $3::int[], $4::int[], $5::uuid[]) as x(run_id, epoch, seq, id)
             cross join lateral (
                   select 1 from kedge.runs r
                    where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid
                   offset 0) fence
             cross join lateral (
                   select e.ctid from kedge.events e where e.run_id = x.run_id and e.id = x.id offset 0) e) m
     where e.ctid = m.ctid and e.consumed_seq is null
"""

# The id of a letter is this run's own: a flush must not wait for a caller who has sent the same event and not committed
# yet. What the recipient knows a repeat by is event_id.
SEND_LETTERS: Final = """
    insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload, sender, event_id)
    select x.recipient, x.id, kedge.instant(), x.kind, x.slot, x.payload, x.sender, x.event_id
      from unnest($2::uuid[], $3::int[], $4::"char"[], $5::uuid[], $6::uuid[], $7::text[], $8::bytea[], $9::uuid[],
                  $10::uuid[])
           as x(run_id, epoch, kind, recipient, id, slot, payload, sender, event_id)
     cross join lateral (
           select 1 from kedge.runs r
            where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid offset 0) fence
    on conflict do nothing
"""

KEEP_FAILURES: Final = """
    insert into kedge.failures (run_id, at, epoch, n, attempt, took_ms, kind, key, error)
    select x.run_id, kedge.instant(), x.epoch, x.n, x.attempt, x.took_ms, x.kind, x.key, x.error
      from unnest($2::uuid[], $3::int[], $4::int[], $5::int[], $6::int[], $7::"char"[], $8::text[], $9::bytea[])
           as x(run_id, epoch, n, attempt, took_ms, kind, key, error)
     cross join lateral (
           select 1 from kedge.runs r
            where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid offset 0) fence
    on conflict do nothing
"""

# ---- moves --------------------------------------------------------------------------------------------------------

PARK: Final = "select kedge.park_runs($1::uuid, $2::uuid[], $3::int[], $4::int[], $5::uuid[], $6::text[])"

RETRY_LATER: Final = (
    "select kedge.retry_later($1::uuid, $2::uuid[], $3::int[], $4::float8[], $5::bytea[], $6::text[], $7::int[])"
)

RELEASE: Final = "select kedge.release_runs($1::uuid, $2::uuid[], $3::int[], $4::float8[], $5::text[], $6::int[])"

# One run, as if the worker had died with it.
CHARGE: Final = "select kedge.free_runs($1::uuid, $2::uuid[], true)"

# The careful form of a flush begins with this: the moving runs that nobody else has locked.
LOCK_MOVING: Final = """
    select r.id from kedge.runs r
     where r.id = any ($2::uuid[]) and r.worker_id is not distinct from $1::uuid
       for update skip locked
"""

# After the commit, in the same round trip, and behind a claim too: nothing that a transaction with NOTIFY has to wait
# for the disk with.
NOTIFY_WATCHERS: Final = "select kedge.notify_watchers($1::uuid[])"

NOTIFY_OBSERVERS: Final = "select kedge.notify_observers($1::uuid[])"

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

# Behind it, and with no lock: what the one before has committed is settled by reading, once the standby has it too.
AWAIT_STANDBY: Final = "select kedge.await_standby()"

# This backend's start and pid, and the timeline: another one than before means that a standby was promoted.
SERVER_LIFE: Final = """
    select a.backend_start, left(pg_walfile_name(pg_current_wal_lsn()), 8), a.pid
      from pg_stat_activity a where a.pid = pg_backend_pid()
"""

OWNED: Final = "select r.id, r.epoch from kedge.runs r where r.worker_id = $1::uuid and r.state = 'r'"

# ---- transactional step -------------------------------------------------------------------------------------------

# The memo, behind the fence: the run's row, locked until the commit. No lock on the worker's row: a take back needs the
# run's. No row in the count: somebody else owns the run. A client that stops here, before its COMMIT, would hold the
# run beyond its lease: from now on the session may stand idle for a third of it. A server that was promoted meanwhile
# has another timeline: what the run stands on may not have reached it.
KEEP_TRANSACTION: Final = """
    insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
    select r.id, kedge.instant(), %(seq)s, r.epoch, %(took_ms)s, 't', %(key)s, %(value)s, %(meta)s
      from (select id, epoch from kedge.runs
             where id = %(run)s and epoch = %(epoch)s and worker_id is not distinct from %(worker)s
               and (%(timeline)s::text = '' or left(pg_walfile_name(pg_current_wal_lsn()), 8) = %(timeline)s::text)
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

# ---- a child with a key or singleton ------------------------------------------------------------------------------

# The exit door must know before there is a child that depends on its parent. A statement of its own: the start may wait
# for a caller's transaction, and the parent's row must not be locked meanwhile.
MIND_DEPENDENT: Final = """
    update kedge.runs set has_dependents = true
     where id = %(parent)s and epoch = %(epoch)s and worker_id is not distinct from %(worker)s and not has_dependents
"""

# No row, or KE001: somebody else owns the parent, which is looked at twice: before there is anything to wait for, and
# behind it, with a lock until the commit. No row also from a server that was promoted meanwhile, as with a transaction.
START_ALONE: Final = """
    select s.run_id, s.created, s.status, s.conflict,
           kedge.hold_parent(%(parent)s::uuid, %(epoch)s::int, %(worker)s::uuid)
      from (select r.id from kedge.runs r
             where r.id = %(parent)s and r.epoch = %(epoch)s and r.worker_id is not distinct from %(worker)s
               and (%(timeline)s::text = '' or left(pg_walfile_name(pg_current_wal_lsn()), 8) = %(timeline)s::text)
             offset 0) fence
     cross join lateral kedge.start_run(
           %(id)s, %(workflow)s, %(queue)s, %(priority)s, %(input)s, %(meta)s, %(key)s, %(key_hash)s, %(on_conflict)s,
           %(resource)s, %(delay_s)s, %(start_at)s, %(tags)s, false, %(timeout_s)s, %(singleton)s, fence.id,
           %(is_dependent)s) s
"""

# ---- sleep and wake -----------------------------------------------------------------------------------------------

# Only while the worker is there: what one sent before it died, or was stopped, may arrive after its take back, and
# nobody would take that sleeper's row away. In a caller's transaction a ring only reads: it would go to the dead one
# for ever, and every such start would wait for a poll.
GO_IDLE: Final = """
    insert into kedge.idle (worker_id, queues, workflows)
    select w.id, %(queues)s, %(workflows)s from kedge.workers w where w.id = %(worker)s
    on conflict do nothing
"""

WAKE_UP: Final = "delete from kedge.idle where worker_id = %(worker)s"

SORT_INBOX: Final = """
    select sorted, remaining, mailed, asked, ended, queues, workflows from kedge.sort_inbox(%(limit)s)
"""
FAIL_LETTER: Final = "select kedge.fail_letter(%(error)s)"
HAS_MAIL: Final = "select exists (select 1 from kedge.inbox)"
RING_WORKERS: Final = "select kedge.ring_workers(%(workers)s)"
RING: Final = "select kedge.ring_v1(%(queue)s, %(workflow)s)"
NOTIFY_ENDED: Final = "select kedge.notify_watchers(%(runs)s)"

REQUESTS: Final = """
    select r.id, coalesce(r.request::text, 'o'), r.reason from kedge.runs r
     where r.worker_id = %(worker)s and r.state = 'r' and (r.request is not null or r.is_observed)
"""

# For runs in memory that wait: unread mail that is not known yet, and waits whose time has come or is near.
# Mail is answered up to the first letter with which it has so many bytes: then there may be more.
NEW_MAIL: Final = """
    select m.run_id, m.id, m.seq, m.slot, m.payload
      from (select e.run_id, e.id, e.seq, e.slot, e.payload, i.place,
                   sum(octet_length(e.payload)) over (order by i.place, e.seq rows unbounded preceding)
                   - octet_length(e.payload) as before
              from unnest(%(runs)s::uuid[]) with ordinality as i(id, place)
             cross join lateral (
                   select * from kedge.events e
                    where e.run_id = i.id and e.consumed_seq is null and e.id <> all (%(known)s::uuid[])
                    order by e.seq limit 1000 offset 0) e) m
     where m.before < %(bytes)s
     order by m.place, m.seq
"""

TIMES_UP: Final = """
    select w.run_id, w.key, w.attempt, extract(epoch from w.due_at - kedge.clock())::float8
      from unnest(%(runs)s::uuid[]) as i(id)
     cross join lateral (
           select w.run_id, w.key, w.attempt, w.due_at from kedge.waits w
            where w.run_id = i.id and w.due_at <= kedge.clock() + make_interval(secs => %(within_s)s) offset 0) w
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

# ---- what a run says of itself; written by flushes, like what stands beside rows and moves -------------------------

# done, total, percent (kedge.progress.percent_of), message. Of several in one flush the last counts, and the highest
# percent: that one never goes down.
SET_PROGRESS: Final = """
    insert into kedge.progress as p (run_id, at, done, total, percent, message)
    select x.run_id, kedge.instant(), x.done, x.total, x.highest, x.message
      from (select x.*, row_number() over (partition by x.run_id order by x.place desc) as newest,
                   max(x.percent) over (partition by x.run_id) as highest
              from unnest($2::uuid[], $3::int[], $4::bigint[], $5::bigint[], $6::float8[], $7::text[])
                   with ordinality as x(run_id, epoch, done, total, percent, message, place)) x
     cross join lateral (
           select 1 from kedge.runs r
            where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid offset 0) fence
     where x.newest = 1
    on conflict (run_id) do update
       set at = excluded.at, done = excluded.done, total = excluded.total, message = excluded.message,
           percent = greatest(p.percent, excluded.percent)
"""

# The whole mapping as a payload; of several in one flush the last.
SET_METADATA: Final = """
    insert into kedge.run_metadata (run_id, metadata)
    select x.run_id, x.metadata
      from (select x.*, row_number() over (partition by x.run_id order by x.place desc) as newest
              from unnest($2::uuid[], $3::int[], $4::bytea[]) with ordinality as x(run_id, epoch, metadata, place)) x
     cross join lateral (
           select 1 from kedge.runs r
            where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid offset 0) fence
     where x.newest = 1
    on conflict (run_id) do update set metadata = excluded.metadata
"""

# n (the place in the handler's way), level, message, fields (a payload; empty: none). Of a run a thousand lines
# are kept; the next one says so in its place, and what follows is dropped. They are counted once a run and flush. A
# repeat of the flush writes nothing twice, and counts nothing twice.
WRITE_LOG: Final = """
    insert into kedge.run_log (run_id, at, epoch, n, level, kind, message, fields)
    select x.run_id, kedge.instant(), x.epoch, x.n,
           case when x.line <= 1000 then x.level else 30 end, 'l',
           case when x.line <= 1000 then x.message else 'the log is full: of a run 1,000 lines are kept' end,
           case when x.line <= 1000 then x.fields else '' end
      from (select x.*, x.nth + max(case when x.nth = 1 then (
                       select count(*) from (
                           select 1 from kedge.run_log l where l.run_id = x.run_id and l.kind = 'l' limit 1001) l) end)
                   over (partition by x.run_id) as line
              from (select x.*, row_number() over (partition by x.run_id order by x.place) as nth
                      from unnest($2::uuid[], $3::int[], $4::bigint[], $5::int[], $6::text[], $7::bytea[])
                           with ordinality as x(run_id, epoch, n, level, message, fields, place)
                     cross join lateral (
                           select 1 from kedge.runs r
                            where r.id = x.run_id and r.epoch = x.epoch and r.worker_id is not distinct from $1::uuid
                           offset 0) fence
                     where not exists (select 1 from kedge.run_log l
                                        where l.run_id = x.run_id and l.n = x.n offset 0)) x) x
     where x.line <= 1001
     order by x.place
    on conflict do nothing
"""
