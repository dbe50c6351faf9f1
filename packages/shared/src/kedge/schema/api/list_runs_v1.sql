-- What lists and counts read. Ids of runs, newest first (p_after: older than that id) or, with p_backward, the ones just
-- newer than p_after, oldest first.
-- Dynamic, so that each combination of filters gets a plan of its own; values are always parameters. Live and
-- finished runs are each read in the order of an index and merged: no more than p_limit rows of each.
create or replace function kedge.list_run_ids_v1(
    p_workflow text, p_statuses text[], p_resource text, p_parent uuid, p_tag text, p_since timestamptz,
    p_until timestamptz, p_limit int, p_after uuid, p_backward boolean
) returns uuid[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_order text := case when p_backward then 'asc' else 'desc' end;
    v_where text := case when p_resource is not null then ' and x.resource = $3' else '' end
        || case when p_parent is not null then ' and x.parent_id = $4' else '' end
        || case when p_tag is not null
                then ' and exists (select 1 from kedge.run_tags t where t.run_id = x.id and t.tag = $5)' else '' end
        || case when p_since is not null then ' and x.id >= kedge.id_floor($6)' else '' end
        || case when p_until is not null then ' and x.id < kedge.id_floor($7)' else '' end
        || case when p_after is null then '' when p_backward then ' and x.id > $9' else ' and x.id < $9' end;
    v_live text := v_where;
    v_ended text := v_where;
    v_names text[];
    v_ids uuid[];
begin
    if p_statuses is not null then
        v_live := v_live || ' and kedge.status_name(x.state) = any ($2)';
        v_ended := v_ended || ' and kedge.status_name(x.status) = any ($2)';
        if not 'completed' = any (p_statuses) then
            v_ended := v_ended || ' and x.status <> ''c''';
        end if;
    end if;
    if p_workflow is not null then
        v_names := kedge.versions_of(p_workflow);
        v_live := v_live || ' and (x.workflow = $1 or split_part(x.workflow, ''@'', 1) = $1)';
    end if;
    execute format(
        'select array(select id from (
             (select x.id from kedge.runs x where true %1$s order by x.id %4$s limit $8)
             union all
             (select x.id from %3$s where true %2$s order by x.id %4$s limit $8)) u
         order by id %4$s limit $8)',
        v_live, v_ended,
        case when p_workflow is null then 'kedge.finished x'
             -- one walk of (workflow, id) a version
             else format('unnest($10) as n(name) cross join lateral (
                      select * from kedge.finished x where x.workflow = n.name %1$s order by x.id %2$s limit $8) x',
                      v_ended, v_order) end,
        v_order)
      into v_ids
     using p_workflow, p_statuses, p_resource, p_parent, p_tag, p_since, p_until, p_limit, p_after, v_names;
    return v_ids;
end $$;

-- The names under which ended runs of a workflow are kept: itself, or, given without version, with every version.
create or replace function kedge.versions_of(p_workflow text) returns text[]
language sql stable as $$
    with recursive w(name) as (
        select min(f.workflow) from kedge.finished f
         where f.workflow >= p_workflow collate "C" and f.workflow < (p_workflow || 'A') collate "C"
        union all
        select (select min(f.workflow) from kedge.finished f
                 where f.workflow > w.name and f.workflow < (p_workflow || 'A') collate "C")
          from w where w.name is not null)
    select array(select name from w where name = p_workflow or split_part(name, '@', 1) = p_workflow)
$$;

-- The smallest UUIDv7 of a time, for ranges; of a time that no id has, the nearest that one could have.
create or replace function kedge.id_floor(p_at timestamptz) returns uuid
language sql immutable parallel safe as $$
    select (lpad(to_hex(least(greatest(floor(extract(epoch from p_at) * 1000), 0), 281474976710655)::bigint), 12, '0')
            || '00000000000000000000')::uuid
$$;

create or replace function kedge.count_runs_v1(
    p_workflow text, p_statuses text[], p_resource text, p_tag text, p_since timestamptz, p_until timestamptz
) returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select count(*) from kedge.all_runs x
     where (p_workflow is null or x.workflow = p_workflow or split_part(x.workflow, '@', 1) = p_workflow)
       and (p_statuses is null or x.status = any (p_statuses))
       and (p_resource is null or x.resource = p_resource)
       and (p_tag is null or exists (select 1 from kedge.run_tags t where t.run_id = x.id and t.tag = p_tag))
       and (p_since is null or x.id >= kedge.id_floor(p_since))
       and (p_until is null or x.id < kedge.id_floor(p_until))
$$;
