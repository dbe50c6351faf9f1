-- NOTIFY never rides in a data transaction: it holds one lock of the whole server across the commit's flush.
-- These are called after the commit, in a transaction of their own. A channel names one listener. Payloads: a list of
-- run ids on a watcher's channel; on a worker's, 'mail' for the inbox and requests, nothing for runs to claim.
create or replace function kedge.notify_watchers(p_runs uuid[]) returns void
language plpgsql as $$
declare
    v_row record;
begin
    for v_row in
        with taken as (
            delete from kedge.watchers
             where ctid = any (array(select w.ctid from kedge.watchers w
                                      where w.run_id = any (p_runs) for update skip locked))
            returning run_id, channel),
        numbered as (select channel, run_id, (row_number() over (partition by channel) - 1) / 200 as page from taken)
        select channel, string_agg(run_id::text, ',') as runs from numbered group by channel, page
    loop
        perform pg_notify(v_row.channel, v_row.runs);
    end loop;
end $$;

-- What NOTIFY takes. Another name would make the notification of everybody else fail who is told in the same call.
create or replace function kedge.is_channel(p_channel text) returns boolean
language sql immutable parallel safe as $$ select coalesce(octet_length(p_channel) between 1 and 63, false) $$;

create or replace function kedge.worker_channel(p_worker uuid) returns text
language sql immutable parallel safe as $$ select 'kedge_w_' || replace(p_worker::text, '-', '') $$;

create or replace function kedge.ring_workers(p_workers uuid[]) returns void
language sql as $$ select pg_notify(kedge.worker_channel(w), 'mail') from unnest(p_workers) as w $$;
