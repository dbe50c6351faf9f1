-- Starts many runs of one shape (workflow, queue, priority, time) in one statement; keys, resources and metas are
-- arrays, null where no run of the batch has one. Answers only the runs that were not simply created: their place in
-- the batch (from 1) and what start_run_v1 says of them. p_strict raises at the first conflict, so that a transaction
-- of many batches is all or nothing without a round trip for the decision. With p_singleton all have a key, maybe empty.
create or replace function kedge.start_runs_v1(
    p_ids uuid[], p_workflow text, p_queue text, p_priority int, p_inputs bytea[], p_metas bytea[],
    p_keys text[], p_key_hashes bytea[], p_on_conflict text, p_resources text[], p_delay_s double precision,
    p_start_at timestamptz, p_tags text[], p_strict boolean, p_timeout_s double precision default null,
    p_singleton text default null
) returns table (place int, run_id uuid, created boolean, status text, conflict text)
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    v_now timestamptz := kedge.instant();
    v_due timestamptz;
    v_state "char";
    v_deadline timestamptz;
    v_stored int;
    v_new uuid[];
begin
    perform kedge.await_standby();
    if p_keys is not null or p_singleton is not null then
        -- In the order of the keys, and of a key's resources, so that two batches with equal keys do not deadlock; byte
        -- by byte, as clients order the batches of one bulk start.
        return query
            select b.place::int, s.run_id, s.created, s.status, s.conflict
              from (select * from unnest(p_ids, p_inputs, p_metas, p_keys, p_key_hashes, p_resources)
                             with ordinality as b(id, input, meta, key, hash, resource, place)
                     order by b.key collate "C" nulls last, b.resource collate "C" nulls first, b.place offset 0) b
             cross join lateral kedge.start_run(
                   b.id, p_workflow, p_queue, p_priority, b.input, b.meta, b.key, b.hash, p_on_conflict, b.resource,
                   p_delay_s, p_start_at, p_tags, p_strict, p_timeout_s, p_singleton, null, false) s
             where not (s.created and s.status in ('pending', 'waiting'));
        return;
    end if;

    if exists (select 1 from unnest(p_ids) as i(id)
                where abs(extract(epoch from clock_timestamp() - kedge.id_time(i.id))) > 3600) then
        raise exception using errcode = 'KE004',
            message = 'the time in a run id is more than an hour off the database''s clock',
            hint = 'Set the clock of the machine that makes the ids.';
    end if;
    if exists (select 1 from unnest(p_inputs, p_metas) as i(input, meta)
                where octet_length(i.input) > 67108864 or octet_length(i.meta) > 67108864) then
        raise exception using errcode = 'KE005', message = 'the input of a run may have 64 MiB at most';
    end if;
    if exists (select 1 from unnest(p_resources) as i(resource) where octet_length(i.resource) not between 1 and 1000)
       or octet_length(p_workflow) not between 1 and 401 or octet_length(p_queue) not between 1 and 200 then
        raise exception using errcode = 'KE005', message = 'a name is empty or too long';
    end if;
    if kedge.is_solo(p_queue) then
        raise exception using errcode = 'KE005', message = 'a queue must not be called as the engine''s own lanes are';
    end if;
    if not kedge.is_timeout(p_timeout_s) then
        raise exception using errcode = 'KE005', message = 'a timeout is longer than zero and shorter than a century';
    end if;
    if num_nulls(p_workflow, p_queue, p_priority) > 0
       or exists (select 1 from unnest(p_ids, p_inputs, p_metas, p_resources) as i(id, input, meta, resource)
                   where i.id is null or i.input is null) then
        raise exception using errcode = 'KE005',
            message = 'a run has an id, a workflow, a queue, a priority and an input';
    end if;
    if not kedge.is_start(p_priority, p_delay_s, p_start_at) then
        raise exception using errcode = 'KE005', message = 'the priority, the delay or the time of a start is out of range';
    end if;
    if p_tags is not null and not kedge.are_tags(p_tags) then
        raise exception using errcode = 'KE005', message = 'of tags there are 100 at most, and each has 1 to 200 bytes';
    end if;
    v_due := greatest(p_start_at, v_now + make_interval(secs => p_delay_s));
    v_state := case when v_due > v_now then 'w' else 'p' end;

    with stored as (
        insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
        select b.id, v_now, 0, 0, 0, 'i', '', b.input, coalesce(b.meta, '')
          from unnest(p_ids, p_inputs, p_metas) as b(id, input, meta)
        on conflict do nothing returning run_id)
    select count(*), case when count(*) < cardinality(p_ids) then array_agg(run_id) end into v_stored, v_new from stored;

    v_due := case when v_state = 'w' then v_due end;
    v_deadline := kedge.deadline(coalesce(v_due, v_now), p_timeout_s);
    if v_stored = cardinality(p_ids) then
        insert into kedge.runs (id, since, due_at, deadline_at, rank, state, queue, workflow, resource, timeout_s)
        select b.id, v_now, v_due, v_deadline, -p_priority, v_state, p_queue, p_workflow, b.resource, p_timeout_s
          from unnest(p_ids, p_resources) as b(id, resource);
    else
        -- An id that is there twice is a repeat of its first place, which has stored the input.
        insert into kedge.runs (id, since, due_at, deadline_at, rank, state, queue, workflow, resource, timeout_s)
        select f.id, v_now, v_due, v_deadline, -p_priority, v_state, p_queue, p_workflow, f.resource, p_timeout_s
          from (select distinct on (b.id) b.id, b.resource, b.place
                  from unnest(p_ids, p_resources) with ordinality as b(id, resource, place)
                 where b.id = any (v_new)
                 order by b.id, b.place) f
         order by f.place;
    end if;

    if p_tags is not null then
        insert into kedge.run_tags (tag, run_id)
        select distinct t, i
          from unnest(p_tags) as t
         cross join unnest(case when v_stored = cardinality(p_ids) then p_ids else v_new end) as i;
    end if;

    if v_stored < cardinality(p_ids) then
        return query
            select b.place::int, b.id, true, kedge.status_name(s.state), null::text
              from unnest(p_ids) with ordinality as b(id, place)
             cross join lateral (select r.state from kedge.runs r where r.id = b.id
                                 union all select f.status from kedge.finished f where f.id = b.id) s
             where not b.id = any (coalesce(v_new, '{}'));
    end if;
end $$;
