-- Gives running runs back to the queue for their owner, charging nobody; with a delay they wait that long first.
-- A request is applied in the same transaction: cancel and deadline go through the exit door, pause to paused.
-- p_last is the last seq that the owner has given to each; 0: it does not know (a claim whose answer was lost).
-- Answers how many runs left the owner's hand.
create or replace function kedge.release_runs(
    p_worker uuid, p_ids uuid[], p_epochs int[], p_delays_s double precision[], p_reasons text[], p_last int[]
) returns int
language plpgsql as $$
declare
    v_ended int;
    v_released int;
begin
    -- First the locks, then the look: a request that is being sorted just now is seen by both statements below.
    perform 1
       from unnest(p_ids, p_epochs) as x(id, epoch)
      cross join lateral (
            select 1 from kedge.runs r
             where r.id = x.id and r.epoch = x.epoch and r.worker_id is not distinct from p_worker offset 0 for update) r;

    if 0 = any (p_last) then
        p_last := array(
            select case when x.last > 0 then x.last
                        else (select coalesce(max(j.seq), 0) from kedge.journal j where j.run_id = x.id) end
              from unnest(p_ids, p_last) with ordinality as x(id, last, place) order by x.place);
    end if;

    v_ended := kedge.end_requested(p_worker, p_ids, p_epochs, p_last);

    -- Paused it keeps that it was due: it has something to do besides its waits, and resumed it goes on with that.
    update kedge.runs r
       set state = case when r.request = 's' then 's' when x.delay_s > 0 then 'w' else 'p' end::"char",
           due_at = case when x.delay_s > 0 then kedge.instant() + make_interval(secs => x.delay_s)
                         when r.request = 's' then kedge.instant() end,
           request = null, worker_id = null, since = kedge.instant(), seq = nextval('kedge.runs_seq'),
           next_seq = greatest(r.next_seq, x.last + 1),
           reason = coalesce(x.reason, case when r.request = 's' then r.reason end),
           crashes = case when r.crashes > 0 and kedge.gets_on(r.id, r.epoch) then 0 else r.crashes end,
           queue = case when r.crashes > 0 and kedge.gets_on(r.id, r.epoch) then kedge.queue_name(r.queue)
                        else r.queue end,
           has_waits = kedge.waits_or_mail(r.id)
      from unnest(p_ids, p_epochs, p_delays_s, p_reasons, p_last) as x(id, epoch, delay_s, reason, last)
     where r.id = x.id and r.id = any (p_ids) and r.epoch = x.epoch and r.worker_id = p_worker;
    get diagnostics v_released = row_count;
    return v_ended + v_released;
end $$;
