"""What a run knows of itself without asking anybody, the same on replay: for async and sync handlers alike."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from kedge.names import check_step_id
from kedge.options import MAX_METADATA_BYTES
from kedge.progress import check_progress
from kedge.run_meta import RunMeta
from kedge.wire import decode, encode
from kedge_worker._run_clock import RunClock
from kedge_worker._run_log import RunLog, clean_text
from kedge_worker._side_writes import SET_PROGRESS

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
        """What the start said beside the input, and what the handler has set since."""
        return MappingProxyType(self._metadata())

    @property
    def log(self) -> RunLog:
        """Lines that are kept with the run; silent on replay."""
        if self._log is None:
            self._log = RunLog(self._execution)
        return self._log

    def set_metadata(self, **values: object) -> None:
        """
        Set some of the run's metadata, for people and for `client.get`; what is set already stays.

        It is kept in one transaction with the next outcome of the run, or with its end. A transactional step is no such
        outcome: it has a transaction of its own.

        Raises:
            PayloadError: It cannot be kept, or is longer than 64 KiB in all.
            HandlerUseError: Used inside a step, or in a task that is no branch of the run.
        """
        self._here()
        execution = self._execution
        merged = {**self._metadata(), **values}
        data = encode(merged, where="metadata", limit=MAX_METADATA_BYTES)
        execution.metadata = decode(data, dict[str, Any], where="metadata")
        execution.unkept_metadata = data

    def progress(self, done: int, total: int | None = None, message: str | None = None, /) -> None:
        """
        Say how far the run is, for `client.progress`. Written at once, and not on replay.

        Args:
            done: So much is done.
            total: Of so much; None: it is not known.
            message: For people; up to 1,000 characters are kept.

        Raises:
            InvalidOptionError: A number is negative or no whole number, or there is more done than there is.
            HandlerUseError: Used inside a step, or in a task that is no branch of the run.
        """
        self._here()
        percent = check_progress(done, total)
        execution = self._execution
        if not execution.replaying:
            said = None if message is None else clean_text(message, limit=1000)
            execution.in_loop(lambda: execution.journal.add(execution.run, SET_PROGRESS, done, total, percent, said))

    def patched(self, change: str, /) -> bool:
        """
        Tell whether this run has a change of the handler's code.

        True for runs that reach it anew, False for those that have gone past it with the code before. Told once, it
        stays so for the run::

            if ctx.patched("fraud-check"):
                await ctx.step("check-fraud", check_fraud, order)

        Args:
            change: Names the change within the workflow, as a step's id does.

        Raises:
            InvalidNameError: The name cannot be one.
            HandlerUseError: Used inside a step, or in a task that is no branch of the run.
        """
        self._here()
        name, execution = check_step_id(change), self._execution
        return execution.in_loop(lambda: execution.patched(name))

    def token(self, token_id: str, /) -> str:
        """
        Answer a text that names this run and this id, the same on every attempt and replay: as an idempotency key for
        other people's APIs.

        Raises:
            InvalidNameError: The id cannot be one.
        """
        return str(uuid5(self.run_id, f"/token/{check_step_id(token_id)}"))

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

    def _metadata(self) -> dict[str, Any]:
        execution = self._execution
        if execution.metadata is None:
            execution.metadata = RunMeta.decode(execution.run.claimed.meta).metadata
        return execution.metadata

    def _here(self) -> Branch:
        raise NotImplementedError
