-- Singletons: at most one active run per (workflow without version, resource, key). What counts are the live runs themselves;
-- the row in `singletons` makes callers with an older snapshot fail instead of missing the newest of them, and may
-- outlive its run.

-- What starts of one singleton wait for each other by (pg_advisory_xact_lock), before they look. The courier's retry
-- only tries to get it. Two installations in one database do not meet: the seed is the schema's own. A hash seeds the
-- next: a resource that ends like a key begins makes no other resource's lock, whatever stands in it.
create or replace function kedge.singleton_lock(p_workflow text, p_resource text, p_key text) returns bigint
language sql stable parallel safe as $$
    select hashtextextended(p_key collate "C",
               hashtextextended(coalesce(p_resource, '') collate "C",
                   hashtextextended(split_part(p_workflow, '@', 1) collate "C", 'kedge.singletons'::regclass::oid::bigint)))
$$;

-- The live runs of a singleton, the current one first: those that it replaced may still be on their way out. For who
-- holds the lock.
create or replace function kedge.singleton_runs(p_workflow text, p_resource text, p_key text)
returns table (id uuid, state "char")
language plpgsql set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
begin
    return query
        select r.id, r.state
          from kedge.runs r
         where r.is_singleton and split_part(r.workflow, '@', 1) = split_part(p_workflow, '@', 1)
           and coalesce(r.resource, '') = coalesce(p_resource, '') and r.key = p_key
         order by r.id is distinct from (
                      select s.run_id from kedge.singletons s
                       where s.workflow = split_part(p_workflow, '@', 1) and s.resource = coalesce(p_resource, '')
                         and s.key = p_key),
                  r.id desc;
end $$;

-- Makes p_run, which the caller inserts as waiting, begin when these runs have ended: its gate, and letters that ask to
-- be told of each end. Letters, because a client must not touch rows of live runs. The current one is asked to end.
create or replace function kedge.replace_singleton(p_run uuid, p_active uuid[], p_due timestamptz) returns void
language plpgsql as $$
begin
    insert into kedge.waits (run_id, opened_at, due_at, kind, key) values (p_run, kedge.instant(), p_due, 'g', '');
    insert into kedge.inbox (run_id, id, sent_at, kind, slot, sender)
    select a, kedge.engine_letter(p_run || ':w:' || a), kedge.instant(), 'w', 'k:', p_run from unnest(p_active) as a
    on conflict do nothing;
    insert into kedge.inbox (run_id, id, sent_at, kind, reason)
    values (p_active[1], kedge.engine_letter(p_run || ':x:' || p_active[1]), kedge.instant(), 'x', 'replaced by run ' || p_run)
    on conflict do nothing;
end $$;

-- Whether a run behind a gate has to wait on: for a run that it watches, or for one that is still to be noted as such
-- (its letter is not sorted yet, for example because that run was locked).
create or replace function kedge.gate_is_closed(p_run uuid) returns boolean
language plpgsql stable set enable_seqscan = off set jit = off as $$
begin
    return exists (select 1 from kedge.run_watchers w where w.watcher_id = p_run and w.key = '')
        or exists (
            select 1
              from kedge.runs g
             cross join lateral (
                   select r.id from kedge.runs r
                    where r.is_singleton and split_part(r.workflow, '@', 1) = split_part(g.workflow, '@', 1)
                      and coalesce(r.resource, '') = coalesce(g.resource, '') and r.key = g.key
                      and r.id <> g.id offset 0) r
             cross join lateral (
                   select 1 from kedge.inbox i
                    where i.run_id = r.id and i.kind = 'w' and i.sender = g.id offset 0) i
             where g.id = p_run);
end $$;
