"""The hot statements of worker and client, each with arguments as they come and with what its plan may touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from kedge.ids import new_run_id
from kedge_client import _letter_statements as letters
from kedge_client import _statements as client
from kedge_worker import _statements as worker
from kedge_worker import _upkeep as upkeep
from tests.contract import crowd

BATCH: Final = 50

Side = Literal["journal", "control", "client"]


@dataclass(frozen=True, kw_only=True)
class Hot:
    """A statement with arguments as the engine would give them, and what its plan may touch."""

    side: Side
    statement: str = ""
    arguments: Sequence[object] = ()
    by: set[str] = field(default_factory=set[str])
    """Indexes that must serve it."""
    touches: int = 0
    """The most rows of growing tables that it may look at. Inside a function that it calls they are not seen."""
    blocks: int = 0
    """The most blocks, also inside of functions that it calls; none given: in proportion to the rows."""
    within: tuple[str, str] | None = None
    """The function in which it stands, and how it begins there; then `variables` are its parameters."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name -> type."""


LANES: Final = ([crowd.QUEUE] * 3, list(crowd.WORKFLOWS), [-32768] * 3, [0] * 3)
OWN: Final = [crowd.run_id("running", n) for n in range(3, 3 * BATCH + 1, 3)]
MIXED: Final = crowd.run_ids("finished", BATCH // 2) + crowd.run_ids("waiting", BATCH // 2)
STARTED: Final = ("order", crowd.QUEUE, 0)
LIVE: Final = {"p_worker": "uuid", "p_ids": "uuid[]", "p_epochs": "int[]"}

HOT: Final[dict[str, Hot]] = {
    # Three lanes of ready runs and three of due ones, 50 candidates each; then the 50 that were picked, and the
    # question whether somebody wants them cancelled.
    "claim": Hot(
        side="journal",
        statement=worker.CLAIM,
        arguments=(crowd.WORKER, *LANES, BATCH, None, False, BATCH),
        by={"runs_ready", "runs_due", "runs_pkey", "inbox_run"},
        touches=9 * BATCH + 10,
    ),
    "claim from a floor": Hot(
        side="journal",
        statement=worker.CLAIM,
        arguments=(crowd.WORKER, *LANES[:2], [0] * 3, [crowd.WAITING + 1000] * 3, BATCH, None, False, BATCH),
        by={"runs_ready", "runs_due", "runs_pkey"},
        touches=9 * BATCH + 10,
    ),
    "read what was claimed": Hot(
        side="journal", statement=worker.READ_CLAIMED, arguments=(), by={"journal_pkey"}, touches=3 * BATCH
    ),
    "what fits into one answer": Hot(
        side="journal",
        within=("fit_together", "select min(s.place)"),
        variables={"p_runs": "uuid[]", "p_bytes": "bigint", "v_others": "uuid[]"},
        arguments=(crowd.run_ids("waiting", BATCH), 8388608, crowd.run_ids("waiting", BATCH)[1:]),
        by={"journal_pkey", "waits_pkey", "events_unread"},
        touches=4 * BATCH,
    ),
    "keep": Hot(
        side="journal",
        statement=worker.KEEP,
        arguments=(
            crowd.WORKER,
            OWN,
            [3] * BATCH,
            [crowd.EPOCH] * BATCH,
            [1] * BATCH,
            ["s"] * BATCH,
            ["step"] * BATCH,
            [b"\x01"] * BATCH,
            None,
        ),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "lock the moving": Hot(
        side="journal", statement=worker.LOCK_MOVING, arguments=(crowd.WORKER, OWN), by={"runs_pkey"}, touches=BATCH
    ),
    "settle rows": Hot(
        side="journal",
        statement=worker.SETTLE_ROWS,
        arguments=(OWN, [1] * BATCH),
        by={"journal_pkey"},
        touches=BATCH,
    ),
    "settle runs": Hot(
        side="journal",
        statement=worker.SETTLE_RUNS,
        arguments=(crowd.WORKER, OWN + crowd.run_ids("finished", BATCH)),
        by={"runs_pkey", "finished_pkey"},
        touches=2 * BATCH,
    ),
    "owned": Hot(
        side="journal",
        statement=worker.OWNED,
        arguments=(crowd.WORKER,),
        by={"runs_owned"},
        touches=crowd.RUNNING // 3,
    ),
    "end runs": Hot(
        side="journal",
        within=("end_runs", "with done as"),
        variables={
            **LIVE,
            "p_statuses": "text[]",
            "p_outputs": "bytea[]",
            "p_errors": "bytea[]",
            "p_reasons": "text[]",
            "p_first": "int[]",
            "p_last": "int[]",
            "p_rows": "int[]",
        },
        arguments=(
            crowd.WORKER,
            OWN,
            [crowd.EPOCH] * BATCH,
            ["c"] * BATCH,
            [b"\x01"] * BATCH,
            [None] * BATCH,
            [None] * BATCH,
            [1] * BATCH,
            [2] * BATCH,
            [2] * BATCH,
        ),
        by={"runs_pkey", "journal_pkey"},
        touches=4 * BATCH,
    ),
    "release: lock": Hot(
        side="journal",
        within=("release_runs", "perform 1"),
        variables=LIVE,
        arguments=(crowd.WORKER, OWN, [crowd.EPOCH] * BATCH),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "requests at a move": Hot(
        side="journal",
        within=("end_requested", "select kedge.end_runs("),
        variables={**LIVE, "p_last": "int[]"},
        arguments=(crowd.WORKER, OWN, [crowd.EPOCH] * BATCH, [2] * BATCH),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "release": Hot(
        side="journal",
        within=("release_runs", "update kedge.runs r"),
        variables={**LIVE, "p_delays_s": "float8[]", "p_reasons": "text[]", "p_last": "int[]"},
        arguments=(crowd.WORKER, OWN, [crowd.EPOCH] * BATCH, [0.0] * BATCH, [None] * BATCH, [2] * BATCH),
        by={"runs_pkey"},
        touches=BATCH,
        blocks=20 * BATCH,  # with the looks for waits and mail; PostgreSQL 16 touches 17 a run
    ),
    "notify watchers": Hot(
        side="journal",
        within=("notify_watchers", "with taken as"),
        variables={"p_runs": "uuid[]"},
        arguments=(crowd.run_ids("waiting", BATCH),),
        by={"watchers_pkey"},
        touches=2 * BATCH,
    ),
    "beat": Hot(
        side="control", statement=worker.BEAT, arguments=(crowd.WORKER,), by={"runs_owned"}, touches=crowd.RUNNING // 3
    ),
    "requests": Hot(
        side="control",
        statement=worker.REQUESTS,
        arguments=(crowd.WORKER,),
        by={"runs_owned"},
        touches=crowd.RUNNING // 3,
    ),
    # Each worker asks this every second or two, and nearly always there is nothing; here there is, in all lanes.
    "look": Hot(
        side="control",
        statement=upkeep.LOOK,
        arguments=(crowd.WORKER, 1, [crowd.QUEUE], list(crowd.WORKFLOWS), "3 seconds"),
        by={"runs_ready", "runs_due", "runs_deadline", "idle_pkey"},
        touches=10,
    ),
    "has mail": Hot(side="control", statement=worker.HAS_MAIL, touches=1),
    "leave": Hot(
        side="control",
        within=("leave", "delete from kedge.workers w"),
        variables={"p_worker": "uuid"},
        arguments=(crowd.WORKER,),
        by={"runs_owned"},
        touches=1,
    ),
    "take back: runs": Hot(
        side="control",
        within=("take_back", "v_ids := array("),
        variables={"v_worker.id": "uuid"},
        arguments=(crowd.WORKER,),
        by={"runs_owned"},
        touches=crowd.RUNNING // 3,
    ),
    "take back: charges": Hot(
        side="control",
        within=("free_runs", "update kedge.runs r\n       set (crashes"),
        variables={"p_worker": "uuid", "p_ids": "uuid[]", "p_charged": "boolean"},
        arguments=(crowd.WORKER, OWN, True),
        by={"runs_pkey"},
        touches=BATCH,
    ),
    "take back: requests": Hot(
        side="control",
        within=("free_runs", "perform kedge.end_runs("),
        variables={"p_worker": "uuid", "v_ended": "uuid[]"},
        arguments=(crowd.WORKER, OWN),
        by={"runs_pkey", "journal_pkey"},
        touches=4 * BATCH,
    ),
    "take back": Hot(
        side="control",
        within=("free_runs", "update kedge.runs r\n       set state"),
        variables={"p_worker": "uuid", "p_ids": "uuid[]"},
        arguments=(crowd.WORKER, OWN),
        by={"runs_pkey", "journal_pkey"},
        touches=4 * BATCH,
    ),
    "take back whom nobody misses": Hot(side="control", statement=worker.TAKE_BACK, arguments=(1, []), blocks=50),
    "solo runs": Hot(
        side="control",
        statement=upkeep.HAS_SOLO_RUNS,
        arguments=([crowd.QUEUE] * 3, list(crowd.WORKFLOWS), "3 seconds"),
        by={"runs_ready", "runs_due"},
        touches=1,
    ),
    "unwatch": Hot(
        side="client",
        within=("unwatch_v1", "delete from kedge.watchers"),
        variables={"p_ids": "uuid[]", "p_channel": "text"},
        arguments=(crowd.run_ids("waiting", BATCH), "a_client"),
        by={"watchers_pkey"},
        touches=BATCH,
    ),
    "start": Hot(
        side="client",
        statement=client.START.numbered("kedge"),
        arguments=(
            new_run_id(),
            *STARTED,
            b"\x01",
            None,
            None,
            None,
            "return",
            None,
            None,
            None,
            None,
            False,
            None,
            None,
        ),
        blocks=50,
    ),
    "start with a key that is taken": Hot(
        side="client",
        statement=client.START.numbered("kedge"),
        arguments=(
            new_run_id(),
            *STARTED,
            b"\x01",
            None,
            "key-3",
            b"\x00",
            "return",
            "customer-3",
            None,
            None,
            None,
            False,
            None,
            None,
        ),
        blocks=50,
    ),
    "start many": Hot(
        side="client",
        statement=client.START_MANY.numbered("kedge"),
        arguments=(
            [new_run_id() for _ in range(BATCH)],
            *STARTED,
            [b"\x01"] * BATCH,
            *[None] * 3,
            "return",
            *[None] * 4,
            False,
            None,
            None,
        ),
        blocks=50 * BATCH,
    ),
    "start many: those that were there": Hot(
        side="client",
        within=("start_runs_v1", "return query\n            select b.place::int, b.id, true"),
        variables={"p_ids": "uuid[]", "v_new": "uuid[]"},
        arguments=(MIXED, MIXED[:1]),
        by={"runs_pkey", "finished_pkey"},
        touches=BATCH,
    ),
    "cancel": Hot(
        side="client",
        statement=letters.CANCEL.numbered("kedge"),
        arguments=(new_run_id(), crowd.run_id("pending", 1), None, None, False),
        blocks=60,
    ),
    "resume": Hot(
        side="client",
        statement=letters.RESUME.numbered("kedge"),
        arguments=(new_run_id(), crowd.run_id("waiting", 1), "customer-1"),
        blocks=60,
    ),
    "fast-forward": Hot(
        side="client",
        statement=letters.FAST_FORWARD.numbered("kedge"),
        arguments=(new_run_id(), crowd.run_id("waiting", 1), None, None, b"\x01null"),
        blocks=60,
    ),
    "send": Hot(
        side="client",
        statement=letters.SEND.numbered("kedge"),
        arguments=(new_run_id(), crowd.run_id("waiting", 1), None, "settled", None, b"\x01null"),
        blocks=60,
    ),
    "send to a topic": Hot(
        side="client",
        statement=letters.SEND.numbered("kedge"),
        arguments=(new_run_id(), None, "orders", "settled", None, b"\x01null"),
        blocks=60,
    ),
    "send: to whom, whether it is there, what is unread, who waits": Hot(
        side="client",
        within=("send_v1", "select a.state, a.has_ended"),
        variables={"p_run": "uuid", "p_resource": "text", "p_letter": "uuid", "v_slot": "text"},
        arguments=(crowd.run_id("waiting", 1), None, new_run_id(), "e:settled"),
        by={"runs_pkey", "finished_pkey", "events_pkey", "events_unread", "inbox_run", "waits_pkey"},
        touches=7,
    ),
}
