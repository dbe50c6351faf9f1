"""What deletes ended runs, as `hot_statements` has it for the rest: whole where a function has settings of its own."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from kedge_worker import _upkeep as upkeep
from tests.contract import crowd
from tests.contract.hot_statements import BATCH, Hot

_FIRST: Final = UUID(int=0)
_LAST: Final = crowd.run_id("waiting", 1)
_ENDED: Final = crowd.run_ids("finished", BATCH)
_RUNS: Final = {"p_runs": "uuid[]"}
_PIECE: Final = {"p_runs": "uuid[]", "p_rows": "int"}

HOT_RETENTION: Final[dict[str, Hot]] = {
    # A finished row, three of the journal, a key and a tag each, with the entries of their indexes. PostgreSQL 16 goes
    # down an index anew for each id, and touches 45 blocks a run.
    "delete ended": Hot(
        side="control", statement=upkeep.DELETE_ENDED, arguments=(["order"], [_FIRST], BATCH, 1000), blocks=50 * BATCH
    ),
    # Five times as many are looked at, of which two in a hundred go.
    "delete ended: past what is kept": Hot(
        side="control", statement=upkeep.DELETE_ENDED, arguments=(["invoice"], [_FIRST], BATCH, 1000), blocks=10 * BATCH
    ),
    "delete ended: behind the last": Hot(
        side="control",
        statement=upkeep.DELETE_ENDED,
        arguments=(["order", "invoice", "unknown"], [_LAST] * 3, BATCH, 1000),
        blocks=20,
    ),
    "delete ended, of the last workflow's": Hot(
        side="control", statement=upkeep.DELETE_ENDED, arguments=(["report"], [_FIRST], BATCH, 1000), blocks=40
    ),
    "delete ended: what can be forgotten": Hot(side="control", statement=upkeep.TO_CLEAR, blocks=10),
    "delete ended: pieces, of which there are none": Hot(
        side="control", statement=upkeep.FINISH_REMOVALS, arguments=(1000,), blocks=10
    ),
    "delete ended: keys": Hot(
        side="control",
        within=("remove_runs", "delete from kedge.run_keys"),
        variables=_RUNS,
        arguments=(_ENDED,),
        by={"finished_pkey", "run_keys_pkey"},
        touches=3 * BATCH,
    ),
    "delete ended: rows": Hot(
        side="control",
        within=("remove_runs", "delete from kedge.finished"),
        variables=_RUNS,
        arguments=(_ENDED,),
        by={"finished_pkey"},
        touches=BATCH,
    ),
    "delete ended: tags": Hot(
        side="control",
        within=("remove_runs", "delete from kedge.run_tags"),
        variables=_RUNS,
        arguments=(_ENDED,),
        by={"run_tags_run"},
        touches=BATCH,
    ),
    "delete ended: journal": Hot(
        side="control",
        within=("remove_history", "delete from kedge.journal"),
        variables=_PIECE,
        arguments=(_ENDED, 1000),
        by={"journal_pkey"},
        touches=2 * 3 * BATCH,
    ),
    "delete ended: events": Hot(
        side="control",
        within=("remove_history", "delete from kedge.events"),
        variables=_PIECE,
        arguments=(crowd.run_ids("waiting", BATCH), 1000),
        by={"events_pkey"},
        touches=2 * 3 * BATCH,
    ),
    "delete ended: log": Hot(
        side="control",
        within=("remove_history", "delete from kedge.run_log"),
        variables=_PIECE,
        arguments=(crowd.run_ids("waiting", BATCH), 1000),
        touches=2 * 3 * BATCH,
    ),
    "delete ended: failures": Hot(
        side="control",
        within=("remove_history", "delete from kedge.failures"),
        variables=_PIECE,
        arguments=(crowd.run_ids("waiting", BATCH), 1000),
        touches=2 * 2 * BATCH,
    ),
    "courier: lock what has ended": Hot(
        side="control",
        within=("pick_letters", "v_kept := array("),
        variables={"v_missing": "uuid[]"},
        arguments=(_ENDED,),
        by={"finished_pkey"},
        touches=BATCH,
    ),
}
