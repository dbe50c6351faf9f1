-- How far a run is, as parts: what its handler has said; else how many steps it has completed, how many its definition
-- declares, and how many the last run of the same workflow and version needed that had completed when this one began.
-- That one stays the same while the run lasts, so that what is reckoned from it does not go down. It is looked for among
-- the hundred newest that have ended; journals of runs that ended long ago are gone, and teach nothing.
create or replace function kedge.progress_v1(p_run uuid, p_resource text)
returns table (
    status text, reason text, since timestamptz, is_said boolean, at timestamptz, done bigint, total bigint,
    percent double precision, message text, steps int, declared int, learned int)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set enable_bitmapscan = off set enable_sort = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    v_workflow text;
    v_started timestamptz;
    v_model uuid;
begin
    select s.status, s.reason, s.since, s.workflow, s.started_at into status, reason, since, v_workflow, v_started
      from (select kedge.status_name(r.state) as status, r.reason, r.since, r.workflow, r.started_at, r.resource
              from kedge.runs r where r.id = p_run
            union all
            select kedge.status_name(f.status), f.reason, f.ended_at, f.workflow, f.started_at, f.resource
              from kedge.finished f where f.id = p_run) s
     where p_resource is null or s.resource = p_resource;
    if not found then
        return;
    end if;
    select true, p.at, p.done, p.total, p.percent, p.message into is_said, at, done, total, percent, message
      from kedge.progress p where p.run_id = p_run;
    is_said := coalesce(is_said, false);
    if not is_said then
        select count(*)::int, max(j.at) into steps, at from kedge.journal j
         where j.run_id = p_run and j.seq > 0 and j.kind in ('s', 't', 'e', 'd', 'p', 'u', 'c');
        select d.total_steps into declared from kedge.definitions d where d.workflow = v_workflow;
        if declared is null then
            -- A range and not "=": else the order would be that of the ids alone, which another index has for all
            -- workflows together.
            select e.id into v_model
              from (select f.id, f.status, f.ended_at from kedge.finished f
                     where f.workflow between v_workflow and v_workflow and f.id <> p_run
                     order by f.workflow desc, f.id desc limit 100) e
             where e.status = 'c' and e.ended_at <= coalesce(v_started, kedge.clock()) limit 1;
            select count(*)::int into learned from kedge.journal j
             where j.run_id = v_model and j.seq > 0 and j.kind in ('s', 't', 'e', 'd', 'p', 'u', 'c');
        end if;
        at := coalesce(at, since);
    end if;
    return next;
end $$;
