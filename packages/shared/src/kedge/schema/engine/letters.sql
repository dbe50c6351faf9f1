-- What clients' letters share: each is one insert into the inbox, in the caller's transaction, at any isolation level; no
-- run is locked. The courier decides. A letter is refused only for what is certain.

-- Whom a letter finds; no row when there is no such run, or not with this resource. A completed or cancelled run has
-- ended for good, a failed one unless a retry is on its way. What a live run is may change with any letter that is.
-- One statement, so that a letter is seen in the inbox or in what became of it, never in neither. Letters that only want
-- to know something (o, w) change nothing.
create or replace function kedge.addressee(p_run uuid, p_resource text)
returns table (state "char", request "char", has_ended boolean, has_letters boolean)
language sql stable as $$
    select s.state, s.request,
           s.state in ('c', 'x')
           or s.state = 'f' and not exists (select 1 from kedge.inbox i where i.run_id = p_run and i.kind = 'r'),
           exists (select 1 from kedge.inbox i where i.run_id = p_run and i.kind not in ('o', 'w'))
      from (select r.state, r.request, r.resource from kedge.runs r where r.id = p_run
            union all
            select f.status, null, f.resource from kedge.finished f where f.id = p_run) s
     where p_resource is null or s.resource = p_resource
$$;

-- What a note on the fate of a control letter says in its fields. It stays when the letter has gone, and is what a repeat
-- of the letter is known by.
create or replace function kedge.letter_fields(p_letter uuid) returns bytea
language sql stable parallel safe as $$
    select '\x01'::bytea || convert_to('{"letter":"' || p_letter || '"}', 'UTF8')
$$;

-- Whether the courier has had this letter, as far as that is known: by its note, or because it has become mail.
create or replace function kedge.was_sorted(p_run uuid, p_letter uuid) returns boolean
language sql stable as $$
    select exists (select 1 from kedge.events e where e.run_id = p_run and e.id = p_letter)
        or exists (select 1 from kedge.run_log l
                    where l.run_id = p_run and l.kind = 'n' and l.fields = kedge.letter_fields(p_letter))
$$;

-- Control letters: x cancel, s pause, u resume, r retry, g fast-forward (p_slot: of the wait, or null).
-- accepted = false: the run's state forbids it for certain. A repeat of a letter that has been sorted is accepted and
-- not put in again.
create or replace function kedge.post_letter(
    p_kind "char", p_letter uuid, p_run uuid, p_resource text, p_reason text, p_slot text, p_payload bytea
) returns table (accepted boolean, status text, has_ended boolean)
language plpgsql set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_run record;
begin
    perform kedge.await_standby();
    if p_letter is null or kedge.is_engine_letter(p_letter) then
        raise exception using errcode = 'KE005', message = 'a letter has an id, and none of version 8';
    end if;
    select * into v_run from kedge.addressee(p_run, p_resource);
    if not found then
        return;
    end if;
    status := kedge.status_name(v_run.state);
    has_ended := v_run.has_ended;
    accepted := kedge.was_sorted(p_run, p_letter);
    if accepted then
        return next;
        return;
    end if;
    accepted := case p_kind
        when 'r' then v_run.state = 'f' or not v_run.has_ended and v_run.has_letters
        when 'u' then not v_run.has_ended
            and (v_run.state = 's' or v_run.request is not distinct from 's' or v_run.has_letters
                 or exists (select 1 from kedge.waits w where w.run_id = p_run and w.kind = 'u'))
        when 'g' then exists (
            select 1 from kedge.waits w
             where w.run_id = p_run and w.kind in ('e', 'd', 'p', 'u') and (p_slot is null or 'k:' || w.key = p_slot))
        else not v_run.has_ended end;
    if accepted then
        insert into kedge.inbox (run_id, id, sent_at, kind, reason, slot, payload)
        values (p_run, p_letter, kedge.instant(), p_kind, left(p_reason, 4000), p_slot, p_payload) on conflict do nothing;
    end if;
    return next;
end $$;
