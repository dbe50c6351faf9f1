-- Asks that a paused run go on, or one that waits in a pause of its own. accepted = false when it has ended for good, or
-- is certainly not paused; no row when there is no such run, or not with this resource.
create or replace function kedge.resume_run_v1(p_letter uuid, p_run uuid, p_resource text)
returns table (accepted boolean, status text)
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select l.accepted, l.status from kedge.post_letter('u', p_letter, p_run, p_resource, null, null, null) l
$$;
