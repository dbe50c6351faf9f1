"""What the engine's functions do inside for waits, mail and letters, as `hot_statements` has it for the rest."""

from __future__ import annotations

from typing import Final

from kedge_worker import _statements as worker
from tests.contract import crowd
from tests.contract.hot_statements import BATCH, OWN, Hot

_WAITING: Final = crowd.run_ids("waiting", BATCH)
_ASKED: Final = [crowd.run_id("waiting", 999 + n) for n in range(1, BATCH + 1)]
"""Those that the first letters are to."""
_EPOCHS: Final = [crowd.EPOCH] * BATCH
_PICKED: Final = {"v_seqs": "bigint[]", "v_runs": "uuid[]", "v_kinds": '"char"[]'}
_GIVEN: Final = {"p_seqs": "bigint[]", "p_runs": "uuid[]", "p_kinds": '"char"[]'}
_SEQS: Final = list(range(1, BATCH + 1))

HOT_MOVES: Final[dict[str, Hot]] = {
    # ---- out of running
    "park: lock": Hot(
        side="journal",
        within=("park_runs", "v_held := array("),
        variables={"p_worker": "uuid", "p_ids": "uuid[]", "p_epochs": "int[]"},
        arguments=(crowd.WORKER, OWN, _EPOCHS),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "park: stale waits": Hot(
        side="journal",
        within=("park_runs", "delete from kedge.waits"),
        variables={"p_stale_runs": "uuid[]", "p_stale_keys": "text[]", "v_held": "uuid[]"},
        arguments=(_WAITING, ["settled"] * BATCH, _WAITING),
        by={"waits_pkey"},
        touches=2 * BATCH,
    ),
    "park": Hot(
        side="journal",
        within=("park_runs", "with look as materialized"),
        variables={"p_worker": "uuid", "p_ids": "uuid[]", "p_last": "int[]", "v_held": "uuid[]"},
        arguments=(crowd.WORKER, OWN, [2] * BATCH, OWN),
        by={"runs_pkey", "waits_pkey"},
        touches=2 * BATCH,
    ),
    "park, all of it": Hot(
        side="journal",
        statement=worker.PARK,
        arguments=(crowd.WORKER, OWN, _EPOCHS, [2] * BATCH, [], []),
        blocks=60 * BATCH,
    ),
    "retry later: failures": Hot(
        side="journal",
        within=("retry_later", "with failed as"),
        variables={"p_worker": "uuid", "p_ids": "uuid[]", "p_epochs": "int[]", "p_errors": "bytea[]"},
        arguments=(crowd.WORKER, OWN, _EPOCHS, [b"\x01"] * BATCH),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "retry later: journal": Hot(
        side="journal",
        within=("set_aside", "with gone as"),
        variables={"p_run": "uuid", "p_attempt": "int"},
        arguments=(OWN[0], 1),
        by={"journal_pkey"},
        touches=3,
    ),
    "retry later, all of it": Hot(
        side="journal",
        statement=worker.RETRY_LATER,
        arguments=(crowd.WORKER, OWN, _EPOCHS, [60.0] * BATCH, [b"\x01"] * BATCH, [None] * BATCH, [2] * BATCH),
        blocks=60 * BATCH,
    ),
    "end runs: waits": Hot(
        side="journal",
        within=("end_runs", "delete from kedge.waits"),
        variables={"v_ended": "uuid[]"},
        arguments=(_WAITING,),
        by={"waits_pkey"},
        touches=BATCH,
    ),
    "end runs: watchers": Hot(
        side="journal",
        within=("end_runs", "insert into kedge.inbox (run_id, id, sent_at, kind, slot, payload)"),
        variables={"v_watched": "uuid[]"},
        arguments=(crowd.run_ids("finished", BATCH),),
        by={"finished_pkey", "run_watchers_pkey"},
        touches=BATCH,
    ),
    # ---- courier
    "courier: batch": Hot(
        side="control",
        within=("pick_letters", "select array_agg(b.seq order by"),
        variables={"v_seq": "bigint", "v_run": "uuid", "v_held": "uuid[]", "v_room": "int"},
        arguments=(-1, crowd.WORKER, [], BATCH),
        by={"inbox_pkey"},
        touches=BATCH,
    ),
    "courier: lock": Hot(
        side="control",
        within=("pick_letters", "v_locked := v_locked || array("),
        variables={"v_locked": "uuid[]", "v_runs": "uuid[]"},
        arguments=([], _WAITING),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "courier: skipped or gone": Hot(
        side="control",
        within=("pick_letters", "v_held := v_held || array("),
        variables={"v_held": "uuid[]", "v_missing": "uuid[]"},
        arguments=([], _WAITING),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    # Letters of the crowd, as if they were events: the letter, the run, the wait.
    "courier: mail": Hot(
        side="control",
        within=("sort_inbox", "with put as"),
        variables=_PICKED,
        arguments=(_SEQS, _ASKED, ["x"] * BATCH),
        by={"inbox_run", "runs_pkey", "waits_pkey"},
        touches=3 * BATCH,
    ),
    "courier: wake": Hot(
        side="control",
        within=("wake_runs", "update kedge.runs r\n           set state"),
        variables={"p_runs": "uuid[]"},
        arguments=(_WAITING,),
        by={"runs_pkey"},
        touches=BATCH,
        blocks=20 * BATCH,
    ),
    "courier: wake, all of it": Hot(
        side="control",
        statement="select * from kedge.wake_runs(%(runs)s::uuid[])",
        arguments=(_WAITING,),
        blocks=40 * BATCH,
    ),
    "courier: listeners of a topic": Hot(
        side="control",
        within=("expand_letters", "v_found := array(\n                select distinct w.run_id"),
        variables={"v_letter.slot": "text", "v_letter.last": "uuid", "v_limit": "int"},
        arguments=("t:orders\x1fsettled", crowd.run_id("waiting", 1), BATCH),
        by={"waits_topic"},
        touches=BATCH,
    ),
    "courier: cancels": Hot(
        side="control",
        within=("sort_cancels", "with letters as materialized"),
        variables=_GIVEN,
        arguments=(_SEQS, _ASKED, ["x"] * BATCH),
        by={"inbox_run", "runs_pkey", "finished_pkey"},
        touches=2 * BATCH,
    ),
    "courier: cancelled at rest": Hot(
        side="control",
        within=("sort_cancels", "ended := array("),
        variables={"v_runs": "uuid[]"},
        arguments=(_ASKED,),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "courier: cancelled while running": Hot(
        side="control",
        within=("sort_cancels", "with asked as"),
        variables={"v_runs": "uuid[]", "v_reasons": "text[]"},
        arguments=(OWN, [None] * BATCH),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    # None of these letters is there: they would have to name a watcher.
    "courier: watches": Hot(
        side="control",
        within=("sort_watches", "with noted as"),
        variables=_GIVEN,
        arguments=(_SEQS, _WAITING, ["w"] * BATCH),
        by={"inbox_run", "runs_pkey"},
        touches=2 * BATCH,
    ),
    "courier: done with": Hot(
        side="control",
        within=("sort_inbox", "delete from kedge.inbox\n     where ctid"),
        variables={"v_seqs": "bigint[]", "v_runs": "uuid[]"},
        arguments=(_SEQS, _ASKED),
        by={"inbox_run"},
        touches=2 * BATCH,
    ),
    "courier": Hot(side="control", statement=worker.SORT_INBOX, arguments=(BATCH,), blocks=80 * BATCH),
    # ---- sweeper
    "expire: lock": Hot(
        side="control",
        within=("expire_runs", "v_locked := array("),
        variables={"p_limit": "int"},
        arguments=(BATCH,),
        by={"runs_deadline"},
        touches=1,
    ),
    "expire, with nothing to do": Hot(
        side="control",
        statement="select * from kedge.expire_runs(%(limit)s::int)",
        arguments=(BATCH,),
        blocks=30,
    ),
}
