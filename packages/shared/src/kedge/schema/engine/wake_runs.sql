-- Behind new mail, for the courier: runs that wait for it become pending, the others know that they have some. Answers
-- whom to ring: lanes in which something became pending, and owners of running runs.
create or replace function kedge.wake_runs(p_runs uuid[]) returns table (owner uuid, queue text, workflow text)
language plpgsql as $$
declare
    v_rows int;
    v_left int := cardinality(p_runs);
begin
    return query
        select r.worker_id, null::text, null::text from kedge.runs r where r.id = any (p_runs) and r.state = 'r';
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    if v_left = 0 then
        return;
    end if;
    return query
        update kedge.runs r
           set state = 'p', seq = nextval('kedge.runs_seq'), since = kedge.instant(), due_at = null, has_waits = true
         where r.id = any (p_runs) and r.state = 'w' and kedge.mail_wakes(r.id)
        returning null::uuid, r.queue, r.workflow;
    get diagnostics v_rows = row_count;
    if v_left > v_rows then
        update kedge.runs r set has_waits = true where r.id = any (p_runs) and r.state <> 'r' and not r.has_waits;
    end if;
end $$;
