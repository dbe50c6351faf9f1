-- Ends, through the exit door, those of the owner's running runs that somebody wants ended: cancelled, or failed by
-- their deadline. For the moves out of running, which hold the rows already. Answers how many ended.
create or replace function kedge.end_requested(p_worker uuid, p_ids uuid[], p_epochs int[], p_last int[]) returns int
language plpgsql as $$
declare
    v_ended int;
begin
    -- As failures: the door itself turns them into what was asked for.
    select kedge.end_runs(p_worker, array_agg(x.id), array_agg(x.epoch), array_agg('f'::text), array_agg(null::bytea),
                          array_agg(null::bytea), array_agg(null::text), array_agg(0), array_agg(x.last), array_agg(0))
      into v_ended
      from unnest(p_ids, p_epochs, p_last) as x(id, epoch, last)
     cross join lateral (select 1 from kedge.runs r where r.id = x.id and r.request in ('x', 'd') offset 0) r
    having count(*) > 0;
    return coalesce(v_ended, 0);
end $$;
