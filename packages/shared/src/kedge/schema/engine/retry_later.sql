-- A run's attempt has failed and another one follows, after the delay: nothing else wakes it, so its waits go; mail
-- stays. The error is kept, and with it what the attempt left behind in the journal. A request is applied in the same
-- transaction: cancel and deadline go through the exit door, pause to paused.
-- p_last is the last seq that the owner has given to each. Answers how many runs left the owner's hand.
create or replace function kedge.retry_later(
    p_worker uuid, p_ids uuid[], p_epochs int[], p_delays_s double precision[], p_errors bytea[], p_reasons text[],
    p_last int[]
) returns int
language plpgsql as $$
declare
    v_held uuid[];
    v_ended int;
    v_retried int;
begin
    -- First the locks, then the look, as in park_runs.
    perform 1
       from unnest(p_ids, p_epochs) as x(id, epoch)
      cross join lateral (
            select 1 from kedge.runs r
             where r.id = x.id and r.epoch = x.epoch and r.worker_id is not distinct from p_worker offset 0 for update) r;

    v_ended := kedge.end_requested(p_worker, p_ids, p_epochs, p_last);

    with failed as (
        insert into kedge.failures (run_id, at, epoch, attempt, took_ms, kind, key, error)
        select x.id, kedge.instant(), x.epoch, r.attempt + 1, 0, 'r', '', coalesce(x.error, '')
          from unnest(p_ids, p_epochs, p_errors) as x(id, epoch, error)
         cross join lateral (
               select r.attempt from kedge.runs r
                where r.id = x.id and r.epoch = x.epoch and r.worker_id is not distinct from p_worker offset 0) r
        returning run_id)
    select coalesce(array_agg(f.run_id), '{}') into v_held from failed f;

    perform kedge.set_aside(r.id, r.attempt + 1) from kedge.runs r where r.id = any (v_held);
    delete from kedge.waits where run_id = any (v_held);

    with look as materialized (
        select x.*, kedge.instant() as now, kedge.waits_or_mail(x.id) as has_mail
          from unnest(p_ids, p_delays_s, p_reasons, p_last) as x(id, delay_s, reason, last)
         where x.id = any (v_held))
    update kedge.runs r
       set state = case when r.request = 's' then 's' when l.delay_s > 0 then 'w' else 'p' end::"char",
           due_at = case when r.request = 's' or l.delay_s > 0
                         then l.now + make_interval(secs => greatest(l.delay_s, 0)) end,
           attempt = least(r.attempt + 1, 32767), crashes = 0, queue = kedge.queue_name(r.queue), has_waits = l.has_mail,
           request = null, worker_id = null, since = l.now, seq = nextval('kedge.runs_seq'),
           next_seq = greatest(r.next_seq, l.last + 1),
           reason = coalesce(l.reason, case when r.request = 's' then r.reason end)
      from look l
     where r.id = l.id and r.id = any (v_held) and r.worker_id is not distinct from p_worker;
    get diagnostics v_retried = row_count;
    return v_ended + v_retried;
end $$;

-- Moves what a failed attempt was told of failures and interruptions out of the journal: the next attempt does these
-- operations again. The rows' numbers are never used again. A letter that told of a failure, such as a child's, may come
-- again: who asks once more has to be answered.
create or replace function kedge.set_aside(p_run uuid, p_attempt int) returns void
language plpgsql as $$
declare
    v_gone int[];
begin
    with gone as (
        delete from kedge.journal j where j.run_id = p_run and j.kind in ('f', 'x')
        returning j.at, j.seq, j.epoch, j.took_ms, j.kind, j.key, j.value),
    kept as (
        insert into kedge.failures (run_id, at, epoch, attempt, took_ms, journal_seq, kind, key, error)
        select p_run, g.at, g.epoch, p_attempt, g.took_ms, g.seq, g.kind, g.key, g.value from gone g order by g.seq
        returning journal_seq)
    select array_agg(k.journal_seq) into v_gone from kept k;
    if v_gone is not null then
        delete from kedge.events m
         where m.run_id = p_run and m.consumed_seq = any (v_gone) and m.slot >= 'k:' and m.slot < 'k;';
    end if;
end $$;
