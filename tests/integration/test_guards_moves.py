"""As in `test_guards`: without a guard of waits, mail and letters the test of its promise fails."""

from __future__ import annotations

from typing import Final

import pytest

from kedge_worker.testing import Clock
from tests import letters
from tests import sessions as sessions_module
from tests.integration import test_moves_children as children
from tests.integration import test_moves_control as control
from tests.integration import test_moves_deadlines as deadlines
from tests.integration import test_moves_topics as topics
from tests.integration import test_moves_waits as waits
from tests.integration.test_guards import BROKEN, Guard, is_mistaken
from tests.sessions import Sessions

GUARDS: Final = [
    # ---- park
    Guard(
        "first the locks, then the look",
        "engine/park_runs.sql",
        "offset 0 for update) r);",
        "offset 0) r);",
        waits.test_a_park_behind_an_open_courier_sees_its_mail,
    ),
    Guard(
        "requests",
        "engine/park_runs.sql",
        "v_ended := kedge.end_requested(p_worker, p_ids, p_epochs, p_last);",
        "v_ended := 0;",
        waits.test_a_park_behind_an_open_courier_sees_its_request,
    ),
    Guard(
        "mail that is there",
        "engine/park_runs.sql",
        "w.waits = 0 or kedge.mail_wakes(x.id) as wakes",
        "w.waits = 0 as wakes",
        lambda s: waits.test_a_run_whose_mail_is_there_already_is_not_parked_but_goes_on(s.open()),
    ),
    Guard(
        "something to wait for",
        "engine/park_runs.sql",
        "w.waits = 0 or kedge.mail_wakes(x.id) as wakes",
        "kedge.mail_wakes(x.id) as wakes",
        lambda s: waits.test_a_run_that_is_parked_with_nothing_to_wait_for_goes_on_at_once(s.open()),
    ),
    Guard(
        "stale waits of one's own runs only",
        "engine/park_runs.sql",
        "where x.run_id = any (v_held)",
        "",
        lambda s: waits.test_a_park_takes_no_waits_of_runs_that_somebody_else_owns(s.open()),
    ),
    Guard(
        "epoch",
        "engine/park_runs.sql",
        "and r.epoch = x.epoch",
        "",
        lambda s: waits.test_only_the_holder_of_the_lease_lets_a_run_go(s.open(), letters.park),
    ),
    # ---- retry later
    Guard(
        "the fence",
        "engine/retry_later.sql",
        "and r.epoch = x.epoch and r.worker_id is not distinct from p_worker offset 0) r\n",
        "offset 0) r\n",
        lambda s: waits.test_only_the_holder_of_the_lease_lets_a_run_go(s.open(), letters.retry_later),
    ),
    Guard(
        "its waits go",
        "engine/retry_later.sql",
        "delete from kedge.waits where run_id = any (v_held);",
        "",
        lambda s: waits.test_a_failed_attempt_is_kept_and_the_next_one_waits_for_its_time_and_for_nothing_else(
            s.open(), Clock(s.url)
        ),
    ),
    Guard(
        "what was told of a failure may be told again",
        "engine/retry_later.sql",
        "if v_gone is not null then",
        "if false then",
        lambda s: children.test_a_parent_that_is_retried_hears_of_a_failed_child_again_and_then_of_its_retry(s.open()),
    ),
    # ---- the exit door
    Guard(
        "whom the courier has noted",
        "engine/end_runs.sql",
        "filter (where g.has_watchers)",
        "filter (where false)",
        children.test_an_end_behind_an_open_courier_tells_whom_that_has_noted,
    ),
    Guard(
        "SKIP LOCKED on singletons",
        "engine/end_runs.sql",
        "offset 0 for update skip locked) s));",
        "offset 0 for update) s));",
        control.test_an_end_waits_for_no_caller_that_takes_over_its_singleton,
    ),
    Guard(
        "a failure with the deadline's request",
        "engine/end_runs.sql",
        "case when e.status = 'f' and r.request = 'd' then kedge.deadline_error() else e.error end",
        "e.error",
        lambda s: deadlines.test_completed_wins_over_a_deadline_and_a_failure_fails_by_the_deadline(
            s.open(), Clock(s.url), "f", "failed"
        ),
    ),
    # ---- courier
    Guard(
        "the wait that was registered behind the batch",
        "engine/wake_runs.sql",
        "and r.state = 'w' and kedge.mail_wakes(r.id)",
        "and false",
        waits.test_the_courier_decides_for_a_wait_that_was_registered_and_parked_after_its_batch_was_read,
    ),
    Guard(
        "so many of a group",
        "engine/waits_or_mail.sql",
        "having bool_or(m.is_bad) or count(*)",
        "having true or count(*)",
        lambda s: waits.test_a_group_wakes_its_run_only_when_so_many_of_it_have_mail(s.open()),
    ),
    Guard(
        "a repeat of mail is refused",
        "engine/sort_inbox.sql",
        "on conflict do nothing\n            returning run_id)",
        "on conflict (run_id, id) do update set consumed_seq = null, payload = excluded.payload\n"
        "            returning run_id)",
        lambda s: waits.test_a_repeated_event_is_one_event_also_when_it_was_consumed(s.open(), is_read=True),
    ),
    Guard(
        "mail of a failed run",
        "engine/sort_inbox.sql",
        "f.status = 'f' offset 0)",
        "false offset 0)",
        lambda s: waits.test_an_event_to_a_run_that_has_ended_is_not_kept_unless_it_may_be_retried(s.open()),
    ),
    Guard(
        "unknown kinds stay",
        "engine/pick_letters.sql",
        "and bool_and(b.kind in ('x', 's', 'u', 'g', 'r', 'e', 't', 'c', 'w', 'o')) over so_far",
        "",
        lambda s: waits.test_a_letter_of_an_unknown_kind_stays_with_the_later_ones_of_its_run(s.open()),
    ),
    Guard(
        "nothing of a run behind its retry",
        "engine/pick_letters.sql",
        "and count(*) filter (where b.kind = 'r') over so_far\n",
        "and (b.kind = 'r')::int\n",
        lambda s: control.test_what_is_sent_behind_a_retry_is_sorted_for_the_run_that_lives_again(s.open()),
    ),
    Guard(
        "read past what is locked",
        "engine/pick_letters.sql",
        "for v_pass in 1..8 loop",
        "for v_pass in 1..1 loop",
        waits.test_later_events_of_a_locked_run_stay_behind_the_first_and_others_are_read_past_them,
    ),
    Guard(
        "expanded once",
        "engine/expand_letters.sql",
        "select v_letter.seq, f,",
        "select nextval('kedge.inbox_seq'), f,",
        lambda s: topics.test_what_is_sent_to_a_run_behind_a_broadcast_arrives_behind_it(s.open()),
    ),
    Guard(
        "a thousand a round",
        "engine/expand_letters.sql",
        "v_room int := 1000;",
        "v_room int := 1000000;",
        lambda s: topics.test_a_topic_with_many_listeners_is_expanded_in_rounds_and_later_ones_wait_their_turn(
            s.open()
        ),
    ),
    Guard(
        "it remembers where it stopped",
        "engine/expand_letters.sql",
        "and w.run_id > v_letter.last",
        "",
        lambda s: topics.test_a_topic_with_many_listeners_is_expanded_in_rounds_and_later_ones_wait_their_turn(
            s.open()
        ),
    ),
    Guard(
        "a topic keeps nothing",
        "engine/sort_inbox.sql",
        "and (starts_with(i.slot, 't:') is not true",
        "and (true",
        lambda s: topics.test_who_stopped_waiting_before_its_letter_was_sorted_does_not_find_it_at_its_next_wait(
            s.open()
        ),
    ),
    Guard(
        "a pause of what was pending keeps that",
        "engine/sort_controls.sql",
        "due_at = case when r.state = 'p' then kedge.instant() else r.due_at end",
        "due_at = r.due_at",
        lambda s: control.test_a_run_that_was_taken_back_paused_and_resumed_goes_on_with_what_it_has_to_do(s.open()),
    ),
    Guard(
        "a pause does not replace a cancel",
        "engine/sort_controls.sql",
        "when v_run.request = 'x' then 'refused, the run is being cancelled'",
        "",
        lambda s: control.test_a_pause_does_not_replace_a_cancel_or_a_deadline(s.open()),
    ),
    Guard(
        "one answer a wait",
        "engine/sort_controls.sql",
        "and not exists (select 1 from kedge.events m",
        "and not exists (select 1 from kedge.events m join kedge.events n on false",
        lambda s: control.test_two_resumes_answer_two_pauses_and_a_third_none(s.open()),
    ),
    Guard(
        "a retry only tries to get the lock",
        "engine/retry_run.sql",
        "if not pg_try_advisory_xact_lock(kedge.singleton_lock(v_run.workflow, v_run.resource, v_run.key)) then",
        "if pg_advisory_xact_lock(kedge.singleton_lock(v_run.workflow, v_run.resource, v_run.key)) is null then",
        control.test_a_retry_whose_singleton_a_caller_is_just_starting_stays_and_stops_nobody,
    ),
    Guard(
        "a new time limit",
        "engine/retry_run.sql",
        "kedge.deadline(kedge.instant(), v_run.timeout_s)",
        "v_run.deadline_at",
        lambda s: control.test_a_retry_begins_a_new_time_limit(s.open(), Clock(s.url)),
    ),
    Guard(
        "the gate that is not noted yet",
        "engine/open_gates.sql",
        "where not kedge.gate_is_closed(x.run_id)",
        "",
        children.test_a_gate_does_not_open_beside_a_predecessor_that_is_locked_and_not_noted_yet,
    ),
    # ---- deadlines
    Guard(
        "SKIP LOCKED",
        "engine/expire_runs.sql",
        "for update skip locked",
        "for update",
        deadlines.test_an_expiry_skips_a_locked_run_and_finds_it_in_a_later_round,
    ),
    Guard(
        "those that were asked do not fill the batch",
        "engine/expire_runs.sql",
        "and (r.request is null or r.request = 's')",
        "",
        lambda s: deadlines.test_runs_that_were_asked_already_do_not_fill_the_batch(s.open(), Clock(s.url)),
    ),
]


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_without_the_guard_the_test_of_its_promise_fails(
    sessions: Sessions, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "PATIENCE_S", 0.3)  # what would never happen is waited for no longer
    with sessions.open() as db:
        guard.remove(db, monkeypatch)

    with pytest.raises(BROKEN) as broken:
        guard.promise(sessions)
    assert not is_mistaken(broken.value)
