"""The log of a run: the standard library's, with the run's id, and silent while the run only repeats what it knows."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kedge_worker._execution import Execution

_log: Final = logging.getLogger("kedge.run")


class RunLog(logging.LoggerAdapter[logging.Logger]):
    """Each record has `run_id`, `workflow` and `attempt` as extra; the logger is `kedge.run`."""

    def __init__(self, execution: Execution) -> None:
        claimed = execution.run.claimed
        super().__init__(_log, {"run_id": str(claimed.id), "workflow": claimed.workflow, "attempt": claimed.attempt})
        self._execution = execution

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        """Whether a line of this level goes anywhere now."""
        return not self._execution.replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Put the run into the line's extra."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
