-- What a client that waits for results asks.
-- Only what a waiting client needs: one row a run that exists; output and error only once it has ended. One call serves
-- many waiters with different scopes, so the resource is an answer here, not a filter.
create or replace function kedge.results_v1(p_ids uuid[])
returns table (id uuid, status text, resource text, reason text, output bytea, error bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
begin
    return query
    select a.id, a.status, a.resource, a.reason, a.output, a.error
      from unnest(p_ids) as i(id)
     cross join lateral (select * from kedge.all_runs a where a.id = i.id offset 0) a;
end $$;

-- Registers a channel for the ends of runs. Own transaction, before the first look: whoever ends a run takes the rows
-- after its commit, so either the look sees the end or the end sees the row.
create or replace function kedge.watch_v1(p_ids uuid[], p_channel text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if not kedge.is_channel(p_channel) then
        raise exception using errcode = 'KE005', message = 'a channel has a name of 1 to 63 bytes';
    end if;
    insert into kedge.watchers (run_id, channel)
    select i, p_channel from unnest(p_ids) as i where i is not null on conflict do nothing;
end $$;

create or replace function kedge.unwatch_v1(p_ids uuid[], p_channel text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from kedge.watchers where run_id = any (p_ids) and channel = p_channel
$$;
