-- What is kept of a run's steps behind p_after, in order: at most p_limit rows, and no more once they hold p_bytes.
create or replace function kedge.steps_v1(p_run uuid, p_resource text, p_after int, p_limit int, p_bytes bigint)
returns table (seq int, key text, kind text, at timestamptz, took_ms int, epoch int, value bytea, meta bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off as $$
begin
    return query
    select x.seq, x.key, x.kind::text, x.at, x.took_ms, x.epoch, x.value, x.meta
      from (select j.*, sum(octet_length(j.value)) over (order by j.seq) - octet_length(j.value) as bytes_before
              from (select * from kedge.journal j
                     where j.run_id = p_run and j.seq > greatest(p_after, 0) order by j.seq limit p_limit) j) x
     where (p_bytes is null or x.bytes_before < p_bytes)
       and (p_resource is null or exists (select 1 from kedge.all_runs a where a.id = p_run and a.resource = p_resource))
     order by x.seq;
end $$;

-- What a run waits for at this moment.
create or replace function kedge.waits_v1(p_run uuid, p_resource text)
returns table (kind text, key text, slot text, opened_at timestamptz, due_at timestamptz, attempt int, state bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
begin
    return query
    select w.kind::text, w.key, w.slot, w.opened_at, nullif(w.due_at, 'infinity'), w.attempt, w.state
      from kedge.waits w
     where w.run_id = p_run
       and (p_resource is null or exists (select 1 from kedge.all_runs a where a.id = p_run and a.resource = p_resource))
     order by w.opened_at, w.key;
end $$;

-- The attempts of a run's steps that failed, and what an earlier attempt of the run has left of them: the newest, oldest
-- first.
create or replace function kedge.failures_v1(p_run uuid, p_resource text, p_limit int)
returns table (kind text, key text, attempt int, at timestamptz, took_ms int, error bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off as $$
begin
    return query
    select x.kind::text, x.key, x.attempt, x.at, x.took_ms, x.error
      from (select * from kedge.failures f where f.run_id = p_run and f.kind <> 'r' order by f.id desc limit p_limit) x
     where p_resource is null or exists (select 1 from kedge.all_runs a where a.id = p_run and a.resource = p_resource)
     order by x.id;
end $$;
