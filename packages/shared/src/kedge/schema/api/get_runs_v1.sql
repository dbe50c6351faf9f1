-- All that there is to see of runs, in one look. With p_full also what they wait for, what has been sent to them and not
-- been read, what became of the letters that wanted something of them, and how their attempts failed: the newest ten.
create or replace function kedge.get_runs_v1(p_ids uuid[], p_resource text, p_full boolean)
returns table (
    id uuid, workflow text, status text, queue text, priority int, resource text, key text, parent_id uuid, attempt int,
    crashes int, epoch int, created_at timestamptz, started_at timestamptz, since timestamptz, due_at timestamptz,
    deadline_at timestamptz, ended_at timestamptz, timeout_s double precision, request text, reason text, meta bytea,
    metadata bytea, definition bytea, tags text[], input bytea, output bytea, error bytea,
    wait_kinds text[], wait_keys text[], wait_slots text[], wait_opened_ats timestamptz[], wait_due_ats timestamptz[],
    wait_attempts int[], wait_states bytea[], unread_slots text[], unread_counts int[], note_ats timestamptz[],
    notes text[], failure_attempts int[], failure_ats timestamptz[], failure_took_ms int[], failure_errors bytea[])
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
begin
    return query
    select a.id, a.workflow, a.status, a.queue, a.priority, a.resource, a.key, a.parent_id, a.attempt, a.crashes, a.epoch,
           j.at, a.started_at, a.since, a.due_at, nullif(a.deadline_at, 'infinity'), a.ended_at, o.timeout_s,
           coalesce(o.request, u.request), a.reason, j.meta, m.metadata, d.options,
           array(select t.tag from kedge.run_tags t where t.run_id = a.id order by t.tag), j.value, a.output, a.error,
           w.kinds, w.keys, w.slots, w.opened_ats, w.due_ats, w.attempts, w.states, e.slots, e.counts, n.ats, n.messages,
           f.attempts, f.ats, f.took_ms, f.errors
      from unnest(p_ids) as i(id)
     cross join lateral (select * from kedge.all_runs a where a.id = i.id offset 0) a
     cross join lateral (
           select r.timeout_s,
                  case r.request when 'x' then 'cancelled' when 'd' then 'failed' when 's' then 'paused' end as request
             from kedge.runs r where r.id = i.id
           union all
           select f.timeout_s, null from kedge.finished f where f.id = i.id) o
     cross join lateral (select j.at, j.value, j.meta from kedge.journal j where j.run_id = i.id and j.seq = 0 offset 0) j
      left join lateral (select m.metadata from kedge.run_metadata m where m.run_id = i.id offset 0) m on true
      left join lateral (select d.options from kedge.definitions d where d.workflow = a.workflow offset 0) d on true
      -- What nobody has sorted yet; a cancel wins whenever it comes.
      left join lateral (
           select case l.kind when 'x' then 'cancelled' when 's' then 'paused' when 'u' then 'resumed'
                              when 'g' then 'fast-forwarded' when 'r' then 'retried' end as request
             from kedge.inbox l where l.run_id = i.id and l.kind in ('x', 's', 'u', 'g', 'r')
            order by l.kind = 'x' desc, l.seq desc limit 1) u on true
     cross join lateral (
           select array_agg(w.kind::text) as kinds, array_agg(w.key) as keys, array_agg(w.slot) as slots,
                  array_agg(w.opened_at) as opened_ats, array_agg(nullif(w.due_at, 'infinity')) as due_ats,
                  array_agg(w.attempt) as attempts, array_agg(w.state) as states
             from (select * from kedge.waits w where p_full and w.run_id = i.id
                    order by w.opened_at, w.key limit 1000) w) w
     -- Events, sorted or not; what is addressed to a wait's key is no event.
     cross join lateral (
           select array_agg(g.slot) as slots, array_agg(g.mails) as counts
             from (select s.slot, count(*)::int as mails
                     from (select v.slot from kedge.events v
                            where p_full and v.run_id = i.id and v.consumed_seq is null and v.slot not like 'k:%'
                           union all
                           select l.slot from kedge.inbox l
                            where p_full and l.run_id = i.id and l.kind = 'e') s
                    group by s.slot) g) e
     cross join lateral (
           select array_agg(l.at) as ats, array_agg(l.message) as messages
             from (select l.at, l.message from kedge.run_log l where p_full and l.run_id = i.id and l.kind = 'n'
                    order by l.id desc limit 10) l) n
     cross join lateral (
           select array_agg(x.attempt) as attempts, array_agg(x.at) as ats, array_agg(x.took_ms) as took_ms,
                  array_agg(x.error) as errors
             from (select x.attempt, x.at, x.took_ms, x.error from kedge.failures x
                    where p_full and x.run_id = i.id and x.kind = 'r' order by x.id desc limit 10) x) f
     where p_resource is null or a.resource = p_resource;
end $$;
