-- The one exit door: every end of a run goes through here, and nothing else writes a terminal status.
-- p_worker is the owner, or null for runs at rest. An entry whose run is not (any more) in that hand with that epoch
-- is left alone: "no row" is an answer, read from the count.
-- p_rows > 0 says that this flush also carried rows p_first..p_last of the run: the end counts only if all of
-- them are stored with this epoch.
-- Only an owner completes a run. A failure with a cancel request ends cancelled; completed wins over every request.
create or replace function kedge.end_runs(
    p_worker uuid, p_ids uuid[], p_epochs int[], p_statuses text[], p_outputs bytea[], p_errors bytea[],
    p_reasons text[], p_first int[], p_last int[], p_rows int[]
) returns int
language plpgsql as $$
declare
    v_ended int;
begin
    -- The row is locked before it is copied, so that a request sorted meanwhile is seen.
    with done as (
        insert into kedge.finished (id, ended_at, started_at, deadline_at, parent_id, epoch, next_seq, rank, attempt,
                                    crashes, status, queue, workflow, resource, key, reason, output, error)
        select r.id, kedge.instant(), r.started_at, r.deadline_at, r.parent_id, r.epoch,
               greatest(r.next_seq, e.last + 1), r.rank, r.attempt, r.crashes,
               case when e.status = 'f' and r.request = 'x' then 'x' else e.status end::"char",
               r.queue, r.workflow, r.resource, r.key,
               case when e.status = 'c' then null else coalesce(e.reason, r.reason) end, e.output, e.error
          from unnest(p_ids, p_epochs, p_statuses, p_outputs, p_errors, p_reasons, p_first, p_last, p_rows)
               as e(id, epoch, status, output, error, reason, first, last, rows)
         cross join lateral (
               select * from kedge.runs r
                where r.id = e.id and r.epoch = e.epoch and r.worker_id is not distinct from p_worker
                  and (r.state = 'r') = (p_worker is not null)
               offset 0 for update) r
         where (e.rows = 0
                or (select count(*) from kedge.journal j
                     where j.run_id = e.id and j.seq between e.first and e.last and j.epoch = e.epoch) = e.rows)
           and (p_worker is not null or e.status <> 'c')
        returning id)
    delete from kedge.runs where id = any (array(select id from done));
    get diagnostics v_ended = row_count;
    return v_ended;
end $$;
