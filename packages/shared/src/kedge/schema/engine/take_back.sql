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
    v_id uuid;
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

    worker_id := v_worker.id;
    worker_name := v_worker.name;
    v_ids := array(select r.id from kedge.runs r
                    where r.worker_id = v_worker.id and r.state = 'r' for update skip locked);
    begin
        ended := kedge.free_runs(v_worker.id, v_ids, not v_worker.leaving);
    exception when others then
        if not kedge.is_about_data(sqlstate) then
            raise;
        end if;
        -- A trigger, a damaged row: one by one, and the bad one stays where it is, in nobody else's way.
        ended := '{}';
        foreach v_id in array v_ids loop
            begin
                ended := ended || kedge.free_runs(v_worker.id, array[v_id], not v_worker.leaving);
            exception when others then
                if not kedge.is_about_data(sqlstate) then
                    raise;
                end if;
                raise warning 'run % of the dead worker % cannot be freed: %', v_id, v_worker.name, sqlerrm;
                v_ids := array_remove(v_ids, v_id);
            end;
        end loop;
    end;

    freed := cardinality(v_ids);
    select coalesce(array_agg(l.queue), '{}'), coalesce(array_agg(l.workflow), '{}') into queues, workflows
      from (select distinct r.queue, r.workflow from kedge.runs r where r.id = any (v_ids) and r.state = 'p') l;
    remaining := exists (select 1 from kedge.runs r where r.worker_id = v_worker.id and r.state = 'r');
    if not remaining then
        delete from kedge.workers w where w.id = v_worker.id;
        delete from kedge.idle i where i.worker_id = v_worker.id;
    end if;
    return next;
end $$;
