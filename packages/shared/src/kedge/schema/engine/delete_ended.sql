-- Deletes ended runs of these workflows whose time to be kept is over, in the order of the names that are given: at most
-- p_limit runs, and p_rows rows of each kind of history, so that no transaction gets long. Of a workflow it looks at five
-- times as many at most, in the order of their ids, behind p_after; the answer says where it stopped, how many it deleted, and
-- whether it came to the end of what can be old. What was passed over, because its time or its turn has not come, is for
-- a later walk from the beginning. Workflows that there was no room for are not in the answer.
-- First the look, without locks; then the locks, skipping what is locked; then, in a later statement, the decision: since
-- the look a run may have been retried, and have ended once more. The courier locks the same rows for the letters that it
-- sorts: a letter is either seen here, or finds no run.
create or replace function kedge.delete_ended(p_workflows text[], p_after uuid[], p_limit int, p_rows int)
returns table (workflow text, stopped_at uuid, deleted int, is_done boolean)
language plpgsql set enable_sort = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
    v_terms record;
    v_seen uuid[];
    v_old uuid[];
    v_looked int;
    v_id uuid;
    v_room int := p_limit;
begin
    for v_terms in
        select x.name, x.last, d.completed, d.failed, d.cancelled,
               kedge.id_floor(greatest(d.completed, d.failed, d.cancelled)) as floor
          from unnest(p_workflows, p_after) with ordinality as x(name, last, place)
          left join lateral (
               select kedge.kept_since(k.keep_completed_s) as completed, kedge.kept_since(k.keep_failed_s) as failed,
                      kedge.kept_since(k.keep_cancelled_s) as cancelled
                 from kedge.definitions k where k.workflow = x.name offset 0) d on true
         order by x.place
    loop
        exit when v_room <= 0;
        select coalesce(array_agg(s.id order by s.id), '{}'),
               coalesce(array_agg(s.id order by s.id) filter (where s.is_old), '{}'), max(s.looked)
          into v_seen, v_old, v_looked
          from (select f.*, count(*) filter (where f.is_old) over (order by f.id) as found, count(*) over () as looked
                  from (select f.id, case f.status when 'c' then f.ended_at < v_terms.completed
                                                   when 'f' then f.ended_at < v_terms.failed
                                                   else f.ended_at < v_terms.cancelled end as is_old
                          from kedge.finished f
                         -- By rows, and without a sort: while the table is empty the ids alone look as good a way, and
                         -- would be that through the runs of all workflows.
                         where (f.workflow, f.id) > (v_terms.name, v_terms.last)
                           and (f.workflow, f.id) < (v_terms.name, v_terms.floor)
                         order by f.workflow, f.id limit 5 * p_limit) f) s
         where s.found <= v_room;

        v_old := array(select f.id from kedge.finished f where f.id = any (v_old) for update skip locked);
        v_old := array(
            select f.id from kedge.finished f
             where f.id = any (v_old)
               and case f.status when 'c' then f.ended_at < v_terms.completed
                                 when 'f' then f.ended_at < v_terms.failed
                                 else f.ended_at < v_terms.cancelled end
               and not exists (select 1 from kedge.inbox i where i.run_id = f.id offset 0)
               and not exists (select 1 from kedge.run_watchers w where w.run_id = f.id offset 0)
               -- Who lives may ask for the end of its child, and who may be retried may do so once more.
               and (f.parent_id is null
                    or not exists (select 1 from kedge.runs p where p.id = f.parent_id offset 0)
                       and not exists (
                           select 1 from kedge.finished p where p.id = f.parent_id and p.status = 'f' offset 0)));
        begin
            perform kedge.remove_runs(v_old, p_rows) where v_old <> '{}';
        exception when others then
            if not kedge.is_about_data(sqlstate) then
                raise;
            end if;
            -- A trigger, a damaged row: one by one, and the bad one stays, in nobody else's way.
            foreach v_id in array v_old loop
                begin
                    perform kedge.remove_runs(array[v_id], p_rows);
                exception when others then
                    if not kedge.is_about_data(sqlstate) then
                        raise;
                    end if;
                    raise warning 'run % cannot be deleted: %', v_id, sqlerrm;
                    v_old := array_remove(v_old, v_id);
                end;
            end loop;
        end;

        workflow := v_terms.name;
        stopped_at := coalesce(v_seen[cardinality(v_seen)], v_terms.last);
        deleted := cardinality(v_old);
        is_done := v_seen = '{}' or v_looked < 5 * p_limit and cardinality(v_seen) = v_looked;
        v_room := v_room - deleted;
        return next;
    end loop;
