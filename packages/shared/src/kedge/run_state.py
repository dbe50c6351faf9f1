"""The statuses of a run, their letters in the database, and every move from one to another that exists."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

RunStatus: TypeAlias = Literal["pending", "running", "waiting", "paused", "completed", "failed", "cancelled"]

CODES: Final[dict[RunStatus, str]] = {
    "pending": "p",
    "running": "r",
    "waiting": "w",
    "paused": "s",
    "completed": "c",
    "failed": "f",
    "cancelled": "x",
}
"""What stands in the columns `runs.state` and `finished.status`."""

STATUSES: Final[dict[str, RunStatus]] = {code: status for status, code in CODES.items()}
"""The status behind a column's letter."""

TERMINAL: Final[frozenset[RunStatus]] = frozenset({"completed", "failed", "cancelled"})
"""A run in one of these has ended, for good unless it is retried."""

LIVE: Final[frozenset[RunStatus]] = frozenset({"pending", "running", "waiting", "paused"})

STARTS: Final[frozenset[RunStatus]] = frozenset({"pending", "waiting"})
"""What a new run begins with: `waiting` when its start is delayed."""

MOVES: Final[frozenset[tuple[RunStatus, RunStatus]]] = frozenset(
    {
        # claim: of a run in the queue, or of one whose time has come
        ("pending", "running"),
        ("waiting", "running"),
        # give back, take back, an immediate retry
        ("running", "pending"),
        # park, retry later
        ("running", "waiting"),
        # wake: mail, a child's end
        ("waiting", "pending"),
        # pause by the operator; a running run meets the request when it leaves "running"
        ("pending", "paused"),
        ("waiting", "paused"),
        ("running", "paused"),
        # resume; a run whose time has not come goes on waiting
        ("paused", "pending"),
        ("paused", "waiting"),
        # the end by its own handler
        ("running", "completed"),
        # the end by the handler, by a deadline, by too many crashes
        ("pending", "failed"),
        ("running", "failed"),
        ("waiting", "failed"),
        ("paused", "failed"),
        # cancel
        ("pending", "cancelled"),
        ("running", "cancelled"),
        ("waiting", "cancelled"),
        ("paused", "cancelled"),
        # retry, the only way back
        ("failed", "pending"),
    }
)


def may_move(before: RunStatus, after: RunStatus) -> bool:
    """Tell whether a run may go from one status to the other in one move."""
    return (before, after) in MOVES
