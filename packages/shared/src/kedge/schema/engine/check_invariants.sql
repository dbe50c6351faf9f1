-- The rows that break a promise; empty when all is well. Bounded by the live runs, so that it may run in production;
-- with history => true ended runs and keys are looked at too.
create or replace function kedge.check_invariants(history boolean default false)
returns table (promise text, run_id uuid, what text)
language sql stable as $$
    -- I1, I4: a live run has its input
    select 'I1', r.id, 'live run without journal seq 0' from kedge.runs r
     where not exists (select 1 from kedge.journal j where j.run_id = r.id and j.seq = 0)
    union all
    -- I11: an end is final
    select 'I11', r.id, 'live and ' || kedge.status_name(f.status) from kedge.runs r join kedge.finished f on f.id = r.id
    union all
    -- I3: no row by a writer that the run never had, none by an older writer behind a newer one
    select 'I3', r.id, 'journal row ' || j.seq || ' of epoch ' || j.epoch || ', run has epoch ' || r.epoch
      from kedge.runs r join kedge.journal j on j.run_id = r.id where j.epoch > r.epoch
    union all
    select 'I3', x.run_id, 'journal row ' || x.seq || ' of epoch ' || x.epoch || ' behind epoch ' || x.before
      from (select j.run_id, j.seq, j.epoch, lag(j.epoch) over (partition by j.run_id order by j.seq) as before
              from kedge.runs r join kedge.journal j on j.run_id = r.id) x
     where x.epoch < x.before
    union all
    -- I4: seqs are never used again
    select 'I4', r.id, 'next_seq ' || r.next_seq || ' of a resting run is not above its last row ' || j.seq
      from kedge.runs r cross join lateral (select max(seq) as seq from kedge.journal where run_id = r.id) j
     where r.state <> 'r' and r.next_seq <= j.seq
    union all
    -- I8: what was read stands in the journal, or was set aside with an attempt
    select 'I8', r.id, 'mail ' || m.id || ' was read for row ' || m.consumed_seq || ', which is not there'
      from kedge.runs r join kedge.events m on m.run_id = r.id
     where m.consumed_seq > 0
       and not exists (select 1 from kedge.journal j where j.run_id = m.run_id and j.seq = m.consumed_seq)
       and not exists (select 1 from kedge.failures f where f.run_id = m.run_id and f.journal_seq = m.consumed_seq)
    union all
    -- I9: one outcome a wait
    select 'I9', r.id, 'wait ' || w.key || ' is open and has its outcome in row ' || j.seq
      from kedge.runs r
      join kedge.waits w on w.run_id = r.id
      join kedge.journal j on j.run_id = r.id and j.key = w.key and j.kind in ('s', 't', 'f', 'x', 'e', 'd', 'p', 'u', 'c')
    union all
    select 'I9', r.id, 'wait ' || j.key || ' has ' || count(*) || ' outcomes'
      from kedge.runs r join kedge.journal j on j.run_id = r.id
     where j.kind in ('e', 'd', 'p', 'u', 'c') group by r.id, j.key having count(*) > 1
    union all
    select 'I9', w.run_id, 'wait ' || w.key || ' of a run that is not live' from kedge.waits w
     where not exists (select 1 from kedge.runs r where r.id = w.run_id)
    union all
    -- one of a singleton: others wait behind a gate
    select 'I2', min(r.id::text)::uuid, 'one of ' || count(*) || ' active runs of a singleton' from kedge.runs r
     where r.is_singleton
       and not exists (select 1 from kedge.waits w where w.run_id = r.id and w.kind = 'g')
     group by split_part(r.workflow, '@', 1), r.resource, r.key having count(*) > 1
    union all
    -- I10: nothing stuck
    select 'I10', r.id, 'running for worker ' || r.worker_id || ', which has no row' from kedge.runs r
     where r.state = 'r' and not exists (select 1 from kedge.workers w where w.id = r.worker_id)
    union all
    select 'I10', r.id, 'running for worker ' || w.name || ', whose lease ended at ' || w.lease_until
      from kedge.runs r join kedge.workers w on w.id = r.worker_id
     where r.state = 'r' and w.lease_until + w.lease + interval '2 s' < clock_timestamp()
       and exists (select 1 from kedge.workers o where o.lease_until > clock_timestamp() and not o.leaving)
    union all
    select 'I10', r.id, kedge.status_name(r.state) || ' since ' || greatest(r.since, r.due_at) || ' beside a sleeping worker'
      from kedge.runs r
     where (r.state = 'p' or r.state = 'w' and r.due_at is not null)
       and greatest(r.since, r.due_at) + interval '12 s' < kedge.clock()
       and exists (select 1 from kedge.idle i join kedge.workers w on w.id = i.worker_id
                    where r.queue = any (i.queues) and r.workflow = any (i.workflows) and w.lease_until > clock_timestamp())
    union all
    select 'I10', r.id, 'waiting for nothing' from kedge.runs r
     where r.state = 'w' and r.due_at is null and not exists (select 1 from kedge.waits w where w.run_id = r.id)
    union all
    -- (with a reason it was given back for a while by code that does not fit what it waits for)
    select 'I10', r.id, 'waiting beside unread mail that wakes it' from kedge.runs r
     where r.state = 'w' and r.has_waits and r.reason is null and kedge.mail_wakes(r.id)
    union all
    select 'I10', r.id, 'at rest with waits or mail that its claim does not read' from kedge.runs r
     where r.state <> 'r' and not r.has_waits and kedge.waits_or_mail(r.id)
    union all
    select 'I10', r.id, kedge.status_name(r.state) || ' beyond its deadline ' || r.deadline_at || ' beside a sleeping worker'
      from kedge.runs r
     where r.deadline_at < 'infinity' and r.deadline_at + interval '12 s' < kedge.clock() and r.state <> 'r'
       and exists (select 1 from kedge.idle i join kedge.workers w on w.id = i.worker_id
                    where w.lease_until > clock_timestamp())
    union all
    select 'I10', w.watcher_id, 'watches ' || w.run_id || ', which does not know it or has ended' from kedge.run_watchers w
     where not exists (select 1 from kedge.runs r where r.id = w.run_id and r.has_watchers)
    union all
    select 'I10', r.id, 'at rest with an unapplied request' from kedge.runs r where r.state <> 'r' and r.request is not null
    union all
    select 'I10', i.run_id, 'letter ' || i.seq || ' unsorted since ' || i.sent_at from kedge.inbox i
     where i.sent_at + interval '12 s' < kedge.clock()
       and exists (select 1 from kedge.workers w where w.lease_until > clock_timestamp() and not w.leaving)
    union all
    -- I13: attempts and crashes are counted honestly
    select 'I13', r.id, 'more take backs than epochs' from kedge.runs r where r.crashes > r.epoch
    union all
    select 'I13', r.id, 'more attempts than failures that are kept' from kedge.runs r
     where r.attempt > (select count(*) from kedge.failures f where f.run_id = r.id and f.kind = 'r')
    union all
    -- with history
    select 'I2', k.run_id, 'key ' || k.key || ' names a run that does not exist' from kedge.run_keys k
     where history and not exists (select 1 from kedge.journal j where j.run_id = k.run_id and j.seq = 0)
    union all
    select 'I2', k.run_id, 'key ' || k.key || ' is kept for another resource than its run has' from kedge.run_keys k
      join (select r.id, r.resource from kedge.runs r union all select f.id, f.resource from kedge.finished f) s
        on s.id = k.run_id
     where history and k.resource <> coalesce(s.resource, '')
    union all
    select 'I3', f.id, 'journal row ' || j.seq || ' of epoch ' || j.epoch || ' behind the end in epoch ' || f.epoch
      from kedge.finished f join kedge.journal j on j.run_id = f.id where history and j.epoch > f.epoch
    union all
    select 'I4', f.id, 'next_seq ' || f.next_seq || ' is not above row ' || j.seq
      from kedge.finished f join kedge.journal j on j.run_id = f.id where history and j.seq >= f.next_seq
    union all
    select 'I8', m.run_id, 'mail ' || m.id || ' was read for row ' || m.consumed_seq || ', which is not there'
      from kedge.finished e join kedge.events m on m.run_id = e.id
     where history and m.consumed_seq > 0
       and not exists (select 1 from kedge.journal j where j.run_id = m.run_id and j.seq = m.consumed_seq)
       and not exists (select 1 from kedge.failures f where f.run_id = m.run_id and f.journal_seq = m.consumed_seq)
    union all
    select 'I8', m.run_id, 'mail ' || m.id || ' of a run that does not exist' from kedge.events m
     where history and not exists (select 1 from kedge.journal j where j.run_id = m.run_id and j.seq = 0)
       and not exists (select 1 from kedge.removals d where d.run_id = m.run_id)
    union all
    select 'I9', f.id, 'wait ' || j.key || ' has ' || count(*) || ' outcomes'
      from kedge.finished f join kedge.journal j on j.run_id = f.id
     where history and j.kind in ('e', 'd', 'p', 'u', 'c') group by f.id, j.key having count(*) > 1
    union all
    select 'I13', f.run_id, 'failure ' || f.id || ' of a run that does not exist' from kedge.failures f
     where history and not exists (select 1 from kedge.journal j where j.run_id = f.run_id and j.seq = 0)
       and not exists (select 1 from kedge.removals d where d.run_id = f.run_id)
    union all
    -- I15: what is deleted goes whole, and nothing is left of it that nobody would ever delete
    select 'I15', o.run_id, o.count || ' rows of ' || o.name || ' belong to a run that is not there'
      from (select j.run_id, count(*), 'journal' as name from kedge.journal j where history group by j.run_id
            union all
            select l.run_id, count(*), 'run_log' from kedge.run_log l where history group by l.run_id
            union all
            select t.run_id, count(*), 'run_tags' from kedge.run_tags t where history group by t.run_id
            union all
            select p.run_id, 1, 'progress' from kedge.progress p where history
            union all
            select m.run_id, 1, 'run_metadata' from kedge.run_metadata m where history) o
     where not exists (select 1 from kedge.runs r where r.id = o.run_id)
       and not exists (select 1 from kedge.finished f where f.id = o.run_id)
       and not exists (select 1 from kedge.removals d where d.run_id = o.run_id)
    union all
    select 'I15', d.run_id, 'deleted, but there is a run of that id' from kedge.removals d
     where exists (select 1 from kedge.runs r where r.id = d.run_id)
        or exists (select 1 from kedge.finished f where f.id = d.run_id)
    union all
    select 'I11', f.id, 'completed without output, or failed without error' from kedge.finished f
     where history and (f.status = 'c' and f.output is null or f.status = 'f' and f.error is null)
$$;
