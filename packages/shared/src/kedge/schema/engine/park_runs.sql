-- Lets running runs of their owner go out of memory until something wakes them: mail for one of their waits, or the
-- least due time of these. p_stale_* name waits that the code of this epoch has not asked for (an older release's):
-- they go. A request is applied in the same transaction: cancel and deadline go through the exit door, pause to paused.
-- p_last is the last seq that the owner has given to each. Answers how many runs left the owner's hand.
create or replace function kedge.park_runs(
    p_worker uuid, p_ids uuid[], p_epochs int[], p_last int[], p_stale_runs uuid[], p_stale_keys text[]
) returns int
language plpgsql as $$
declare
    v_held uuid[];
    v_ended int;
    v_parked int;
begin
    -- First the locks, then the look: mail and requests that are being sorted just now are seen by the statements below.
    v_held := array(
        select r.id
          from unnest(p_ids, p_epochs) as x(id, epoch)
         cross join lateral (
               select r.id from kedge.runs r
                where r.id = x.id and r.epoch = x.epoch and r.worker_id is not distinct from p_worker
               offset 0 for update) r);

    if cardinality(p_stale_runs) > 0 then
        delete from kedge.waits
         where ctid = any (array(
               select w.ctid
                 from unnest(p_stale_runs, p_stale_keys) as x(run_id, key)
                cross join lateral (
                      select w.ctid from kedge.waits w where w.run_id = x.run_id and w.key = x.key offset 0) w
                where x.run_id = any (v_held)));
    end if;

    v_ended := kedge.end_requested(p_worker, p_ids, p_epochs, p_last);

    -- Whoever has nothing to wait for (any more) goes on at once.
    with look as materialized (
        select x.id, x.last, w.waits, w.due_at, w.waits = 0 or kedge.mail_wakes(x.id) as wakes
          from unnest(p_ids, p_last) as x(id, last)
         cross join lateral (
               select count(*) as waits, min(w.due_at) filter (where w.due_at < 'infinity') as due_at
                 from kedge.waits w where w.run_id = x.id offset 0) w
         where x.id = any (v_held))
    update kedge.runs r
       set state = case when r.request = 's' then 's' when l.wakes then 'p' else 'w' end::"char",
           due_at = case when l.waits = 0 and r.request = 's' then kedge.instant()
                         when r.request = 's' or not l.wakes then l.due_at end,
           seq = case when l.wakes then nextval('kedge.runs_seq') else r.seq end,
           has_waits = l.waits > 0 or kedge.waits_or_mail(r.id),
           request = null, worker_id = null, since = kedge.instant(), crashes = 0, queue = kedge.queue_name(r.queue),
           next_seq = greatest(r.next_seq, l.last + 1), reason = case when r.request = 's' then r.reason end
      from look l
     where r.id = l.id and r.id = any (v_held) and r.worker_id is not distinct from p_worker;
    get diagnostics v_parked = row_count;
    return v_ended + v_parked;
end $$;
