"""What the async client reads of runs; a base of its public face. Twin of _sync_seeing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import kedge_client._calls as calls
from kedge.refs import WorkflowRef
from kedge.run_state import RunStatus
from kedge_client._async_core import AsyncCore
from kedge_client._pages import MAX_LIMIT, filters, narrowed, place, workflow_name
from kedge_client._run_refs import RunRef, run_id_of
from kedge_client._views import Page, RunView, StepView


class AsyncSeeing:
    """The methods of `AsyncClient` that only read."""

    _core: AsyncCore
    _resource: str | None

    async def get(self, run: RunRef, /) -> RunView:
        """
        Return all that there is to see of a run.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self._core.call(calls.get(run_id_of(run), resource=self._resource))

    async def last(self, ref: WorkflowRef[Any, Any], /, *, resource: str | None = None) -> RunView | None:
        """Return the workflow's newest run, of a resource if one is given; None if there is none."""
        found = narrowed(filters(workflow=ref, resource=resource), self._resource)
        return await self._core.call(calls.last(workflow_name(ref), resource=found.resource)) if found else None

    async def steps(self, run: RunRef, /) -> list[StepView]:
        """
        Return what is kept of a run's steps, in the order in which their outcomes reached the handler.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self._core.call(calls.steps(run_id_of(run), resource=self._resource))

    async def list_runs(
        self,
        *,
        workflow: WorkflowRef[Any, Any] | str | None = None,
        status: RunStatus | Sequence[RunStatus] | None = None,
        resource: str | None = None,
        parent: RunRef | None = None,
        tag: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[RunView]:
        """
        Return a page of runs, newest first, without their payloads.

        Args:
            workflow: A ref, or a name; without a version every version is meant.
            status: One or several.
            resource: The entity that the runs belong to.
            parent: The run that started them.
            tag: One of their tags.
            since: Started then or later, by the clock of the client that started them.
            until: Started before.
            limit: 1 to 200.
            cursor: `next_cursor` or `prev_cursor` of a page with the same filters.

        Raises:
            InvalidOptionError: A limit out of range, a cursor of another list, an unknown status.
        """
        asked = filters(
            workflow=workflow,
            status=status,
            resource=resource,
            parent=None if parent is None else run_id_of(parent),
            tag=tag,
            since=since,
            until=until,
        )
        where = place(asked, limit=limit, cursor=cursor)
        found = narrowed(asked, self._resource)
        return await self._core.call(calls.list_page(asked, found, where)) if found else Page([])

    async def iter_runs(
        self,
        *,
        workflow: WorkflowRef[Any, Any] | str | None = None,
        status: RunStatus | Sequence[RunStatus] | None = None,
        resource: str | None = None,
        parent: RunRef | None = None,
        tag: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[RunView]:
        """Walk all pages of `list_runs`, newest first. Runs started meanwhile are not met."""
        cursor: str | None = None
        while True:
            page = await self.list_runs(
                workflow=workflow,
                status=status,
                resource=resource,
                parent=parent,
                tag=tag,
                since=since,
                until=until,
                limit=MAX_LIMIT,
                cursor=cursor,
            )
            for view in page.items:
                yield view
            cursor = page.next_cursor
            if cursor is None:
                return

    async def count_runs(
        self,
        *,
        workflow: WorkflowRef[Any, Any] | str | None = None,
        status: RunStatus | Sequence[RunStatus] | None = None,
        resource: str | None = None,
        tag: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> int:
        """Count runs, exactly: with a long history narrow it down."""
        asked = filters(workflow=workflow, status=status, resource=resource, tag=tag, since=since, until=until)
        found = narrowed(asked, self._resource)
        return await self._core.call(calls.count(found)) if found else 0
