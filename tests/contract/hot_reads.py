"""The hot statements by which clients read and are told, and by which runs say something of themselves."""

from __future__ import annotations

from typing import Final

from kedge_client import _read_statements as client
from kedge_worker import _statements as worker
from tests.contract import crowd
from tests.contract.hot_statements import BATCH, MIXED, OWN, Hot

_PAGE: Final[dict[str, object]] = {"limit": BATCH, "backward": False}
_LISTS: Final[dict[str, dict[str, object]]] = {
    "all": _PAGE,
    "a workflow": {"workflow": "order", **_PAGE},
    "failed": {"statuses": ["failed"], **_PAGE},
    "completed": {"statuses": ["completed"], **_PAGE},
    "a workflow's completed": {"workflow": "order", "statuses": ["completed"], **_PAGE},
    "a resource": {"resource": "customer-1", **_PAGE},
    "next page": {"after": crowd.run_id("finished", 10_000), **_PAGE},
    "page before": {"after": crowd.run_id("finished", 10_000), **_PAGE, "backward": True},
}
_RUN: Final = {"p_run": "uuid", "p_resource": "text"}
_WAITING: Final = crowd.run_id("waiting", 7)
# The run by its id alone, or by resource and id: the statistics decide, and both are one probe.
_PROBE: Final = 2
# Its other statement, of the notes, begins in the same way.
_LINES: Final = """select l.kind::text, l.at, l.level::int, l.message, l.fields from kedge.run_log l
     where l.run_id = p_run and l.kind = 'l'"""

HOT_READS: Final[dict[str, Hot]] = {
    "get": Hot(
        side="client",
        within=("get_runs_v1", "return query\n    select a.id"),
        variables={"p_ids": "uuid[]", "p_resource": "text", "p_full": "boolean"},
        arguments=([_WAITING], None, True),
        by={
            *("runs_pkey", "finished_pkey", "journal_pkey", "run_tags_run", "inbox_run", "waits_pkey"),
            *("events_unread", "run_log_notes", "run_metadata_pkey"),
        },
        touches=20,
        blocks=100,
    ),
    "get many without what takes further looks": Hot(
        side="client",
        within=("get_runs_v1", "return query\n    select a.id"),
        variables={"p_ids": "uuid[]", "p_resource": "text", "p_full": "boolean"},
        arguments=(MIXED, None, False),
        by={"runs_pkey", "finished_pkey", "journal_pkey", "run_tags_run"},
        touches=5 * BATCH,
    ),
    "get through its function": Hot(
        side="client", statement=client.GET.numbered("kedge"), arguments=(MIXED, "customer-1"), blocks=100 * BATCH
    ),
    "results": Hot(
        side="client",
        within=("results_v1", "return query\n    select a.id"),
        variables={"p_ids": "uuid[]"},
        arguments=(MIXED,),
        by={"runs_pkey", "finished_pkey"},
        touches=BATCH,
    ),
    "steps": Hot(
        side="client",
        within=("steps_v1", "return query\n    select x.seq"),
        variables={**_RUN, "p_after": "int", "p_limit": "int", "p_bytes": "bigint"},
        arguments=(crowd.run_id("finished", 1), "customer-1", 0, 500, 1_000_000),
        by={"journal_pkey"},
        touches=2 + _PROBE,
    ),
    "open waits": Hot(
        side="client",
        within=("waits_v1", "return query\n    select w.kind"),
        variables=_RUN,
        arguments=(_WAITING, "customer-7"),
        by={"waits_pkey"},
        touches=1 + _PROBE,
    ),
    "failed attempts": Hot(
        side="client",
        within=("failures_v1", "return query\n    select x.kind"),
        variables={**_RUN, "p_limit": "int"},
        arguments=(_WAITING, "customer-7", 1000),
        by={"failures_pkey"},
        touches=2 + _PROBE,
    ),
    "progress of a run that says nothing": Hot(
        side="client",
        statement=client.PROGRESS.numbered("kedge"),
        arguments=(crowd.run_id("running", 3), None),
        blocks=150,
    ),
    "log: lines": Hot(
        side="client",
        within=(
            "run_log_v1",
            _LINES,
        ),
        variables={"p_run": "uuid", "p_limit": "int", "p_lines": "int"},
        arguments=(_WAITING, 500, 1),
        touches=3,
    ),
    "observe": Hot(
        side="client",
        statement=client.OBSERVE.numbered("kedge"),
        arguments=(crowd.run_ids("pending", BATCH), "another_client"),
        blocks=100 * BATCH,
    ),
    "unobserve": Hot(
        side="client",
        within=("unobserve_v1", "delete from kedge.observers"),
        variables={"p_ids": "uuid[]", "p_channel": "text"},
        arguments=(crowd.run_ids("waiting", BATCH), "a_client"),
        by={"observers_pkey"},
        touches=BATCH,
    ),
    "notify observers": Hot(
        side="journal",
        within=("notify_observers", "select pg_notify"),
        variables={"p_runs": "uuid[]"},
        arguments=(crowd.run_ids("waiting", BATCH),),
        by={"observers_pkey"},
        touches=BATCH,
    ),
    "set progress": Hot(
        side="journal",
        statement=worker.SET_PROGRESS,
        arguments=(
            crowd.WORKER,
            OWN,
            [crowd.EPOCH] * BATCH,
            [1] * BATCH,
            [2] * BATCH,
            [50.0] * BATCH,
            ["half"] * BATCH,
        ),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "set metadata": Hot(
        side="journal",
        statement=worker.SET_METADATA,
        arguments=(crowd.WORKER, OWN, [crowd.EPOCH] * BATCH, [b"\x01{}"] * BATCH),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "write log": Hot(
        side="journal",
        statement=worker.WRITE_LOG,
        arguments=(
            crowd.WORKER,
            OWN,
            [crowd.EPOCH] * BATCH,
            list(range(100, 100 + BATCH)),
            [20] * BATCH,
            ["a line"] * BATCH,
            [b""] * BATCH,
        ),
        by={"runs_pkey", "run_log_run_id_n_key"},
        touches=BATCH + 3 * BATCH,
    ),
    **{
        f"list {name}": Hot(
            side="client",
            statement=client.LIST.numbered("kedge"),
            arguments=tuple(filters.get(name) for name in client.LIST.parameters),
            blocks=60 * BATCH,
        )
        for name, filters in _LISTS.items()
    },
}
