-- A run stands in `runs` or in `finished`, never in both for one snapshot.
create or replace view kedge.all_runs as
    select r.id, r.workflow, kedge.status_name(r.state) as status, kedge.queue_name(r.queue) as queue,
           -r.rank::int as priority, r.resource, r.key, r.parent_id, r.attempt::int, r.crashes::int, r.epoch,
           r.started_at, r.since, r.due_at, r.deadline_at, null::timestamptz as ended_at, r.worker_id,
           case r.request when 's' then 'paused' when 'x' then 'cancelled' when 'd' then 'failed' end as request,
           -- A running run has left what it was put off for behind.
           case when r.state <> 'r' or r.request is not null then r.reason end as reason,
           null::bytea as output, null::bytea as error
      from kedge.runs r
    union all
    select f.id, f.workflow, kedge.status_name(f.status), kedge.queue_name(f.queue), -f.rank::int, f.resource, f.key,
           f.parent_id, f.attempt::int, f.crashes::int, f.epoch, f.started_at, f.ended_at, null, f.deadline_at,
           f.ended_at, null, null, f.reason, f.output, f.error
      from kedge.finished f;

-- For people and for ad-hoc SQL; nothing of the engine reads these two.
create or replace view kedge.runs_view as
    select a.id, split_part(a.workflow, '@', 1) as workflow, nullif(split_part(a.workflow, '@', 2), '') as version, a.status,
           a.queue, a.priority, a.resource, a.key,
           array(select t.tag from kedge.run_tags t where t.run_id = a.id order by t.tag) as tags,
           j.at as created_at, a.started_at, a.since, a.due_at, a.deadline_at, a.ended_at, a.attempt, a.crashes, a.epoch,
           a.worker_id, w.name as worker, a.request, a.reason, a.parent_id,
           kedge.payload_text(j.value) as input, kedge.payload_text(a.output) as output, kedge.payload_text(a.error) as error
      from kedge.all_runs a
      left join kedge.journal j on j.run_id = a.id and j.seq = 0
      left join kedge.workers w on w.id = a.worker_id;

create or replace view kedge.steps_view as
    select j.run_id, j.seq, j.key, kedge.kind_name(j.kind) as kind, j.at, j.took_ms, j.epoch,
           kedge.payload_text(j.value) as value
      from kedge.journal j
     where j.seq > 0;
