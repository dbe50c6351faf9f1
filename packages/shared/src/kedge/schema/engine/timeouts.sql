-- When the time of a run is up that becomes due at p_from; null: it has no timeout, or none that is known yet.
create or replace function kedge.deadline(p_from timestamptz, p_timeout_s double precision) returns timestamptz
language sql immutable parallel safe as $$
    select case when p_timeout_s < 'infinity' then p_from + make_interval(secs => p_timeout_s) end
$$;

-- NaN is greater than infinity.
create or replace function kedge.is_timeout(p_timeout_s double precision) returns boolean
language sql immutable parallel safe as $$
    select p_timeout_s is null or p_timeout_s > 0 and (p_timeout_s < 3.2e9 or p_timeout_s = 'infinity')
$$;
