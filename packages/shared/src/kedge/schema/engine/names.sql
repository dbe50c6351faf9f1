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
        when 'f' then 'failed' when 'x' then 'interrupted'
        when 'e' then 'event' when 'd' then 'sleep' when 'p' then 'poll' when 'u' then 'pause'
        when 'c' then 'child' when 'n' then 'child started' when 'm' then 'sent' when 'o' then 'first'
        when 'k' then 'patched'
        else p_kind::text end
$$;

-- Lanes. A run whose workers died with it twice in a row goes on in the solo lane of its queue, which nobody's queue can
-- be called and normal claims never meet; queue_name is the queue as people know it, of either lane.
create or replace function kedge.is_solo(p_queue text) returns boolean
language sql immutable parallel safe as $$ select starts_with(p_queue, '!solo ') $$;

create or replace function kedge.solo_lane(p_queue text) returns text
language sql immutable parallel safe as $$
    select case when kedge.is_solo(p_queue) then p_queue else '!solo ' || p_queue end
$$;

create or replace function kedge.queue_name(p_queue text) returns text
language sql immutable parallel safe as $$
    select case when kedge.is_solo(p_queue) then substr(p_queue, 7) else p_queue end
$$;

-- The time in a UUIDv7.
create or replace function kedge.id_time(p_id uuid) returns timestamptz
language sql immutable parallel safe as $$
    select to_timestamp(('x' || substr(replace(p_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)
$$;

-- The id of a letter that the engine writes, made of what it is about: whoever writes it, it is the same. No client's
-- letter has a UUID of version 8: with the id of one of these it would keep it from being written.
create or replace function kedge.engine_letter(p_about text) returns uuid
language sql immutable parallel safe as $$ select overlay(md5(p_about) placing '8' from 13 for 1)::uuid $$;

create or replace function kedge.is_engine_letter(p_letter uuid) returns boolean
language sql immutable parallel safe as $$ select substr(p_letter::text, 15, 1) = '8' $$;

-- A payload as text: JSON behind codec byte 1, anything else in hex. Text, never jsonb: it must not fail in a view.
create or replace function kedge.payload_text(p_payload bytea) returns text
language sql immutable parallel safe as $$
    select case
        when p_payload is null or length(p_payload) = 0 then null
        when get_byte(p_payload, 0) = 1 then convert_from(substr(p_payload, 2), 'UTF8')
        else '\x' || encode(p_payload, 'hex') end
$$;

-- What a run fails with that the engine itself ends: an ErrorInfo of a class of the module errors. In two words, for the
-- first of them is taken for this schema wherever a point follows.
create or replace function kedge.error_info(p_class text, p_message text) returns bytea
language sql stable as $$
    select '\x01'::bytea || convert_to(
        json_build_object('kind', 'kedge' || '.errors.' || p_class, 'message', p_message)::text, 'UTF8')
$$;
