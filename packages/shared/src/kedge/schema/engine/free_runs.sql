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
           select case when own.gets_on then 0
                       when not p_charged then r.crashes
                       when kedge.is_solo(r.queue) then least(greatest(r.crashes, 2) + 1, 32767)
                       else least(r.crashes + 1, 2) end,
                  case when own.gets_on then kedge.queue_name(r.queue)
                       when p_charged and r.crashes >= 1 then kedge.solo_lane(r.queue)
                       else r.queue end
             from (select kedge.gets_on(r.id, r.epoch)) as own(gets_on))
     where r.id = any (p_ids) and r.worker_id is not distinct from p_worker;

    v_ended := array(select r.id from kedge.runs r
                      where r.id = any (p_ids) and r.worker_id is not distinct from p_worker
                        and (r.request in ('x', 'd') or p_charged and kedge.is_solo(r.queue) and r.crashes >= 5));
    begin
        perform kedge.end_runs(
            p_worker, array_agg(r.id), array_agg(r.epoch),
            -- As failures: the door itself turns them into what was asked for.
            array_agg('f'::text), array_agg(null::bytea),
            array_agg(case when r.request is distinct from 'x' then kedge.crashed_error(r.crashes) end),
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
       set state = case when r.request = 's' then 's' else 'p' end::"char",
           due_at = case when r.request = 's' then kedge.instant() end, request = null, worker_id = null,
           epoch = r.epoch + 1, since = kedge.instant(), seq = nextval('kedge.runs_seq'),
           next_seq = greatest(r.next_seq, (select coalesce(max(j.seq), 0) + 1 from kedge.journal j where j.run_id = r.id)),
           has_waits = kedge.waits_or_mail(r.id)
     where r.id = any (p_ids) and r.worker_id is not distinct from p_worker;
    return v_ended;
end $$;

-- Whether this epoch has kept something: then the run's crashes are forgotten, and it returns to its queue.
create or replace function kedge.gets_on(p_run uuid, p_epoch int) returns boolean
language sql stable as $$
    select coalesce(
        (select j.epoch = p_epoch from kedge.journal j where j.run_id = p_run order by j.seq desc limit 1), false)
$$;

-- What a run fails with that was the death of its workers.
create or replace function kedge.crashed_error(p_crashes int) returns bytea
language sql stable as $$
    select kedge.error_info('RunCrashedError', format(
        '%s workers in a row died while they executed this run, or could not read or store it, and not one step was'
        ' done in between; the last %s executed nothing else', p_crashes, p_crashes - 2))
$$;

-- Whether an error says something about rows: not about privileges and schema, a lost race, a lock, or a server that is
-- out of resources or going, with which the same may work later.
create or replace function kedge.is_about_data(p_sqlstate text) returns boolean
language sql immutable parallel safe as $$ select left(p_sqlstate, 2) not in ('40', '42', '53', '55', '57', '58', '08') $$;

create or replace function kedge.deadline_error() returns bytea
language sql stable as $$ select kedge.error_info('RunDeadlineError', 'its time was up') $$;
