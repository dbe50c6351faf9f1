-- additive
-- What runs wait for, what is sent to them, what failed on the way, what they say of themselves. A run that uses none of
-- it pays for none of it: the flags of `runs` say beforehand where there is nothing to look for.

alter table kedge.runs
    add column timeout_s      float8,                          -- infinity: none, whatever the definition says; null: not known yet
    add column has_waits      boolean not null default false,  -- of a run that is not running: its next claim reads waits and mail
    add column has_watchers   boolean not null default false,  -- its end is told to runs in run_watchers
    add column has_dependents boolean not null default false,  -- it has children that are cancelled with it
    add column is_dependent   boolean not null default false,  -- cancelled when its parent ends
    add column is_singleton   boolean not null default false,  -- stands in singletons
    add column is_observed    boolean not null default false;  -- a client watches all that happens to it

-- d: its deadline has passed. Cancel beats the deadline, the deadline beats pause.
alter table kedge.runs drop constraint runs_request_check;
alter table kedge.runs add constraint runs_request_check check (request in ('x', 'd', 's'));

drop index kedge.runs_deadline;
create index runs_deadline on kedge.runs (deadline_at) where deadline_at < 'infinity';

alter table kedge.finished
    add column timeout_s    float8,
    add column is_dependent boolean not null default false,
    add column is_singleton boolean not null default false;

-- Letters. kind: x cancel, s pause, u resume, g fast-forward, r retry, e event, t event to a topic (run_id is nil),
-- c the end of a watched run, w watch a run, o observe.
alter table kedge.inbox
    add column slot    text collate "C",   -- e:name, t:topic<US>name, k:key; of x: 'cascade' or null
    add column payload bytea,
    add column sender  uuid,               -- of w: the run that wants to know; of t: where its expansion stopped
    add column event_id uuid;              -- of an event that a run sends: what its repeats are known by, if not by id
alter table kedge.inbox_failed
    add column slot    text collate "C",
    add column payload bytea,
    add column sender  uuid;

create index inbox_run on kedge.inbox (run_id, seq);

-- An open wait of a run. It is written when the wait begins, so its deadline is stored once; the lease holder alone
-- writes and closes it. It takes mail of its slot (events), and mail that is addressed to its key.
create table kedge.waits (
    run_id    uuid        not null,
    opened_at timestamptz not null,
    due_at    timestamptz,                 -- when it ends, or its next check or attempt begins, by itself; null: never
    until_at  timestamptz,                 -- of a poll: when its time is up
    attempt   int         not null default 0,  -- of p: checks made; of r: attempts failed
    need      int         not null default 0,  -- > 0: it wakes its run only when so many waits of its group have mail
    kind      "char"      not null,        -- e event, d sleep, p poll, r step's next attempt, c child, u pause, n a start on its way, g gate
    key       text collate "C" not null,
    slot      text collate "C",            -- of e: e:name or t:topic<US>name
    group_key text collate "C",            -- of c: the map that it belongs to
    state     bytea       not null default '',
    primary key (run_id, key)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);

create index waits_topic on kedge.waits (slot, run_id) where slot >= 't:' and slot < 't;';

-- Mail: what was sent to a run, in order of arrival (seq, of the inbox). Consumed it stays, without payload, so that a
-- repeat of the letter is refused for the life of the run.
create table kedge.events (
    run_id       uuid        not null,
    id           uuid        not null,
    seq          bigint      not null,
    at           timestamptz not null,
    consumed_seq int,                      -- seq of the journal row that holds it
    slot         text collate "C" not null,
    payload      bytea       not null,
    primary key (run_id, id)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

create index events_unread on kedge.events (run_id, seq) where consumed_seq is null;

-- A failed attempt that was followed by another one: of a step or poll (key), or of the run (key is empty). A new attempt
-- of a run also moves the failures and interruptions of the one before here, out of the journal (journal_seq > 0).
create sequence kedge.failures_id as bigint;

create table kedge.failures (
    run_id      uuid        not null,
    id          bigint      not null default nextval('kedge.failures_id'),
    at          timestamptz not null,
    epoch       int         not null,
    n           int,                       -- number of the note within the epoch: a repeated flush stores it once
    attempt     int         not null,      -- from 1
    took_ms     int         not null,
    journal_seq int         not null default 0,
    kind        "char"      not null,      -- s, t, p: of that operation; r: of the run; f, x: as in the journal
    key         text collate "C" not null,
    error       bytea       not null,
    primary key (run_id, id),
    unique (run_id, epoch, n)
);

-- Who waits for a run's end: a parent for its child, a singleton for its predecessor.
create table kedge.run_watchers (
    run_id     uuid not null,              -- whose end
    watcher_id uuid not null,              -- who is told
    key        text collate "C" not null,  -- of its wait
    primary key (run_id, watcher_id, key)
);

create index run_watchers_watcher on kedge.run_watchers (watcher_id);

create table kedge.singletons (
    workflow text collate "C" not null,    -- without version
    key      text collate "C" not null,    -- empty: one for the whole workflow
    run_id   uuid not null,
    resource text collate "C" not null,    -- empty: of the runs without one
    primary key (workflow, resource, key)
);

-- What a run says (l) and what the engine says of it (n: answers to letters).
create sequence kedge.run_log_id as bigint;

create table kedge.run_log (
    run_id  uuid        not null,
    id      bigint      not null default nextval('kedge.run_log_id'),
    at      timestamptz not null,
    epoch   int         not null,
    n       bigint,                        -- made of the line's place in the handler's way: a replay says it once; null: the engine's
    level   smallint    not null,          -- 10 debug, 20 info, 30 warning, 40 error
    kind    "char"      not null,          -- l, n
    message text        not null,
    fields  bytea       not null,
    primary key (run_id, id),
    unique (run_id, n)
);

create table kedge.progress (
    run_id  uuid        not null primary key,
    at      timestamptz not null,
    done    bigint      not null,
    total   bigint,
    percent float8,                        -- never goes down
    message text
) with (fillfactor = 70);

create table kedge.run_metadata (
    run_id   uuid  not null primary key,
    metadata bytea not null                -- the whole mapping, over that of the start
) with (fillfactor = 70);

-- What workers say of the workflows that they have handlers for.
create table kedge.definitions (
    workflow    text collate "C" not null primary key,   -- name, or name@version
    at          timestamptz not null,
    total_steps int,
    options     bytea       not null
);

-- A client that watches all that happens to a run, on its own channel; renewed while it does.
create unlogged table kedge.observers (
    run_id  uuid        not null,
    channel text collate "C" not null,
    at      timestamptz not null default now(),
    primary key (run_id, channel)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- The live runs of a singleton; only of singletons, so that it costs the others nothing.
create index runs_singleton on kedge.runs (split_part(workflow, '@', 1), coalesce(resource, ''), key) where is_singleton;

-- The engine's notes on letters, few among a thousand lines of a run.
create index run_log_notes on kedge.run_log (run_id, id) where kind = 'n';

-- A key belongs to a resource: two tenants who choose the same one do not meet. Empty: of the runs without a resource.
alter table kedge.run_keys add column resource text collate "C" not null default '';
update kedge.run_keys k set resource = s.resource
  from (select r.id, r.resource from kedge.runs r union all select f.id, f.resource from kedge.finished f) s
 where s.id = k.run_id and s.resource is not null;
alter table kedge.run_keys drop constraint run_keys_pkey;
alter table kedge.run_keys add primary key (workflow, resource, key);
