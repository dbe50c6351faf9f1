-- What a worker's definitions say, written only where something has changed. In the order of their names, so that
-- workers which register at the same time cannot wait for each other in a circle.
-- p_keep_*: how long ended runs are kept, in seconds, null for ever; no array at all, as of an older release's workers,
-- who know nothing of it, leaves that as it is.
drop function if exists kedge.register_definitions(text[], int[], bytea[]);
create or replace function kedge.register_definitions(
    p_names text[], p_total_steps int[], p_options bytea[], p_keep_completed_s double precision[] default null,
    p_keep_failed_s double precision[] default null, p_keep_cancelled_s double precision[] default null
) returns void
language sql as $$
    insert into kedge.definitions as d (workflow, at, total_steps, options, keep_completed_s, keep_failed_s, keep_cancelled_s)
    select x.name, kedge.instant(), x.total_steps, x.options, x.completed, x.failed, x.cancelled
      from unnest(p_names, p_total_steps, p_options, p_keep_completed_s, p_keep_failed_s, p_keep_cancelled_s)
           as x(name, total_steps, options, completed, failed, cancelled)
     where not exists (
           select 1 from kedge.definitions k
            where k.workflow = x.name and k.total_steps is not distinct from x.total_steps and k.options = x.options
              and (p_keep_completed_s is null
                   or (k.keep_completed_s, k.keep_failed_s, k.keep_cancelled_s)
                      is not distinct from (x.completed, x.failed, x.cancelled))
           offset 0)
     order by x.name
    on conflict (workflow) do update
       set at = excluded.at, total_steps = excluded.total_steps, options = excluded.options,
           keep_completed_s = case when p_keep_completed_s is null then d.keep_completed_s else excluded.keep_completed_s end,
           keep_failed_s = case when p_keep_completed_s is null then d.keep_failed_s else excluded.keep_failed_s end,
           keep_cancelled_s = case when p_keep_completed_s is null then d.keep_cancelled_s else excluded.keep_cancelled_s end
$$;
