"""Every call of a client as one round trip: what it sends, how it reads the answer. Pure, shared by the twins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar
from uuid import UUID

import psycopg

from kedge.errors import KedgeError, RunNotFoundError
from kedge.run_state import RunStatus
from kedge_client._read_statements import RESULTS
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
    RING,
    RING_ON_COMMIT,
    START,
    START_AND_RING,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Rows: TypeAlias = list[Row]
Explain: TypeAlias = Callable[[psycopg.Error], KedgeError | None]


def _nothing_special(_: psycopg.Error) -> KedgeError | None:
    return None


class Call(NamedTuple, Generic[T_co]):
    """One round trip: only the first transaction counts, the others (the doorbell) may fail without a word."""

    transactions: Callable[[], Sequence[Transaction]]
    """Asked anew for each try."""
    read: Callable[[list[Rows]], T_co]
    """Makes the answer of the rows of each command of the first transaction."""
    writes: bool = False
    """Whether the outcome is unknown when no answer comes."""
    explain: Explain = _nothing_special
    """The error of this call alone, if it is one."""


class Posting(Protocol[T_co]):
    """Something that is asked for with one statement, on a connection of the client's or in a caller's transaction."""

    def call(self, *, wake: bool) -> Call[T_co]:
        """Do it, and ring behind the commit."""
        ...

    def here(self, *, wake: bool) -> list[Command]:
        """Do it in a caller's transaction; rings when that commits. The call reads the answer."""
        ...


def reading(command: Command, read: Callable[[Rows], T]) -> Call[T]:
    """Make the call of one statement that only reads."""

    def read_first(rows: list[Rows]) -> T:
        return read(rows[0])

    return Call(lambda: [[command]], read_first)


def writing(command: Command, bells: Iterable[tuple[str | None, str | None]], read: Callable[[Rows], T]) -> Call[T]:
    """Make the call of one statement that writes; it rings for each queue and workflow, behind the commit."""
    transactions: list[Transaction] = [[command], *([Command(RING, bell)] for bell in bells)]

    def read_first(rows: list[Rows]) -> T:
        return read(rows[0])

    return Call(lambda: transactions, read_first, writes=True)


def start(one: Start, *, wake: bool) -> Call[Started]:
    """Start one run, then ring."""
    transactions: list[Transaction] = [[Command(START, start_values(one))]]
    if wake:
        transactions += [[Command(RING, bell)] for bell in doorbells((one,))]

    def read(rows: list[Rows]) -> Started:
        return started(one, rows[0][0])

    return Call(lambda: transactions, read, writes=True)


def start_here(one: Start, *, wake: bool) -> list[Command]:
    """Start one run in a caller's transaction; rings when that commits."""
    return [Command(START_AND_RING if wake else START, start_values(one))]


class ManyStarts:
    """Many runs, all or none of them."""

    def __init__(self, starts: Sequence[Start], *, wake: bool) -> None:
        self.starts: Final = starts
        self._batches = batches(starts)
        # The starts of a batch have one queue, workflow and time.
        self._bells = doorbells(batch.starts[0] for batch in self._batches) if wake else []

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
        if not any(rows):
            return [Started(one.run_id, created=True) for one in self.starts]
        found: dict[int, Started] = {}
        for batch, answered in zip(self._batches, rows, strict=False):
            found.update(started_in(batch, answered))
        return [found[place] for place in range(len(self.starts))]

    def explain(self, error: psycopg.Error) -> KedgeError | None:
        """Name the request whose key is taken."""
        return conflict_of(self.starts, error)


def results(ids: Sequence[UUID | bytes]) -> Call[list[ResultRow]]:
    """Look whether runs have ended."""
    return reading(Command(RESULTS, (ids,)), lambda rows: [ResultRow(*row) for row in rows])


def status(run_id: UUID, *, resource: str | None) -> Call[RunStatus]:
    """Read one run's status."""

    def read(rows: Rows) -> RunStatus:
        found = [row for row in map(ResultRow._make, rows) if resource is None or row.resource == resource]
        if not found:
            raise RunNotFoundError(run_id)
        return found[0].status

    return reading(Command(RESULTS, ([run_id],)), read)
