-- Of runs that are about to be claimed, in this order, as many as can be read in one answer: the first, and behind it
-- those whose kept rows, waits and unread mail have so many bytes together. 400 is what a row takes beside its payload.
-- Sizes are read without the payloads. A function of its own, since a claim of runs without a past must not even plan it.
create or replace function kedge.fit_together(p_runs uuid[], p_bytes bigint) returns uuid[]
language plpgsql stable as $$
declare
    v_others uuid[] := p_runs[2:];
    v_fit int;
begin
    select min(s.place) into v_fit
      from (select b.place, sum(b.bytes) over (order by b.place) as together
              from (select array_position(p_runs, u.run_id) - 1 as place, sum(u.bytes) as bytes
                      from (select j.run_id, sum(octet_length(j.value) + octet_length(j.meta) + 400) as bytes
                              from kedge.journal j where j.run_id = any (v_others) group by j.run_id
                            union all
                            select w.run_id, sum(octet_length(w.state) + 400)
                              from kedge.waits w where w.run_id = any (v_others) group by w.run_id
                            union all
                            select e.run_id, sum(octet_length(e.payload) + 400)
                              from kedge.events e where e.run_id = any (v_others) and e.consumed_seq is null
                             group by e.run_id) u
                     group by u.run_id) b) s
     where s.together > p_bytes;
    return coalesce(p_runs[1 : v_fit], p_runs);
end $$;
