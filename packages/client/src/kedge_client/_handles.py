"""What a start answers: the run's id, with the type of its result and the means to ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import kedge_client._calls as calls
import kedge_client._reads as reads
from kedge.durations import Duration
from kedge.refs import WorkflowRef
from kedge.run_state import RunStatus
from kedge_client._async_control import AsyncRunControl
from kedge_client._lent import AnyConnection
from kedge_client._reruns import Rerun
from kedge_client._results import Wait
from kedge_client._run_refs import BaseRunHandle
from kedge_client._sync_control import SyncRunControl
from kedge_client._views import RunView

if TYPE_CHECKING:
    from kedge_client._async_connections import AsyncConnection
    from kedge_client._async_core import AsyncCore
    from kedge_client._sync_connections import SyncConnection
    from kedge_client._sync_core import SyncCore

Out_co = TypeVar("Out_co", covariant=True)


class RunHandle(BaseRunHandle[Out_co], SyncRunControl):
    """A run, seen through a `Client`."""

    __slots__ = ("_core",)

    def __init__(
        self,
        core: SyncCore,
        ref: WorkflowRef[Any, Out_co],
        run_id: UUID,
        *,
        resource: str | None,
        created: bool | None = None,
        conn: AnyConnection | None = None,
    ) -> None:
        super().__init__(ref, run_id, resource=resource, created=created, conn=conn)
        self._core = core

    def result(self, timeout: Duration | None = None) -> Out_co:
        """
        Wait until the run ends and return its result.

        Pushed by NOTIFY where a listener is possible; else polls, for all waiters of the client together, every 0.1 s
        at first, doubling to 2 s. Holds no pooled connection between looks.

        Args:
            timeout: How long to wait; None: until the run ends. Zero looks once. The run goes on if the time is up.

        Raises:
            DomainError: The declared error that the run ended with, as its class.
            RunFailedError: The run ended `failed`; `.error` holds what the handler raised.
            RunCancelledError: Somebody cancelled the run.
            ResultTimeoutError: Not ended yet when the time was up.
            TransactionStateError: The transaction that started the run is still open.
            RunNotFoundError: There is no such run.
            NotDecodableError: The ref's type no longer fits what the run returned; KeyMissingError, if it is encrypted
                with a key that is not held here, and DamagedPayloadError are such.
        """
        wait = Wait(
            self._ref,
            self._id,
            timeout,
            resource=self._resource,
            created=self._created,
            conn=self._conn,
            codec=self._core.settings.codec,
        )
        return self._core.result(wait)

    def status(self) -> RunStatus:
        """
        Return the run's status.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return self._core.call(calls.status(self._id, resource=self._resource))

    def view(self) -> RunView:
        """
        Return all that there is to see of the run.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return self._core.call(reads.get(self._id, resource=self._resource, codec=self._core.settings.codec))

    def rerun_from(self, step_id: str, /, *, conn: SyncConnection | None = None) -> RunHandle[Out_co]:
        """
        Start a new run from a step of this one, which has ended, and return the new one.

        What was kept before that step's first outcome is taken over; see the client's method.

        Args:
            step_id: The step's key, as `steps` of the client shows it.
            conn: As for the client's `start`.

        Raises:
            InvalidRunStateError: It has not ended.
            StepNotFoundError: Nothing is kept of such a step; `.keys` are some that there are.
            RunActiveError: It is one of a singleton, of which another run is active.
            RunNotFoundError: There is no such run.
        """
        found = self._core.post(Rerun(self, step_id, resource=self._resource), conn)
        return RunHandle(self._core, self._ref, found.run_id, resource=self._resource, created=True, conn=conn)


class AsyncRunHandle(BaseRunHandle[Out_co], AsyncRunControl):
    """A run, seen through an `AsyncClient`."""

    __slots__ = ("_core",)

    def __init__(
        self,
        core: AsyncCore,
        ref: WorkflowRef[Any, Out_co],
        run_id: UUID,
        *,
        resource: str | None,
        created: bool | None = None,
        conn: AnyConnection | None = None,
    ) -> None:
        super().__init__(ref, run_id, resource=resource, created=created, conn=conn)
        self._core = core

    async def result(self, timeout: Duration | None = None) -> Out_co:  # noqa: ASYNC109  # as its twin
        """
        Wait until the run ends and return its result. Cancelling the wait does not cancel the run.

        Pushed by NOTIFY where a listener is possible; else polls, for all waiters of the client together, every 0.1 s
        at first, doubling to 2 s. Holds no pooled connection between looks.

        Args:
            timeout: How long to wait; None: until the run ends. Zero looks once. The run goes on if the time is up.

        Raises:
            DomainError: The declared error that the run ended with, as its class.
            RunFailedError: The run ended `failed`; `.error` holds what the handler raised.
            RunCancelledError: Somebody cancelled the run.
            ResultTimeoutError: Not ended yet when the time was up.
            TransactionStateError: The transaction that started the run is still open.
            RunNotFoundError: There is no such run.
            NotDecodableError: The ref's type no longer fits what the run returned; KeyMissingError, if it is encrypted
                with a key that is not held here, and DamagedPayloadError are such.
        """
        wait = Wait(
            self._ref,
            self._id,
            timeout,
            resource=self._resource,
            created=self._created,
            conn=self._conn,
            codec=self._core.settings.codec,
        )
        return await self._core.result(wait)

    async def status(self) -> RunStatus:
        """
        Return the run's status.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self._core.call(calls.status(self._id, resource=self._resource))

    async def view(self) -> RunView:
        """
        Return all that there is to see of the run.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self._core.call(reads.get(self._id, resource=self._resource, codec=self._core.settings.codec))

    async def rerun_from(self, step_id: str, /, *, conn: AsyncConnection | None = None) -> AsyncRunHandle[Out_co]:
        """
        Start a new run from a step of this one, which has ended, and return the new one.

        What was kept before that step's first outcome is taken over; see the client's method.

        Args:
            step_id: The step's key, as `steps` of the client shows it.
            conn: As for the client's `start`.

        Raises:
            InvalidRunStateError: It has not ended.
            StepNotFoundError: Nothing is kept of such a step; `.keys` are some that there are.
            RunActiveError: It is one of a singleton, of which another run is active.
            RunNotFoundError: There is no such run.
        """
        found = await self._core.post(Rerun(self, step_id, resource=self._resource), conn)
        return AsyncRunHandle(self._core, self._ref, found.run_id, resource=self._resource, created=True, conn=conn)
