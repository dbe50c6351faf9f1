-- Asks that a failed run go on from where it failed. accepted = false when it has certainly not failed; no row when there
-- is no such run, or not with this resource.
create or replace function kedge.retry_run_v1(p_letter uuid, p_run uuid, p_resource text)
returns table (accepted boolean, status text)
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select l.accepted, l.status from kedge.post_letter('r', p_letter, p_run, p_resource, null, null, null) l
$$;
