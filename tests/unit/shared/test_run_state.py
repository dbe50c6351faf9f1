from typing import get_args

from kedge.run_state import CODES, LIVE, MOVES, STARTS, STATUSES, TERMINAL, RunStatus, may_move

ALL: frozenset[RunStatus] = frozenset(get_args(RunStatus))


def test_every_status_has_one_letter() -> None:
    assert set(CODES) == ALL
    assert {STATUSES[code]: code for code in STATUSES} == CODES
    assert all(len(code) == 1 for code in STATUSES)


def test_a_status_is_either_live_or_terminal() -> None:
    assert LIVE | TERMINAL == ALL
    assert not LIVE & TERMINAL


def test_moves_are_between_different_statuses() -> None:
    assert {status for move in MOVES for status in move} == ALL
    assert all(before != after for before, after in MOVES)


def test_an_end_is_final_but_for_the_retry_of_a_failure() -> None:
    assert {move for move in MOVES if move[0] in TERMINAL} == {("failed", "pending")}


def test_only_a_running_run_completes() -> None:
    assert {before for before, after in MOVES if after == "completed"} == {"running"}


def test_every_live_run_can_be_cancelled_and_can_meet_its_deadline() -> None:
    assert {before for before, after in MOVES if after == "cancelled"} == LIVE
    assert {before for before, after in MOVES if after == "failed"} == LIVE


def test_every_status_can_be_reached_and_every_live_one_left_for_an_end() -> None:
    reached: set[str] = set(STARTS)
    while more := {after for before, after in MOVES if before in reached} - reached:
        reached |= more

    assert reached == ALL
    assert all(any(may_move(live, end) for end in TERMINAL) for live in LIVE)


def test_a_paused_run_is_not_claimed() -> None:
    assert not may_move("paused", "running")
