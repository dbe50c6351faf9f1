"""What may be said of how long ended runs are kept, and which workflow it holds for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from kedge import InvalidDurationError, InvalidOptionError, WorkflowRef
from kedge_worker import Context, Retention, Worker, Workflow, workflow

URL = "postgresql://somewhere/db"
DAY = timedelta(days=1)


def made(name: str = "order", *, version: str | None = None, retention: Any = None) -> Workflow[Any, Any]:
    ref = WorkflowRef(name) if version is None else WorkflowRef(name, version=version)

    @workflow(ref, retention=retention)
    async def handle(ctx: Context) -> None: ...

    return handle


def said(worker: Worker) -> dict[str, tuple[float | None, ...]]:
    """What the database is told of each workflow, in days."""
    return {
        one.name: tuple(None if kept is None else kept / DAY.total_seconds() for kept in one.keep_s)
        for one in worker._registry.definitions()
    }


def test_one_duration_holds_for_every_status_and_a_retention_for_each_its_own() -> None:
    worker = Worker(
        URL,
        workflows=[
            made("a", retention="30d"),
            made("b", retention=Retention(completed="7d", failed="90d", cancelled=DAY)),
        ],
    )

    assert said(worker) == {"a": (30, 30, 30), "b": (7, 90, 1)}


def test_nothing_is_deleted_unless_somebody_says_so() -> None:
    worker = Worker(URL, workflows=[made()])

    assert worker.settings.retention is None
    assert said(worker) == {"order": (None, None, None)}
    assert not worker._registry.forgets


def test_a_workflow_that_says_nothing_is_kept_as_the_worker_says_and_each_version_says_its_own() -> None:
    worker = Worker(
        URL,
        workflows=[
            made("order"),
            made("order", version="2", retention=Retention(failed="2d")),
            made("order", version="3", retention=Retention.FOREVER),
        ],
        retention="10d",
    )

    assert said(worker) == {"order": (10, 10, 10), "order@2": (None, 2, None), "order@3": (None, None, None)}
    assert worker._registry.forgets


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("30d", (30, 30, 30)),
        ("completed=7d, failed=90d", (7, 90, None)),
        ("failed=90d,cancelled=1d", (None, 90, 1)),
    ],
)
def test_the_environment_says_it_too_and_a_keyword_goes_before(
    monkeypatch: pytest.MonkeyPatch, text: str, kept: tuple[float | None, ...]
) -> None:
    monkeypatch.setenv("KEDGE_RETENTION", text)

    assert said(Worker(URL, workflows=[made()])) == {"order": kept}
    assert said(Worker(URL, workflows=[made()], retention="5d")) == {"order": (5, 5, 5)}
    assert said(Worker(URL, workflows=[made(retention="6d")])) == {"order": (6, 6, 6)}


@pytest.mark.parametrize(
    ("given", "named"),
    [("119m", "retention="), (0, "retention="), (timedelta(hours=1), "retention=")],
)
def test_less_than_two_hours_are_refused_wherever_they_are_said(given: Any, named: str) -> None:
    for say in (lambda: made(retention=given), lambda: Worker(URL, workflows=[made()], retention=given)):
        with pytest.raises(InvalidOptionError, match=f"{named}.*two hours"):
            say()


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_retention_that_is_too_short_names_its_status(status: str) -> None:
    with pytest.raises(InvalidOptionError, match=rf"retention\.{status}='1h' is too short"):
        Retention(**{status: "1h"})

    assert Retention(**{status: "2h"}) != Retention.FOREVER


@pytest.mark.parametrize("text", ["1h", "completed=1h", "old=3d", "completed=3d,completed=4d", "completed=3d,"])
def test_an_environment_that_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("KEDGE_RETENTION", text)

    with pytest.raises(InvalidOptionError, match="retention"):
        Worker(URL, workflows=[made()])


@pytest.mark.parametrize("given", ["soon", "3 months", True, -1, object()])
def test_what_is_no_duration_is_refused(given: Any) -> None:
    with pytest.raises(InvalidDurationError, match="retention"):
        made(retention=given)
