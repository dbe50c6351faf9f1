-- Asks that a run be held until it is resumed; its timers and events go on collecting. accepted = false only when it has
-- ended for good; no row when there is no such run, or not with this resource.
create or replace function kedge.pause_run_v1(p_letter uuid, p_run uuid, p_resource text, p_reason text)
returns table (accepted boolean, status text)
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select l.accepted, l.status from kedge.post_letter('s', p_letter, p_run, p_resource, p_reason, null, null) l
$$;
