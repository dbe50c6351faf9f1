-- What the client reads of single runs.
create or replace function kedge.get_runs_v1(p_ids uuid[], p_resource text)
returns table (
    id uuid, workflow text, status text, queue text, priority int, resource text, key text, parent_id uuid, attempt int,
    crashes int, epoch int, created_at timestamptz, started_at timestamptz, since timestamptz, due_at timestamptz,
    deadline_at timestamptz, ended_at timestamptz, request text, reason text, meta bytea, tags text[],
    input bytea, output bytea, error bytea)
language sql stable as $$
    select a.id, a.workflow, a.status, a.queue, a.priority, a.resource, a.key, a.parent_id, a.attempt, a.crashes, a.epoch,
           j.at, a.started_at, a.since, a.due_at, nullif(a.deadline_at, 'infinity'), a.ended_at,
           coalesce(a.request, (select 'cancelled' from kedge.inbox i where i.run_id = a.id and i.kind = 'x' limit 1)),
           a.reason, j.meta,
           array(select t.tag from kedge.run_tags t where t.run_id = a.id order by t.tag), j.value, a.output, a.error
      from unnest(p_ids) as i(id)
     cross join lateral (select * from kedge.all_runs a where a.id = i.id offset 0) a
     cross join lateral (select j.at, j.value, j.meta from kedge.journal j where j.run_id = i.id and j.seq = 0 offset 0) j
     where p_resource is null or a.resource = p_resource
$$;

-- Only what a waiting client needs: one row a run that exists; output and error only once it has ended. One call serves
-- many waiters with different scopes, so the resource is an answer here, not a filter.
create or replace function kedge.results_v1(p_ids uuid[])
returns table (id uuid, status text, resource text, reason text, output bytea, error bytea)
language sql stable as $$
    select a.id, a.status, a.resource, a.reason, a.output, a.error
      from unnest(p_ids) as i(id)
     cross join lateral (select * from kedge.all_runs a where a.id = i.id offset 0) a
$$;

-- Registers a channel for the ends of runs. Own transaction, before the first look: whoever ends a run takes the rows
-- after its commit, so either the look sees the end or the end sees the row.
create or replace function kedge.watch_v1(p_ids uuid[], p_channel text) returns void
language sql as $$
    insert into kedge.watchers (run_id, channel) select i, p_channel from unnest(p_ids) as i on conflict do nothing
$$;

create or replace function kedge.unwatch_v1(p_ids uuid[], p_channel text) returns void
language sql as $$
    delete from kedge.watchers where run_id = any (p_ids) and channel = p_channel
$$;

create or replace function kedge.steps_v1(p_run uuid, p_resource text)
returns table (seq int, key text, kind text, at timestamptz, took_ms int, epoch int, value bytea, meta bytea)
language sql stable as $$
    select j.seq, j.key, kedge.kind_name(j.kind), j.at, j.took_ms, j.epoch, j.value, j.meta
      from kedge.journal j
     where j.run_id = p_run and j.seq > 0
       and (p_resource is null or exists (select 1 from kedge.all_runs a where a.id = p_run and a.resource = p_resource))
     order by j.seq
$$;
