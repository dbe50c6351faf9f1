"""
Every guard is there for a promise: without it, the test of that promise fails.

Each case takes one guard out of the SQL, in the test's own database, and runs the promise's test as it stands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import psycopg
import pytest

from kedge.schema import functions, render
from kedge_worker import _leased_store, _statements, _transactions
from kedge_worker.testing import Clock
from tests import moves
from tests import sessions as sessions_module
from tests.contract import test_state_machine as machine
from tests.integration import test_interleavings_claim as claim
from tests.integration import test_interleavings_inbox as inbox
from tests.integration import test_interleavings_notify as notify
from tests.integration import test_interleavings_start as start
from tests.integration import test_interleavings_take_back as take_back
from tests.integration import test_interleavings_transactions as transactions
from tests.integration import test_leased_store as leased_store
from tests.sessions import Session, Sessions

Promise = Callable[[Sessions], object]
MemoPromise = Callable[[str, Sessions, Session], Awaitable[None]]

BROKEN: Final = (AssertionError, psycopg.Error, ValueError, pytest.fail.Exception)


def is_mistaken(error: BaseException) -> bool:
    """The SQL without the guard is no SQL: that proves nothing."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] == "42"


@dataclass(frozen=True)
class Guard:
    """`where` is a file of the schema or a statement of the worker; `before` stands in it, and `place` says which."""

    name: str
    where: str
    before: str
    after: str
    promise: Promise
    place: int = 1

    def __str__(self) -> str:
        return f"{self.name} in {self.where}"

    def text(self) -> str:
        """The SQL without the guard."""
        whole = dict(functions())[self.where] if "/" in self.where else str(getattr(_statements, self.where))
        parts = whole.split(self.before)
        assert len(parts) > self.place, f"{self.where} does not say {self.before!r} any more"
        return self.before.join(parts[: self.place]) + self.after + self.before.join(parts[self.place :])

    def remove(self, db: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        if "/" in self.where:
            db.rows(render(self.text(), "kedge"))
        else:
            monkeypatch.setattr(_statements, self.where, self.text())


def zombie(move: str, new_owner: str) -> Promise:
    return lambda s: take_back.test_each_statement_of_a_zombie_is_refused_by_itself(s.open(), move, new_owner)


def stranger(move: str) -> Promise:
    return lambda s: take_back.test_a_worker_cannot_write_for_another_one_though_it_knows_the_epoch(s.open(), move)


GUARDS: Final = [
    # ---- start
    Guard(
        "a stored input stops the start",
        "api/start_run_v1.sql",
        "if not found then",
        "if false then",
        lambda s: start.test_a_start_repeated_after_the_run_has_ended_executes_nothing_again(s.open()),
    ),
    Guard(
        "ON CONFLICT for the input",
        "api/start_run_v1.sql",
        "coalesce(p_meta, '')) on conflict do nothing",
        "coalesce(p_meta, ''))",
        lambda s: start.test_a_repeated_start_answers_as_the_first_did_with_the_present_status(
            s.open(), "pending", ["a"]
        ),
    ),
    Guard(
        "ON CONFLICT for the input of a usual start",
        "api/start_run_v1.sql",
        "on conflict do nothing returning run_id, at)",
        "returning run_id, at)",
        lambda s: start.test_a_repeated_start_answers_as_the_first_did_with_the_present_status(
            s.open(), "pending", None
        ),
    ),
    Guard(
        "a usual start has no key",
        "api/start_run_v1.sql",
        "num_nonnulls(p_key, ",
        "num_nonnulls(",
        lambda s: start.test_of_two_racing_starts_with_one_key_the_later_gets_the_earlier_ones_run(s, "read committed"),
    ),
    Guard(
        "ON CONFLICT for the key",
        "api/start_run_v1.sql",
        "p_key_hash) on conflict do nothing",
        "p_key_hash)",
        lambda s: start.test_of_two_racing_starts_with_one_key_the_later_gets_the_earlier_ones_run(s, "read committed"),
    ),
    Guard(
        "keys in their order",
        "api/start_runs_v1.sql",
        'order by b.key collate "C" nulls last, b.resource collate "C" nulls first, b.place offset 0',
        "offset 0",
        start.test_a_batch_takes_its_keys_in_their_order_so_that_batches_in_any_order_do_not_deadlock,
    ),
    Guard(
        "only what is new is live",
        "api/start_runs_v1.sql",
        "where b.id = any (v_new)",
        "where not exists (select 1 from kedge.runs r where r.id = b.id)",
        lambda s: start.test_a_repeated_bulk_start_leaves_runs_that_have_ended_alone(s.open()),
    ),
    # ---- claim
    Guard(
        "SKIP LOCKED",
        "CLAIM",
        "for update of r skip locked",
        "for update of r",
        claim.test_two_claims_at_once_take_no_run_twice_and_do_not_wait,
    ),
    Guard(
        "the state looked at behind the lock",
        "CLAIM",
        "and (r.state = 'p' or r.state = 'w' and r.due_at <= kedge.clock())",
        "",
        claim.test_a_run_that_was_claimed_after_this_claims_snapshot_is_not_taken_again,
    ),
    Guard(
        "unsorted cancels",
        "CLAIM",
        "and not exists (select 1 from kedge.inbox i where i.run_id = r.id and i.kind in ('x', 's') offset 0)",
        "",
        lambda s: claim.test_a_run_with_an_unsorted_cancel_is_left_to_the_courier(s.open(), Clock(s.url), None),
    ),
    Guard(
        "one limit for all lanes",
        "CLAIM",
        "skip locked) r\n         limit $6::int)",
        "skip locked) r\n         limit $9::int + $6::int)",
        lambda s: claim.test_a_claim_never_takes_more_than_it_asked_for(s.open(), Clock(s.url), 4, 3, 5),
    ),
    Guard(
        "three quarters",
        "CLAIM",
        "(c.place - 1) / greatest(1, $6::int * 3 / 4), c.rank",
        "c.rank",
        lambda s: claim.test_of_ready_and_due_runs_neither_kind_gets_more_than_three_quarters_while_both_have_some(
            s.open(), Clock(s.url), 8, 8, 8, (2, 6), 1
        ),
    ),
    Guard(
        "candidates before locks",
        "CLAIM",
        "order by r.rank, r.seq limit $9::int) r\n",
        "order by r.rank, r.seq limit $9::int for update skip locked) r\n",
        lambda s: claim.test_more_candidates_than_slots_are_not_locked(s.open(), 1),
    ),
    Guard(
        "KEY SHARE on the worker's row",
        "engine/hold_worker.sql",
        "for key share",
        "",
        claim.test_a_claim_before_the_take_back_is_taken_back_with_the_rest,
    ),
    Guard(
        "no row is an answer",
        "engine/hold_worker.sql",
        "if not found then",
        "if false then",
        claim.test_a_claim_behind_the_take_back_takes_nothing,
    ),
    Guard(
        "first the lock, then the look",
        "engine/leave.sql",
        "perform 1 from kedge.workers where id = p_worker for update;",
        "",
        claim.test_a_worker_that_leaves_during_its_own_claim_leaves_no_orphan,
    ),
    # ---- flush
    Guard("epoch", "KEEP", "and r.epoch = x.epoch", "", zombie("keep", "the same worker")),
    Guard("owner", "KEEP", "and r.worker_id is not distinct from $1::uuid", "", stranger("keep")),
    Guard(
        "a row never changes",
        "KEEP",
        "on conflict do nothing",
        "on conflict (run_id, seq) do update set value = excluded.value",
        lambda s: take_back.test_a_row_once_stored_never_changes(s.open()),
    ),
    Guard("epoch", "engine/end_runs.sql", "and r.epoch = e.epoch", "", zombie("end", "the same worker")),
    Guard(
        "owner",
        "engine/end_runs.sql",
        "and r.worker_id is not distinct from p_worker",
        "",
        stranger("end"),
    ),
    Guard(
        "only an owner completes",
        "engine/end_runs.sql",
        "and (p_worker is not null or e.status <> 'c')",
        "",
        lambda s: machine.test_the_sql_can_do_every_move_that_exists_and_no_other(s.open()),
    ),
    Guard(
        "the row locked before it is copied",
        "engine/end_runs.sql",
        "offset 0 for update) r",
        "offset 0) r",
        lambda s: inbox.test_an_end_that_waits_for_the_courier_sees_the_request_and_ends_the_run_once(
            s, "f", "cancelled"
        ),
    ),
    Guard(
        "all rows of the flush are stored",
        "engine/end_runs.sql",
        "= e.rows)",
        ">= 0)",
        lambda s: take_back.test_an_end_whose_rows_were_refused_is_refused_too(s.open()),
    ),
    Guard(
        "with this epoch",
        "engine/end_runs.sql",
        "and j.epoch = e.epoch",
        "",
        lambda s: take_back.test_an_end_whose_rows_were_refused_is_refused_too(s.open()),
    ),
    Guard(
        "a failure with a cancel request",
        "engine/end_runs.sql",
        "case when e.status = 'f' and r.request = 'x' then 'x' else e.status end",
        "e.status",
        lambda s: inbox.test_completed_wins_over_a_cancel_and_a_failure_does_not(s.open(), "f", "cancelled"),
    ),
    Guard(
        "completed wins",
        "engine/end_runs.sql",
        "when e.status = 'f' and r.request = 'x'",
        "when r.request = 'x'",
        lambda s: inbox.test_completed_wins_over_a_cancel_and_a_failure_does_not(s.open(), "c", "completed"),
    ),
    Guard("epoch", "engine/release_runs.sql", "and r.epoch = x.epoch", "", zombie("release", "the same worker"), 2),
    Guard("owner", "engine/release_runs.sql", "and r.worker_id = p_worker", "", stranger("release")),
    Guard(
        "first the locks, then the look",
        "engine/release_runs.sql",
        "offset 0 for update) r;",
        "offset 0) r;",
        lambda s: inbox.test_a_request_that_is_being_sorted_just_now_is_not_lost_by_a_give_back(s, 0),
    ),
    Guard(
        "a cancel request goes through the exit door",
        "engine/end_requested.sql",
        "and r.request in ('x', 'd')",
        "and false",
        lambda s: inbox.test_giving_back_a_run_with_a_request_ends_it_cancelled_in_the_same_transaction(s.open(), 0),
    ),
    # ---- take back
    Guard(
        "SKIP LOCKED on the worker",
        "engine/take_back.sql",
        "limit 1 for update skip locked",
        "limit 1 for update",
        lambda s: take_back.test_a_take_back_passes_by_a_flush_under_way_and_finds_what_it_left(s, take_back.HELD),
    ),
    Guard(
        "SKIP LOCKED on the runs",
        "engine/take_back.sql",
        "r.state = 'r' for update skip locked)",
        "r.state = 'r')",
        take_back.test_one_locked_run_does_not_hold_up_the_others_and_follows_in_a_later_round,
    ),
    Guard(
        "the row stays until nothing is owned",
        "engine/take_back.sql",
        "if not remaining then",
        "if true then",
        take_back.test_one_locked_run_does_not_hold_up_the_others_and_follows_in_a_later_round,
    ),
    Guard(
        "one lease of grace after the server's start",
        "engine/take_back.sql",
        "and (w.leaving or pg_postmaster_start_time() + w.lease < clock_timestamp())",
        "",
        lambda s: take_back.test_nobody_is_taken_back_for_one_lease_after_the_servers_start_but_who_said_that_it_leaves(
            s.open()
        ),
    ),
    Guard(
        "protocol",
        "engine/take_back.sql",
        "w.lease_until < clock_timestamp() and w.protocol <= p_protocol",
        "w.lease_until < clock_timestamp()",
        lambda s: take_back.test_a_worker_of_a_newer_protocol_is_left_to_its_like(s.open()),
    ),
    Guard(
        "who leaves is not charged",
        "engine/free_runs.sql",
        "when not p_charged then r.crashes",
        "when false then r.crashes",
        lambda s: take_back.test_a_worker_that_left_charges_nobody(s.open(), "LEAVE"),
    ),
    Guard(
        "progress resets the count",
        "engine/free_runs.sql",
        "when own.gets_on then 0",
        "when false then 0",
        lambda s: (
            take_back.test_a_journal_row_of_the_epoch_that_was_taken_back_resets_the_count_and_an_older_one_does_not(
                s.open()
            )
        ),
    ),
    Guard(
        "progress of that epoch only",
        "engine/free_runs.sql",
        "(select j.epoch = p_epoch",
        "(select j.seq > 0",
        lambda s: (
            take_back.test_a_journal_row_of_the_epoch_that_was_taken_back_resets_the_count_and_an_older_one_does_not(
                s.open()
            )
        ),
    ),
    Guard(
        "hung sessions are ended",
        "engine/take_back.sql",
        "perform pg_terminate_backend(a.pid)",
        "perform 1",
        take_back.test_a_session_that_hangs_with_a_dead_workers_row_is_ended_by_the_taker,
    ),
    Guard(
        "the same pid is not the same session",
        "engine/take_back.sql",
        "and a.backend_start = b.started",
        "",
        take_back.test_another_process_that_got_the_same_pid_is_not_ended_for_a_dead_worker,
    ),
    Guard(
        "payloads are read behind the commit",
        "CLAIM",
        "c.resource, c.reason,",
        "c.resource, (select j.value from kedge.journal j where j.run_id = c.id limit 1),",
        take_back.test_a_client_that_stops_in_the_middle_of_a_claims_answer_holds_no_locks,
    ),
    # ---- inbox
    Guard(
        "SKIP LOCKED",
        "engine/pick_letters.sql",
        "for update skip locked)",
        "for update)",
        inbox.test_the_letter_of_a_locked_run_stays_and_of_a_free_and_of_an_absent_run_leaves,
    ),
    Guard(
        "skipped is not gone",
        "engine/pick_letters.sql",
        "v_held := v_held || array(select r.id from kedge.runs r where r.id = any (v_missing));",
        "",
        inbox.test_the_letter_of_a_locked_run_stays_and_of_a_free_and_of_an_absent_run_leaves,
    ),
    Guard(
        "decided behind the lock",
        "engine/pick_letters.sql",
        "and r.id <> all (v_locked) for update skip locked);",
        "and r.id <> all (v_locked));",
        inbox.test_a_letter_to_a_run_that_is_just_given_back_cancels_it,
    ),
    Guard(
        "a letter is tried once more before it is failed",
        "engine/sort_inbox.sql",
        "perform kedge.sort_inbox(1);",
        "raise exception 'never mind';",
        inbox.test_a_second_courier_that_met_the_same_poison_fails_no_other_letter,
    ),
    # ---- notifications and connections
    Guard(
        "pages",
        "engine/notify.sql",
        "/ 200",
        "/ 500",
        notify.test_ids_are_notified_in_pages_that_a_payload_can_hold,
    ),
    Guard(
        "one sleeper",
        "api/ring_v1.sql",
        "limit 1 for update skip locked",
        "for update skip locked",
        lambda s: notify.test_a_ring_wakes_one_worker_that_suits_and_no_other(s.open()),
    ),
    Guard(
        "SKIP LOCKED on sleepers",
        "api/ring_v1.sql",
        "limit 1 for update skip locked",
        "limit 1 for update",
        notify.test_two_rings_at_once_wake_two_workers_and_do_not_wait,
    ),
    Guard(
        "the new connection waits for the old one",
        "engine/take_over_journal.sql",
        "for update",
        "",
        leased_store.test_taking_over_waits_for_a_predecessor_that_it_cannot_end,
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


@pytest.mark.breaks_invariants
async def test_without_the_end_of_the_predecessor_its_transaction_keeps_the_next_connection_out(
    database_url: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard("", "engine/take_over_journal.sql", "perform pg_terminate_backend(a.pid)", "perform 1", print)
    guard.remove(sessions.open(), monkeypatch)

    with pytest.raises(psycopg.errors.LockNotAvailable):
        await leased_store.test_no_transaction_of_an_earlier_connection_commits_once_the_next_one_stands(
            database_url, sessions
        )


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("missing", ["lock", "epoch", "deadline"])
async def test_without_each_part_of_a_memos_fence_the_test_of_its_promise_fails(
    database_url: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    cases: dict[str, tuple[str, str, MemoPromise]] = {
        "lock": (
            "for no key update) r",
            "offset 0) r",
            transactions.test_a_memo_waits_its_turn_behind_an_open_take_back_and_is_refused,
        ),
        "epoch": (
            "and epoch = %(epoch)s and worker_id is not distinct from %(worker)s",
            "",
            lambda url, _, db: transactions.test_a_run_that_was_taken_back_during_the_body_keeps_nothing_of_it(
                url, db, False
            ),
        ),
        "deadline": (
            "'idle_in_transaction_session_timeout'",
            "'nothing.at_all'",
            transactions.test_a_client_that_stops_before_its_commit_does_not_hold_its_run_for_ever,
        ),
    }
    before, after, promise = cases[missing]
    text = Guard("", "KEEP_TRANSACTION", before, after, print).text()
    monkeypatch.setattr(_transactions, "KEEP_TRANSACTION", text)
    monkeypatch.setattr(sessions_module, "PATIENCE_S", 0.5)
    db = sessions.open()
    moves.started(db)

    with pytest.raises(BROKEN) as broken:
        await promise(database_url, sessions, db)
    assert not is_mistaken(broken.value)


def test_every_statement_under_guard_is_the_one_that_the_store_sends() -> None:
    for name, text in _leased_store._STATEMENTS.items():
        assert text is getattr(_statements, name)
