-- Starts a new run from a step of one that has ended: it takes over what was kept before the first row of that step's
-- key, but for failures and interruptions, with input, tags and addressing; its deadline is a fresh one. It belongs to
-- nobody's parent and takes no idempotency key over; of a singleton it is the next run.
-- Only inserts. The id is made by the caller: a repeat answers as the first did.
-- No row: there is no such run, or not with this resource. created = false: its state (status), the step (keys: some of
-- those that there are), or an active run of its singleton (key, holder) forbids it.
create or replace function kedge.rerun_run_v1(p_id uuid, p_run uuid, p_resource text, p_step text)
returns table (created boolean, status text, workflow text, queue text, keys text[], key text, holder uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    v_now timestamptz := kedge.instant();
    v_old record;
    v_first int;
    v_next int;
begin
    perform kedge.await_standby();
    if p_id is null then
        raise exception using errcode = 'KE005', message = 'a run has an id';
    end if;
    if abs(extract(epoch from clock_timestamp() - kedge.id_time(p_id))) > 3600 then
        raise exception using errcode = 'KE004',
            message = 'the time in run id ' || p_id || ' is more than an hour off the database''s clock',
            hint = 'Set the clock of the machine that makes the ids.';
    end if;

    select s.* into v_old
      from (select r.state, r.workflow, r.queue, r.resource, r.key, r.rank, r.timeout_s, false as is_singleton
              from kedge.runs r where r.id = p_run
            union all
            select f.status, f.workflow, f.queue, f.resource, f.key, f.rank, f.timeout_s, f.is_singleton
              from kedge.finished f where f.id = p_run) s
     where p_resource is null or s.resource = p_resource;
    if not found then
        return;
    end if;
    status := kedge.status_name(v_old.state);
    workflow := v_old.workflow;
    queue := kedge.queue_name(v_old.queue);

    -- Whatever has become of the old run since.
    created := exists (select 1 from kedge.journal j where j.run_id = p_id and j.seq = 0);
    if created or v_old.state not in ('c', 'f', 'x') then
        return next;
        return;
    end if;

    -- Its row, whatever became of the step. Failures that a retry of the run has taken out of the journal had a place
    -- there; an attempt that was followed by no outcome has none, and comes after all. Of a call the start of its child
    -- comes first, of a map that of an item: the new run has children of its own.
    select coalesce(min(s.seq) filter (where s.seq > 0), 2147483647) into v_first
      from (select j.key, j.seq from kedge.journal j where j.run_id = p_run and j.seq > 0
            union all
            select f.key, f.journal_seq from kedge.failures f where f.run_id = p_run) s
     where s.key in (p_step, p_step || '/start') or starts_with(s.key, p_step || '[')
    having count(*) > 0;
    if not found then
        if not exists (select 1 from kedge.journal j where j.run_id = p_run and j.seq = 0) then
            return;  -- deleted since it was looked at
        end if;
        keys := array(
            select s.key
              from (select j.key, j.seq from kedge.journal j where j.run_id = p_run and j.seq > 0
                    union all
                    select f.key, coalesce(nullif(f.journal_seq, 0), 2147483647)
                      from kedge.failures f where f.run_id = p_run and f.key <> '') s
             group by s.key order by min(s.seq), s.key limit 50);
        return next;
        return;
    end if;

    if v_old.is_singleton then
        perform pg_advisory_xact_lock(kedge.singleton_lock(v_old.workflow, v_old.resource, coalesce(v_old.key, '')));
        -- A repeat may have waited here for the first try.
        created := exists (select 1 from kedge.journal j where j.run_id = p_id and j.seq = 0);
        if created then
            return next;
            return;
        end if;
        select s.id into holder
          from kedge.singleton_runs(v_old.workflow, v_old.resource, coalesce(v_old.key, '')) s limit 1;
        if found then
            key := coalesce(v_old.key, '');
            return next;
            return;
        end if;
        insert into kedge.singletons as s (workflow, resource, key, run_id)
        values (split_part(v_old.workflow, '@', 1), coalesce(v_old.resource, ''), coalesce(v_old.key, ''), p_id)
        on conflict (workflow, resource, key) do update set run_id = excluded.run_id;
    end if;

    -- In one statement: a run that is deleted meanwhile is taken over whole or not at all.
    with copied as (
        insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
        select p_id, case j.seq when 0 then v_now else j.at end, j.seq, 0, j.took_ms, j.kind, j.key, j.value,
               case j.seq when 0 then kedge.with_origin(j.meta, p_run) else j.meta end
          from kedge.journal j
         where j.run_id = p_run and j.seq < v_first
           and j.kind in ('i', 's', 't', 'e', 'd', 'p', 'u', 'c', 'n', 'm', 'o', 'k')
        on conflict do nothing
        returning seq),
    tagged as (
        insert into kedge.run_tags (tag, run_id)
        select t.tag, p_id from kedge.run_tags t
         where t.run_id = p_run and exists (select 1 from copied c where c.seq = 0))
    select max(c.seq) + 1 into v_next from copied c having min(c.seq) = 0;
    if not found then
        -- A repeat, or there is no such run any more.
        created := exists (select 1 from kedge.journal j where j.run_id = p_id and j.seq = 0);
        if created then
            return next;
        end if;
        return;
    end if;
    created := true;

    insert into kedge.runs (id, since, deadline_at, next_seq, rank, state, queue, workflow, resource, key, timeout_s,
                            is_singleton)
    values (p_id, v_now, kedge.deadline(v_now, v_old.timeout_s), v_next, v_old.rank, 'p', kedge.queue_name(v_old.queue), v_old.workflow,
            v_old.resource, case when v_old.is_singleton then coalesce(v_old.key, '') end, v_old.timeout_s,
            v_old.is_singleton);
    return next;
end $$;

-- The meta of a run (JSON behind its codec byte) with the run that it takes memos over from, in the place of the one that
-- this one had done so from. As text, since jsonb would rewrite the rest.
create or replace function kedge.with_origin(p_meta bytea, p_origin uuid) returns bytea
language plpgsql immutable as $$
declare
    v_text text := '{}';
begin
    if length(p_meta) > 1 then
        if get_byte(p_meta, 0) <> 1 then
            raise exception using errcode = 'KE005', message = 'the meta of run ' || p_origin || ' is not JSON';
        end if;
        v_text := regexp_replace(convert_from(substr(p_meta, 2), 'UTF8'), ',?"origin":"[0-9a-f-]{36}"}$', '}');
    end if;
    return '\x01'::bytea || convert_to(
        left(v_text, -1) || case v_text when '{}' then '' else ',' end || '"origin":"' || p_origin || '"}', 'UTF8');
end $$;

-- The doorbell for a run whose queue and workflow its starter does not know.
create or replace function kedge.ring_run_v1(p_run uuid) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select kedge.ring_v1(r.queue, r.workflow) from kedge.runs r where r.id = p_run
$$;
