-- Runs behind a gate of which a predecessor has ended, for the courier: the gate goes when nothing is left that it waits
-- for, and the run begins, or waits until its own time. Answers the lanes in which something became pending.
create or replace function kedge.open_gates(p_runs uuid[], p_keys text[]) returns table (queue text, workflow text)
language plpgsql as $$
declare
    v_gate record;
begin
    for v_gate in
        delete from kedge.waits
         where ctid = any (array(
               select w.ctid
                 from unnest(p_runs, p_keys) as x(run_id, key)
                cross join lateral (
                      select w.ctid from kedge.waits w
                       where w.run_id = x.run_id and w.key = x.key and w.kind = 'g' offset 0) w
                where not kedge.gate_is_closed(x.run_id)))
        returning run_id, due_at, due_at > kedge.instant() as is_early
    loop
        return query
            update kedge.runs r
               set state = case when r.state = 'w' and v_gate.is_early is not true then 'p' else r.state end,
                   seq = nextval('kedge.runs_seq'), since = kedge.instant(),
                   due_at = case when r.state = 's' or v_gate.is_early then v_gate.due_at end,
                   has_waits = kedge.waits_or_mail(r.id)
             where r.id = v_gate.run_id and r.state in ('w', 's')
            returning case when r.state = 'p' then r.queue end, r.workflow;
    end loop;
end $$;
