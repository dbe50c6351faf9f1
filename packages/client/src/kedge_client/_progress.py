"""How far a run is, as a client reads it."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from kedge.progress import Progress, ProgressParts, progress_of
from kedge.run_state import RunStatus


class ProgressRow(NamedTuple):
    """A row of progress_v1."""

    status: RunStatus
    reason: str | None
    since: datetime
    is_said: bool
    at: datetime
    done: int | None
    total: int | None
    percent: float | None
    message: str | None
    steps: int | None
    declared: int | None
    learned: int | None

    def progress(self) -> Progress:
        """Make one answer of the parts."""
        return progress_of(
            ProgressParts(
                status=self.status,
                steps=self.steps or 0,
                declared=self.declared,
                learned=self.learned,
                is_said=self.is_said,
                done=self.done or 0,
                total=self.total,
                percent=self.percent,
                message=self.message,
            )
        )
