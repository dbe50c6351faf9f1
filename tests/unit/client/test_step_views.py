"""Journal rows, waits and failed attempts, put together as what people call a step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from kedge.failures import encode_error
from kedge.wire import encode
from kedge_client._step_views import FailureRow, StepRow, WaitRow, step_views

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CHILD = UUID("0198c0de-0000-7000-8000-000000000001")


def row(seq: int, key: str, kind: str = "s", value: object = None, *, took_ms: int = 0, operation: str = "") -> StepRow:
    payload = encode_error(value) if isinstance(value, BaseException) else encode(value, where="")
    meta = b'\x01{"operation":"%s"}' % operation.encode() if operation else b""
    return StepRow(seq, key, kind, NOW + timedelta(seconds=seq), took_ms, 1, payload, meta)


def wait(key: str, kind: str, state: object = None) -> WaitRow:
    return WaitRow(kind, key, None, NOW, None, 0, b"" if state is None else encode(state, where=""))


def failure(key: str, attempt: int, kind: str = "s") -> FailureRow:
    at = NOW - timedelta(minutes=10 - attempt)
    return FailureRow(kind, key, attempt, at, 500, encode_error(ValueError(str(attempt)), attempt=attempt))


@pytest.mark.parametrize(
    ("key", "id_"),
    [
        ("charge", "charge"),
        ("charge#2", "charge"),
        ("~1/charge", "charge"),
        ("~2/~1/a b.c#17", "a b.c"),
        ("pages[3]/load", "load"),
        ("answer[0]/yes", "yes"),
        ("shipping#2/label", "label"),
    ],
)
def test_a_step_is_known_by_the_id_that_the_handler_wrote(key: str, id_: str) -> None:
    (step,) = step_views([row(1, key)])

    assert (step.key, step.id) == (key, id_)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("s", "step"),
        ("t", "transaction"),
        ("e", "event"),
        ("d", "sleep"),
        ("p", "poll"),
        ("u", "pause"),
        ("c", "child"),
        ("n", "child started"),
        ("m", "sent"),
        ("o", "first"),
        ("k", "patched"),
    ],
)
def test_every_kind_of_outcome_has_its_name_also_when_it_failed_or_was_interrupted(kind: str, name: str) -> None:
    completed, failed, interrupted = step_views(
        [
            row(1, "a", kind, 7),
            row(2, "b", "f", ValueError("no"), operation=kind),
            row(3, "c", "x", operation=kind),
        ]
    )

    assert [step.kind for step in (completed, failed, interrupted)] == [name] * 3
    assert [step.status for step in (completed, failed, interrupted)] == ["completed", "failed", "interrupted"]
    assert (completed.value, failed.value, interrupted.value) == (7, None, None)
    assert failed.error is not None
    assert failed.error.message == "no"


def test_times_tell_when_the_first_attempt_began_and_what_counted_ended() -> None:
    once, retried = step_views([row(1, "a", took_ms=1500), row(2, "b", took_ms=200)], (), [failure("b", 1)])

    assert (once.started_at, once.finished_at) == (NOW - timedelta(seconds=0.5), NOW + timedelta(seconds=1))
    assert once.took == timedelta(seconds=1.5)
    assert retried.started_at == NOW - timedelta(minutes=9, milliseconds=500)
    assert retried.took == timedelta(seconds=0.2)


def test_failed_attempts_stand_at_their_step_with_the_last_one_of_a_failed_step() -> None:
    last = encode_error(ValueError("3"), key="b", attempt=3)
    a, b = step_views(
        [row(1, "a"), row(2, "b", "f")._replace(value=last)],
        (),
        [failure("a", 1), failure("b", 1), failure("b", 2), failure("b", 9, "x")],
    )

    assert [(one.attempt, one.error.message) for one in a.attempts] == [(1, "1")]
    assert a.error is None
    assert [(one.attempt, one.error.message) for one in b.attempts] == [(1, "1"), (2, "2"), (3, "3")]
    assert b.error == b.attempts[-1].error


def test_what_waits_is_open_and_stands_behind_what_is_kept() -> None:
    kept, retried, event = step_views(
        [row(1, "a")], [wait("charge", "r"), wait("answer", "e"), wait("", "g")], [failure("charge", 1)]
    )

    assert (kept.key, kept.status) == ("a", "completed")
    assert (retried.key, retried.kind, retried.status, retried.seq) == ("charge", "step", "open", None)
    assert [one.attempt for one in retried.attempts] == [1]
    assert (event.key, event.kind, event.started_at, event.finished_at) == ("answer", "event", NOW, None)


def test_a_wait_whose_outcome_is_kept_is_not_shown_twice() -> None:
    steps = step_views([row(1, "answer", "e"), row(2, "nap", "k")], [wait("answer", "e"), wait("nap", "d")])

    assert [(step.key, step.kind, step.status) for step in steps] == [
        ("answer", "event", "completed"),
        ("nap", "patched", "completed"),
        ("nap", "sleep", "open"),
    ]


@pytest.mark.parametrize("started", ["invoice", "invoice/start"])
def test_a_childs_start_and_its_end_name_the_child(started: str) -> None:
    rows = [row(1, started, "n", str(CHILD)), row(2, "other", "s", str(CHILD))]

    running = step_views(rows, [wait("invoice", "c")])
    ended = step_views([*rows, row(3, "invoice", "c", 100)])
    failed = step_views([*rows, row(3, "invoice", "f", ValueError("no"), operation="c")])

    assert [step.child_id for step in ended] == [CHILD, None, CHILD]
    assert [step.child_id for step in failed] == [CHILD, None, CHILD]
    assert ended[0].id == "invoice"
    assert [step.child_id for step in running if step.status == "open"] == ([CHILD] if "/" in started else [])


def test_a_keyed_childs_wait_names_it_before_any_row_does() -> None:
    (call,) = step_views([], [wait("invoice", "c", str(CHILD))])
    (start,) = step_views([], [wait("invoice/start", "n")])

    assert (call.kind, call.status, call.child_id) == ("child", "open", CHILD)
    assert (start.kind, start.status, start.id) == ("child started", "open", "invoice")


@pytest.mark.parametrize("damaged", [b"", b"\x09what", b"\x01{"])
def test_one_damaged_row_does_not_hide_the_others(damaged: bytes) -> None:
    rows = [
        row(1, "a")._replace(value=damaged, meta=damaged),
        row(2, "b", "f")._replace(value=damaged, meta=damaged),
        row(3, "c", "n")._replace(value=damaged),
        row(4, "d"),
    ]

    steps = step_views(rows, [wait("e", "c")._replace(state=damaged)])

    assert [step.key for step in steps] == ["a", "b", "c", "d", "e"]
    assert steps[0].value == (damaged or None)


def test_kinds_of_newer_releases_are_shown_as_they_are() -> None:
    (step,) = step_views([row(1, "a", "Z")])

    assert (step.kind, step.status) == ("Z", "completed")


def test_a_repr_shows_no_payload() -> None:
    (step,) = step_views([row(1, "a", value="a secret")])

    assert repr(step) == "<StepView a step completed>"


def test_outcomes_come_in_the_given_order() -> None:
    rows: list[Any] = [row(seq, f"k{seq}") for seq in (1, 3, 7)]

    assert [step.seq for step in step_views(rows)] == [1, 3, 7]
