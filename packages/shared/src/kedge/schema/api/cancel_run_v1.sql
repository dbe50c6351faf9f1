-- Asks for a run's end: one letter, one insert. The courier decides. accepted = false only when the run has ended
-- (and no unsorted letter, which could revive it, is on its way); no row when there is no such run, or not with
-- this resource.
create or replace function kedge.cancel_run_v1(p_letter uuid, p_run uuid, p_resource text, p_reason text)
returns table (accepted boolean, status text)
language plpgsql set enable_seqscan = off as $$
begin
    select s.state in ('p', 'r', 'w', 's') or exists (select 1 from kedge.inbox i where i.run_id = p_run),
           kedge.status_name(s.state)
      into accepted, status
      from (select r.state, r.resource from kedge.runs r where r.id = p_run
            union all
            select f.status, f.resource from kedge.finished f where f.id = p_run) s
     where p_resource is null or s.resource = p_resource;
    if not found then
        return;
    end if;
    if accepted then
        insert into kedge.inbox (run_id, id, sent_at, kind, reason)
        values (p_run, p_letter, kedge.instant(), 'x', left(p_reason, 4000)) on conflict do nothing;
    end if;
    return next;
end $$;
