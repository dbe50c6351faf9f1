-- Of runs that are about to be claimed, in this order, as many as can be read in one answer: the first, and behind it
-- those whose kept rows, waits and unread mail have so many bytes together. 400 is what a row takes beside its payload.
-- Sizes are read without the payloads. A function of its own, since a claim of runs without a past must not even plan it.
create or replace function kedge.fit_together(p_runs uuid[], p_bytes bigint) returns uuid[]
language plpgsql stable as $$
declare
    v_left bigint := p_bytes;
begin
    for i in 2 .. cardinality(p_runs) loop
        v_left := v_left
            - (select coalesce(sum(octet_length(j.value) + octet_length(j.meta) + 400), 0)
                 from kedge.journal j where j.run_id = p_runs[i])
            - (select coalesce(sum(octet_length(w.state) + 400), 0)
                 from kedge.waits w where w.run_id = p_runs[i])
            - (select coalesce(sum(octet_length(e.payload) + 400), 0)
                 from kedge.events e where e.run_id = p_runs[i] and e.consumed_seq is null);
        if v_left < 0 then
            return p_runs[1 : i - 1];
        end if;
    end loop;
    return p_runs;
end $$;
