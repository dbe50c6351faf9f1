"""Deleting ended runs as the single statements that it is, and what is left of them."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from kedge_worker._upkeep import DELETE_ENDED
from tests import moves
from tests.sessions import Session

FIRST: Final = UUID(int=0)
DAY_S: Final = 86_400.0

HISTORY: Final = (
    "journal", "failures", "events", "run_log", "run_tags", "run_keys", "progress", "run_metadata", "waits", "removals",
)  # fmt: skip
"""Every table but those of runs in which rows of an ended run may stand."""


def keep(
    session: Session,
    workflow: str = moves.WORKFLOW,
    *,
    completed_s: float | None = DAY_S,
    failed_s: float | None = DAY_S,
    cancelled_s: float | None = DAY_S,
) -> None:
    """Say how long ended runs of a workflow are kept, as a worker does."""
    session.rows(
        "select kedge.register_definitions(array[$1]::text[], '{null}', array[''::bytea], array[$2]::float8[],"
        " array[$3]::float8[], array[$4]::float8[])",
        (workflow, completed_s, failed_s, cancelled_s),
    )


def delete(
    session: Session, *workflows: str, after: UUID = FIRST, limit: int = 100, rows: int = 1000
) -> list[tuple[str, UUID, int, bool]]:
    """One batch: of each workflow where it stopped, how many were deleted, and whether it is done."""
    names = list(workflows or [moves.WORKFLOW])
    return session.rows(
        moves.statement_of(DELETE_ENDED),
        {"workflows": names, "after": [after] * len(names), "limit": limit, "rows": rows},
    )


def deleted(session: Session, *workflows: str) -> int:
    """One batch: how many went."""
    return sum(count for _, _, count, _ in delete(session, *workflows))


def ended(
    session: Session, status: str = "c", *, steps: int = 1, workflow: str = moves.WORKFLOW, **options: Any
) -> UUID:
    """A new run that has ended, with so many steps."""
    worker = moves.register(session)
    answer = moves.start(session, workflow=workflow, **options)
    assert answer.run is not None
    lanes = {(moves.QUEUE, workflow): moves.LOWEST}
    session.begin()
    moves.hold(session, worker)
    (run,) = moves.claim(session, worker, floors=lanes)
    session.commit()
    for seq in range(1, steps + 1):
        moves.keep(session, worker, run, seq)
    moves.end(session, worker, run, status, rows=(1, steps) if steps else None)
    return run.id


def rows_of(session: Session, run: UUID) -> dict[str, int]:
    """How many rows of it there are, by table."""
    counts = {
        table: session.value(f"select count(*) from kedge.{table} where run_id = $1", (run,)) for table in HISTORY
    }
    counts["finished"] = session.value("select count(*) from kedge.finished where id = $1", (run,))
    return {table: count for table, count in counts.items() if count}


def is_known(session: Session, run: UUID) -> bool:
    return bool(moves.statuses(session, [run]))
