"""Every call of a client as one round trip: what it sends, how it reads the answer. Pure, shared by the twins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast
from uuid import UUID, uuid4

import psycopg

from kedge.errors import InvalidRunStateError, KedgeError, RunNotFoundError
from kedge.run_state import RunStatus
from kedge_client._pages import Filters, Place, list_values, page
from kedge_client._requests import (
    Start,
    Started,
    batch_commands,
    batches,
    conflict_of,
    doorbells,
    start_values,
    started,
    started_in,
)
from kedge_client._results import ResultRow
from kedge_client._round_trip import Command, Row, Transaction
from kedge_client._statements import (
    CANCEL,
    CANCEL_AND_RING,
    COUNT,
    GET,
    LAST,
    LIST,
    RESULTS,
    RING,
    RING_ON_COMMIT,
    START,
    START_AND_RING,
    STEPS,
)
from kedge_client._views import Page, RunView, StepView, run_view, step_view

T = TypeVar("T")

Rows: TypeAlias = list[Row]
Explain: TypeAlias = Callable[[psycopg.Error], KedgeError | None]

# The order of their dictionary is the order in which people think of them.
_LIVE: Final[tuple[RunStatus, ...]] = ("pending", "running", "waiting", "paused")


def _nothing_special(_: psycopg.Error) -> KedgeError | None:
    return None


class Call(NamedTuple, Generic[T]):
    """One round trip: only the first transaction counts, the others (the doorbell) may fail without a word."""

    transactions: Callable[[], Sequence[Transaction]]
    """Asked anew for each try."""
    read: Callable[[list[Rows]], T]
    """Makes the answer of the rows of each command of the first transaction."""
    writes: bool = False
    """Whether the outcome is unknown when no answer comes."""
    explain: Explain = _nothing_special
    """The error of this call alone, if it is one."""


def _read(command: Command, read: Callable[[Rows], T]) -> Call[T]:
    def read_first(rows: list[Rows]) -> T:
        return read(rows[0])

    return Call(lambda: [[command]], read_first)


def _write(command: Command, bells: Iterable[tuple[str | None, str | None]], read: Callable[[Rows], T]) -> Call[T]:
    transactions: list[Transaction] = [[command], *([Command(RING, bell)] for bell in bells)]

    def read_first(rows: list[Rows]) -> T:
        return read(rows[0])

    return Call(lambda: transactions, read_first, writes=True)


def start(one: Start, *, wake: bool) -> Call[Started]:
    """Start one run, then ring."""
    return _write(
        Command(START, start_values(one)), doorbells([one]) if wake else (), lambda rows: started(one, rows[0])
    )


def start_here(one: Start, *, wake: bool) -> list[Command]:
    """Start one run in a caller's transaction; rings when that commits."""
    return [Command(START_AND_RING if wake else START, start_values(one))]


class ManyStarts:
    """Many runs, all or none of them."""

    def __init__(self, starts: Sequence[Start], *, wake: bool) -> None:
        self._starts = starts
        self._bells = doorbells(starts) if wake else []
        self._batches = batches(starts)

    def call(self) -> Call[list[Started]]:
        """Start them in one transaction, then ring once a queue and workflow."""

        def transactions() -> Sequence[Transaction]:
            return [batch_commands(self._batches), *([Command(RING, bell)] for bell in self._bells)]

        return Call(transactions, self.read, writes=True, explain=self.explain)

    def here(self) -> Iterator[Command]:
        """Start them in a caller's transaction; rings when that commits."""
        yield from batch_commands(self._batches)
        for bell in self._bells:
            yield Command(RING_ON_COMMIT, bell)

    def read(self, rows: Sequence[Rows]) -> list[Started]:
        """Answer what became of each, in the caller's order."""
        found: dict[int, Started] = {}
        for batch, answered in zip(self._batches, rows, strict=False):
            found.update(started_in(batch, answered))
        return [found[place] for place in range(len(self._starts))]

    def explain(self, error: psycopg.Error) -> KedgeError | None:
        """Name the request whose key is taken."""
        return conflict_of(self._starts, error)


