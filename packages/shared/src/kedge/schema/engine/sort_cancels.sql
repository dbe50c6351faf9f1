-- Cancels, for the courier, who holds the runs: a run at rest goes through the exit door, the owner of a running one is
-- asked. What becomes of each is noted. Answers the owners to be rung, and the runs that ended.
create or replace function kedge.sort_cancels(p_seqs bigint[], p_runs uuid[], p_kinds "char"[])
returns table (owners uuid[], ended uuid[])
language plpgsql as $$
declare
    v_runs uuid[];
    v_reasons text[];
begin
    with letters as materialized (
        select i.run_id, i.id, i.reason, i.seq, row_number() over (partition by i.run_id order by i.seq) as nth
          from unnest(p_seqs, p_runs, p_kinds) as b(seq, run_id, kind)
         cross join lateral (
               select * from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i
         where b.kind = 'x' and coalesce(i.slot, '') not in ('dependents', 'descendants')),
    noted as (
        insert into kedge.run_log (run_id, at, epoch, level, kind, message, fields)
        select l.run_id, kedge.instant(), s.epoch, 20, 'n', 'cancel: ' || case
                   when l.nth > 1 or s.state = 'x' or s.request = 'x' then 'already'
                   when s.state in ('c', 'f') then 'refused, the run is ' || kedge.status_name(s.state)
                   when s.state = 'r' then 'asked' else 'done' end, kedge.letter_fields(l.id)
          from letters l
         cross join lateral (
               (select r.epoch, r.state, r.request from kedge.runs r where r.id = l.run_id offset 0)
               union all
               (select f.epoch, f.status, null from kedge.finished f where f.id = l.run_id offset 0)) s
         order by l.seq)
    select array_agg(l.run_id), array_agg(l.reason) into v_runs, v_reasons from letters l where l.nth = 1;

    ended := array(select r.id from kedge.runs r where r.id = any (v_runs) and r.state <> 'r');
    perform kedge.end_runs(
        null, array_agg(r.id), array_agg(r.epoch), array_agg('x'::text), array_agg(null::bytea), array_agg(null::bytea),
        array_agg(x.reason), array_agg(0), array_agg(0), array_agg(0))
       from unnest(v_runs, v_reasons) as x(id, reason)
      cross join lateral (
            select r.id, r.epoch from kedge.runs r where r.id = x.id and r.state <> 'r' offset 0) r
     having count(*) > 0;
    -- Who has a worker is running; said by its state, a plan may read all that run, by the index of those.
    with asked as (
        update kedge.runs r set request = 'x', reason = v_reasons[array_position(v_runs, r.id)]
         where r.id = any (v_runs) and r.worker_id is not null and r.request is distinct from 'x'
        returning r.worker_id)
    select coalesce(array_agg(distinct a.worker_id), '{}') into owners from asked a;

    -- Until a running one has ended its owner may go on to start children, and may be about to commit some: its end
    -- tells nobody of itself, but the courier of them.
    with noted as (
        insert into kedge.run_watchers (run_id, watcher_id, key)
        select r.id, '00000000-0000-0000-0000-000000000000', 'descendants'
          from unnest(p_seqs, p_runs, p_kinds) as b(seq, run_id, kind)
         cross join lateral (
               select 1 from kedge.inbox i
                where i.seq = b.seq and i.run_id = b.run_id and i.slot = 'cascade' offset 0) i
         cross join lateral (select r.id from kedge.runs r where r.id = b.run_id and r.state = 'r' offset 0) r
         where b.kind = 'x'
        on conflict do nothing
        returning run_id)
    select array_agg(n.run_id) into v_runs from noted n;
    if v_runs is not null then
        update kedge.runs r set has_watchers = true where r.id = any (v_runs) and not r.has_watchers;
    end if;
    return next;
end $$;
