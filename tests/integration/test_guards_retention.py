"""As test_guards, for what deletes ended runs and for those who meet it."""

from __future__ import annotations

from typing import Final

import pytest

from kedge_worker.testing import Clock
from tests import sessions as sessions_module
from tests.integration import test_interleavings_retention as races
from tests.integration import test_retention as retention
from tests.integration.test_guards import BROKEN, Guard, is_mistaken
from tests.sessions import Session, Sessions

DELETE: Final = "engine/delete_ended.sql"


def opened(sessions: Sessions) -> tuple[Session, Clock]:
    return sessions.open(), Clock(sessions.url)


GUARDS: Final = [
    Guard(
        "two hours",
        DELETE,
        "greatest(p_keep_s, 7200)",
        "p_keep_s",
        lambda s: retention.test_two_hours_are_kept_whatever_the_table_says(*opened(s)),
    ),
    Guard(
        "null is for ever",
        DELETE,
        "case when p_keep_s is not null then ",
        "case when true then ",
        lambda s: retention.test_a_status_that_is_kept_for_ever_is_kept_beside_others_that_are_not(*opened(s), "f"),
    ),
    Guard(
        "SKIP LOCKED",
        DELETE,
        "for update skip locked);\n        v_old",
        "for update);\n        v_old",
        races.test_two_workers_pass_over_each_others_batches,
    ),
    Guard(
        "the lock",
        DELETE,
        " for update skip locked);\n        v_old",
        ");\n        v_old",
        races.test_two_workers_pass_over_each_others_batches,
    ),
    Guard(
        "the age once more behind the lock",
        DELETE,
        """case f.status when 'c' then f.ended_at < v_terms.completed
                                 when 'f' then f.ended_at < v_terms.failed
                                 else f.ended_at < v_terms.cancelled end
               and not""",
        "not",
        races.test_a_run_that_was_retried_and_has_failed_again_since_the_look_is_as_young_as_its_new_end,
    ),
    Guard(
        "no unsorted letter",
        DELETE,
        "and not exists (select 1 from kedge.inbox i where i.run_id = f.id offset 0)",
        "",
        lambda s: retention.test_a_run_with_an_unsorted_letter_is_kept_until_that_is_sorted(*opened(s), "r"),
    ),
    Guard(
        "no watcher",
        DELETE,
        "and not exists (select 1 from kedge.run_watchers w where w.run_id = f.id offset 0)",
        "",
        lambda s: retention.test_a_run_that_somebody_watches_is_kept(*opened(s)),
    ),
    Guard(
        "no live parent",
        DELETE,
        "not exists (select 1 from kedge.runs p where p.id = f.parent_id offset 0)",
        "true",
        lambda s: retention.test_a_child_is_kept_while_its_parent_lives_or_may_be_retried(*opened(s), "live"),
    ),
    Guard(
        "no parent that may be retried",
        DELETE,
        "p.id = f.parent_id and p.status = 'f' offset 0",
        "false offset 0",
        lambda s: retention.test_a_child_is_kept_while_its_parent_lives_or_may_be_retried(*opened(s), "failed"),
    ),
    Guard(
        "its own key only",
        DELETE,
        "and k.key = f.key and k.run_id = f.id",
        "and k.key = f.key",
        lambda s: retention.test_a_key_that_names_another_run_stays(*opened(s)),
    ),
    Guard(
        "its own singleton only",
        DELETE,
        "and s.run_id = f.id\n",
        "\n",
        lambda s: retention.test_what_is_left_of_a_singleton_goes_with_its_run_and_a_newer_runs_stays(*opened(s)),
    ),
    Guard(
        "what is too much is noted",
        DELETE,
        "return greatest(v_most, v_count) < p_rows",
        "return true",
        lambda s: retention.test_a_run_with_too_many_rows_is_gone_at_once_and_they_go_piece_by_piece(*opened(s)),
    ),
    Guard(
        "the courier's lock of what has ended",
        "engine/pick_letters.sql",
        " for key share skip locked",
        "",
        lambda s: races.test_a_letter_for_a_run_that_is_just_being_deleted_waits_for_that_and_leaves_nothing_behind(
            s, "r"
        ),
    ),
    Guard(
        "what the courier did not get stays",
        "engine/pick_letters.sql",
        "f.id = any (v_missing) and f.id <> all (v_kept)",
        "false",
        lambda s: races.test_a_letter_for_a_run_that_is_just_being_deleted_waits_for_that_and_leaves_nothing_behind(
            s, "e"
        ),
    ),
    Guard(
        "a start looks again",
        "api/start_run_v1.sql",
        "for v_try in 1..3 loop",
        "for v_try in 3..3 loop",
        races.test_a_start_with_a_key_whose_run_is_deleted_between_its_two_looks_tries_again,
    ),
    Guard(
        "a rerun has its input",
        "api/rerun_run_v1.sql",
        "having min(c.seq) = 0",
        "",
        races.test_a_rerun_of_a_run_that_is_deleted_meanwhile_takes_all_of_it_or_finds_no_run,
    ),
]


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_without_a_guard_the_test_of_its_promise_fails(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, guard: Guard
) -> None:
    monkeypatch.setattr(sessions_module, "PATIENCE_S", 0.5)
    with sessions.open() as db:
        guard.remove(db, monkeypatch)

    with pytest.raises(BROKEN) as broken:
        guard.promise(sessions)
    assert not is_mistaken(broken.value)
