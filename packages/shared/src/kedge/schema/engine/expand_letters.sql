-- Letters that mean many runs, for the courier: an event to a topic becomes one letter, of the same seq, to each run that
-- waits for it now; a cancel with cascade becomes one to each live child, and so does, when it has ended, what a running
-- parent has started until then (descendants); the end of a parent one to each child that depends on it. A round writes a thousand of them, and no more than 8 MiB; the letter remembers where it stopped, and
-- stays, with whatever comes behind it. Answers these.
create or replace function kedge.expand_letters(p_seqs bigint[], p_runs uuid[], p_kinds "char"[])
returns table (seq bigint, run_id uuid, has_moved boolean)
language plpgsql as $$
#variable_conflict use_column
declare
    v_letter record;
    v_found uuid[];
    v_room int := 1000;
    v_limit int;
    v_held uuid[] := '{}';
begin
    for v_letter in
        select i.*, coalesce(i.sender, '00000000-0000-0000-0000-000000000000') as last
          from unnest(p_seqs, p_runs, p_kinds) as b(seq, run_id, kind)
         cross join lateral (
               select * from kedge.inbox i where i.seq = b.seq and i.run_id = b.run_id offset 0) i
         where b.kind = 't' or b.kind = 'x' and i.slot in ('cascade', 'dependents', 'descendants')
         order by i.seq, i.run_id
    loop
        continue when v_letter.run_id = any (v_held);
        v_limit := least(v_room, greatest(8388608 / greatest(octet_length(v_letter.payload), 1), 1));
        if v_letter.kind = 't' then
            -- The bounds are those of the partial index.
            v_found := array(
                select distinct w.run_id from kedge.waits w
                 where w.slot = v_letter.slot and w.slot >= 't:' and w.slot < 't;' and w.run_id > v_letter.last
                 order by w.run_id limit v_limit);
            insert into kedge.inbox (seq, run_id, id, sent_at, kind, slot, payload, event_id)
            select v_letter.seq, f, v_letter.id, v_letter.sent_at, 'e', v_letter.slot, v_letter.payload, v_letter.event_id
              from unnest(v_found) as f
            on conflict do nothing;
        else
            -- Of a run that has ended by itself before its cancel came the children go on.
            v_found := array(
                select r.id from kedge.runs r
                 where r.parent_id = v_letter.run_id and r.id > v_letter.last
                   and case v_letter.slot
                       when 'dependents' then r.is_dependent
                       when 'descendants' then true
                       else v_letter.sender is not null
                            or exists (select 1 from kedge.runs p where p.id = v_letter.run_id) end
                 order by r.id limit v_limit);
            insert into kedge.inbox (run_id, id, sent_at, kind, reason, slot)
            select f, kedge.engine_letter(v_letter.id || ':' || f), kedge.instant(), 'x', v_letter.reason,
                   case when v_letter.slot <> 'dependents' then 'cascade' end
              from unnest(v_found) as f
            on conflict do nothing;
        end if;
        v_room := v_room - cardinality(v_found);
        if cardinality(v_found) = v_limit then
            v_held := v_held || v_letter.run_id;
            seq := v_letter.seq;
            run_id := v_letter.run_id;
            has_moved := v_limit > 0;
            if has_moved then
                update kedge.inbox set sender = v_found[v_limit]
                 where seq = v_letter.seq and run_id = v_letter.run_id;
            end if;
            return next;
        end if;
    end loop;
end $$;
