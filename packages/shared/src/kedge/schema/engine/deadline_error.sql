-- What a run fails with when its own deadline has passed: an ErrorInfo, as a worker would write it.
create or replace function kedge.deadline_error() returns bytea
language sql immutable parallel safe as $$
    select '\x01'::bytea || convert_to(
        '{"kind":"kedge.errors.RunDeadlineError","message":"the run''s time was up before its handler returned"}', 'UTF8')
$$;
