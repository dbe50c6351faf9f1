"""
As the tests of guards in SQL (tests/integration/test_guards*.py), for guards in Python: without one of them, the test
of its promise fails.
"""

from __future__ import annotations
import __future__

import asyncio
import inspect
import sys
import textwrap
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

import psycopg
import pytest

from kedge import redaction, wire
from kedge_worker._flusher import Flusher
from kedge_worker._lease_keeper import LeaseKeeper
from kedge_worker._leased_store import LeasedStore
from kedge_worker._pipeline import Pipeline
from kedge_worker._signals import LeaseLostError
from tests import writer as writer_module
from tests.integration import test_flusher as flusher
from tests.integration import test_interleavings_lease as lease
from tests.integration import test_leased_store as store
from tests.proof.kit.lanes import thinned
from tests.sessions import Session, Sessions
from tests.unit.shared import test_redaction, test_wire

Promise = Callable[[str, Sessions, Session], Awaitable[None] | None]

BROKEN: Final = (AssertionError, psycopg.Error, ValueError, LeaseLostError, TimeoutError, pytest.fail.Exception)


@dataclass(frozen=True)
class Guard:
    """`where` is a method or a function; `before` stands in it once."""

    name: str
    owner: Any
    where: str
    before: str
    after: str
    promise: Promise

    def __str__(self) -> str:
        return f"{self.name} in {self.where}"

    def remove(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Compile the function again, without the guard, in the place of the one that is there."""
        original: Any = inspect.getattr_static(self.owner, self.where)
        function: Any = getattr(original, "__func__", original)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.before) == 1, f"{self.where} does not say {self.before!r} once any more"
        names: dict[str, Any] = {}
        flags = __future__.annotations.compiler_flag
        code = compile(source.replace(self.before, self.after), inspect.getfile(function), "exec", flags, True)
        exec(code, function.__globals__, names)  # the engine's own source
        made = names[self.where]
        if isinstance(self.owner, type):
            monkeypatch.setattr(self.owner, self.where, made)
            return
        assert isinstance(made, FunctionType)
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(self.where) is original:
                monkeypatch.setattr(module, self.where, made)


GUARDS: Final = [
    # ---- the flush
    Guard(
        "a row is durable when its commit is answered",
        Flusher,
        "durable",
        "if batch is None or batch.stored:",
        "if True:",
        lambda url, _, db: flusher.test_a_row_is_durable_when_its_commit_is_answered_and_not_before(url, db),
    ),
    Guard(
        "zero rows is an answer",
        Flusher,
        "_write",
        "if answer.kept == len(batch.rows) and answer.moved == len(batch.moves):",
        "if True:",
        lambda url, sessions, _: flusher.test_only_the_run_that_somebody_else_owns_is_lost(url, sessions),
    ),
    Guard(
        "a row of another epoch is not mine",
        Flusher,
        "_settle",
        "foreign = any(epoch != run.claimed.epoch for epoch in standing.rows.values())",
        "foreign = False",
        lambda url, _, db: flusher.test_a_seq_that_stands_there_with_another_epoch_is_never_taken_for_mine(url, db),
    ),
    Guard(
        "a flush takes so many rows",
        Flusher,
        "_gathering",
        "max(len(batch.rows), len(batch.moves)) >= MAX_ROWS",
        "False",
        lambda url, _, db: (
            flusher.test_more_rows_than_a_flush_takes_go_out_in_order_in_several_and_the_end_with_the_last(url, db)
        ),
    ),
    Guard(
        "a run is put off whole",
        Flusher,
        "_write_carefully",
        "if run not in moving or run.claimed.id in free}",
        "}",
        lambda url, sessions, _: flusher.test_one_locked_run_of_a_hundred_waits_whole_and_the_others_are_stored(
            url, sessions, writer_module.COMPLETED
        ),
    ),
    Guard(
        "nothing stands on what was refused",
        Flusher,
        "_narrow_down",
        "run.refused = True",
        "pass",
        lambda url, _, db: flusher.test_nothing_of_a_refused_run_counts_as_durable(url, db),
    ),
    Guard(
        "bad data costs its own run only",
        Flusher,
        "_narrow_down",
        "if len(runs) > 1:",
        "if False:",
        lambda url, _, db: flusher.test_data_that_the_database_refuses_costs_only_its_own_run(url, db, [4]),
    ),
    # ---- connections
    Guard(
        "a new connection ends the one before",
        LeasedStore,
        "connect",
        "old_pid, old_start = self._predecessor or (",
        "old_pid, old_start = (",
        lambda url, sessions, _: store.test_no_transaction_of_an_earlier_connection_commits_once_the_next_one_stands(
            url, sessions
        ),
    ),
    Guard(
        "a silent server is given up",
        Pipeline,
        "_time_up",
        "self._broken(",
        "str(",
        lambda url, _, db: store.test_a_server_that_falls_silent_is_given_up_and_its_socket_closed(url, db),
    ),
    Guard(
        "a cancelled round trip gives its connection up",
        Pipeline,
        "_sync",
        "self.abort()  # an answer on its way would be taken for that of the next round trip",
        "pass",
        lambda url, _, db: store.test_a_round_trip_that_is_cancelled_gives_its_connection_up(url, db),
    ),
    # ---- the lease
    Guard(
        "a lease ends by itself",
        LeaseKeeper,
        "_watch_it",
        "if now > self.valid_until:",
        "if False:",
        lambda url, _, db: lease.test_a_silent_server_costs_the_lease_before_the_database_sees_its_end(url, db),
    ),
    Guard(
        "no row: another worker took its runs back",
        LeaseKeeper,
        "_answered",
        "if not rows:",
        "if False:",
        lambda url, _, db: lease.test_a_worker_whose_row_is_gone_hears_it_once(url, db),
    ),
    Guard(
        "a loop that hangs is beaten for no more",
        LeaseKeeper,
        "_run",
        "time.monotonic() - self._loop_alive_at > _PATIENCE_LEASES * self._lease_s",
        "False",
        lambda url, _, db: lease.test_a_loop_that_does_not_answer_for_two_leases_is_beaten_for_no_more(url, db),
    ),
    # ---- what is kept
    Guard(
        "so many levels",
        wire,
        "encode",
        "if size > 2 * MAX_DEPTH and (depth := _depth(body)) > MAX_DEPTH:",
        "if (depth := 0):",
        lambda _url, _sessions, _db: test_wire.test_deeper_values_are_refused_without_hurting_the_process(129),
    ),
    Guard(
        "so many bytes",
        wire,
        "encode",
        "if size > limit:",
        "if size > 2 * limit:",
        lambda _url, _sessions, _db: test_wire.test_the_limit_counts_every_stored_byte(1, fits=False),
    ),
    Guard(
        "secrets go before a text is cut",
        redaction,
        "redact",
        "for pattern, instead in _PATTERNS:",
        "for pattern, instead in ():",
        lambda _url, _sessions, _db: test_redaction.test_secrets_are_taken_out_before_a_message_is_cut(
            0, "password={}"
        ),
    ),
    Guard(
        "NaN is not null",
        wire,
        "encode",
        "if _search_null(body) and (fault := _find_not_finite(value)):",
        "if (fault := None):",
        lambda _url, _sessions, _db: test_wire.test_what_cannot_be_kept_is_refused_by_its_path(
            lambda: float("nan"), "is nan, which JSON cannot hold", "$"
        ),
    ),
]


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("guard", thinned(GUARDS, of=5), ids=str)
async def test_without_the_guard_the_test_of_its_promise_fails(
    database_url: str, sessions: Sessions, db: Session, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "PATIENCE_S", 1.0)  # what would never happen is waited for no longer
    guard.remove(monkeypatch)

    with pytest.raises(BROKEN):
        await keeps(guard, database_url, sessions, db, timeout_s=4)


@pytest.mark.full
@pytest.mark.parametrize("guard", GUARDS, ids=str)
async def test_with_the_guard_it_passes(database_url: str, sessions: Sessions, db: Session, guard: Guard) -> None:
    await keeps(guard, database_url, sessions, db)


async def keeps(guard: Guard, database_url: str, sessions: Sessions, db: Session, *, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        if (promised := guard.promise(database_url, sessions, db)) is not None:
            await promised
