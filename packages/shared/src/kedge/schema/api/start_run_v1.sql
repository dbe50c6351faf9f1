-- Starts one run; only inserts, so it may stand in any transaction at any isolation level.
-- The id is made by the caller before the first try: a repeat answers as the first did (journal seq 0 stays after the
-- end and is the guard). A taken key answers with the run that holds it: created = false, and conflict says
-- 'exists' (p_on_conflict = 'raise') or 'input' (same key, other input or other resource). p_strict raises instead;
-- the error's detail is the refused id and, unless it is of another resource, the id of the run that holds the key.
create or replace function kedge.start_run_v1(
    p_id uuid, p_workflow text, p_queue text, p_priority int, p_input bytea, p_meta bytea,
    p_key text, p_key_hash bytea, p_on_conflict text, p_resource text, p_delay_s double precision,
    p_start_at timestamptz, p_tags text[], p_strict boolean
) returns table (run_id uuid, created boolean, status text, conflict text)
language plpgsql set enable_seqscan = off as $$
#variable_conflict use_column
declare
    v_now timestamptz := kedge.instant();
    v_due timestamptz := greatest(p_start_at, v_now + make_interval(secs => p_delay_s));
    v_holder record;
begin
    if abs(extract(epoch from clock_timestamp() - kedge.id_time(p_id))) > 3600 then
        raise exception using errcode = 'KE004',
            message = 'the time in run id ' || p_id || ' is more than an hour off the database''s clock',
            hint = 'Set the clock of the machine that makes the ids.';
    end if;
    if octet_length(p_input) > 67108864 or octet_length(p_meta) > 67108864 then
        raise exception using errcode = 'KE005', message = 'the input of a run may have 64 MiB at most';
    end if;
    if octet_length(p_workflow) not between 1 and 401 or octet_length(p_queue) not between 1 and 200
       or octet_length(p_key) not between 1 and 1000 or octet_length(p_resource) not between 1 and 1000 then
        raise exception using errcode = 'KE005', message = 'a name is empty or too long';
    end if;

    if p_key is not null then
        for v_try in 1..3 loop
            insert into kedge.run_keys (workflow, key, run_id, hash)
            values (split_part(p_workflow, '@', 1), p_key, p_id, p_key_hash) on conflict do nothing;
            exit when found;
            -- A second statement: at READ COMMITTED it sees the winner, for whose end the insert has waited.
            select k.run_id, k.hash, s.state, s.resource into v_holder
              from kedge.run_keys k
              left join lateral (
                    select r.state, r.resource from kedge.runs r where r.id = k.run_id
                    union all
                    select f.status, f.resource from kedge.finished f where f.id = k.run_id) s on true
             where k.workflow = split_part(p_workflow, '@', 1) and k.key = p_key;
            if found then
                run_id := v_holder.run_id;
                created := v_holder.run_id = p_id;
                status := kedge.status_name(v_holder.state);
                conflict := case
                    when created then null
                    when v_holder.resource is distinct from p_resource then 'input'
                    when p_on_conflict = 'raise' then 'exists'
                    when p_on_conflict = 'return' and substr(v_holder.hash, 1, 8) = substr(p_key_hash, 1, 8)
                         and v_holder.hash <> p_key_hash then 'input' end;
                -- Somebody else's run stays unnamed.
                if conflict = 'input' and v_holder.resource is distinct from p_resource then
                    run_id := null;
                    status := null;
                end if;
                if conflict is not null and p_strict then
                    raise exception using errcode = case conflict when 'input' then 'KE002' else 'KE003' end,
                        message = 'key ' || quote_literal(p_key) || ' of workflow ' || p_workflow || ' is taken'
                            || case conflict when 'input' then ' by a run with another input' else '' end,
                        detail = concat_ws(' ', p_id, run_id);
                end if;
                return next;
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
        return next;
        return;
    end if;
    status := case when v_due > v_now then 'waiting' else 'pending' end;
    insert into kedge.runs (id, since, due_at, rank, state, queue, workflow, resource, key)
    values (p_id, v_now, case when v_due > v_now then v_due end, -p_priority,
            case when v_due > v_now then 'w' else 'p' end::"char", p_queue, p_workflow, p_resource, p_key);
    if p_tags is not null then
        insert into kedge.run_tags (tag, run_id) select distinct t, p_id from unnest(p_tags) as t;
    end if;
    return next;
end $$;
