"""The guards of starts with a singleton, of children and of reruns: without one, the test of its promise fails."""

from __future__ import annotations

from typing import Final

import pytest

from tests import sessions as sessions_module
from tests.integration import test_interleavings_children as children
from tests.integration import test_interleavings_rerun as rerun
from tests.integration import test_interleavings_singletons as singletons
from tests.integration import test_interleavings_singletons_at_once as at_once
from tests.integration import test_interleavings_start as start
from tests.integration.test_guards import BROKEN, Guard, is_mistaken
from tests.sessions import Sessions

GUARDS: Final = [
    # ---- bulk starts and timeouts
    Guard(
        "an id once",
        "api/start_runs_v1.sql",
        "select distinct on (b.id) b.id",
        "select b.id",
        lambda s: start.test_an_id_that_is_there_twice_in_a_bulk_start_is_a_repeat(s.open(), False),
    ),
    Guard(
        "what no timeout is",
        "engine/timeouts.sql",
        "p_timeout_s > 0 and",
        "",
        lambda s: start.test_a_timeout_that_makes_no_sense_is_refused(s.open(), 0.0),
    ),
    Guard(
        "infinity is no deadline",
        "engine/timeouts.sql",
        "case when p_timeout_s < 'infinity' then p_from + make_interval(secs => p_timeout_s) end",
        "p_from + make_interval(secs => least(p_timeout_s, 3e9))",
        lambda s: start.test_no_timeout_is_another_thing_than_one_that_is_not_known_yet(s.open(), float("inf"), False),
    ),
    # ---- singletons
    Guard(
        "the lock before the look",
        "api/start_run_v1.sql",
        "perform pg_advisory_xact_lock(kedge.singleton_lock(p_workflow, p_resource, p_key));",
        "",
        lambda s: at_once.test_of_two_racing_starts_of_a_singleton_exactly_one_is_active(s, "read committed", "raise"),
    ),
    Guard(
        "the row that an older snapshot stumbles over",
        "api/start_run_v1.sql",
        "insert into kedge.singletons as s (workflow, resource, key, run_id) values (v_name, v_resource, p_key, p_id)\n"
        "            on conflict (workflow, resource, key) do update set run_id = excluded.run_id;",
        "",
        lambda s: at_once.test_a_caller_with_an_old_snapshot_fails_instead_of_missing_the_active_run(
            s, "repeatable read", "raise"
        ),
    ),
    Guard(
        "the row goes to the newest run",
        "api/start_run_v1.sql",
        "on conflict (workflow, resource, key) do update set run_id = excluded.run_id",
        "on conflict do nothing",
        lambda s: singletons.test_cancel_old_asks_for_the_old_runs_end_and_waits_for_it_behind_a_gate(
            s.open(), "pending"
        ),
    ),
    Guard(
        "its own repeat is no other run",
        "api/start_run_v1.sql",
        "if not exists (select 1 from kedge.journal j where j.run_id = p_id and j.seq = 0) then",
        "if true then",
        lambda s: singletons.test_a_repeated_start_of_a_singleton_answers_as_the_first_did_and_asks_for_nothing_again(
            s.open(), "raise"
        ),
    ),
    Guard(
        "a singleton of its resource",
        "engine/singletons.sql",
        "and coalesce(r.resource, '') = coalesce(p_resource, '') and r.key = p_key",
        "and r.key = p_key",
        lambda s: singletons.test_a_singleton_is_one_for_each_resource(s.open(), "cancel_old"),
    ),
    Guard(
        "a lock of its resource",
        "engine/singletons.sql",
        "hashtextextended(coalesce(p_resource, '') collate \"C\",",
        "hashtextextended('' collate \"C\",",
        lambda s: at_once.test_a_start_does_not_wait_for_the_singleton_of_another_resource(s, "raise"),
    ),
    Guard(
        "the row of its resource goes with the end",
        "engine/end_runs.sql",
        "and s.resource = coalesce(f.resource, '') and s.key",
        "and s.resource = '' and s.key",
        lambda s: singletons.test_the_row_of_a_resource_goes_with_the_end_and_the_others_stay(s.open()),
    ),
    Guard(
        "keys of a batch in the order of their resources too",
        "api/start_runs_v1.sql",
        'b.resource collate "C" nulls first, ',
        "",
        start.test_two_batches_with_the_same_key_of_the_same_resources_do_not_deadlock,
    ),
    Guard(
        "live runs count, not the row",
        "engine/singletons.sql",
        "and r.key = p_key\n",
        "and r.key = p_key and exists (select 1 from kedge.singletons s where s.run_id = r.id)\n",
        lambda s: singletons.test_each_of_a_chain_of_replacements_waits_for_all_that_still_live(s.open()),
    ),
    Guard(
        "all that still live",
        "engine/singletons.sql",
        "from unnest(p_active) as a",
        "from unnest(p_active[1:1]) as a",
        lambda s: singletons.test_each_of_a_chain_of_replacements_waits_for_all_that_still_live(s.open()),
    ),
    Guard(
        "watches that are not noted yet",
        "engine/singletons.sql",
        "and i.kind = 'w' and i.sender = g.id offset 0",
        "and false offset 0",
        singletons.test_a_gate_stays_closed_while_the_old_run_is_locked_and_its_letter_waits,
    ),
    # ---- children
    Guard(
        "epoch of the parent",
        "engine/start_children.sql",
        "and r.epoch = x.epoch",
        "",
        lambda s: children.test_a_parent_that_was_taken_back_and_claimed_again_starts_no_child(s.open()),
    ),
    Guard(
        "owner of the parent",
        "engine/start_children.sql",
        "and r.worker_id is not distinct from p_worker",
        "",
        lambda s: children.test_a_worker_starts_no_children_for_another_ones_run(s.open()),
    ),
    Guard(
        "the parent's row",
        "engine/start_children.sql",
        "where j.run_id = x.parent and j.seq = x.seq and j.epoch = x.epoch offset 0",
        "offset 0",
        lambda s: children.test_a_child_without_its_parents_row_is_not_started(s.open()),
    ),
    Guard(
        "the epoch of that row",
        "engine/start_children.sql",
        "and j.epoch = x.epoch",
        "",
        lambda s: children.test_a_row_of_another_epoch_starts_no_child(s.open()),
    ),
    Guard(
        "ON CONFLICT for the input",
        "engine/start_children.sql",
        "on conflict do nothing returning run_id",
        "returning run_id",
        lambda s: children.test_a_repeated_flush_starts_what_is_missing_and_nothing_twice(s.open(), 1),
    ),
    Guard(
        "only what is new is live",
        "engine/start_children.sql",
        "if cardinality(v_stored) < v_standing then",
        "if false then",
        lambda s: children.test_a_repeated_flush_starts_what_is_missing_and_nothing_twice(s.open(), 1),
    ),
    # ---- reruns
    Guard(
        "ON CONFLICT for the input",
        "api/rerun_run_v1.sql",
        "on conflict do nothing\n        returning seq),",
        "returning seq),",
        lambda s: rerun.test_a_rerun_and_its_repeat_at_the_same_time_make_one_run(s, None),
    ),
    Guard(
        "a stored input stops the rerun",
        "api/rerun_run_v1.sql",
        "if not found then\n        -- A repeat",
        "if false then\n        -- A repeat",
        lambda s: rerun.test_a_rerun_and_its_repeat_at_the_same_time_make_one_run(s, None),
    ),
    Guard(
        "only what has ended",
        "api/rerun_run_v1.sql",
        "or v_old.state not in ('c', 'f', 'x')",
        "",
        lambda s: rerun.test_only_a_run_that_has_ended_is_rerun(s.open(), "running"),
    ),
    Guard(
        "the lock before the look",
        "api/rerun_run_v1.sql",
        "perform pg_advisory_xact_lock(kedge.singleton_lock(v_old.workflow, v_old.resource, coalesce(v_old.key, '')));",
        "",
        rerun.test_of_a_singletons_start_and_a_rerun_at_the_same_time_one_is_active,
    ),
    Guard(
        "its own repeat is no other run",
        "api/rerun_run_v1.sql",
        "created := exists (select 1 from kedge.journal j where j.run_id = p_id and j.seq = 0);\n        if created",
        "if false",
        lambda s: rerun.test_a_rerun_and_its_repeat_at_the_same_time_make_one_run(s, "raise"),
    ),
    Guard(
        "next_seq above what was taken over",
        "api/rerun_run_v1.sql",
        "max(c.seq) + 1",
        "1",
        lambda s: rerun.test_a_new_runs_next_row_comes_behind_those_that_it_has_taken_over(s.open()),
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
