"""How many processes, how long before the next one, and how an end is called: without processes."""

import itertools
import signal

import pytest

from kedge import InvalidOptionError
from kedge_worker._processes import ending, exit_code, next_pause_s, read_processes


def test_the_option_goes_before_the_environment_and_one_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEDGE_PROCESSES", raising=False)
    assert read_processes(None) == 1

    # As a compose file leaves it that passes on what is not set.
    monkeypatch.setenv("KEDGE_PROCESSES", "")
    assert read_processes(None) == 1

    monkeypatch.setenv("KEDGE_PROCESSES", "3")
    assert read_processes(None) == 3
    assert read_processes("2") == 2


@pytest.mark.parametrize("number", ["", "0", "-2", "257", "1.5", "all"])
def test_what_is_no_number_of_processes_is_refused(number: str) -> None:
    with pytest.raises(InvalidOptionError, match="from 1 to 256"):
        read_processes(number)


def test_processes_that_die_young_are_started_ever_later() -> None:
    pauses = itertools.accumulate(range(7), lambda last, _: next_pause_s(last, lived_s=59.9), initial=0.0)

    assert list(pauses) == [0, 1, 2, 4, 8, 16, 30, 30]


def test_who_has_lived_for_a_minute_is_replaced_as_soon_as_the_first() -> None:
    assert next_pause_s(30.0, lived_s=60.0) == 1


@pytest.mark.parametrize(
    ("code", "words", "answered"),
    [
        (0, "exit code 0", 0),
        (6, "exit code 6", 6),
        (-signal.SIGKILL, "killed by SIGKILL", 137),
        (-signal.SIGRTMIN - 1, f"killed by signal {signal.SIGRTMIN + 1}", 128 + signal.SIGRTMIN + 1),
    ],
)
def test_an_end_is_told_by_the_name_of_its_signal_and_answered_as_shells_do(
    code: int, words: str, answered: int
) -> None:
    assert (ending(code), exit_code(code)) == (words, answered)