def cancel(run_id: UUID, *, resource: str | None, reason: str | None, wake: bool) -> Call[RunStatus]:
    """Put a letter into the inbox, then ring for anybody."""
    letter = Command(CANCEL, _cancel_values(run_id, resource=resource, reason=reason))
    return _write(letter, [(None, None)] if wake else (), lambda rows: cancelled(run_id, rows))


def cancel_here(run_id: UUID, *, resource: str | None, reason: str | None, wake: bool) -> list[Command]:
    """Put a letter into the inbox in a caller's transaction; rings when that commits."""
    statement = CANCEL_AND_RING if wake else CANCEL
    return [Command(statement, _cancel_values(run_id, resource=resource, reason=reason))]


def _cancel_values(run_id: UUID, *, resource: str | None, reason: str | None) -> tuple[Any, ...]:
    # The letter's id is made before the first try, so that a repeat is the same letter.
    return (uuid4(), run_id, resource, reason)


def cancelled(run_id: UUID, rows: Rows) -> RunStatus:
    """
    Read what cancel_run_v1 answered.

    Raises:
        RunNotFoundError: There is no such run.
        InvalidRunStateError: It has completed or failed.
    """
    if not rows:
        raise RunNotFoundError(run_id)
    accepted, status = cast("tuple[bool, RunStatus]", rows[0][:2])
    if not accepted and status != "cancelled":
        raise InvalidRunStateError(run_id, status, _LIVE, "cancel")
    return status


def get(run_id: UUID, *, resource: str | None) -> Call[RunView]:
    """Read one run."""

    def read(rows: Rows) -> RunView:
        if not rows:
            raise RunNotFoundError(run_id)
        return run_view(rows[0])

    return _read(Command(GET, ([run_id], resource)), read)


def last(workflow: str, *, resource: str | None) -> Call[RunView | None]:
    """Read the newest run of a workflow."""
    return _read(Command(LAST, (workflow, resource)), lambda rows: run_view(rows[0]) if rows else None)


def results(ids: Sequence[UUID]) -> Call[list[ResultRow]]:
    """Look whether runs have ended."""
    return _read(Command(RESULTS, (ids,)), lambda rows: [ResultRow(*row) for row in rows])


def status(run_id: UUID, *, resource: str | None) -> Call[RunStatus]:
    """Read one run's status."""

    def read(rows: Rows) -> RunStatus:
        found = [row for row in map(ResultRow._make, rows) if resource is None or row.resource == resource]
        if not found:
            raise RunNotFoundError(run_id)
        return found[0].status

    return _read(Command(RESULTS, ([run_id],)), read)


def list_page(asked: Filters, found: Filters, where: Place) -> Call[Page[RunView]]:
    """Read one page of a list; cursors remember what was asked, not what a scope made of it."""
    return _read(Command(LIST, list_values(found, where)), lambda rows: page(asked, where, rows))


def count(found: Filters) -> Call[int]:
    """Count runs."""
    statuses = None if found.statuses is None else list(found.statuses)
    values = (found.workflow, statuses, found.resource, found.tag, found.since, found.until)
    return _read(Command(COUNT, values), lambda rows: int(rows[0][0]))


def steps(run_id: UUID, *, resource: str | None) -> Call[list[StepView]]:
    """Read what is kept of a run's steps, and whether there is such a run."""

    def read(rows: list[Rows]) -> list[StepView]:
        if not any(resource is None or row[2] == resource for row in rows[0]):
            raise RunNotFoundError(run_id)
        return [step_view(row) for row in rows[1]]

    transaction = [Command(RESULTS, ([run_id],)), Command(STEPS, (run_id, resource))]
    return Call(lambda: [transaction], read)
