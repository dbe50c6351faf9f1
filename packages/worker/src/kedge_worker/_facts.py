"""What a run knows of itself without asking anybody, the same on replay: for async and sync handlers alike."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from kedge.run_meta import RunMeta
from kedge_worker._run_clock import RunClock
from kedge_worker._run_log import RunLog

if TYPE_CHECKING:
    from kedge_worker._branches import Branch
    from kedge_worker._execution import Execution


class RunFacts:
    """The part of a context that does nothing durable."""

    __slots__ = ("_execution", "_log")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._log: RunLog | None = None

    @property
    def run_id(self) -> UUID:
        """The run's id."""
        return self._execution.run.claimed.id

    @property
    def attempt(self) -> int:
        """Which try of the run this is, from 1; more only when the handler failed. Branch on it inside steps only."""
        return self._execution.run.claimed.attempt + 1

    @property
    def resource(self) -> str | None:
        """The application's entity that the run belongs to."""
        return self._execution.run.claimed.resource

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the start said beside the input."""
        return MappingProxyType(RunMeta.decode(self._execution.run.claimed.meta).metadata)

    @property
    def log(self) -> RunLog:
        """A `logging.LoggerAdapter` that is silent on replay."""
        if self._log is None:
            self._log = RunLog(self._execution)
        return self._log

    def now(self) -> datetime:
        """
        Answer the time, in UTC: the same on replay. It stands still between the operations of a branch.

        Raises:
            HandlerUseError: Used inside a step, or in a task that is no branch of the run.
        """
        execution = self._execution
        branch = self._here()
        if execution.clock is None:
            execution.clock = RunClock(execution.run.claimed, execution.started)
        return execution.clock.now(branch)

    def uuid(self) -> UUID:
        """
        Answer a new UUID, made of the run's id, the branch and how often it has asked: the same on replay.

        Raises:
            HandlerUseError: Used inside a step, or in a task that is no branch of the run.
        """
        branch = self._here()
        return uuid5(self.run_id, f"{branch.path}/uuid#{branch.number('/uuid')}")

    def random(self) -> random.Random:
        """
        Answer a new generator of random numbers, seeded like `uuid`: the same numbers on replay.

        Raises:
            HandlerUseError: Used inside a step, or in a task that is no branch of the run.
        """
        branch = self._here()
        seed = uuid5(self.run_id, f"{branch.path}/random#{branch.number('/random')}")
        return random.Random(seed.int)  # noqa: S311  # must be the same on replay; secrets are made in steps

    def _here(self) -> Branch:
        raise NotImplementedError
