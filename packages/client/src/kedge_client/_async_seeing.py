"""What the async client reads of runs; a base of its public face. Twin of _sync_seeing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

import kedge_client._reads as reads
from kedge.progress import Progress
from kedge.refs import WorkflowRef
from kedge.run_state import RunStatus
from kedge_client._async_core import AsyncCore
from kedge_client._pages import MAX_LIMIT, filters, narrowed, place, workflow_name
from kedge_client._run_refs import RunRef, run_id_of
from kedge_client._step_views import StepView
from kedge_client._views import Page, RunView
from kedge_client._watching import RunEvent, Watching


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
        return await self._core.call(
            reads.get(run_id_of(run), resource=self._resource, codec=self._core.settings.codec)
        )

    async def last(self, ref: WorkflowRef[Any, Any], /, *, resource: str | None = None) -> RunView | None:
        """Return the workflow's newest run, of a resource if one is given; None if there is none."""
        found = narrowed(filters(workflow=ref, resource=resource), self._resource)
        return (
            await self._core.call(
                reads.last(workflow_name(ref), resource=found.resource, codec=self._core.settings.codec)
            )
            if found
            else None
        )

    async def steps(self, run: RunRef, /) -> list[StepView]:
        """
        Return what became of a run's steps, in the order in which it reached the handler, and then what is open.

        Also of its waits, children and everything else that a handler asks for. All in one answer: a run has at most
        10,000 of them.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self._core.call(
            reads.steps(run_id_of(run), resource=self._resource, codec=self._core.settings.codec)
        )

    async def progress(self, run: RunRef, /) -> Progress:
        """
        Return how far a run is.

        As its handler says; else by the steps that its definition declares; else by those that the last run needed that
        had completed when this one began.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self._core.call(reads.progress(run_id_of(run), resource=self._resource))

    async def watch(self, run: RunRef, /, *, after: int = 0) -> AsyncIterator[RunEvent]:
        """
        Walk what happens to a run, from its beginning or from where an earlier walk has stopped, until its end.

        Each step that is kept, each line of its log and each note about a letter comes once, in order. Its status and
        progress come as they are now, at first and when they have changed; those that lasted shorter than a look may be
        missed. The status with which it ends is the last event: watch a run that is retried afterwards again.

        Pushed by NOTIFY where a listener is possible; else, and in case, it looks each second, slowing down to every
        five while nothing happens. Holds no pooled connection between looks. An outage of the database is waited for.

        Args:
            run: A handle, a view or an id.
            after: `seq` of the last event that was seen.

        Raises:
            RunNotFoundError: There is no such run.
            InvalidOptionError: `after` is no seq.
        """
        watching = Watching(run_id_of(run), after, resource=self._resource, codec=self._core.settings.codec)
        async with aclosing(self._core.watch(watching)) as events:
            async for event in events:
                yield event

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
        return (
            await self._core.call(reads.list_page(asked, found, where, codec=self._core.settings.codec))
            if found
            else Page([])
        )

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
        return await self._core.call(reads.count(found)) if found else 0
