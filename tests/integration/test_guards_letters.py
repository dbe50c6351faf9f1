"""As test_guards, for the functions by which clients put letters into the inbox."""

from __future__ import annotations

from typing import Final

import pytest

from tests import sessions as sessions_module
from tests.integration import test_interleavings_letters as letters
from tests.integration.test_guards import BROKEN, Guard, is_mistaken
from tests.sessions import Sessions

GUARDS: Final = [
    Guard(
        "a sorted letter is known again",
        "engine/letters.sql",
        "accepted := kedge.was_sorted(p_run, p_letter)",
        "accepted := false",
        lambda s: letters.test_a_resume_repeated_after_it_was_sorted_does_not_end_the_next_pause(s.open()),
    ),
    Guard(
        "known by its note",
        "engine/sort_controls.sql",
        "kedge.letter_fields(p_letter)",
        "''",
        lambda s: letters.test_a_retry_repeated_after_it_was_sorted_does_not_retry_again(s.open()),
    ),
    Guard(
        "known by its mail",
        "api/send_v1.sql",
        "accepted := v_run.seq is not null or",
        "accepted :=",
        lambda s: letters.test_a_send_repeated_after_its_consumption_is_accepted_and_sent_once(s.open()),
    ),
    Guard(
        "ON CONFLICT for the letter",
        "api/send_v1.sql",
        "'e', v_slot, p_payload) on conflict do nothing",
        "'e', v_slot, p_payload)",
        letters.test_two_senders_of_one_key_wait_for_each_other_and_send_once,
    ),
    Guard(
        "only a retry revives",
        "engine/letters.sql",
        "and i.kind = 'r'",
        "and i.kind = 'e'",
        lambda s: letters.test_an_event_behind_a_retry_is_accepted(s.open()),
    ),
    Guard(
        "only a failed run is retried",
        "engine/letters.sql",
        "s.state in ('c', 'x')\n           or s.state = 'f' and",
        "s.state in ('c', 'x', 'f') and",
        lambda s: letters.test_no_letter_brings_a_run_back_that_did_not_fail(s.open(), "c"),
    ),
    Guard(
        "letters on the way",
        "engine/letters.sql",
        "v_run.request is not distinct from 's' or v_run.has_letters",
        "v_run.request is not distinct from 's' or false",
        lambda s: letters.test_with_a_letter_on_the_way_nothing_is_certain_of_a_live_run(s.open(), "pause", "resume"),
    ),
    Guard(
        "who wants to know only",
        "engine/letters.sql",
        "and i.kind not in ('o', 'w')",
        "",
        lambda s: letters.test_who_only_wants_to_know_something_makes_nothing_uncertain(s.open()),
    ),
    Guard(
        "the resource",
        "engine/letters.sql",
        "where p_resource is null or s.resource = p_resource",
        "where true",
        lambda s: letters.test_nothing_finds_what_does_not_exist_or_is_of_another_resource(s.open()),
    ),
    Guard(
        "a topic of no resource",
        "api/send_v1.sql",
        "p_topic is not null and p_resource is not null",
        "false",
        lambda s: letters.test_what_no_event_can_be_is_refused_by_the_database_too(
            s.open(), None, "t", "e", "alice", b""
        ),
    ),
    Guard(
        "the limit",
        "api/send_v1.sql",
        "and unread < 1000",
        "",
        lambda s: letters.test_a_thousand_unread_events_are_enough(s.open()),
    ),
    Guard(
        "of events only",
        "api/send_v1.sql",
        "and not starts_with(e.slot, 'k:')",
        "",
        lambda s: letters.test_only_unread_events_count(s.open()),
    ),
    Guard(
        "the kinds of waits",
        "engine/letters.sql",
        "w.kind in ('e', 'd', 'p', 'u') and",
        "",
        lambda s: letters.test_a_wait_that_is_named_must_be_one_that_can_be_ended(s.open(), "child", expected=False),
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
