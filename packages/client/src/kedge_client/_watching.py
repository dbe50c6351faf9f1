"""What happens to a run, look by look: what is new, and where a watcher would go on. Pure, shared by the twins."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from kedge.codecs import PayloadCodec
from kedge.errors import InvalidOptionError, RunNotFoundError
from kedge.progress import Progress
from kedge.run_state import TERMINAL, RunStatus
from kedge.sealing import is_sealed
from kedge.shown import shown
from kedge_client._calls import Call, Rows
from kedge_client._opening import opened_line, opened_steps
from kedge_client._plain import plain_mapping
from kedge_client._progress import ProgressRow
from kedge_client._read_statements import GET, PROGRESS, RUN_LOG, STEPS
from kedge_client._round_trip import Command
from kedge_client._step_views import StepRow, StepView, step_views
from kedge_client._views import RunRow

FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 5.0
"""Between looks when nobody tells: longer by half each time, from the start again when there was something new."""
REST_S: Final = 0.02
"""Between looks when somebody tells all the time: what comes in a burst is read together."""
MAX_ROWS: Final = 500
"""Of each kind in one look."""
MAX_BYTES: Final = 4 * 1024 * 1024
"""Of steps' values in one look."""

EventKind: TypeAlias = Literal["status", "step", "progress", "log", "note"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

# A run has at most 1,001 lines; notes are as many as letters to it.
_LINE_BITS: Final = 10
_NOTE_BITS: Final = 18
_ROW_BITS: Final = 31


class RunEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a run. What is not of its kind is None."""

    seq: int
    """Where a watcher goes on that has seen all up to here; less than 2**59, and never less than the one before."""
    at: datetime
    """When it was kept; of a status, when it began."""
    kind: EventKind
    """`note`: what became of a letter to the run, such as a pause. `log`: what the handler said."""
    status: RunStatus | None = None
    reason: str | None = None
    """Of the status."""
    step: StepView | None = None
    """Without its failed attempts."""
    progress: Progress | None = None
    level: LogLevel | None = None
    """Of a line or a note."""
    message: str | None = None
    fields: Mapping[str, Any] | None = None
    """Of a line."""

    def __repr__(self) -> str:
        # Without payloads and words of the application: a repr ends up in logs.
        said = self.status or (self.step and self.step.key) or (self.progress and self.progress.percent) or self.level
        return f"<RunEvent {self.seq} {self.kind} {said}>"


class Place(NamedTuple):
    """How much has been told."""

    row: int = 0
    """The journal's seq."""
    notes: int = 0
    lines: int = 0

    @classmethod
    def of(cls, seq: int) -> Place:
        """
        Read the seq of an event.

        Raises:
            InvalidOptionError: It is none.
        """
        if type(seq) is not int or not 0 <= seq < 1 << (_ROW_BITS + _NOTE_BITS + _LINE_BITS):
            raise InvalidOptionError(f"after={shown(seq)} must be the seq of an event of this run, or 0")
        rest, lines = divmod(seq, 1 << _LINE_BITS)
        return cls(*divmod(rest, 1 << _NOTE_BITS), lines)

    def seq(self) -> int:
        """Return it as one number, which grows with each part."""
        # A watcher that comes back after a quarter of a million letters hears of the last of them again.
        notes = min(self.notes, (1 << _NOTE_BITS) - 1)
        return (self.row << _NOTE_BITS | notes) << _LINE_BITS | min(self.lines, (1 << _LINE_BITS) - 1)


class LogRow(NamedTuple):
    """A row of run_log_v1."""

    kind: str
    at: datetime
    level: int
    message: str
    fields: bytes


class Watching:
    """One watcher of one run: what it asks next, and what of the answer is new."""

    def __init__(self, run_id: UUID, after: int, *, resource: str | None, codec: PayloadCodec | None = None) -> None:
        self.run_id = run_id
        self.has_begun = False
        """Whether the run has been seen."""
        self.has_more = False
        """Whether to look again at once."""
        self.has_ended = False
        self.pause_s = FIRST_PAUSE_S
        """Until the next look, if nobody tells."""
        self._resource = resource
        self._codec = codec
        self._run: RunRow | None = None
        """With a codec: read with the first look, for what its values are bound to."""
        self._place = Place.of(after)
        self._status: tuple[RunStatus, datetime] | None = None
        self._progress: Progress | None = None

    def look(self) -> Call[list[RunEvent]]:
        """
        Ask for what is new; the answer counts as told.

        Raises:
            RunNotFoundError: There is no such run.
        """
        row, notes, lines = self._place
        # The status first: what is kept when a run ends is seen by the statements behind it.
        transaction = [
            Command(PROGRESS, (self.run_id, self._resource)),
            Command(STEPS, (self.run_id, self._resource, row, MAX_ROWS, MAX_BYTES)),
            Command(RUN_LOG, (self.run_id, self._resource, lines, notes, MAX_ROWS)),
        ]
        if self._codec is not None and self._run is None:
            transaction.append(Command(GET, ([self.run_id], self._resource)))
        return Call(lambda: [transaction], self._read)

    def failed(self) -> None:
        """Take note that a look failed and may be repeated."""
        self.has_more = False
        self._wait_longer()

    def _read(self, rows: list[Rows]) -> list[RunEvent]:
        state, steps, log, *whole = rows
        if not state:
            raise RunNotFoundError(self.run_id)
        self.has_begun = True
        row = ProgressRow._make(state[0])
        kept = [StepRow._make(step) for step in steps]
        if whole and whole[0]:
            self._run = RunRow._make(whole[0][0])
        said = [LogRow._make(line) for line in log]
        lines = sum(line.kind == "l" for line in said)
        self.has_more = (
            max(len(kept), lines, len(said) - lines) >= MAX_ROWS or sum(len(step.value) for step in kept) >= MAX_BYTES
        )
        if self._codec is not None and self._run is not None:
            kept = opened_steps(self._codec, self._run, kept)
        said = [self._opened(line) for line in said]
        is_over = row.status in TERMINAL
        events = [] if is_over else self._status_event(row)
        events += self._merged(kept, said)
        if not self.has_more:
            events += self._progress_event(row)
            if is_over:
                events += self._status_event(row)
                self.has_ended = True
        if events:
            self.pause_s = FIRST_PAUSE_S
        else:
            self._wait_longer()
        return events

    def _opened(self, line: LogRow) -> LogRow:
        if not is_sealed(line.fields):
            return line
        opened = opened_line(self._codec, self.run_id, line.fields)
        return line._replace(message=opened.message, fields=opened.fields)

    def _wait_longer(self) -> None:
        self.pause_s = min(self.pause_s * 1.5, LAST_PAUSE_S)

    def _merged(self, kept: list[StepRow], said: list[LogRow]) -> Iterable[RunEvent]:
        """Put the kinds together by their time; within one its own order stands, whatever the clock did."""
        streams: tuple[list[RunEvent], ...] = (
            [_step_event(view) for view in step_views(kept)],
            [_said_event(line) for line in said if line.kind == "n"],
            [_said_event(line) for line in said if line.kind == "l"],
        )
        for event in heapq.merge(*streams, key=attrgetter("at")):
            place = self._place
            if event.step is not None:
                place = place._replace(row=event.step.seq or place.row)
            elif event.kind == "note":
                place = place._replace(notes=place.notes + 1)
            else:
                place = place._replace(lines=place.lines + 1)
            self._place = place
            yield msgspec.structs.replace(event, seq=place.seq())

    def _status_event(self, row: ProgressRow) -> list[RunEvent]:
        if self._status == (row.status, row.since):
            return []
        self._status = row.status, row.since
        seq = self._place.seq()
        return [RunEvent(seq=seq, at=row.since, kind="status", status=row.status, reason=row.reason)]

    def _progress_event(self, row: ProgressRow) -> list[RunEvent]:
        progress = row.progress()
        # A mere number of steps is no news beside the steps.
        if progress == self._progress or (progress.source is None and progress.percent is None):
            return []
        self._progress = progress
        return [RunEvent(seq=self._place.seq(), at=row.at, kind="progress", progress=progress)]


def _step_event(view: StepView) -> RunEvent:
    return RunEvent(seq=0, at=view.finished_at or view.started_at, kind="step", step=view)


def _said_event(line: LogRow) -> RunEvent:
    level = _level(line.level)
    if line.kind == "n":
        return RunEvent(seq=0, at=line.at, kind="note", level=level, message=line.message)
    fields = plain_mapping(line.fields, "fields of a line")
    return RunEvent(seq=0, at=line.at, kind="log", level=level, message=line.message, fields=fields)


def _level(number: int) -> LogLevel:
    if number < 20:
        return "debug"
    if number < 30:
        return "info"
    return "warning" if number < 40 else "error"
