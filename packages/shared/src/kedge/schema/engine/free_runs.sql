-- Takes running runs out of the hand of a worker that died, or that can make nothing of them. The caller has locked
-- their rows. Answers those that have ended.
-- p_charged: it counts as a crash. crashes is how often that happened in a row, without a journal row (or a park) in
-- between. After the second the run goes on in the solo lane, where nothing is beside it: only a crash there is its
-- own for certain, and the third of them fails it. Once it gets on it returns to its queue, with a count of 0.
-- Requests as everywhere: cancel, then the deadline, then pause.
create or replace function kedge.free_runs(p_worker uuid, p_ids uuid[], p_charged boolean) returns uuid[]
language plpgsql as $$
declare
    v_ended uuid[];
begin
    update kedge.runs r
       set (crashes, queue) = (
           select case when own.has_row then 0
                       when not p_charged then r.crashes
                       when kedge.is_solo(r.queue) then least(greatest(r.crashes, 2) + 1, 32767)
                       else least(r.crashes + 1, 2) end,
                  case when own.has_row then kedge.queue_name(r.queue)
                       when p_charged and r.crashes >= 1 then kedge.solo_lane(r.queue)
                       else r.queue end
             from (select coalesce((select j.epoch = r.epoch from kedge.journal j
                                     where j.run_id = r.id order by j.seq desc limit 1), false)) as own(has_row))
     where r.id = any (p_ids) and r.worker_id is not distinct from p_worker;

    v_ended := array(select r.id from kedge.runs r
                      where r.id = any (p_ids) and r.worker_id is not distinct from p_worker
                        and (r.request in ('x', 'd') or p_charged and kedge.is_solo(r.queue) and r.crashes >= 5));
    begin
        perform kedge.end_runs(
            p_worker, array_agg(r.id), array_agg(r.epoch),
            array_agg(case r.request when 'x' then 'x' else 'f' end), array_agg(null::bytea),
            array_agg(case r.request when 'x' then null when 'd' then kedge.deadline_error()
                                     else kedge.crashed_error(r.crashes) end),
            array_agg(r.reason), array_agg(0),
            array_agg((select coalesce(max(j.seq), 0) from kedge.journal j where j.run_id = r.id)), array_agg(0))
           from kedge.runs r where r.id = any (v_ended) having count(*) > 0;
    exception when others then
        if cardinality(p_ids) > 1 or not kedge.is_about_data(sqlstate) then
            raise;
        end if;
        -- Something refuses the end itself, and would do so for ever: an operator must look.
        update kedge.runs r
           set request = 's', reason = left('its end cannot be stored: ' || sqlerrm, 4000) where r.id = p_ids[1];
        v_ended := '{}';
    end;

    update kedge.runs r
       set state = case when r.request = 's' then 's' else 'p' end::"char", request = null, worker_id = null,
           epoch = r.epoch + 1, since = kedge.instant(), seq = nextval('kedge.runs_seq'),
           next_seq = greatest(r.next_seq, (select coalesce(max(j.seq), 0) + 1 from kedge.journal j where j.run_id = r.id)),
           has_waits = exists (select 1 from kedge.waits w where w.run_id = r.id offset 0)
                    or exists (select 1 from kedge.events e
                                where e.run_id = r.id and e.consumed_seq is null offset 0)
     where r.id = any (p_ids) and r.worker_id is not distinct from p_worker;
    return v_ended;
end $$;

-- What a run fails with that was the death of its workers.
create or replace function kedge.crashed_error(p_crashes int) returns bytea
language sql stable as $$
    select kedge.error_info('RunCrashedError', format(
        '%s workers in a row died while they executed this run, without one step done in between;'
        ' the last %s executed nothing else', p_crashes, p_crashes - 2))
$$;

-- Whether an error says something about rows: not about privileges and schema, a lost race, a lock, or a server that is
-- out of resources or going, with which the same may work later.
create or replace function kedge.is_about_data(p_sqlstate text) returns boolean
language sql immutable parallel safe as $$ select left(p_sqlstate, 2) not in ('40', '42', '53', '55', '57', '58', '08') $$;

create or replace function kedge.deadline_error() returns bytea
language sql stable as $$ select kedge.error_info('RunDeadlineError', 'its time was up') $$;
