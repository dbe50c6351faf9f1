-- The doorbell: wakes at most one sleeping worker that suits. After the commit of what there is to do, in a
-- transaction of its own. Both arguments null: any worker (a letter can be sorted by everybody).
create or replace function kedge.ring_v1(p_queue text, p_workflow text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_worker uuid;
begin
    delete from kedge.idle where worker_id = (
        select i.worker_id from kedge.idle i
         where (p_queue is null or p_queue = any (i.queues)) and (p_workflow is null or p_workflow = any (i.workflows))
         limit 1 for update skip locked)
    returning worker_id into v_worker;
    if found then
        perform pg_notify(kedge.worker_channel(v_worker), case when p_workflow is null then 'mail' else '' end);
    end if;
end $$;

-- The same from inside a caller's transaction: `idle` is only read (popping it would block the sleeper until the
-- caller's commit, or fail a REPEATABLE READ caller); NOTIFY is delivered when the caller commits.
-- A full queue, which somebody who LISTENs and does not read brings about, would fail the caller's commit: then nobody is
-- rung, and the poll finds the run. Asked only when somebody sleeps.
create or replace function kedge.ring_on_commit_v1(p_queue text, p_workflow text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select pg_notify(kedge.worker_channel(s.worker_id), case when p_workflow is null then 'mail' else '' end)
      from (select i.worker_id from kedge.idle i
             where (p_queue is null or p_queue = any (i.queues)) and (p_workflow is null or p_workflow = any (i.workflows))
             limit 1) s
     where pg_notification_queue_usage() < 0.9
$$;
