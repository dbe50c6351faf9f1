-- Sends an event to a run (p_run) or to every live run that waits for it on a topic (p_topic) when the letter is sorted.
-- The id is made by the caller before the first try: a repeat is the same letter for the life of the run, also when the
-- first has been consumed.
-- delivered: an open wait takes this one; else it is kept until the run asks for it (a topic keeps nothing).
-- accepted = false: the run has ended for good (has_ended), or has `unread` >= 1,000 events that it has not read; sends at
-- the same moment may pass that by as many as they are. No row when there is no such run, or not with this resource.
create or replace function kedge.send_v1(
    p_letter uuid, p_run uuid, p_topic text, p_event text, p_resource text, p_payload bytea
) returns table (accepted boolean, status text, has_ended boolean, delivered boolean, unread int)
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
declare
    v_slot text := case when p_topic is null then 'e:' || p_event else 't:' || p_topic || chr(31) || p_event end;
    v_run record;
begin
    perform kedge.await_standby();
    if (p_run is null) = (p_topic is null) then
        raise exception using errcode = 'KE005', message = 'an event goes to a run or to a topic: give one of them';
    end if;
    if p_topic is not null and p_resource is not null then
        raise exception using errcode = 'KE005', message = 'a topic reaches runs of every resource: give none';
    end if;
    if p_letter is null or kedge.is_engine_letter(p_letter) or p_payload is null then
        raise exception using errcode = 'KE005', message = 'a letter has an id, none of version 8, and an event a payload';
    end if;
    if octet_length(p_payload) > 67108864 then
        raise exception using errcode = 'KE005', message = 'the payload of an event may have 64 MiB at most';
    end if;
    if octet_length(p_event) not between 1 and 200 or octet_length(p_topic) not between 1 and 200
       or p_event is null or strpos(p_event, chr(31)) > 0 or strpos(p_topic, chr(31)) > 0 then
        raise exception using errcode = 'KE005', message = 'the name of an event or topic is missing, too long or contains U+001F';
    end if;

    if p_topic is not null then
        accepted := true;
        has_ended := false;
        -- The bounds are those of the partial index.
        delivered := exists (select 1 from kedge.waits w where w.slot = v_slot and w.slot >= 't:' and w.slot < 't;');
        insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload)
        values ('00000000-0000-0000-0000-000000000000', p_letter, kedge.instant(), 't', v_slot, p_payload)
        on conflict do nothing;
        return next;
        return;
    end if;

    -- Mail of other kinds, such as the ends of a thousand children, is nobody's to send.
    select a.state, a.has_ended, known.seq, known.is_read, m.unread, m.before, w.open into v_run
      from kedge.addressee(p_run, p_resource) a
      left join lateral (
           select e.seq, e.consumed_seq is not null as is_read from kedge.events e where e.run_id = p_run and e.id = p_letter
           union all
           select i.seq, false from kedge.inbox i where i.run_id = p_run and i.id = p_letter
           limit 1) known on true
     cross join lateral (
           select count(*)::int as unread,
                  count(*) filter (where m.slot = v_slot and (known.seq is null or m.seq < known.seq)) as before
             from (select e.slot, e.seq from kedge.events e
                    where e.run_id = p_run and e.consumed_seq is null and not starts_with(e.slot, 'k:')
                   union all
                   select i.slot, i.seq from kedge.inbox i where i.run_id = p_run and i.kind = 'e') m) m
     cross join lateral (
           select count(*) as open from kedge.waits w where w.run_id = p_run and w.slot = v_slot) w;
    if not found then
        return;
    end if;
    status := kedge.status_name(v_run.state);
    has_ended := v_run.has_ended;
    unread := v_run.unread;
    accepted := v_run.seq is not null or not v_run.has_ended and unread < 1000;
    delivered := coalesce(v_run.is_read, false) or accepted and v_run.before < v_run.open;
    if accepted and v_run.seq is null then
        insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload)
        values (p_run, p_letter, kedge.instant(), 'e', v_slot, p_payload) on conflict do nothing;
    end if;
    return next;
end $$;
