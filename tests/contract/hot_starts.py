"""The hot statements of starts with a singleton, of children and of reruns, as hot_statements has the others."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from kedge.ids import new_run_id
from kedge_client import _statements as client
from kedge_worker import _statements as worker
from tests.contract import crowd
from tests.contract.hot_statements import BATCH, OWN, STARTED, Hot

CHILDREN: Final = (
    crowd.WORKER,
    OWN,
    [crowd.EPOCH] * BATCH,
    [1] * BATCH,
    ["child"] * BATCH,
    [new_run_id() for _ in range(BATCH)],
    ["order"] * BATCH,
    [crowd.QUEUE] * BATCH,
    [0] * BATCH,
    [b"\x01"] * BATCH,
    [b""] * BATCH,
    [None] * BATCH,
    [None] * BATCH,
    [None] * BATCH,
    [None] * BATCH,
    [None] * BATCH,
    [True] * BATCH,
    [True] * BATCH,
)
"""One child of each of a worker's runs, which have a row 1."""

_TYPES: Final = (
    "uuid",
    "uuid[]",
    "int[]",
    "int[]",
    "text[]",
    "uuid[]",
    "text[]",
    "text[]",
    "int[]",
    "bytea[]",
    "bytea[]",
    "text[]",
    "timestamptz[]",
    "float8[]",
    "float8[]",
    "text[]",
    "boolean[]",
    "boolean[]",
)
_CALL: Final = ", ".join(f"${place}::{kind}" for place, kind in enumerate(_TYPES, 1))

HOT_STARTS: Final[dict[str, Hot]] = {
    "start a singleton": Hot(
        side="client",
        statement=client.START.numbered("kedge"),
        arguments=(
            *(new_run_id(), *STARTED, b"\x01", None, "k", None, "return", None, None, None, None, False),
            *(90.0, "cancel_old"),
        ),
        blocks=80,
    ),
    "start a singleton: those that live": Hot(
        side="client",
        within=("singleton_runs", "return query\n        select r.id, r.state"),
        variables={"p_workflow": "text", "p_resource": "text", "p_key": "text"},
        arguments=("order@2", "customer-3", "key-3"),
        by={"runs_singleton"},
        touches=1,
    ),
    "whether a gate is closed": Hot(
        side="control",
        statement="select kedge.gate_is_closed($1::uuid)",
        arguments=(crowd.run_id("waiting", 7),),
        blocks=30,
    ),
    "start children": Hot(
        side="journal", statement=f"select kedge.start_children({_CALL})", arguments=CHILDREN, blocks=60 * BATCH
    ),
    "start children: whose parents stand": Hot(
        side="journal",
        within=("start_children", "v_stands := array(\n        select exists"),
        variables={"p_worker": "uuid", "p_parents": "uuid[]", "p_epochs": "int[]", "p_seqs": "int[]"},
        arguments=CHILDREN[:4],
        by={"runs_pkey", "journal_pkey"},
        touches=2 * BATCH,
    ),
    "start children: their tags": Hot(
        side="journal",
        within=("start_children", "insert into kedge.run_tags"),
        variables={"p_ids": "uuid[]", "p_parents": "uuid[]", "p_tags": "text[]", "v_stands": "boolean[]"},
        arguments=(CHILDREN[5], crowd.run_ids("finished", BATCH), CHILDREN[15], [True] * BATCH),
        by={"run_tags_run"},
        touches=BATCH,
    ),
    "start children: those that go with their parents": Hot(
        side="journal",
        within=("start_children", "update kedge.runs r set has_dependents"),
        variables={"p_parents": "uuid[]", "p_dependent": "boolean[]", "v_stands": "boolean[]"},
        arguments=(OWN, [True] * BATCH, [True] * BATCH),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "start a child alone": Hot(
        side="control",
        statement=worker.START_ALONE,
        # In the order in which the statement names them: parent, timeline, the child's id, its terms, its policy.
        arguments=(
            *(crowd.run_id("running", 3), crowd.EPOCH, crowd.WORKER, "", new_run_id(), "order", crowd.QUEUE, 0),
            *(b"\x01", b"", "child-1", b"\0" * 24, "return", None, None, None, None, None, None, True),
        ),
        by={"runs_pkey"},
        touches=1,
        blocks=100,
    ),
    "start a child alone: it goes with its parent": Hot(
        side="control",
        statement=worker.MIND_DEPENDENT,
        arguments=(crowd.run_id("running", 3), crowd.EPOCH, crowd.WORKER),
        by={"runs_pkey"},
        touches=1,
    ),
    "rerun": Hot(
        side="client",
        statement=client.RERUN.numbered("kedge"),
        arguments=(new_run_id(), crowd.run_id("finished", 1), None, "step"),
        blocks=80,
    ),
    "rerun: the step's first row": Hot(
        side="client",
        within=("rerun_run_v1", "select coalesce(min(s.seq)"),
        variables={"p_run": "uuid", "p_step": "text"},
        arguments=(crowd.run_id("finished", 1), "step"),
        by={"journal_pkey"},
        touches=3,
    ),
    "rerun: what is taken over": Hot(
        side="client",
        within=("rerun_run_v1", "with copied as"),
        variables={"p_id": "uuid", "p_run": "uuid", "v_first": "int", "v_now": "timestamptz"},
        arguments=(new_run_id(), crowd.run_id("finished", 1), 3, datetime.now(UTC)),
        by={"journal_pkey", "run_tags_run"},
        touches=4,
    ),
}
