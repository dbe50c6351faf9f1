-- The end of a worker: its row goes when nothing is owned; else it lapses, and its take back charges nobody.
-- First the lock, then the look: what a claim of this worker has taken is invisible until it commits, and until then it
-- holds the row. Where that takes too long, it stays at "leaving".
create or replace function kedge.leave(p_worker uuid) returns void
language plpgsql as $$
begin
    delete from kedge.idle where worker_id = p_worker;
    update kedge.workers set leaving = true where id = p_worker;
    perform 1 from kedge.workers where id = p_worker for update;
    delete from kedge.workers w
     where w.id = p_worker
       and not exists (select 1 from kedge.runs r where r.worker_id = w.id and r.state = 'r' offset 0);
exception when lock_not_available then
    delete from kedge.idle where worker_id = p_worker;
    update kedge.workers set leaving = true where id = p_worker;
end $$;
