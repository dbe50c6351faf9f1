-- Starts one run; only inserts, so it may stand in any transaction at any isolation level.
-- The id is made by the caller before the first try: a repeat answers as the first did (journal seq 0 stays after the
-- end and is the guard). A key belongs to its workflow and resource: those of other resources never meet it, and runs
-- without one share theirs. A taken key answers with the run that holds it: created = false, and conflict says
-- 'exists' (p_on_conflict = 'raise') or 'input' (same key, other input). p_strict raises instead; the error's detail is
-- the refused id and the id of the run that holds the key.
-- p_timeout_s: null, nothing was said and the worker's definition decides; infinity, none; counted from when it is due.
-- p_singleton: p_key (maybe empty) is the singleton's and no idempotency key, of its resource too. While another is active,
-- 'raise' says conflict = 'active', 'return' answers with that run, and 'cancel_old' cancels it: the new run waits
-- behind a gate until it has ended.
-- p_parent: a worker starts a child; its id may be older than an hour, and p_tags = null takes over the parent's. That is
-- nothing for a client, who would name anybody's run: so this is the engine's function, and start_run_v1 the client's.
create or replace function kedge.start_run(
    p_id uuid, p_workflow text, p_queue text, p_priority int, p_input bytea, p_meta bytea,
    p_key text, p_key_hash bytea, p_on_conflict text, p_resource text, p_delay_s double precision,
    p_start_at timestamptz, p_tags text[], p_strict boolean, p_timeout_s double precision,
    p_singleton text, p_parent uuid, p_is_dependent boolean,
    out run_id uuid, out created boolean, out status text, out conflict text
) language plpgsql set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    v_now timestamptz := kedge.instant();
    v_due timestamptz;
    v_name text := split_part(p_workflow, '@', 1);
    v_resource text := coalesce(p_resource, '');
    v_holder record;
    v_active uuid[] := '{}';
begin
    perform kedge.await_standby();
    if p_parent is null and abs(extract(epoch from clock_timestamp() - kedge.id_time(p_id))) > 3600 then
        raise exception using errcode = 'KE004',
            message = 'the time in run id ' || p_id || ' is more than an hour off the database''s clock',
            hint = 'Set the clock of the machine that makes the ids.';
    end if;
    if octet_length(p_input) > 67108864 or octet_length(p_meta) > 67108864 then
        raise exception using errcode = 'KE005', message = 'the input of a run may have 64 MiB at most';
    end if;
    if octet_length(p_workflow) not between 1 and 401 or octet_length(p_queue) not between 1 and 200
       or octet_length(p_key) not between (p_singleton is null)::int and 1000
       or octet_length(p_resource) not between 1 and 1000 then
        raise exception using errcode = 'KE005', message = 'a name is empty or too long';
    end if;
    if kedge.is_solo(p_queue) then
        raise exception using errcode = 'KE005', message = 'a queue must not be called as the engine''s own lanes are';
    end if;
    if not kedge.is_timeout(p_timeout_s) then
        raise exception using errcode = 'KE005', message = 'a timeout is longer than zero and shorter than a century';
    end if;
    if num_nulls(p_id, p_workflow, p_queue, p_priority, p_input) > 0 or p_key is not null and p_singleton is null
       and p_key_hash is null then
        raise exception using errcode = 'KE005',
            message = 'a run has an id, a workflow, a queue, a priority and an input, and its key has a hash';
    end if;
    if not kedge.is_start(p_priority, p_delay_s, p_start_at) then
        raise exception using errcode = 'KE005', message = 'the priority, the delay or the time of a start is out of range';
    end if;
    if p_tags is not null and not kedge.are_tags(p_tags) then
        raise exception using errcode = 'KE005', message = 'of tags there are 100 at most, and each has 1 to 200 bytes';
    end if;
    v_due := greatest(p_start_at, v_now + make_interval(secs => p_delay_s));

    if p_singleton is not null then
        if p_singleton not in ('raise', 'return', 'cancel_old') or p_key is null then
            raise exception using errcode = 'KE005', message = 'a singleton has a policy that is known, and a key';
        end if;
        perform pg_advisory_xact_lock(kedge.singleton_lock(p_workflow, p_resource, p_key));
        -- Statements behind the lock: at READ COMMITTED they see what others did who had it.
        if not exists (select 1 from kedge.journal j where j.run_id = p_id and j.seq = 0) then
            for v_holder in select s.id, s.state from kedge.singleton_runs(p_workflow, p_resource, p_key) s loop
                if p_singleton = 'cancel_old' then
                    v_active := v_active || v_holder.id;
                    continue;
                end if;
                created := false;
                run_id := v_holder.id;
                status := kedge.status_name(v_holder.state);
                conflict := case when p_singleton <> 'return' then 'active' end;
                if conflict is not null and p_strict then
                    raise exception using errcode = 'KE010',
                        message = 'a run of workflow ' || v_name || ' with key ' || quote_literal(p_key) || ' is active',
                        detail = concat_ws(' ', p_id, run_id);
                end if;
                return;
            end loop;
            -- A caller with an older snapshot fails here (40001) if it has not seen the newest run.
            insert into kedge.singletons as s (workflow, resource, key, run_id) values (v_name, v_resource, p_key, p_id)
            on conflict (workflow, resource, key) do update set run_id = excluded.run_id;
        end if;
    elsif p_key is not null then
        for v_try in 1..3 loop
            insert into kedge.run_keys (workflow, resource, key, run_id, hash)
            values (v_name, v_resource, p_key, p_id, p_key_hash) on conflict do nothing;
            exit when found;
            -- A second statement: at READ COMMITTED it sees the winner, for whose end the insert has waited.
            select k.run_id, k.hash, s.state into v_holder
              from kedge.run_keys k
              left join lateral (
                    select r.state from kedge.runs r where r.id = k.run_id
                    union all
                    select f.status from kedge.finished f where f.id = k.run_id) s on true
             where k.workflow = v_name and k.resource = v_resource and k.key = p_key;
            if found then
                run_id := v_holder.run_id;
                created := v_holder.run_id = p_id;
                status := kedge.status_name(v_holder.state);
                conflict := case
                    when created then null
                    when p_on_conflict = 'raise' then 'exists'
                    when p_on_conflict = 'return' and substr(v_holder.hash, 1, 8) = substr(p_key_hash, 1, 8)
                         and v_holder.hash <> p_key_hash then 'input' end;
                if conflict is not null and p_strict then
                    raise exception using errcode = case conflict when 'input' then 'KE002' else 'KE003' end,
                        message = 'key ' || quote_literal(p_key) || ' of workflow ' || p_workflow || ' is taken'
                            || case conflict when 'input' then ' by a run with another input' else '' end,
                        detail = concat_ws(' ', p_id, run_id);
                end if;
                return;
            end if;
            if v_try = 3 then
                raise exception using errcode = '40001', message = 'key ' || quote_literal(p_key) || ' keeps changing hands';
            end if;
        end loop;
    end if;

    run_id := p_id;
    created := true;
    insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
    values (p_id, v_now, 0, 0, 0, 'i', '', p_input, coalesce(p_meta, '')) on conflict do nothing;
    if not found then
        select kedge.status_name(s.state) into status
          from (select r.state from kedge.runs r where r.id = p_id
                union all select f.status from kedge.finished f where f.id = p_id) s;
        return;
    end if;
    v_due := case when v_due > v_now then v_due end;
    if v_active <> '{}' then
        perform kedge.replace_singleton(p_id, v_active, v_due);
    end if;
    status := case when v_due is not null or v_active <> '{}' then 'waiting' else 'pending' end;
    insert into kedge.runs (id, since, due_at, deadline_at, parent_id, rank, state, queue, workflow, resource, key,
                            timeout_s, has_waits, is_dependent, is_singleton)
    values (p_id, v_now, case when v_active = '{}' then v_due end, kedge.deadline(coalesce(v_due, v_now), p_timeout_s),
            p_parent, -p_priority, case status when 'waiting' then 'w' else 'p' end::"char", p_queue, p_workflow,
            p_resource, p_key, p_timeout_s, v_active <> '{}', coalesce(p_is_dependent, false), p_singleton is not null);
    if p_tags is not null then
        insert into kedge.run_tags (tag, run_id) select distinct t, p_id from unnest(p_tags) as t;
    elsif p_parent is not null then
        insert into kedge.run_tags (tag, run_id) select t.tag, p_id from kedge.run_tags t where t.run_id = p_parent;
    end if;
