"""The guard against getting slower says what has fallen, and keeps silent about noise."""

import json
import platform
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import history
from benchmarks.history import Comparison, Entry
from benchmarks.machine import Machine, this_machine

MACHINE = Machine(
    commit="abc", cpu="a processor", cores=2, memory_gib=8, postgres="18.4", settings="fsync=on", python="3.11.7",
    commit_ms=0.2,
)  # fmt: skip
DRAIN = "drain"


def entry(*rounds: float, machine: Machine = MACHINE) -> Entry:
    return history.entry(machine, {DRAIN: rounds}, now=datetime(2030, 1, 1, tzinfo=UTC))


def compared(now: Entry, *before: Entry) -> Comparison:
    (found,) = history.compare(now, before)
    return found


def test_the_first_of_its_kind_is_compared_with_nothing() -> None:
    found = compared(entry(0.5))

    assert (found.before, found.change, found.has_fallen) == (None, None, False)


def test_a_share_that_falls_by_more_than_the_noise_is_named() -> None:
    found = compared(entry(0.40, 0.41, 0.39), entry(0.50, 0.51, 0.49), entry(0.51, 0.50, 0.52))

    assert found.before == 0.505
    assert found.has_fallen


def test_a_share_that_rises_is_not_named() -> None:
    assert not compared(entry(0.9), entry(0.5)).has_fallen


def test_a_fall_within_a_tenth_is_noise_however_quiet_the_rounds_were() -> None:
    found = compared(entry(0.46), entry(0.50))

    assert found.noise == history.LEAST_NOISE
    assert not found.has_fallen


def test_a_fall_within_what_rounds_differ_by_is_noise() -> None:
    assert not compared(entry(0.40), entry(0.35, 0.50, 0.65)).has_fallen
    assert not compared(entry(0.25, 0.40, 0.55), entry(0.50)).has_fallen


def test_a_fall_within_what_earlier_runs_differ_by_is_noise() -> None:
    assert not compared(entry(0.40), entry(0.36), entry(0.50), entry(0.64)).has_fallen
    assert compared(entry(0.30), entry(0.36), entry(0.50), entry(0.64)).has_fallen


def test_only_the_last_entries_are_compared() -> None:
    before = [entry(0.9), *(entry(0.5) for _ in range(history.LAST))]

    assert compared(entry(0.5), *before).before == 0.5


def test_only_machines_of_the_same_kind_are_compared() -> None:
    others = [
        replace(MACHINE, cpu="another"),
        replace(MACHINE, cores=4),
        replace(MACHINE, memory_gib=16),
        replace(MACHINE, postgres="17.1"),
        replace(MACHINE, python="3.12.1"),
        replace(MACHINE, settings="fsync=off"),
    ]
    same = replace(MACHINE, commit="def", commit_ms=1.5, postgres="18.5", python="3.11.9")

    assert compared(entry(0.5), *(entry(0.9, machine=other) for other in others)).before is None
    assert compared(entry(0.5), entry(0.9, machine=same)).before == 0.9


def test_a_ratio_that_is_new_is_compared_with_nothing() -> None:
    now = history.entry(MACHINE, {"new": [1.0]})

    assert compared(now, entry(0.5)).before is None


def test_entries_are_kept_one_a_line_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"

    assert history.read(file) == []
    history.append(entry(0.5), file)
    history.append(entry(0.6, 0.8), file)

    assert [one["ratios"][DRAIN]["median"] for one in history.read(file)] == [0.5, 0.7]
    assert len(file.read_text("utf-8").splitlines()) == 2


def test_an_entry_names_no_host_and_no_path() -> None:
    machine = this_machine(postgres="18.4", settings="fsync=on", commit_ms=0.25)

    written = json.dumps(history.entry(machine, {DRAIN: [0.5]}))

    assert platform.node() not in written
    assert "/" not in written.replace(machine.cpu, "")


def test_the_history_that_is_kept_can_be_read() -> None:
    for one in history.read():
        assert history.kind(one)
        assert {"at", "commit", "machine", "ratios"} <= one.keys()
