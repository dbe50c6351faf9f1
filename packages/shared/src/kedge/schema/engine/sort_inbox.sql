-- The courier's one call: sorts up to p_limit letters in order of arrival. Whoever gets the lock sorts; the rest go on.
-- Separate statements at READ COMMITTED: the batch; its runs locked, skipping what is locked; then, with later
-- snapshots, the decisions for those obtained. Deciding in the locking statement would lose wake-ups.
-- Within a round letters of different kinds are not mixed, where their order makes no difference to what becomes of the
-- run: mail is kept whatever the run's state, a resume clears a pause only, a cancel wins over both, and a retry is the
-- last letter of its run.
-- Answers who must be rung: owners of running runs that have mail (mailed) or of which something is wanted (asked), once
-- for each reason, the runs that ended (for clients that wait), the lanes in which something became pending.
drop function if exists kedge.sort_inbox(int);
create function kedge.sort_inbox(p_limit int)
returns table (
    sorted int, remaining boolean, mailed uuid[], asked uuid[], ended uuid[], queues text[], workflows text[])
language plpgsql as $$
declare
    v_seqs bigint[];
    v_runs uuid[];
    v_kinds "char"[];
    v_mailed uuid[] := '{}';
    v_more uuid[];
    v_stopped int := 0;
    v_row record;
