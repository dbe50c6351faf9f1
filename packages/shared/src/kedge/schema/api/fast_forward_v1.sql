-- Ends a wait of a run with p_payload as its outcome: the wait with this key, or the oldest one for an event, a time, a
-- poll or a resume. accepted = false when there is no such wait at the moment, and has_ended when there never will be one;
-- no row when there is no such run, or not with this resource.
create or replace function kedge.fast_forward_v1(
    p_letter uuid, p_run uuid, p_resource text, p_wait text, p_payload bytea
) returns table (accepted boolean, status text, has_ended boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if octet_length(p_payload) > 67108864 then
        raise exception using errcode = 'KE005', message = 'the data of a fast-forward may have 64 MiB at most';
    end if;
    return query
        select * from kedge.post_letter('g', p_letter, p_run, p_resource, null, 'k:' || p_wait, p_payload);
end $$;
