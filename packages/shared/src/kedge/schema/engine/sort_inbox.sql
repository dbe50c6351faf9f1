-- The courier's one call: sorts up to p_limit letters in order of arrival. Whoever gets the lock sorts; the rest go on.
-- Separate statements at READ COMMITTED: the batch; its runs locked, skipping what is locked; then, with a later
-- snapshot, the decision for those obtained. Deciding in the locking statement would lose wake-ups.
-- A run that was not obtained keeps this and all its later letters for the next round.
-- Answers who must be rung: the owners of running runs with a new request, and the runs that ended.
create or replace function kedge.sort_inbox(p_limit int)
returns table (sorted int, remaining boolean, owners uuid[], ended uuid[])
language plpgsql as $$
declare
    v_seqs bigint[];
    v_runs uuid[];
    v_locked uuid[];
begin
    sorted := 0; remaining := false; owners := '{}'; ended := '{}';
    -- The key is the schema's own oid: two installations in one database do not meet.
    if not pg_try_advisory_xact_lock('kedge.inbox'::regclass::oid::int, 1) then
        remaining := true;
        return next;
        return;
    end if;

    select coalesce(array_agg(b.seq), '{}'), coalesce(array_agg(distinct b.run_id), '{}') into v_seqs, v_runs
      from (select i.seq, i.run_id from kedge.inbox i order by i.seq limit p_limit) b;
    if v_seqs = '{}' then
        return next;
        return;
    end if;

    v_locked := array(select r.id from kedge.runs r where r.id = any (v_runs) for update skip locked);

    -- cancel: a run at rest goes through the exit door, a running one is asked
    ended := array(select r.id from kedge.runs r
                    where r.id = any (v_locked) and r.state <> 'r'
                      and exists (select 1 from kedge.inbox i
                                   where i.run_id = r.id and i.kind = 'x' and i.seq = any (v_seqs) offset 0));
    perform kedge.end_runs(
        null, array_agg(r.id), array_agg(r.epoch), array_agg('x'::text), array_agg(null::bytea), array_agg(null::bytea),
        array_agg((select i.reason from kedge.inbox i where i.run_id = r.id and i.kind = 'x' order by i.seq limit 1)),
        array_agg(0), array_agg(0), array_agg(0))
       from kedge.runs r where r.id = any (ended) having count(*) > 0;
    with asked as (
        update kedge.runs r
           set request = 'x',
               reason = (select i.reason from kedge.inbox i where i.run_id = r.id and i.kind = 'x' order by i.seq limit 1)
         where r.id = any (v_locked) and r.state = 'r' and r.request is distinct from 'x'
           and exists (select 1 from kedge.inbox i
                        where i.run_id = r.id and i.kind = 'x' and i.seq = any (v_seqs) offset 0)
        returning r.worker_id)
    select coalesce(array_agg(distinct a.worker_id), '{}') into owners from asked a;

    -- Done with: letters of obtained runs, and of runs that are neither obtained nor live (a plain read: skipping
    -- a locked row must not look like its absence).
    delete from kedge.inbox i
     where i.seq = any (v_seqs)
       and (i.run_id = any (v_locked) or not exists (select 1 from kedge.runs r where r.id = i.run_id offset 0));
    get diagnostics sorted = row_count;
    remaining := exists (select 1 from kedge.inbox);
    return next;
end $$;

-- The letter at the head leaves, with the reason, if it really cannot be sorted, so that it stops nobody else. It is
-- tried once more under the lock: another courier may have failed it meanwhile, and the next one is innocent.
create or replace function kedge.fail_letter(p_error text) returns void
language plpgsql as $$
declare
    v_head bigint;
begin
    if not pg_try_advisory_xact_lock('kedge.inbox'::regclass::oid::int, 1) then
        return;
    end if;
    select i.seq into v_head from kedge.inbox i order by i.seq limit 1;
    begin
        perform kedge.sort_inbox(1);
        -- Undone: the courier sorts it, and hears from that whom to ring.
        raise exception using errcode = 'KE006', message = 'the letter can be sorted';
    exception
        when sqlstate 'KE006' then
            return;
        when others then
            -- Not about this letter: privileges and schema, a lost race, a lock, a server out of resources or going.
            if left(sqlstate, 2) in ('40', '42', '53', '55', '57') then
                raise;
            end if;
    end;
    -- Under the lock letters only come. If one came late with an older seq, it is not known which of them was bad.
    if v_head is distinct from (select i.seq from kedge.inbox i order by i.seq limit 1) then
        return;
    end if;
    with gone as (
        delete from kedge.inbox i where i.seq = v_head returning i.seq, i.run_id, i.id, i.sent_at, i.kind, i.reason)
    insert into kedge.inbox_failed (seq, run_id, id, sent_at, kind, reason, failed_at, error)
    select g.seq, g.run_id, g.id, g.sent_at, g.kind, g.reason, kedge.instant(), left(p_error, 1000) from gone g;
end $$;
