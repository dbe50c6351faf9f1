"""The calls that only read, each as one round trip. Pure, shared by the twins."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from kedge.codecs import PayloadCodec
from kedge.errors import RunNotFoundError
from kedge.progress import Progress
from kedge_client._calls import Call, Rows, reading
from kedge_client._opening import opened_failures, opened_steps, seen
from kedge_client._pages import Filters, Place, list_values, page
from kedge_client._progress import ProgressRow
from kedge_client._read_statements import COUNT, FAILURES, GET, LAST, LIST, PROGRESS, RESULTS, STEPS, WAITS
from kedge_client._results import ResultRow
from kedge_client._round_trip import Command
from kedge_client._step_views import FailureRow, StepRow, StepView, WaitRow, step_views
from kedge_client._views import Page, RunRow, RunView

MAX_FAILURES: Final = 1000
"""Attempts that `steps` shows, of one run."""


def get(run_id: UUID, *, resource: str | None, codec: PayloadCodec | None = None) -> Call[RunView]:
    """Read one run."""

    def read(rows: Rows) -> RunView:
        if not rows:
            raise RunNotFoundError(run_id)
        return seen(rows[0], codec)

    return reading(Command(GET, ([run_id], resource)), read)


def last(workflow: str, *, resource: str | None, codec: PayloadCodec | None = None) -> Call[RunView | None]:
    """Read the newest run of a workflow."""
    return reading(Command(LAST, (workflow, resource)), lambda rows: seen(rows[0], codec) if rows else None)


def list_page(
    asked: Filters, found: Filters, where: Place, *, codec: PayloadCodec | None = None
) -> Call[Page[RunView]]:
    """Read one page of a list; cursors remember what was asked, not what a scope made of it."""
    return reading(Command(LIST, list_values(found, where)), lambda rows: page(asked, where, rows, codec))


def count(found: Filters) -> Call[int]:
    """Count runs."""
    statuses = None if found.statuses is None else list(found.statuses)
    values = (found.workflow, statuses, found.resource, found.tag, found.since, found.until)
    return reading(Command(COUNT, values), lambda rows: int(rows[0][0]))


def steps(run_id: UUID, *, resource: str | None, codec: PayloadCodec | None = None) -> Call[list[StepView]]:
    """Read what is kept of a run's steps, what is open, and whether there is such a run."""

    def read(rows: list[Rows]) -> list[StepView]:
        # The wait that ends between the two statements is in both; the other way round it would be in neither.
        runs, waits, kept, failures, *whole = rows
        if not any(resource is None or row.resource == resource for row in map(ResultRow._make, runs)):
            raise RunNotFoundError(run_id)
        steps = [StepRow._make(row) for row in kept]
        failed = [FailureRow._make(row) for row in failures]
        if codec is not None and whole and whole[0]:
            steps = opened_steps(codec, RunRow._make(whole[0][0]), steps)
            failed = opened_failures(codec, run_id, failed)
        return step_views(steps, map(WaitRow._make, waits), failed)

    transaction = [
        Command(RESULTS, ([run_id],)),
        Command(WAITS, (run_id, resource)),
        Command(STEPS, (run_id, resource, 0, None, None)),
        Command(FAILURES, (run_id, resource, MAX_FAILURES)),
    ]
    if codec is not None:  # what a rerun's values are bound to is said by its input
        transaction.append(Command(GET, ([run_id], resource)))
    return Call(lambda: [transaction], read)


def progress(run_id: UUID, *, resource: str | None) -> Call[Progress]:
    """Read how far a run is."""

    def read(rows: Rows) -> Progress:
        if not rows:
            raise RunNotFoundError(run_id)
        return ProgressRow._make(rows[0]).progress()

    return reading(Command(PROGRESS, (run_id, resource)), read)
