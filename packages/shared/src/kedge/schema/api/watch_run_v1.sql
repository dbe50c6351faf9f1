-- What a run has said, and what the engine has said of it: lines (kind l) behind the first p_lines, notes (kind n) behind
-- the first p_notes, each kind in its order. Counted and not by id: one hand after the other writes the lines, and one the
-- notes, but between the two kinds a smaller id may appear later.
create or replace function kedge.run_log_v1(p_run uuid, p_resource text, p_lines int, p_notes int, p_limit int)
returns table (kind text, at timestamptz, level int, message text, fields bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
begin
    if p_resource is not null
       and not exists (select 1 from kedge.all_runs a where a.id = p_run and a.resource = p_resource) then
        return;
    end if;
    return query
    select l.kind::text, l.at, l.level::int, l.message, l.fields from kedge.run_log l
     where l.run_id = p_run and l.kind = 'l' order by l.id limit p_limit offset p_lines;
    return query
    select l.kind::text, l.at, l.level::int, l.message, l.fields from kedge.run_log l
     where l.run_id = p_run and l.kind = 'n' order by l.id limit p_limit offset p_notes;
end $$;

-- Registers a channel for all that happens to these runs; to be repeated each 30 s while it wants to hear. Who executes
-- such a run is asked, by a letter, to tell. Own transaction, before the first look. Takes the opportunity to forget
-- whoever has gone without a word.
create or replace function kedge.observe_v1(p_ids uuid[], p_channel text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
begin
    if not kedge.is_channel(p_channel) then
        raise exception using errcode = 'KE005', message = 'a channel has a name of 1 to 63 bytes';
    end if;
    insert into kedge.observers (run_id, channel, at)
    select x.id, p_channel, clock_timestamp()
      from (select distinct i as id from unnest(p_ids) as i where i is not null) x order by x.id
    on conflict (run_id, channel) do update set at = excluded.at;
    insert into kedge.inbox (run_id, id, sent_at, kind)
    select r.id, gen_random_uuid(), kedge.instant(), 'o'
      from unnest(p_ids) as i(id)
     cross join lateral (select r.id from kedge.runs r where r.id = i.id and not r.is_observed offset 0) r
     where not exists (select 1 from kedge.inbox l where l.run_id = r.id and l.kind = 'o' offset 0);
    delete from kedge.observers where ctid = any (array(
        select o.ctid from kedge.observers o where o.at < clock_timestamp() - interval '2 minutes'
         limit 100 for update skip locked));
end $$;

create or replace function kedge.unobserve_v1(p_ids uuid[], p_channel text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from kedge.observers where run_id = any (p_ids) and channel = p_channel
$$;
