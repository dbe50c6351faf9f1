"""One database, one client, and a worker that works until there is nothing to do: what tests of waiting runs need."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from kedge.refs import RunRequest, WorkflowRef
from kedge_client import Client, RunHandle
from kedge_worker import Worker, workflow

Out = TypeVar("Out")


class Stage:
    """`play` starts a run and executes what can be executed; `go_on` executes again, in a worker that knows nothing."""

    def __init__(self, url: str, client: Client) -> None:
        self.url = url
        self.client = client
        self._workflows: tuple[Any, ...] = ()

    def cast(self, *workflows: Any) -> None:
        """What the next workers have handlers for."""
        self._workflows = workflows

    async def play(self, request: RunRequest[Out], *workflows: Any) -> RunHandle[Out]:
        """Start a run and execute it as far as it comes by itself."""
        if workflows:
            self.cast(*workflows)
        run = self.client.start(request)
        await self.go_on()
        return run

    async def go_on(self) -> int:
        """Execute what can be executed; answers how many runs have ended."""
        return await Worker(self.url, workflows=self._workflows).run_until_idle()

    def kinds(self, run: RunHandle[Any]) -> list[str]:
        """The keys of the run's steps with their kinds and statuses, in order."""
        return [f"{step.key} {step.kind} {step.status}" for step in self.client.steps(run)]

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What stands in the tables."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            return conn.execute(query.encode(), values).fetchall()

    def epoch(self, run: RunHandle[Any] | UUID) -> int:
        """How often the run was claimed and taken back."""
        run_id = run if isinstance(run, UUID) else run.id
        ((epoch,),) = self.rows("select epoch from kedge.all_runs where id = %s", run_id)
        return int(epoch)


@contextmanager
def stage(url: str) -> Generator[Stage]:
    """Open and close a client around it."""
    with Client.connect(url) as client:
        yield Stage(url, client)


def handled(handler: Any, *, name: str = "play") -> tuple[WorkflowRef[Any, Any], Any]:
    """A handler without input, with a ref of its own."""
    ref = WorkflowRef[Any, Any](name, None, Any)
    return ref, workflow(ref)(handler)
