"""Who waits for a run's end, and how a notification names the runs that have ended."""

from __future__ import annotations

import asyncio
from uuid import UUID

from kedge.run_state import RunStatus
from kedge_client._results import ResultRow


class Waiter:
    """One who waits for one run."""

    __slots__ = ("ended", "key", "must_exist", "run_id", "status")

    def __init__(self, run_id: UUID, *, must_exist: bool) -> None:
        self.run_id = run_id
        self.key = run_id.bytes
        self.must_exist = must_exist
        """False while the transaction that starts the run may still be open."""
        self.status: RunStatus | None = None
        """As the last look saw it."""
        self.ended: asyncio.Future[ResultRow] = asyncio.get_running_loop().create_future()


def ids_in(payload: str) -> list[bytes]:
    """Read the ids of runs, as their bytes, in what a notification says."""
    ids: list[bytes] = []
    for text in payload.replace("-", "").split(","):
        try:
            ids.append(bytes.fromhex(text))
        except ValueError:  # anybody may send a NOTIFY
            continue
    return ids
