-- First statement of every leased transaction: the own workers row, locked so that a take back waits its turn or
-- passes by, and a transaction behind a take back stores nothing. Only one connection of a worker takes it.
create or replace function kedge.hold_worker(p_worker uuid) returns void
language plpgsql as $$
begin
    perform 1 from kedge.workers where id = p_worker for key share;
    if not found then
        raise exception using errcode = 'KE001', message = 'worker ' || p_worker || ' has lost its lease';
    end if;
end $$;
