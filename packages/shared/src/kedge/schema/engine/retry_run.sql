-- The only way back: a failed run goes on from where it failed, with what the journal holds of finished operations; for
-- the courier. Answers what became of it; null: not now, since somebody is starting its singleton at this moment.
create or replace function kedge.retry_run(p_run uuid) returns text
language plpgsql as $$
declare
    v_run record;
begin
    select * into v_run from kedge.finished f where f.id = p_run;
    if not found then
        return 'already';
    end if;
    if v_run.status <> 'f' then
        return 'refused, the run is ' || kedge.status_name(v_run.status);
    end if;
    if v_run.is_singleton then
        -- A start holds this lock as long as its caller likes: the courier waits for nobody.
        if not pg_try_advisory_xact_lock(kedge.singleton_lock(v_run.workflow, v_run.resource, v_run.key)) then
            return null;
        end if;
        if exists (select 1 from kedge.singleton_runs(v_run.workflow, v_run.resource, v_run.key)) then
            return 'refused, another run with its key is active';
        end if;
        insert into kedge.singletons as s (workflow, resource, key, run_id)
        values (split_part(v_run.workflow, '@', 1), coalesce(v_run.resource, ''), v_run.key, p_run)
        on conflict (workflow, resource, key) do update set run_id = excluded.run_id;
    end if;

    -- The failure that ended it becomes that of one attempt.
    insert into kedge.failures (run_id, at, epoch, attempt, took_ms, kind, key, error)
    values (p_run, v_run.ended_at, v_run.epoch, v_run.attempt + 1, 0, 'r', '', coalesce(v_run.error, ''));
    perform kedge.set_aside(p_run, v_run.attempt + 1);
    -- In the solo lane it stays there, with as many crashes left as when it came.
    insert into kedge.runs (id, since, started_at, deadline_at, parent_id, epoch, next_seq, rank, attempt, crashes, state,
                            queue, workflow, resource, key, timeout_s, has_waits, is_dependent, is_singleton)
    values (p_run, kedge.instant(), v_run.started_at, kedge.deadline(kedge.instant(), v_run.timeout_s), v_run.parent_id,
            v_run.epoch + 1, v_run.next_seq, v_run.rank, v_run.attempt,
            case when kedge.is_solo(v_run.queue) then 2 else 0 end, 'p', v_run.queue, v_run.workflow, v_run.resource,
            v_run.key, v_run.timeout_s, kedge.waits_or_mail(p_run), v_run.is_dependent, v_run.is_singleton);
    delete from kedge.finished where id = p_run;
    return 'done';
end $$;
