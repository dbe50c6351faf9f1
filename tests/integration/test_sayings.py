"""What runs say of themselves: their owner alone writes it, a repeat changes nothing, and a log has an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from kedge.progress import percent_of
from tests import letters, moves
from tests.moves import Claimed
from tests.sessions import Session

Said = tuple[int, int | None]


def say(db: Session, worker: UUID, run: Claimed, *said: Said, message: str | None = None) -> int:
    """SET_PROGRESS, all in one flush."""
    return db.count(
        moves.statement("SET_PROGRESS"),
        (
            worker,
            [run.id] * len(said),
            [run.epoch] * len(said),
            [done for done, _ in said],
            [total for _, total in said],
            [percent_of(done, total) for done, total in said],
            [message] * len(said),
        ),
    )


def progress(db: Session, run: Claimed) -> tuple[object, ...]:
    rows = db.rows("select done, total, percent, message from kedge.progress where run_id = $1", (run.id,))
    return rows[0] if rows else ()


def set_metadata(db: Session, worker: UUID, run: Claimed, *values: bytes) -> int:
    """SET_METADATA, all in one flush."""
    count = len(values)
    return db.count(moves.statement("SET_METADATA"), (worker, [run.id] * count, [run.epoch] * count, list(values)))


def write(db: Session, worker: UUID, lines: Sequence[tuple[Claimed, int, str]], *, level: int = 20) -> int:
    """WRITE_LOG, all in one flush: lines as (run, number of the note, message)."""
    return db.count(
        moves.statement("WRITE_LOG"),
        (
            worker,
            [run.id for run, _, _ in lines],
            [run.epoch for run, _, _ in lines],
            [number for _, number, _ in lines],
            [level] * len(lines),
            [message for _, _, message in lines],
            [b"\x01{}"] * len(lines),
        ),
    )


def log(db: Session, run: Claimed) -> list[str]:
    rows = db.rows("select message from kedge.run_log where run_id = $1 and kind = 'l' order by id", (run.id,))
    return [message for (message,) in rows]


# ---- progress


def test_progress_is_what_was_said_last_and_the_highest_percent(db: Session) -> None:
    worker, run = letters.running(db)

    say(db, worker, run, (10, 100), message="reading")
    first = progress(db, run)
    say(db, worker, run, (60, 100), (70, 200), (80, 400), message="writing")
    several = progress(db, run)
    say(db, worker, run, (90, None))
    unknown = progress(db, run)

    assert first == (10, 100, 10.0, "reading")
    assert several == (80, 400, 60.0, "writing")
    assert unknown == (90, None, 60.0, None)


def test_progress_of_many_runs_goes_in_one_statement(db: Session) -> None:
    worker, one = letters.running(db)
    (other,) = [run for run in (moves.started(db), moves.claim_alone(db, worker))[1] if run.id != one.id]

    written = db.count(
        moves.statement("SET_PROGRESS"),
        (worker, [one.id, other.id], [one.epoch, other.epoch], [1, 2], [4, 4], [25.0, 50.0], ["a", "b"]),
    )

    assert written == 2
    assert (progress(db, one), progress(db, other)) == ((1, 4, 25.0, "a"), (2, 4, 50.0, "b"))


# ---- metadata


def test_metadata_is_replaced_as_a_whole_by_what_was_set_last(db: Session) -> None:
    worker, run = letters.running(db)

    set_metadata(db, worker, run, b"\x01[1]")
    set_metadata(db, worker, run, b"\x01[2]", b"\x01[3]")

    assert db.rows("select run_id, metadata from kedge.run_metadata") == [(run.id, b"\x01[3]")]


# ---- the fence


@pytest.mark.parametrize("wrong", ["worker", "epoch", "ended"])
def test_only_the_holder_of_the_lease_may_speak_for_a_run(db: Session, wrong: str) -> None:
    worker, run = letters.running(db)
    claimed = run
    if wrong == "worker":
        worker = moves.register(db)
    elif wrong == "epoch":
        run = replace(run, epoch=run.epoch - 1)
    else:
        moves.end(db, worker, run)

    counts = [
        say(db, worker, run, (1, 2)),
        set_metadata(db, worker, run, b"\x01{}"),
        write(db, worker, [(run, 1, "hello")]),
    ]

    assert counts == [0, 0, 0]
    assert (progress(db, claimed), log(db, claimed)) == ((), [])


# ---- the log


def test_lines_stand_in_the_order_in_which_they_were_written(db: Session) -> None:
    worker, run = letters.running(db)

    write(db, worker, [(run, number, f"line{number}") for number in range(5)])
    write(db, worker, [(run, number, f"line{number}") for number in range(5, 8)], level=40)

    assert log(db, run) == [f"line{number}" for number in range(8)]
    assert db.value("select count(*) from kedge.run_log where level = 40 and kind = 'l'") == 3


def test_a_repeated_flush_writes_no_line_twice(db: Session) -> None:
    worker, run = letters.running(db)
    lines = [(run, number, f"line{number}") for number in range(3)]

    first = write(db, worker, lines)
    again = write(db, worker, lines)
    more = write(db, worker, [*lines, (run, 3, "line3")])

    assert (first, again, more) == (3, 0, 1)
    assert log(db, run) == ["line0", "line1", "line2", "line3"]


@pytest.mark.parametrize("flush", [1, 300, 1500])
def test_of_a_run_a_thousand_lines_are_kept_and_one_that_says_so(db: Session, flush: int) -> None:
    worker, run = letters.running(db)
    lines = [(run, number, f"line{number}") for number in range(1500)]
    start = 0
    if flush == 1:
        write(db, worker, lines[:997])
        start = 997

    for begin in range(start, 1500 if flush > 1 else 1005, flush):
        write(db, worker, lines[begin : begin + flush])

    assert log(db, run) == [
        *(f"line{number}" for number in range(1000)),
        "the log is full: of a run 1,000 lines are kept",
    ]
    assert db.rows("select level, fields from kedge.run_log order by id desc limit 1") == [(30, b"")]


def test_a_repeat_at_the_end_of_the_log_counts_nothing_twice(db: Session) -> None:
    worker, run = letters.running(db)
    write(db, worker, [(run, number, "x") for number in range(990)])
    last = [(run, number, f"line{number}") for number in range(990, 1000)]

    write(db, worker, last[:6])
    write(db, worker, last)

    assert log(db, run)[990:] == [f"line{number}" for number in range(990, 1000)]


def test_the_log_of_one_run_is_not_the_log_of_another_in_the_same_flush(db: Session) -> None:
    worker, one = letters.running(db)
    moves.started(db)
    (other,) = moves.claim_alone(db, worker)
    write(db, worker, [(one, number, "x") for number in range(1000)])

    write(db, worker, [(one, 1000, "one"), (other, 0, "a"), (one, 1001, "one"), (other, 1, "b")])

    assert len(log(db, one)) == 1001
    assert log(db, other) == ["a", "b"]
