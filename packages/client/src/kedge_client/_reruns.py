"""A new run from a step of one that has ended: what is sent, and how the answer is read. Pure, shared by the twins."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from kedge.errors import InvalidRunStateError, RunActiveError, RunNotFoundError, StepNotFoundError
from kedge.ids import new_run_id
from kedge.names import VERSION_SIGN, check_name
from kedge.refs import WorkflowRef
from kedge.run_state import RunStatus
from kedge_client._calls import Call, Rows
from kedge_client._round_trip import Command
from kedge_client._run_refs import BaseRunHandle, RunRef, run_id_of
from kedge_client._statements import RERUN, RERUN_AND_RING, RING_RUN

_ENDED: Final[tuple[RunStatus, ...]] = ("completed", "failed", "cancelled")


class Reran(NamedTuple):
    """The new run."""

    run_id: UUID
    ref: WorkflowRef[Any, Any]
    """The handle's that named the old run; else one without types."""


class Rerun:
    """One call of `rerun_from`; the new run's id is made with it, before the first try."""

    def __init__(self, run: RunRef, step_id: object, *, resource: str | None) -> None:
        """
        Check what can be checked here.

        Raises:
            UsageError: It names no run, or no step's key.
        """
        self._run_id = run_id_of(run)
        self._step = check_name("step", step_id)
        self._ref = run.ref if isinstance(run, BaseRunHandle) else None
        self._new_id = new_run_id()
        self._values = (self._new_id, self._run_id, resource, self._step)

    def call(self, *, wake: bool) -> Call[Reran]:
        """Start the new run, and ring behind the commit."""
        transactions = [[Command(RERUN, self._values)]]
        if wake:
            transactions.append([Command(RING_RUN, (self._new_id,))])
        return Call(lambda: transactions, self._read, writes=True)

    def here(self, *, wake: bool) -> list[Command]:
        """Start it in a caller's transaction; rings when that commits."""
        return [Command(RERUN_AND_RING if wake else RERUN, self._values)]

    def _read(self, answers: list[Rows]) -> Reran:
        if not answers[0]:
            raise RunNotFoundError(self._run_id)
        created, status, workflow, keys, key, holder = answers[0][0][:6]
        if not created:
            if key is not None:
                raise RunActiveError(self._new_id, holder, workflow, key)
            if keys is not None:
                raise StepNotFoundError(self._run_id, self._step, tuple(keys))
            raise InvalidRunStateError(self._run_id, cast("RunStatus", status), _ENDED, "rerun")
        name, _, version = str(workflow).partition(VERSION_SIGN)
        return Reran(self._new_id, self._ref or WorkflowRef.untyped(name, version=version or None))
