-- Asks for a run's end: one letter, one insert; with p_cascade also for the ends of its children, and theirs. The courier
-- decides. accepted = false only when the run has ended for good; no row when there is no such run, or not with this
-- resource. The letter's id is made by the caller before the first try: a repeat is the same letter.
create or replace function kedge.cancel_run_v1(
    p_letter uuid, p_run uuid, p_resource text, p_reason text, p_cascade boolean default false
) returns table (accepted boolean, status text)
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select l.accepted, l.status
      from kedge.post_letter('x', p_letter, p_run, p_resource, p_reason, case when p_cascade then 'cascade' end, null) l
$$;
