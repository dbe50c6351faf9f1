-- Pause, resume, fast-forward, in their order, for the courier, who holds the runs: what becomes of each is noted.
-- Answers whom to ring (owners of running runs, lanes in which something became pending), and the runs that got mail.
create or replace function kedge.sort_controls(p_seqs bigint[], p_runs uuid[], p_kinds "char"[])
returns table (owner uuid, queue text, workflow text, mailed uuid)
language plpgsql as $$
declare
    v_letter record;
    v_run record;
    v_wait text;
    v_answer text;
begin
    for v_letter in
        select i.*
          from unnest(p_seqs, p_runs, p_kinds) as b(seq, run_id, kind)
         cross join lateral (
               select * from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i
         where b.kind in ('s', 'u', 'g')
         order by i.seq
    loop
        owner := null; queue := null; workflow := null; mailed := null;
        select r.id, r.state, r.request, r.worker_id, r.due_at, r.queue, r.workflow into v_run
          from kedge.runs r where r.id = v_letter.run_id;
        if not found then
            perform kedge.note(v_letter.run_id, v_letter.kind, v_letter.id, null);
            continue;
        end if;

        -- pause: a run at rest keeps its waits and its time; what was pending keeps that it was
        if v_letter.kind = 's' then
            v_answer := case when v_run.state = 's' or v_run.request = 's' then 'already'
                             when v_run.request = 'x' then 'refused, the run is being cancelled'
                             when v_run.request = 'd' then 'refused, the time of the run is up'
                             when v_run.state = 'r' then 'asked' else 'done' end;
            if v_answer = 'asked' then
                update kedge.runs r set request = 's', reason = v_letter.reason where r.id = v_run.id;
                owner := v_run.worker_id;
            elsif v_answer = 'done' then
                update kedge.runs r
                   set state = 's', since = kedge.instant(), reason = v_letter.reason,
                       due_at = case when r.state = 'p' then kedge.instant() else r.due_at end
                 where r.id = v_run.id;
            end if;

        -- resume: of the operator's pause; else of the oldest pause that the run itself has asked for
        elsif v_letter.kind = 'u' and v_run.state = 's' then
            v_answer := 'done';
            if v_run.due_at <= kedge.instant() or kedge.mail_wakes(v_run.id)
               or v_run.due_at is null and not exists (select 1 from kedge.waits w where w.run_id = v_run.id) then
                update kedge.runs r
                   set state = 'p', seq = nextval('kedge.runs_seq'), since = kedge.instant(), due_at = null, reason = null
                 where r.id = v_run.id;
                queue := v_run.queue;
                workflow := v_run.workflow;
            else
                update kedge.runs r set state = 'w', since = kedge.instant(), reason = null where r.id = v_run.id;
            end if;
        elsif v_letter.kind = 'u' and v_run.request = 's' then
            v_answer := 'done';
            update kedge.runs r set request = null, reason = null where r.id = v_run.id;
            owner := v_run.worker_id;

        -- fast-forward, and resume of a pause: mail for the wait that is named, or for the oldest that has none yet
        else
            select w.key into v_wait from kedge.waits w
             where w.run_id = v_run.id
               and case when v_letter.kind = 'u' then w.kind = 'u' else w.kind in ('e', 'd', 'p', 'u') end
               and (v_letter.slot is null or v_letter.slot = 'k:' || w.key)
               and not exists (select 1 from kedge.events m
                                where m.run_id = w.run_id and m.consumed_seq is null and m.slot = 'k:' || w.key)
             order by w.opened_at, w.key limit 1;
            if found then
                insert into kedge.events (run_id, id, seq, at, slot, payload)
                values (v_run.id, v_letter.id, v_letter.seq, v_letter.sent_at, 'k:' || v_wait,
                        coalesce(v_letter.payload, ''))
                on conflict do nothing;
                v_answer := case when found then 'done' else 'already' end;
                mailed := v_run.id;
            else
                v_answer := case when v_letter.kind = 'u' then 'already'
                                 when v_letter.slot is null then 'refused, the run waits for nothing that can be skipped'
                                 else 'refused, the run does not wait for ' || substr(v_letter.slot, 3) end;
            end if;
        end if;
        perform kedge.note(v_run.id, v_letter.kind, v_letter.id, v_answer);
        return next;
    end loop;
end $$;

-- What became of a letter that wanted something of a run, for people, and so that a repeat of it is known; no answer: the
-- run has ended.
create or replace function kedge.note(p_run uuid, p_kind "char", p_letter uuid, p_answer text) returns void
language sql as $$
    insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)
    select p_run, kedge.instant(), s.epoch, 20, 'n',
           case p_kind when 'x' then 'cancel' when 's' then 'pause' when 'u' then 'resume' when 'g' then 'fast-forward'
                       when 'r' then 'retry' end
               || ': ' || coalesce(p_answer, 'refused, the run is ' || kedge.status_name(s.state)), kedge.letter_fields(p_letter)
      from (select r.epoch, r.state from kedge.runs r where r.id = p_run
            union all
            select f.epoch, f.status from kedge.finished f where f.id = p_run) s
$$;
