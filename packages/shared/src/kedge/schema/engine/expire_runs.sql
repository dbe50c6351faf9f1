-- Runs whose time is up: at rest they fail, through the exit door; the owner of a running one is asked to end it, unless
-- it is being cancelled. First the locks, skipping what is locked, then the look. Answers the runs that ended, and the
-- owners to be rung.
create or replace function kedge.expire_runs(p_limit int) returns table (ended uuid[], owners uuid[])
language plpgsql as $$
declare
    v_locked uuid[];
begin
    -- Of those that are asked already nothing is wanted: they must not fill the batch.
    v_locked := array(
        select r.id from kedge.runs r
         where r.deadline_at < 'infinity' and r.deadline_at <= kedge.clock()
           and (r.request is null or r.request = 's')
         order by r.deadline_at limit p_limit for update skip locked);
    ended := array(select r.id from kedge.runs r
                    where r.id = any (v_locked) and r.state <> 'r' and r.deadline_at <= kedge.clock());
    perform kedge.end_runs(
        null, array_agg(r.id), array_agg(r.epoch), array_agg('f'::text), array_agg(null::bytea),
        array_agg(kedge.deadline_error()), array_agg(null::text), array_agg(0), array_agg(0), array_agg(0))
       from kedge.runs r where r.id = any (ended) having count(*) > 0;
    with asked as (
        update kedge.runs r set request = 'd', reason = null
         where r.id = any (v_locked) and r.state = 'r' and r.deadline_at <= kedge.clock()
        returning r.worker_id)
    select coalesce(array_agg(distinct a.worker_id), '{}') into owners from asked a;
    return next;
end $$;
