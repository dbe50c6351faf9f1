"""What a watcher is told, look by look, and where it goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge import InvalidOptionError, RunNotFoundError
from kedge.run_state import RunStatus
from kedge.wire import encode
from kedge_client import _watching
from kedge_client._read_statements import _RUN_COLUMNS
from kedge_client._views import RunRow
from kedge_client._watching import FIRST_PAUSE_S, LAST_PAUSE_S, Place, RunEvent, Watching

RUN = UUID("0198c0de-0000-7000-8000-000000000000")
NOW = datetime(2026, 3, 1, tzinfo=UTC)

places = st.builds(
    Place,
    row=st.integers(0, 2**31 - 1),
    notes=st.integers(0, 2**18 - 1),
    lines=st.integers(0, 1023),
)


def moment(number: float) -> datetime:
    return NOW + timedelta(seconds=number)


def state(status: RunStatus, since: float = 0, *, said: tuple[int, int, float] | None = None) -> list[tuple[Any, ...]]:
    done, total, percent = said or (None, None, None)
    return [(status, None, moment(since), said is not None, NOW, done, total, percent, None, 0, None, None)]


def step(seq: int, at: float, value: bytes = b"\x01null") -> tuple[Any, ...]:
    return (seq, f"step{seq}", "s", moment(at), 0, 1, value, b"")


def line(message: str, at: float, kind: str = "l", level: int = 20, fields: bytes = b"") -> tuple[Any, ...]:
    return (kind, moment(at), level, message, fields)


def told(watching: Watching, *answer: list[tuple[Any, ...]]) -> list[RunEvent]:
    return watching.look().read(list(answer))


def said(events: list[RunEvent]) -> list[str]:
    return [str(e.status or (e.step and e.step.key) or e.message or e.progress) for e in events]


@given(places)
def test_a_place_comes_back_from_its_number(place: Place) -> None:
    assert Place.of(place.seq()) == place
    assert 0 <= place.seq() < 2**59


@given(places, places)
def test_who_has_seen_more_has_a_higher_number(first: Place, second: Place) -> None:
    both = Place(*map(max, first, second))

    assert both.seq() >= max(first.seq(), second.seq())


def test_a_place_has_a_number_whatever_has_been_written() -> None:
    assert Place.of(Place(7, 2**40, 5000).seq()) == Place(7, 2**18 - 1, 1023)


@pytest.mark.parametrize("after", [-1, 2**59, True, 1.0, "7", None])
def test_what_is_no_seq_is_refused(after: Any) -> None:
    with pytest.raises(InvalidOptionError, match="after="):
        Watching(RUN, after, resource=None)


def test_a_look_begins_with_the_status_and_goes_on_by_time() -> None:
    watching = Watching(RUN, 0, resource=None)

    events = told(
        watching,
        state("running"),
        [step(1, 1), step(2, 5)],
        [line("begun", 0), line("between", 3), line("pause: done", 4, "n")],
    )

    assert said(events) == ["running", "begun", "step1", "between", "pause: done", "step2"]
    assert [event.kind for event in events] == ["status", "log", "step", "log", "note", "step"]


def test_one_kind_keeps_its_order_when_the_clock_went_back() -> None:
    events = told(Watching(RUN, 0, resource=None), state("running"), [step(1, 9), step(2, 1), step(3, 2)], [])

    assert said(events) == ["running", "step1", "step2", "step3"]


def test_numbers_never_go_down_and_each_names_what_is_left() -> None:
    rows = [step(3, 1), step(4, 4)]
    log = [line("a", 0), line("b", 2), line("pause: done", 3, "n")]
    events = told(Watching(RUN, 0, resource=None), state("running"), rows, log)

    seqs = [event.seq for event in events]
    assert seqs == sorted(seqs)
    asked = [Watching(RUN, seq, resource=None).look().transactions()[0] for seq in seqs]
    places_asked = [tuple(list(commands)[1].values[2:3]) + tuple(list(commands)[2].values[2:4]) for commands in asked]
    # (seq, lines, notes) behind each event
    assert places_asked == [(0, 0, 0), (0, 1, 0), (3, 1, 0), (3, 2, 0), (3, 2, 1), (4, 2, 1)]


def test_the_last_status_comes_behind_everything_else_and_ends_it() -> None:
    watching = Watching(RUN, 0, resource=None)

    events = told(watching, state("completed", 9), [step(1, 1)], [line("done", 2)])

    assert said(events)[:2] == ["step1", "done"]
    assert [event.kind for event in events[2:]] == ["progress", "status"]
    assert events[2].progress is not None
    assert events[2].progress.percent == 100.0
    assert events[3].status == "completed"
    assert watching.has_ended


def test_an_end_waits_for_pages_that_are_not_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watching, "MAX_ROWS", 2)
    watching = Watching(RUN, 0, resource=None)

    first = told(watching, state("failed"), [step(1, 1), step(2, 2)], [])
    assert (said(first), watching.has_more, watching.has_ended) == (["step1", "step2"], True, False)

    last = told(watching, state("failed"), [step(3, 3)], [])
    assert (said(last), watching.has_more, watching.has_ended) == (["step3", "failed"], False, True)


def test_large_values_end_a_page_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watching, "MAX_BYTES", 10)
    watching = Watching(RUN, 0, resource=None)

    told(watching, state("running"), [step(1, 1, b'\x01"0123456789"')], [])

    assert watching.has_more


def test_a_status_is_told_again_only_when_the_run_has_entered_one_since() -> None:
    watching = Watching(RUN, 0, resource=None)

    entered: list[tuple[RunStatus, int]] = [
        *(("pending", 0), ("pending", 0)),
        *(("running", 1), ("waiting", 2), ("waiting", 3)),
    ]
    looks = [told(watching, state(status, since), [], []) for status, since in entered]

    assert [said(events) for events in looks] == [["pending"], [], ["running"], ["waiting"], ["waiting"]]


def test_progress_is_told_when_it_changes() -> None:
    watching = Watching(RUN, 0, resource=None)

    looks = [
        told(watching, state("running", said=one), [], []) for one in (None, (1, 4, 25.0), (1, 4, 25.0), (2, 4, 50.0))
    ]

    assert [[e.progress.percent for e in events if e.progress] for events in looks] == [[], [25.0], [], [50.0]]


def test_a_quiet_run_is_looked_at_less_often() -> None:
    watching = Watching(RUN, 0, resource=None)
    told(watching, state("running"), [], [])
    pauses = [watching.pause_s]
    for _ in range(8):
        told(watching, state("running"), [], [])
        pauses.append(watching.pause_s)

    assert pauses[0] == FIRST_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_S

    told(watching, state("running"), [step(1, 1)], [])
    assert watching.pause_s == FIRST_PAUSE_S


def test_a_line_has_a_level_and_fields() -> None:
    fields = encode({"order": 7}, where="")
    levels = [0, 10, 20, 29, 30, 40, 99]
    rows = [line(str(number), number, level=level, fields=fields) for number, level in enumerate(levels)]
    rows.append(line("pause: done", 100, "n"))

    events = told(Watching(RUN, 0, resource=None), state("running"), [], rows)[1:]

    named = [event.level for event in events]
    assert named == ["debug", "debug", "info", "info", "warning", "error", "error", "info"]
    assert [event.fields for event in events] == [{"order": 7}] * 7 + [None]


def test_a_run_that_is_not_there_is_not_found() -> None:
    with pytest.raises(RunNotFoundError):
        told(Watching(RUN, 0, resource=None), [], [], [])


def test_a_repr_shows_no_words_of_the_application() -> None:
    events = told(Watching(RUN, 0, resource=None), state("running"), [], [line("a secret", 1)])

    assert [repr(event) for event in events] == ["<RunEvent 0 status running>", "<RunEvent 1 log info>"]


def test_rows_of_runs_are_read_by_the_names_of_their_columns() -> None:
    assert RunRow._fields == tuple(_RUN_COLUMNS)