end $$;

-- An earlier form knew parents; two forms would make calls ambiguous.
drop function if exists kedge.start_run_v1(
    uuid, text, text, int, bytea, bytea, text, bytea, text, text, double precision, timestamptz, text[], boolean,
    double precision, text, uuid, boolean);

-- The same for clients. Nearly every start says no more than a workflow, a queue, an input and perhaps a resource: it is one
-- statement behind one condition, since each statement and each expression of a function costs a transaction of its own
-- microseconds. Whatever else is wanted, or wrong, and a repeat, start_run deals with. Only a repeat could write nothing, and
-- have no standby to wait for.
create or replace function kedge.start_run_v1(
    p_id uuid, p_workflow text, p_queue text, p_priority int, p_input bytea, p_meta bytea,
    p_key text, p_key_hash bytea, p_on_conflict text, p_resource text, p_delay_s double precision,
    p_start_at timestamptz, p_tags text[], p_strict boolean, p_timeout_s double precision default null,
    p_singleton text default null,
    out run_id uuid, out created boolean, out status text, out conflict text
) language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v_said record;
begin
    if num_nonnulls(p_key, p_singleton, p_tags, p_delay_s, p_start_at, p_timeout_s) = 0
       and abs(extract(epoch from clock_timestamp() - kedge.id_time(p_id))) <= 3600
       and octet_length(p_input) <= 67108864 and coalesce(octet_length(p_meta), 0) <= 67108864
       and octet_length(p_workflow) between 1 and 401 and octet_length(p_queue) between 1 and 200
       and coalesce(octet_length(p_resource), 1) between 1 and 1000
       and not kedge.is_solo(p_queue) and kedge.is_start(p_priority, null, null) then
        with stored as (
            insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
            values (p_id, kedge.instant(), 0, 0, 0, 'i', '', p_input, coalesce(p_meta, ''))
            on conflict do nothing returning run_id, at)
        insert into kedge.runs (id, since, rank, state, queue, workflow, resource)
        select s.run_id, s.at, -p_priority, 'p', p_queue, p_workflow, p_resource from stored s;
        if found then
            run_id := p_id;
            created := true;
            status := 'pending';
            return;
        end if;
    end if;
    v_said := kedge.start_run(p_id, p_workflow, p_queue, p_priority, p_input, p_meta, p_key, p_key_hash, p_on_conflict,
                              p_resource, p_delay_s, p_start_at, p_tags, p_strict, p_timeout_s, p_singleton, null, false);
    run_id := v_said.run_id;
    created := v_said.created;
    status := v_said.status;
    conflict := v_said.conflict;
end $$;
