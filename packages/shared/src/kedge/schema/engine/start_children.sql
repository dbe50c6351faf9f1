-- Starts children inside their parents' flush, right behind its journal rows: each one only if its parent's row p_seqs
-- stands with this epoch, and the parent is still in the worker's hand. So a child is stored once with what says that it
-- was started, and a flush that is repeated starts none twice: journal seq 0 is the guard, as of every start.
-- Children with a key or singleton go by start_run_v1, in a transaction of their own: they may have to wait.
-- p_keys are the keys of the waits that are told of the ends; p_tags are joined by U+001F, null takes over the parent's.
-- Answers how many children stand for their parents, started now or before: fewer mean that a parent was lost.
create or replace function kedge.start_children(
    p_worker uuid, p_parents uuid[], p_epochs int[], p_seqs int[], p_keys text[], p_ids uuid[], p_workflows text[],
    p_queues text[], p_priorities int[], p_inputs bytea[], p_metas bytea[], p_resources text[], p_due timestamptz[],
    p_delays_s double precision[], p_timeouts_s double precision[], p_tags text[], p_dependent boolean[],
    p_watched boolean[]
) returns int
language plpgsql as $$
declare
    v_now timestamptz := kedge.instant();
    v_stands boolean[];
    v_standing int;
    v_stored uuid[];
begin
    v_stands := array(
        select exists (select 1 from kedge.runs r
                        where r.id = x.parent and r.epoch = x.epoch and r.worker_id is not distinct from p_worker offset 0)
               and exists (select 1 from kedge.journal j
                            where j.run_id = x.parent and j.seq = x.seq and j.epoch = x.epoch offset 0)
          from unnest(p_parents, p_epochs, p_seqs) with ordinality as x(parent, epoch, seq, place)
         order by x.place);
    v_standing := cardinality(array_positions(v_stands, true));
    if v_standing = 0 then
        return 0;
    end if;

    with stored as (
        insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
        select c.id, v_now, 0, 0, 0, 'i', '', c.input, coalesce(c.meta, '')
          from unnest(p_ids, p_inputs, p_metas, v_stands) as c(id, input, meta, stands)
         where c.stands
        on conflict do nothing returning run_id)
    select coalesce(array_agg(s.run_id), '{}') into v_stored from stored s;
    if v_stored = '{}' then
        return v_standing;
    end if;
    if cardinality(v_stored) < v_standing then
        -- A part of them was there: a look-up of each among many, but a flush is not often repeated.
        v_stands := array(
            select c.id = any (v_stored)
              from unnest(p_ids) with ordinality as c(id, place) order by c.place);
    end if;

    insert into kedge.runs (id, since, due_at, deadline_at, parent_id, rank, state, queue, workflow, resource, timeout_s,
                            has_watchers, is_dependent)
    select c.id, v_now, d.due_at, kedge.deadline(coalesce(d.due_at, v_now), c.timeout_s), c.parent, -c.priority,
           case when d.due_at is null then 'p' else 'w' end::"char", c.queue, c.workflow, c.resource, c.timeout_s,
           c.watched, c.dependent
      from unnest(p_ids, p_parents, p_workflows, p_queues, p_priorities, p_resources, p_due, p_delays_s, p_timeouts_s,
                  p_dependent, p_watched, v_stands)
           as c(id, parent, workflow, queue, priority, resource, due_at, delay_s, timeout_s, dependent, watched, stands)
     cross join lateral (
           select nullif(greatest(c.due_at, v_now + make_interval(secs => c.delay_s), v_now), v_now) as due_at) d
     where c.stands;

    insert into kedge.run_tags (tag, run_id)
    select distinct t.tag, c.id
      from unnest(p_ids, p_parents, p_tags, v_stands) as c(id, parent, tags, stands)
     cross join lateral (
           (select g.tag from unnest(string_to_array(nullif(c.tags, ''), U&'\001F')) as g(tag))
           union all
           (select t.tag from kedge.run_tags t where t.run_id = c.parent and c.tags is null offset 0)) t
     where c.stands;

    if true = any (p_watched) then
        insert into kedge.run_watchers (run_id, watcher_id, key)
        select c.id, c.parent, c.key
          from unnest(p_ids, p_parents, p_keys, p_watched, v_stands) as c(id, parent, key, watched, stands)
         where c.stands and c.watched
        on conflict do nothing;
    end if;

    if true = any (p_dependent) then
        update kedge.runs r set has_dependents = true
         where r.id = any (array(
               select c.parent from unnest(p_parents, p_dependent, v_stands) as c(parent, dependent, stands)
                where c.stands and c.dependent))
           and not r.has_dependents;
    end if;
    return v_standing;
end $$;
