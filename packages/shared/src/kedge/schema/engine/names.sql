-- Small immutable translations, shared by functions and views.
create or replace function kedge.status_name(p_state "char") returns text
language sql immutable parallel safe as $$
    select case p_state
        when 'p' then 'pending' when 'r' then 'running' when 'w' then 'waiting' when 's' then 'paused'
        when 'c' then 'completed' when 'f' then 'failed' when 'x' then 'cancelled' end
$$;

create or replace function kedge.kind_name(p_kind "char") returns text
language sql immutable parallel safe as $$
    select case p_kind
        when 'i' then 'input' when 's' then 'step' when 't' then 'transaction'
        when 'f' then 'failed' when 'x' then 'interrupted' else p_kind::text end
$$;

-- The time in a UUIDv7.
create or replace function kedge.id_time(p_id uuid) returns timestamptz
language sql immutable parallel safe as $$
    select to_timestamp(('x' || substr(replace(p_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)
$$;

-- A payload as text: JSON behind codec byte 1, anything else in hex. Text, never jsonb: it must not fail in a view.
create or replace function kedge.payload_text(p_payload bytea) returns text
language sql immutable parallel safe as $$
    select case
        when p_payload is null or length(p_payload) = 0 then null
        when get_byte(p_payload, 0) = 1 then convert_from(substr(p_payload, 2), 'UTF8')
        else '\x' || encode(p_payload, 'hex') end
$$;
