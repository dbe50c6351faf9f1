-- What a worker's definitions say, written only where something has changed. In the order of their names, so that
-- workers which register at the same time cannot wait for each other in a circle.
create or replace function kedge.register_definitions(p_names text[], p_total_steps int[], p_options bytea[])
returns void
language sql as $$
    insert into kedge.definitions as d (workflow, at, total_steps, options)
    select x.name, kedge.instant(), x.total_steps, x.options
      from unnest(p_names, p_total_steps, p_options) as x(name, total_steps, options)
     where not exists (
           select 1 from kedge.definitions k
            where k.workflow = x.name and k.total_steps is not distinct from x.total_steps and k.options = x.options
           offset 0)
     order by x.name
    on conflict (workflow) do update
       set at = excluded.at, total_steps = excluded.total_steps, options = excluded.options
$$;
