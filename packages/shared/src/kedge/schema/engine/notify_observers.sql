-- Tells whoever watches these runs that something has happened to them: after the commit, in a transaction of its own.
-- The registrations stay. The payload begins with 'observed:', since a channel also hears of ends, which it must look
-- after. Who has not renewed for two minutes is gone.
create or replace function kedge.notify_observers(p_runs uuid[]) returns void
language sql as $$
    select pg_notify(p.channel, 'observed:' || p.runs)
      from (select n.channel, string_agg(n.run_id::text, ',') as runs
              from (select o.channel, i.run_id,
                           (row_number() over (partition by o.channel) - 1) / 200 as page
                      from unnest(p_runs) as i(run_id)
                     cross join lateral (
                           select o.channel from kedge.observers o
                            where o.run_id = i.run_id and o.at > clock_timestamp() - interval '2 minutes' offset 0) o) n
             group by n.channel, n.page) p
$$;
