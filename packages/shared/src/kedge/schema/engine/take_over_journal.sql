-- A worker's new journal connection ends its predecessor and waits until no transaction of it lives: from then on
-- what a read shows is final. Waits at most the session's lock_timeout (55P03: the caller repeats).
create or replace function kedge.take_over_journal(p_worker uuid, p_old_pid int, p_old_start timestamptz) returns void
language plpgsql as $$
begin
    -- This commit holds the worker's row, which the beats of its lease must get at: it waits for no standby.
    perform set_config('synchronous_commit', 'local', true);
    perform pg_terminate_backend(a.pid) from pg_stat_activity a
      where a.pid = p_old_pid and a.backend_start = p_old_start and a.pid <> pg_backend_pid();
    perform 1 from kedge.workers where id = p_worker for update;
    if not found then
        raise exception using errcode = 'KE001', message = 'worker ' || p_worker || ' has lost its lease';
    end if;
    update kedge.workers w
       set pids = array[pg_backend_pid()],
           pids_started = array[(select backend_start from pg_stat_activity where pid = pg_backend_pid())]
     where w.id = p_worker;
end $$;
