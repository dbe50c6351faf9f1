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

-- Of what a caller says of a start: what the columns hold, and a time that every client can read.
create or replace function kedge.is_start(p_priority int, p_delay_s double precision, p_start_at timestamptz)
returns boolean
language sql immutable parallel safe as $$
    select p_priority between -32767 and 32767
       and (p_delay_s is null or p_delay_s between -3.2e9 and 3.2e9)
       and (p_start_at is null
            or p_start_at between timestamptz '0001-01-01 00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00')
$$;

create or replace function kedge.are_tags(p_tags text[]) returns boolean
language sql immutable parallel safe as $$
    select cardinality(p_tags) <= 100
       and not exists (select 1 from unnest(p_tags) as t(tag)
                        where (octet_length(t.tag) between 1 and 200) is not true)
$$;
