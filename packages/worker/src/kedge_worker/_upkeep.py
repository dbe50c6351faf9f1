"""The SQL of what must be done once in a while, whoever does it: deadlines, solo lanes, dead children, what is old."""

from __future__ import annotations

from typing import Final

EXPIRE_RUNS: Final = "select ended, owners from kedge.expire_runs(%(limit)s)"

# Whether something can be claimed in the solo lanes of these queues for as long as that. Nearly always there is no such
# run in the whole database, which takes one look into each of two indexes: the lanes are asked only behind a find.
HAS_SOLO_RUNS: Final = """
    select coalesce((
        select exists (
            select 1
              from unnest(%(queues)s::text[]) as q
             cross join unnest(%(workflows)s::text[]) as w
             cross join lateral (
                   (select 1 from kedge.runs r
                     where r.state = 'p' and r.queue = kedge.solo_lane(q) and r.workflow = w
                       and r.since <= kedge.clock() - %(patience)s::interval limit 1)
                   union all
                   (select 1 from kedge.runs r
                     where r.state = 'w' and r.due_at <= kedge.clock() - %(patience)s::interval
                       and r.queue = kedge.solo_lane(q) and r.workflow = w limit 1)) run)
          from ((select 1 from kedge.runs r
                  where r.state = 'p' and r.queue >= '!solo ' and r.queue < '!solo!' limit 1)
                union all
                (select 1 from kedge.runs r
                  where r.state = 'w' and r.due_at is not null and r.queue >= '!solo ' and r.queue < '!solo!'
                  limit 1)) found
         limit 1), false)
"""

# How many workers live, and the workflows of which ended runs are not kept for ever.
TO_CLEAR: Final = """
    select (select count(*) from kedge.workers w where w.lease_until > clock_timestamp()),
           array(select d.workflow from kedge.definitions d
                  where num_nonnulls(d.keep_completed_s, d.keep_failed_s, d.keep_cancelled_s) > 0 order by d.workflow)
"""

DELETE_ENDED: Final = """
    select workflow, stopped_at, deleted, is_done
      from kedge.delete_ended(%(workflows)s::text[], %(after)s::uuid[], %(limit)s, %(rows)s)
"""

FINISH_REMOVALS: Final = "select kedge.finish_removals(%(rows)s)"

HAS_WORKER: Final = "select exists (select 1 from kedge.workers where id = %(worker)s)"

# A process that is dead for certain: nobody need wait for its lease. Its runs will be charged. No row: it had left.
LAPSE: Final = """
    update kedge.workers set lease_until = least(lease_until, clock_timestamp())
     where id = %(worker)s and not leaving returning id
"""

# Of clients that have died. While its run lives a registration may be that of a client which has been waiting for long,
# and goes with the run's end; observers renew theirs. Answers how many went, of each table a thousand at most.
FORGET_WATCHERS: Final = """
    with watchers as (
        delete from kedge.watchers
         where ctid = any (array(
               select w.ctid from kedge.watchers w
                where w.at < now() - interval '10 minutes'
                  and (w.at < now() - interval '1 day'
                       or not exists (select 1 from kedge.runs r where r.id = w.run_id offset 0))
                limit 1000 for update skip locked))
        returning 1),
    observers as (
        delete from kedge.observers
         where ctid = any (array(
               select o.ctid from kedge.observers o where o.at < now() - interval '2 minutes'
                limit 1000 for update skip locked))
        returning 1)
    select (select count(*) from watchers), (select count(*) from observers)
"""
