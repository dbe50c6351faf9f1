-- Whether the run's next claim has waits or mail to read: what `runs.has_waits` says of a run that is not running.
create or replace function kedge.waits_or_mail(p_run uuid) returns boolean
language plpgsql stable as $$
begin
    return exists (select 1 from kedge.waits w where w.run_id = p_run)
        or exists (select 1 from kedge.events m where m.run_id = p_run and m.consumed_seq is null);
end $$;

-- Whether unread mail wakes a run that waits. Mail is for the waits of its slot, or for the one wait that it names; that
-- one may be of a group, of which so many must have mail, or all that are left of it. Called in a statement behind the
-- lock of the run's row, whose snapshot it uses: mail is only stored under that lock.
create or replace function kedge.mail_wakes(p_run uuid) returns boolean
language plpgsql stable as $$
begin
    if not exists (select 1 from kedge.events m where m.run_id = p_run and m.consumed_seq is null) then
        return false;
    end if;
    -- Three statements and not one: the first two are most often enough, and much cheaper than the third.
    if exists (select 1 from kedge.waits w
                where w.run_id = p_run and w.slot is not null
                  and exists (select 1 from kedge.events m
                               where m.run_id = p_run and m.consumed_seq is null and m.slot = w.slot offset 0)) then
        return true;
    end if;
    -- From the mail to the wait, since of a group thousands wait: without groups the count that is needed is 0. It
    -- is never more than the group still has, and what did not end well is not kept waiting for the others.
    return exists (
            select 1
              from (select m.slot, bool_or(substr(m.payload, 1, 1) in ('f', 'x')) as is_bad from kedge.events m
                     where m.run_id = p_run and m.consumed_seq is null and m.slot >= 'k:' and m.slot < 'k;'
                     group by m.slot) m
             cross join lateral (
                   select w.group_key, w.need from kedge.waits w
                    where w.run_id = p_run and w.key = substr(m.slot, 3) offset 0) w
             group by case when w.need > 0 then w.group_key end, w.need > 0
            having bool_or(m.is_bad) or count(*) >= least(min(w.need), (
                   select count(*) from kedge.waits g
                    where g.run_id = p_run and g.need > 0 and g.group_key = min(w.group_key))));
end $$;