end $$;

-- Ends before this are over; null: none is, they are kept for ever. Two hours is the least, whatever somebody wrote.
create or replace function kedge.kept_since(p_keep_s double precision) returns timestamptz
language sql stable as $$
    select case when p_keep_s is not null then kedge.clock() - make_interval(secs => greatest(p_keep_s, 7200)) end
$$;

-- Deletes these ended runs, which the caller has locked, with all that belongs to them, so that each is as unknown as a
-- run that never was. The row itself first: what refuses to go refuses at once. What is too much stays for the next ones.
create or replace function kedge.remove_runs(p_runs uuid[], p_rows int) returns void
language plpgsql as $$
begin
    delete from kedge.run_keys
     where ctid = any (array(
           select k.ctid
             from kedge.finished f
            cross join lateral (
                  select k.ctid from kedge.run_keys k
                   where k.workflow = split_part(f.workflow, '@', 1) and k.resource = coalesce(f.resource, '')
                     and k.key = f.key and k.run_id = f.id offset 0) k
            where f.id = any (p_runs)));
    -- What is left where a start that wanted to take it over was rolled back. What is locked is being taken over now.
    delete from kedge.singletons
     where ctid = any (array(
           select s.ctid
             from kedge.finished f
            cross join lateral (
                  select s.ctid from kedge.singletons s
                   where s.workflow = split_part(f.workflow, '@', 1) and s.resource = coalesce(f.resource, '')
                     and s.key = coalesce(f.key, '') and s.run_id = f.id
                  offset 0 for update skip locked) s
            where f.id = any (p_runs) and f.is_singleton));
    delete from kedge.finished where id = any (p_runs);
    delete from kedge.run_tags where run_id = any (p_runs);
    delete from kedge.waits where run_id = any (p_runs);
    delete from kedge.progress where run_id = any (p_runs);
    delete from kedge.run_metadata where run_id = any (p_runs);
    if not kedge.remove_history(p_runs, p_rows) then
        insert into kedge.removals (run_id) select r from unnest(p_runs) as r;
    end if;
end $$;

-- Deletes up to p_rows rows of each kind that a run may have thousands of. False: there may be more.
create or replace function kedge.remove_history(p_runs uuid[], p_rows int) returns boolean
language plpgsql as $$
declare
    v_most int;
    v_count int;
begin
    delete from kedge.journal
     where ctid = any (array(select j.ctid from kedge.journal j where j.run_id = any (p_runs) limit p_rows));
    get diagnostics v_most = row_count;
    delete from kedge.failures
     where ctid = any (array(select f.ctid from kedge.failures f where f.run_id = any (p_runs) limit p_rows));
    get diagnostics v_count = row_count;
    v_most := greatest(v_most, v_count);
    delete from kedge.events
     where ctid = any (array(select e.ctid from kedge.events e where e.run_id = any (p_runs) limit p_rows));
    get diagnostics v_count = row_count;
    v_most := greatest(v_most, v_count);
    delete from kedge.run_log
     where ctid = any (array(select l.ctid from kedge.run_log l where l.run_id = any (p_runs) limit p_rows));
    get diagnostics v_count = row_count;
    return greatest(v_most, v_count) < p_rows;
end $$;

-- Goes on with what was too much for the transaction that deleted its runs. False: nothing is left, or others are at it.
create or replace function kedge.finish_removals(p_rows int) returns boolean
language plpgsql as $$
declare
    v_runs uuid[];
begin
    v_runs := array(select r.run_id from kedge.removals r limit 500 for update skip locked);
    if v_runs = '{}' then
        return false;
    end if;
    if kedge.remove_history(v_runs, p_rows) then
        delete from kedge.removals where run_id = any (v_runs);
    end if;
    return true;
end $$;
