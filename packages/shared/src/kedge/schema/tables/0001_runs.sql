-- additive
-- A live run is one narrow row of `runs`; what happened to it stands in `journal`; when it ends, its row moves to
-- `finished`. No foreign keys: the engine's statements own integrity, and a key would cost a lock a row.

create sequence kedge.runs_seq as bigint cache 1;

create table kedge.runs (
    id          uuid        not null,
    seq         bigint      not null default nextval('kedge.runs_seq'),  -- place in the queue; new at every entry into pending
    since       timestamptz not null,             -- when it entered its present state
    started_at  timestamptz,                      -- first claim
    due_at      timestamptz,                      -- waiting: when it becomes claimable by itself
    deadline_at timestamptz,
    worker_id   uuid,                             -- owner while running
    parent_id   uuid,
    epoch       int         not null default 0,   -- the fence: up by one at every claim and take back
    next_seq    int         not null default 1,   -- lower bound of the next journal seq; seqs are never used again
    rank        smallint    not null default 0,   -- minus the priority: lower is sooner
    attempt     smallint    not null default 0,
    crashes     smallint    not null default 0,   -- take backs in a row without a journal row in between
    state       "char"      not null check (state in ('p', 'r', 'w', 's')),
    request     "char"      check (request in ('x', 's')),   -- asked for while running: cancel beats pause
    queue       text collate "C" not null,
    workflow    text collate "C" not null,        -- name, or name@version
    resource    text collate "C",
    key         text collate "C",
    reason      text,
    primary key (id),
    check ((state = 'r') = (worker_id is not null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000);

create index runs_ready on kedge.runs (queue, workflow, rank, seq) where state = 'p';
create index runs_due on kedge.runs (queue, workflow, due_at) where state = 'w' and due_at is not null;
create index runs_owned on kedge.runs (worker_id) where state = 'r';
create index runs_deadline on kedge.runs (deadline_at) where deadline_at is not null;
create index runs_resource on kedge.runs (resource, id) where resource is not null;
create index runs_parent on kedge.runs (parent_id, id) where parent_id is not null;

-- Append-only. seq 0 is the input: it guards a start against its own repeat until retention takes it.
-- Empty values instead of nulls, so that no row carries a null bitmap.
create table kedge.journal (
    run_id  uuid        not null,
    at      timestamptz not null,
    seq     int         not null,                 -- the order in which outcomes reached the handler; ordered, not dense
    epoch   int         not null,                 -- of the writer
    took_ms int         not null,
    kind    "char"      not null,                 -- i input, s step, t transaction, f failed, x interrupted
    key     text collate "C" not null,
    value   bytea       not null,
    meta    bytea       not null,
    primary key (run_id, seq)
);

create table kedge.finished (
    id          uuid        not null,
    ended_at    timestamptz not null,
    started_at  timestamptz,
    deadline_at timestamptz,
    parent_id   uuid,
    epoch       int         not null,
    next_seq    int         not null,
    rank        smallint    not null,
    attempt     smallint    not null,
    crashes     smallint    not null,
    status      "char"      not null check (status in ('c', 'f', 'x')),
    queue       text collate "C" not null,
    workflow    text collate "C" not null,
    resource    text collate "C",
    key         text collate "C",
    reason      text,
    output      bytea,
    error       bytea
);

create index finished_workflow on kedge.finished (workflow, id);
create index finished_status on kedge.finished (status, id) where status <> 'c';
create index finished_resource on kedge.finished (resource, id) where resource is not null;
create index finished_parent on kedge.finished (parent_id, id) where parent_id is not null;
-- Last: while the table is empty all ways cost the same, the planner takes the newest index that knows the column, and
-- keeps the plan. (workflow, id) knows it too, and would be read from one end to the other for every id.
alter table kedge.finished add primary key (id);

-- Letters that nobody has sorted yet. CACHE 1: the order of the sequence is the order of arrival.
create sequence kedge.inbox_seq as bigint cache 1;

create table kedge.inbox (
    seq     bigint      not null default nextval('kedge.inbox_seq'),
    run_id  uuid        not null,
    id      uuid        not null,                 -- made by the sender: a repeat is the same letter
    sent_at timestamptz not null,
    kind    "char"      not null,                 -- x cancel
    reason  text,
    primary key (seq, run_id),
    unique (run_id, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

create table kedge.inbox_failed (
    seq       bigint      not null,
    run_id    uuid        not null,
    id        uuid        not null,
    sent_at   timestamptz not null,
    kind      "char"      not null,
    reason    text,
    failed_at timestamptz not null,
    error     text        not null,
    primary key (seq, run_id)
);

-- One row a life of a worker process; it holds the lease of all runs of that worker.
create table kedge.workers (
    id            uuid          not null,
    lease_until   timestamptz   not null,
    lease         interval      not null,
    started_at    timestamptz   not null,
    protocol      smallint      not null,
    leaving       boolean       not null default false,   -- shutting down: its take back charges nobody
    name          text          not null,                 -- host and pid, for people
    queues        text[]        not null,
    workflows     text[]        not null,
    pids          int[]         not null default '{}',    -- its backends, so that a taker can end what hangs,
    pids_started  timestamptz[] not null default '{}',    -- with their start, since pids come again
    primary key (id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- A worker that sleeps. UNLOGGED: after a crash of the server nobody is listening any more.
create unlogged table kedge.idle (
    worker_id uuid   not null primary key,
    queues    text[] not null,
    workflows text[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- A client that waits for a result, on its own channel.
create unlogged table kedge.watchers (
    run_id  uuid        not null,
    channel text collate "C" not null,
    at      timestamptz not null default now(),
    primary key (run_id, channel)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

create table kedge.run_keys (
    workflow text collate "C" not null,           -- without version: a new version does not start a key again
    key      text collate "C" not null,
    run_id   uuid  not null,
    hash     bytea not null,                      -- 8 bytes fingerprint of the input's type, 16 bytes hash of the input
    primary key (workflow, key)
);

create table kedge.run_tags (
    tag    text collate "C" not null,
    run_id uuid not null,
    primary key (tag, run_id)
);

create index run_tags_run on kedge.run_tags (run_id, tag);
