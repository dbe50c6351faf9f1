-- Frees the runs of one dead worker; separate statements, each with its own snapshot. A run that is locked stays, and
-- the worker's row with it, for the next round; p_but are the workers that this round has met already, so that one
-- locked run does not keep others waiting. Answers no row when nobody else is dead; of the runs that are free again,
-- the lanes in which somebody must be rung.
-- Only row data decides, so that a worker can take back runs of workflows that it does not know.
create or replace function kedge.take_back(p_protocol smallint, p_but uuid[])
returns table (worker_id uuid, worker_name text, freed int, ended uuid[], queues text[], workflows text[],
               remaining boolean)
language plpgsql as $$
declare
    v_worker record;
    v_ids uuid[];
    v_cancelled uuid[];
begin
    -- One lease of grace after the server's start: leases lapsed because the database was away, nobody crashed.
    -- Who says that it leaves needs no grace.
    select w.id, w.name, w.leaving into v_worker from kedge.workers w
     where w.lease_until < clock_timestamp() and w.protocol <= p_protocol and w.id <> all (p_but)
       and (w.leaving or pg_postmaster_start_time() + w.lease < clock_timestamp())
     order by w.lease_until limit 1 for update skip locked;
    if not found then
        -- What still holds a dead worker's row a third of a lease later is ended: a stopped client in the middle of
        -- an answer keeps its locks beyond every timeout. One that works under another role is left to its like.
        begin
            perform pg_terminate_backend(a.pid)
               from kedge.workers w
              cross join lateral unnest(w.pids, w.pids_started) as b(pid, started)
               join pg_stat_activity a on a.pid = b.pid and a.backend_start = b.started
              where w.lease_until + w.lease / 3 < clock_timestamp() and w.protocol <= p_protocol
                and pg_postmaster_start_time() + w.lease < clock_timestamp();
        exception when insufficient_privilege then
            null;
        end;
        return;
    end if;

    v_ids := array(select r.id from kedge.runs r
                    where r.worker_id = v_worker.id and r.state = 'r' for update skip locked);

    v_cancelled := array(select r.id from kedge.runs r where r.id = any (v_ids) and r.request = 'x');
    perform kedge.end_runs(
        v_worker.id, array_agg(r.id), array_agg(r.epoch), array_agg('x'::text), array_agg(null::bytea),
        array_agg(null::bytea), array_agg(r.reason), array_agg(0),
        array_agg((select coalesce(max(j.seq), 0) from kedge.journal j where j.run_id = r.id)), array_agg(0))
       from kedge.runs r where r.id = any (v_cancelled) having count(*) > 0;

    update kedge.runs r
       set state = case when r.request = 's' then 's' else 'p' end::"char", request = null, worker_id = null,
           epoch = r.epoch + 1, since = kedge.instant(), seq = nextval('kedge.runs_seq'),
           next_seq = greatest(r.next_seq, (select coalesce(max(j.seq), 0) + 1 from kedge.journal j where j.run_id = r.id)),
           crashes = case when v_worker.leaving then r.crashes
                          when exists (select 1 from kedge.journal j
                                        where j.run_id = r.id and j.epoch = r.epoch offset 0) then 0
                          else least(r.crashes + 1, 32767) end
     where r.id = any (v_ids) and r.worker_id = v_worker.id;

    worker_id := v_worker.id;
    worker_name := v_worker.name;
    freed := cardinality(v_ids);
    ended := v_cancelled;
    select coalesce(array_agg(l.queue), '{}'), coalesce(array_agg(l.workflow), '{}') into queues, workflows
      from (select distinct r.queue, r.workflow from kedge.runs r where r.id = any (v_ids) and r.state = 'p') l;
    remaining := exists (select 1 from kedge.runs r where r.worker_id = v_worker.id and r.state = 'r');
    if not remaining then
        delete from kedge.workers w where w.id = v_worker.id;
        delete from kedge.idle i where i.worker_id = v_worker.id;
    end if;
    return next;
end $$;
