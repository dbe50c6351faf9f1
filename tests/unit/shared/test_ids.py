import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID, SafeUUID

import pytest

from kedge import ids
from kedge.errors import InvalidOptionError
from kedge.ids import new_run_id, parse_run_id, run_id_time

UUID4 = UUID("4c1b9d5e-7a3f-4a58-9f0e-2d6c8b7a1e93")
MADE_AT = datetime(2026, 11, 21, 9, 30, 0, 123456, tzinfo=UTC)


class SetClock:
    """Stands for the system's clock, which a test cannot set back."""

    def __init__(self) -> None:
        self.now = MADE_AT

    def __call__(self) -> int:
        return (self.now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    clock = SetClock()
    monkeypatch.setattr(ids, "_time_ns", clock)
    monkeypatch.setattr(ids, "_clock", ids._Clock())
    return clock


def test_an_id_is_a_uuid_of_version_7_like_any_other() -> None:
    run_id = new_run_id()

    again = UUID(str(run_id))
    assert (run_id.version, run_id.variant, run_id.is_safe) == (7, RFC_4122, SafeUUID.unknown)
    assert run_id == again
    assert hash(run_id) == hash(again)


def test_an_id_tells_when_it_was_made_to_the_millisecond(clock: SetClock) -> None:
    assert run_id_time(new_run_id()) == MADE_AT.replace(microsecond=123000)


def test_ids_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_run_id() for _ in range(20_000)]

    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_sort_while_the_clock_stands_still(clock: SetClock) -> None:
    made = [new_run_id() for _ in range(10_000)]

    assert made == sorted(made)
    # 4,096 ids fit into a millisecond; the rest borrow from the next ones.
    assert run_id_time(made[-1]) - MADE_AT < timedelta(milliseconds=3)


def test_ids_still_sort_when_the_clock_is_set_back_a_little(clock: SetClock) -> None:
    before = new_run_id()

    clock.now -= timedelta(seconds=59)

    assert new_run_id() > before


def test_ids_follow_a_clock_that_was_an_hour_ahead(clock: SetClock) -> None:
    new_run_id()

    clock.now -= timedelta(hours=1)

    # Else the process would go on making ids that a start refuses.
    assert run_id_time(new_run_id()) == clock.now.replace(microsecond=123000)


def test_threads_never_make_the_same_id_and_each_sees_its_own_in_order() -> None:
    gate = threading.Barrier(8)

    def make(_: int) -> list[UUID]:
        gate.wait()
        return [new_run_id() for _ in range(2_000)]

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(8)))

    assert all(ids == sorted(ids) for ids in made)
    assert len({run_id for ids in made for run_id in ids}) == 16_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_neither_repeats_its_parents_ids_nor_waits_for_its_lock() -> None:
    reader, writer = os.pipe()
    with ids._clock.lock:
        child = os.fork()
        if child == 0:
            try:
                # A child that waits for the lock would never come back.
                signal.alarm(10)
                os.write(writer, b"".join(new_run_id().bytes for _ in range(100)))
            finally:
                os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    data = os.read(reader, 1600)
    os.close(reader)

    childs = [UUID(bytes=data[i : i + 16]) for i in range(0, 1600, 16)]
    parents = [new_run_id() for _ in range(100)]
    # The random part alone: time would tell them apart even if both had the same randomness.
    low_bits = (1 << 62) - 1
    assert len(childs) == 100
    assert {i.int & low_bits for i in childs}.isdisjoint(i.int & low_bits for i in parents)


def test_an_application_that_seeds_random_does_not_repeat_ids() -> None:
    low_bits = (1 << 62) - 1

    random.seed(1)
    first = new_run_id()
    random.seed(1)
    second = new_run_id()

    assert first.int & low_bits != second.int & low_bits


def test_an_id_is_read_from_text_whatever_its_case() -> None:
    run_id = new_run_id()

    assert parse_run_id(str(run_id).upper()) == run_id
    assert parse_run_id(run_id.hex) == run_id
    assert parse_run_id(run_id) is run_id


@pytest.mark.parametrize("wrong", ["", "x", "0" * 31, "\x00", "\ud800", str(UUID4), UUID4, UUID(int=0), 3, None, b"x"])
def test_what_is_no_id_of_a_run_is_refused(wrong: UUID | str) -> None:
    with pytest.raises(InvalidOptionError, match="is no id of a run"):
        parse_run_id(wrong)


def test_only_ids_of_runs_have_a_time() -> None:
    with pytest.raises(InvalidOptionError, match="version is 4"):
        run_id_time(UUID4)
