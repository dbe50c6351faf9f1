-- The one exit door: every end of a run goes through here, and nothing else writes a terminal status.
-- p_worker is the owner, or null for runs at rest. An entry whose run is not (any more) in that hand with that epoch
-- is left alone: "no row" is an answer, read from the count.
-- p_rows > 0 says that this flush also carried rows p_first..p_last of the run: the end counts only if all of
-- them are stored with this epoch.
-- Only an owner completes a run. A failure with a cancel request ends cancelled, one with a deadline's request fails by
-- the deadline; completed wins over every request.
-- Its waits go, unread mail stays for a retry. Who watches the run gets a letter; children that depend on it are
-- cancelled by the courier, as many at a time as are good for it.
create or replace function kedge.end_runs(
    p_worker uuid, p_ids uuid[], p_epochs int[], p_statuses text[], p_outputs bytea[], p_errors bytea[],
    p_reasons text[], p_first int[], p_last int[], p_rows int[]
) returns int
language plpgsql as $$
declare
    v_ended uuid[];
    v_watched uuid[];
    v_parents uuid[];
    v_singletons uuid[];
begin
    -- The row is locked before it is copied, so that a request sorted meanwhile is seen.
    with done as (
        insert into kedge.finished (id, ended_at, started_at, deadline_at, parent_id, epoch, next_seq, rank, attempt,
                                    crashes, status, queue, workflow, resource, key, reason, output, error, timeout_s,
                                    is_dependent, is_singleton)
        select r.id, kedge.instant(), r.started_at, r.deadline_at, r.parent_id, r.epoch,
               greatest(r.next_seq, e.last + 1), r.rank, r.attempt, r.crashes,
               case when e.status = 'f' and r.request = 'x' then 'x' else e.status end::"char",
               r.queue, r.workflow, r.resource, r.key,
               case when e.status = 'c' then null else coalesce(e.reason, r.reason) end, e.output,
               case when e.status = 'f' and r.request = 'd' then kedge.deadline_error() else e.error end,
               r.timeout_s, r.is_dependent, r.is_singleton
          from unnest(p_ids, p_epochs, p_statuses, p_outputs, p_errors, p_reasons, p_first, p_last, p_rows)
               as e(id, epoch, status, output, error, reason, first, last, rows)
         cross join lateral (
               select * from kedge.runs r
                where r.id = e.id and r.epoch = e.epoch and r.worker_id is not distinct from p_worker
                  and (r.state = 'r') = (p_worker is not null)
               offset 0 for update) r
         where (e.rows = 0
                or (select count(*) from kedge.journal j
                     where j.run_id = e.id and j.seq between e.first and e.last and j.epoch = e.epoch) = e.rows)
           and (p_worker is not null or e.status <> 'c')
        returning id),
    gone as (
        delete from kedge.runs where id = any (array(select id from done))
        returning id, has_watchers, has_dependents, is_singleton)
    select array_agg(g.id), array_agg(g.id) filter (where g.has_watchers),
           array_agg(g.id) filter (where g.has_dependents), array_agg(g.id) filter (where g.is_singleton)
      into v_ended, v_watched, v_parents, v_singletons
      from gone g;
    if v_ended is null then
        return 0;
    end if;

    delete from kedge.waits where run_id = any (v_ended);

    if v_watched is not null then
        -- A statement of its own: who was noted while we waited for the row is told as well. The same letter comes to
        -- be when somebody begins to watch later; its id makes them one.
        insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload)
        select w.watcher_id, kedge.end_letter(i.id, f.epoch, w.key), kedge.instant(), 'c', 'k:' || w.key,
               kedge.end_payload(f.status, f.output, f.error, f.reason)
          from unnest(v_watched) as i(id)
         cross join lateral (select * from kedge.finished f where f.id = i.id offset 0) f
         cross join lateral (select * from kedge.run_watchers w where w.run_id = i.id offset 0) w
         where w.watcher_id <> '00000000-0000-0000-0000-000000000000'
        on conflict do nothing;
        -- Nobody's watch is that of a cancel with cascade: for the children that it has not found yet.
        insert into kedge.inbox (run_id, id, sent_at, kind, reason, slot)
        select i.id, gen_random_uuid(), kedge.instant(), 'x', f.reason, 'descendants'
          from unnest(v_watched) as i(id)
         cross join lateral (select f.reason from kedge.finished f where f.id = i.id offset 0) f
         cross join lateral (
               select 1 from kedge.run_watchers w
                where w.run_id = i.id and w.watcher_id = '00000000-0000-0000-0000-000000000000' offset 0) w;
        delete from kedge.run_watchers where run_id = any (v_watched);
    end if;
    if v_parents is not null then
        insert into kedge.inbox (run_id, id, sent_at, kind, reason, slot)
        select i.id, gen_random_uuid(), kedge.instant(), 'x', 'its parent has ended', 'dependents'
          from unnest(v_parents) as i(id);
    end if;
    if v_singletons is not null then
        -- What is locked is being taken over by a start.
        delete from kedge.singletons
         where ctid = any (array(
               select s.ctid
                 from unnest(v_singletons) as i(id)
                cross join lateral (
                      select f.workflow, f.resource, f.key from kedge.finished f where f.id = i.id offset 0) f
                cross join lateral (
                      select s.ctid from kedge.singletons s
                       where s.workflow = split_part(f.workflow, '@', 1)
                         and s.resource = coalesce(f.resource, '') and s.key = coalesce(f.key, '')
                         and s.run_id = i.id
                      offset 0 for update skip locked) s));
    end if;
    return cardinality(v_ended);
end $$;

-- The letter that tells a watcher's wait of a run's end: the same whoever writes it.
create or replace function kedge.end_letter(p_run uuid, p_epoch int, p_key text) returns uuid
language sql immutable parallel safe as $$ select kedge.engine_letter(p_run || ':' || p_epoch || ':' || p_key) $$;

-- What it says: the status in one byte, then the output, the error or the reason.
create or replace function kedge.end_payload(p_status "char", p_output bytea, p_error bytea, p_reason text)
returns bytea
language sql immutable parallel safe as $$
    select convert_to(p_status::text, 'UTF8') || coalesce(
        case p_status when 'c' then p_output when 'f' then p_error else convert_to(p_reason, 'UTF8') end, ''::bytea)
$$;
