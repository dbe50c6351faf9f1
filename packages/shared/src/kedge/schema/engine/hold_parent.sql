-- Last part of a child's start in a transaction of its own: the parent's row, locked until the commit, if it is still in
-- its owner's hand. The start may have waited for others meanwhile, and whoever has ended the parent since has told the
-- courier of its children, to take along what goes with it, before this one could be found.
create or replace function kedge.hold_parent(p_parent uuid, p_epoch int, p_worker uuid) returns void
language plpgsql as $$
begin
    perform 1 from kedge.runs r
      where r.id = p_parent and r.epoch = p_epoch and r.worker_id is not distinct from p_worker for key share;
    if not found then
        raise exception using errcode = 'KE001', message = 'run ' || p_parent || ' is in another hand';
    end if;
end $$;
