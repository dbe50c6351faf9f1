-- Runs whose time is up: at rest they fail, through the exit door; the owner of a running one is asked to end it, unless
-- it is being cancelled. First the locks, skipping what is locked, then the look. Answers the runs that ended, and the
-- owners to be rung.
create or replace function kedge.expire_runs(p_limit int) returns table (ended uuid[], owners uuid[])
language plpgsql as $$
declare
    v_locked uuid[];
    v_id uuid;
begin
    -- Of those that are asked already nothing is wanted: they must not fill the batch.
    v_locked := array(
        select r.id from kedge.runs r
         where r.deadline_at < 'infinity' and r.deadline_at <= kedge.clock()
           and (r.request is null or r.request = 's')
         order by r.deadline_at limit p_limit for update skip locked);
    ended := array(select r.id from kedge.runs r
                    where r.id = any (v_locked) and r.state <> 'r' and r.deadline_at <= kedge.clock());
    begin
        perform kedge.fail_by_deadline(ended);
    exception when others then
        if not kedge.is_about_data(sqlstate) then
            raise;
        end if;
        -- Something refuses the end of one of them: one by one, so that it stops nobody else's.
        foreach v_id in array ended loop
            begin
                perform kedge.fail_by_deadline(array[v_id]);
            exception when others then
                if not kedge.is_about_data(sqlstate) then
                    raise;
                end if;
                raise warning 'run % cannot be failed by its deadline: %', v_id, sqlerrm;
                ended := array_remove(ended, v_id);
            end;
        end loop;
    end;
    with asked as (
        update kedge.runs r set request = 'd', reason = null
         where r.id = any (v_locked) and r.state = 'r' and r.deadline_at <= kedge.clock()
        returning r.worker_id)
    select coalesce(array_agg(distinct a.worker_id), '{}') into owners from asked a;
    return next;
end $$;

create or replace function kedge.fail_by_deadline(p_runs uuid[]) returns void
language plpgsql as $$
begin
    perform kedge.end_runs(
        null, array_agg(r.id), array_agg(r.epoch), array_agg('f'::text), array_agg(null::bytea),
        array_agg(kedge.deadline_error()), array_agg(null::text), array_agg(0), array_agg(0), array_agg(0))
       from kedge.runs r where r.id = any (p_runs) having count(*) > 0;
end $$;
