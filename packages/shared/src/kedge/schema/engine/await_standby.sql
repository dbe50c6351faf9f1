-- Lets the caller's commit wait for the synchronous standby, if there is one, also when it has found everything done. What
-- is found may be on no standby: its own commit's wait was cut short (the session ended, the server started anew), and a
-- transaction that writes nothing waits for nobody. Whoever repeats a call would be told of what a failover loses.
create or replace function kedge.await_standby() returns void
language plpgsql as $$
begin
    if current_setting('synchronous_standby_names') <> '' then
        -- A record in the WAL that nobody reads: it locks nothing, so it may stand in any transaction.
        perform pg_logical_emit_message(true, 'kedge', '');
    end if;
end $$;