begin
    sorted := 0; remaining := false; mailed := '{}'; asked := '{}'; ended := '{}'; queues := '{}'; workflows := '{}';
    -- The key is the schema's own oid: two installations in one database do not meet.
    if not pg_try_advisory_xact_lock('kedge.inbox'::regclass::oid::int, 1) then
        remaining := true;
        return next;
        return;
    end if;
    select p.seqs, p.runs, p.kinds into v_seqs, v_runs, v_kinds from kedge.pick_letters(p_limit) p;
    if v_seqs = '{}' then
        remaining := exists (select 1 from kedge.inbox);
        return next;
        return;
    end if;

    if v_kinds && '{t,x}' then
        for v_row in select e.seq, e.run_id, e.has_moved from kedge.expand_letters(v_seqs, v_runs, v_kinds) e loop
            select coalesce(array_agg(b.seq order by b.place), '{}'), coalesce(array_agg(b.run_id order by b.place), '{}'),
                   coalesce(array_agg(b.kind order by b.place), '{}')
              into v_seqs, v_runs, v_kinds
              from unnest(v_seqs, v_runs, v_kinds) with ordinality as b(seq, run_id, kind, place)
             where b.run_id <> v_row.run_id or b.seq < v_row.seq;
            v_stopped := v_stopped + v_row.has_moved::int;
        end loop;
    end if;

    -- event, child's end: mail, of a failed run too, which may be retried. A topic keeps nothing for who has stopped
    -- waiting, and at a gate nobody reads.
    if v_kinds && '{e,c}' then
        with put as (
            insert into kedge.events (run_id, id, seq, at, slot, payload)
            select i.run_id, coalesce(i.event_id, i.id), i.seq, i.sent_at, i.slot, coalesce(i.payload, '')
              from unnest(v_seqs, v_runs, v_kinds) as b(seq, run_id, kind)
             cross join lateral (
                   select * from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i
             where b.kind in ('e', 'c')
               and (exists (select 1 from kedge.runs r where r.id = i.run_id offset 0)
                    or exists (select 1 from kedge.finished f where f.id = i.run_id and f.status = 'f' offset 0))
               and (starts_with(i.slot, 't:') is not true
                    or exists (select 1 from kedge.waits w where w.run_id = i.run_id and w.slot = i.slot offset 0))
               and (b.kind = 'e'
                    or not exists (select 1 from kedge.waits w
                                    where w.run_id = i.run_id and w.key = substr(i.slot, 3) and w.kind = 'g' offset 0))
             order by i.seq
            on conflict do nothing
            returning run_id)
        select coalesce(array_agg(distinct p.run_id), '{}') into v_mailed from put p;
    end if;

    if v_kinds && '{s,u,g}' then
        for v_row in select c.* from kedge.sort_controls(v_seqs, v_runs, v_kinds) c loop
            asked := asked || v_row.owner;
            queues := queues || v_row.queue;
            workflows := workflows || v_row.workflow;
            v_mailed := v_mailed || v_row.mailed;
        end loop;
    end if;

    if v_mailed <> '{}' then
        for v_row in select w.* from kedge.wake_runs(v_mailed) w loop
            mailed := mailed || v_row.owner;
            queues := queues || v_row.queue;
            workflows := workflows || v_row.workflow;
        end loop;
    end if;
    if 'c' = any (v_kinds) then
        for v_row in
            select g.queue, g.workflow
              from (select array_agg(i.run_id) as runs, array_agg(substr(i.slot, 3)) as keys
                      from unnest(v_seqs, v_runs, v_kinds) as b(seq, run_id, kind)
                     cross join lateral (
                           select i.run_id, i.slot from kedge.inbox i
                            where i.seq = b.seq and i.run_id = b.run_id offset 0) i
                     where b.kind = 'c') c
             cross join lateral kedge.open_gates(c.runs, c.keys) g
             where g.queue is not null
        loop
            queues := queues || v_row.queue;
            workflows := workflows || v_row.workflow;
        end loop;
    end if;

    if 'x' = any (v_kinds) then
        select c.owners, c.ended into v_more, ended from kedge.sort_cancels(v_seqs, v_runs, v_kinds) c;
        asked := asked || v_more;
    end if;
    if 'r' = any (v_kinds) then
        for v_row in
            select b.seq, b.run_id, i.id as letter, kedge.retry_run(b.run_id) as answer
              from unnest(v_seqs, v_runs, v_kinds) as b(seq, run_id, kind)
             cross join lateral (
                   select i.id from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i
             where b.kind = 'r' order by b.seq
        loop
            if v_row.answer is null then  -- it stays
                v_seqs[array_position(v_seqs, v_row.seq)] := null;
                continue;
            end if;
            perform kedge.note(v_row.run_id, 'r', v_row.letter, v_row.answer);
            select r.queue, r.workflow into v_row from kedge.runs r where r.id = v_row.run_id and v_row.answer = 'done';
            queues := queues || v_row.queue;
            workflows := workflows || v_row.workflow;
        end loop;
    end if;
    if 'w' = any (v_kinds) then
        perform kedge.sort_watches(v_seqs, v_runs, v_kinds);
    end if;
    if 'o' = any (v_kinds) then
        with told as (
            update kedge.runs r set is_observed = true
             where not r.is_observed
               and r.id = any (array(select b.run_id from unnest(v_runs, v_kinds) as b(run_id, kind) where b.kind = 'o'))
            returning r.worker_id)
        select coalesce(array_agg(distinct t.worker_id), '{}') into v_more from told t;
        asked := asked || v_more;
    end if;

    delete from kedge.inbox
     where ctid = any (array(
           select i.ctid
             from unnest(v_seqs, v_runs) as b(seq, run_id)
            cross join lateral (
                  select i.ctid from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i));
    get diagnostics sorted = row_count;
    sorted := sorted + v_stopped;

    mailed := array_remove(mailed, null);
    asked := array_remove(asked, null);
    queues := array_remove(queues, null);  -- a queue and its workflow are null together
    workflows := array_remove(workflows, null);
    if cardinality(queues) > 1 then
        select array_agg(l.queue), array_agg(l.workflow) into queues, workflows
          from (select distinct u.queue, u.workflow from unnest(queues, workflows) as u(queue, workflow)) l;
    end if;
    remaining := exists (select 1 from kedge.inbox);
    return next;
end $$;

-- Who wants to know of a run's end: noted beside the live run, or answered by the letter that the end would have written.
create or replace function kedge.sort_watches(p_seqs bigint[], p_runs uuid[], p_kinds "char"[]) returns void
language plpgsql as $$
declare
    v_live uuid[];
begin
    with noted as (
        insert into kedge.run_watchers (run_id, watcher_id, key)
        select i.run_id, i.sender, substr(i.slot, 3)
          from unnest(p_seqs, p_runs, p_kinds) as b(seq, run_id, kind)
         cross join lateral (
               select * from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i
         cross join lateral (select 1 from kedge.runs r where r.id = i.run_id offset 0) r
         where b.kind = 'w'
        on conflict do nothing
        returning run_id)
    select array_agg(distinct n.run_id) into v_live from noted n;
    update kedge.runs r set has_watchers = true where r.id = any (v_live) and not r.has_watchers;

    insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload)
    select i.sender, kedge.end_letter(i.run_id, f.epoch, substr(i.slot, 3)), kedge.instant(), 'c', i.slot,
           kedge.end_payload(f.status, f.output, f.error, f.reason)
      from unnest(p_seqs, p_runs, p_kinds) as b(seq, run_id, kind)
     cross join lateral (
           select * from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i
     cross join lateral (
           (select f.epoch, f.status, f.output, f.error, f.reason from kedge.finished f where f.id = i.run_id offset 0)
           union all
           select 0, 'f', null, kedge.error_info('RunNotFoundError', 'there is no record of it any more'), null
            where not exists (select 1 from kedge.finished f where f.id = i.run_id offset 0)) f
     where b.kind = 'w' and not exists (select 1 from kedge.runs r where r.id = i.run_id offset 0)
    on conflict do nothing;
end $$;

-- The first letter that can be picked leaves, with the reason, if it really cannot be sorted, so that it stops nobody
-- else. It is tried once more under the lock: another courier may have failed it meanwhile, and the next one is innocent.
create or replace function kedge.fail_letter(p_error text) returns void
language plpgsql as $$
declare
    v_seqs bigint[];
    v_runs uuid[];
begin
    if not pg_try_advisory_xact_lock('kedge.inbox'::regclass::oid::int, 1) then
        return;
    end if;
    select p.seqs, p.runs into v_seqs, v_runs from kedge.pick_letters(1) p;
    begin
        perform kedge.sort_inbox(1);
        -- Undone: the courier sorts it, and hears from that whom to ring.
        raise exception using errcode = 'KE006', message = 'the letter can be sorted';
    exception
        when sqlstate 'KE006' then
            return;
        when others then
            if not kedge.is_about_data(sqlstate) then
                raise;
            end if;
    end;
    -- Under the lock letters only come. If one came late with an older seq, or its run was let go of meanwhile, it is not
    -- known which of them was bad.
    if (v_seqs, v_runs) is distinct from (select (p.seqs, p.runs) from kedge.pick_letters(1) p) then
        return;
    end if;
    with gone as (
        delete from kedge.inbox i where i.seq = v_seqs[1] and i.run_id = v_runs[1] returning i.*)
    insert into kedge.inbox_failed (seq, run_id, id, sent_at, kind, reason, slot, payload, sender, failed_at, error)
    select g.seq, g.run_id, g.id, g.sent_at, g.kind, g.reason, g.slot, g.payload, g.sender, kedge.instant(),
           left(p_error, 1000)
      from gone g;
end $$;
