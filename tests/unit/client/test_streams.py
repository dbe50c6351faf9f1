"""What goes in one chunk of a stream of starts, and what an error leaves stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge import (
    DatabaseError,
    InvalidInputError,
    InvalidOptionError,
    KedgeError,
    OutcomeUnknownError,
    RunExistsError,
    RunRequest,
    UnavailableError,
    WorkflowRef,
    new_run_id,
)
from kedge_client import _streams
from kedge_client._calls import ManyStarts
from kedge_client._requests import Start
from kedge_client._settings import ClientSettings
from kedge_client._streams import CHUNK_BYTES, StartStream

A = WorkflowRef("a", str)
SETTINGS = ClientSettings("kedge", 10.0, listen=False, wake=True)

Refuse: TypeAlias = Callable[[ManyStarts], KedgeError | None]


def text_of(start: Start) -> str:
    return str(start.request.input)


def requests_of(count: int) -> list[RunRequest[None]]:
    return [A(str(number)) for number in range(count)]


class Told:
    """What one who walks a stream is told, as the clients walk it."""

    def __init__(self, requests: Iterable[Any], refuse: Refuse = lambda _: None, resource: str | None = None) -> None:
        self.stored: list[str] = []
        self.sizes: list[int] = []
        self.error: BaseException | None = None
        self.tries = 0
        self._refuse = refuse
        stream = StartStream(resource, SETTINGS)
        source = iter(requests)
        try:
            while self._goes_on(stream, source):
                pass
        except Exception as error:  # noqa: BLE001  # looked at by the test
            self.error = error

    def _goes_on(self, stream: StartStream, source: Iterator[Any]) -> bool:
        while stream.wants_more:
            try:
                stream.add(next(source))
            except StopIteration:
                stream.end()
            except Exception as error:  # noqa: BLE001  # as the clients do
                stream.end(error)
        chunk = stream.next_chunk()
        if chunk is None:
            return False
        self.tries += 1
        refusal = self._refuse(chunk)
        if refusal is None:
            stream.stored(chunk)
            self.stored += map(text_of, chunk.starts)
            self.sizes.append(len(chunk.starts))
        elif not stream.goes_on(chunk, refusal):
            raise refusal
        return True


def taken(places: set[int], pick: Callable[[list[Start]], Start]) -> Refuse:
    """A database in which the keys of these requests are taken, and that names one of them."""

    def refuse(chunk: ManyStarts) -> KedgeError | None:
        bad = [start for start in chunk.starts if int(text_of(start)) in places]
        return RunExistsError(pick(bad).run_id, new_run_id(), "a", "k") if bad else None

    return refuse


def unnamed(places: set[int], error: Callable[[], KedgeError]) -> Refuse:
    """A database that takes none of these requests, and does not say which one it minds."""

    def refuse(chunk: ManyStarts) -> KedgeError | None:
        return error() if places & {int(text_of(start)) for start in chunk.starts} else None

    return refuse


def first_one(bad: list[Start]) -> Start:
    return bad[0]


def last_one(bad: list[Start]) -> Start:
    return bad[-1]


def middle_one(bad: list[Start]) -> Start:
    return bad[len(bad) // 2]


def place_of(error: BaseException | None) -> int | None:
    assert isinstance(error, KedgeError)
    return error.request_place


def test_a_chunk_has_a_thousand_requests_at_most() -> None:
    assert Told(requests_of(2001)).sizes == [1000, 1000, 1]
    assert Told(requests_of(2000)).sizes == [1000, 1000]
    assert Told([]).sizes == []


def test_a_chunk_has_as_many_bytes_as_fit_and_a_larger_request_is_alone() -> None:
    quarter = "s" * (CHUNK_BYTES // 4)
    large = A("l" * (CHUNK_BYTES - 100), metadata={"note": "m" * 1000})

    assert Told([A(quarter)] * 7).sizes == [3, 3, 1]
    assert Told([A("x"), large, large, A("y"), A("z")]).sizes == [1, 1, 1, 2]
    assert Told([large, A("x")]).sizes == [1, 1]
    assert Told([A("x"), large]).sizes == [1, 1]


def test_metadata_counts_as_what_it_weighs() -> None:
    heavy = {"note": "m" * 30_000}

    sizes = Told([A("x", metadata=heavy) for _ in range(100)]).sizes

    assert sum(sizes) == 100
    assert max(sizes) <= CHUNK_BYTES // 30_000


def test_ids_are_made_when_a_chunk_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses an id whose time is an hour off, and requests may come slowly."""
    read = 0
    read_at_ids: set[int] = set()

    def one_more() -> Any:
        read_at_ids.add(read)
        return new_run_id()

    def requests() -> Iterable[RunRequest[None]]:
        nonlocal read
        for request in requests_of(2500):
            read += 1
            yield request

    monkeypatch.setattr("kedge_client._requests.new_run_id", one_more)

    Told(requests())

    assert read_at_ids == {1000, 2000, 2500}


@pytest.mark.parametrize("place", [0, 1, 999, 1000, 1001, 1700])
def test_a_value_that_is_no_request_is_told_by_its_place_and_nothing_behind_it_is_read(place: int) -> None:
    requests: list[Any] = requests_of(2000)
    requests[place] = "no request"
    source = iter(requests)

    told = Told(source)

    assert isinstance(told.error, InvalidOptionError)
    assert place_of(told.error) == place
    assert told.error.__notes__ == [
        f"start_stream: it is request {place:,}, counted from 0; those before it are started"
    ]
    assert told.stored == [str(number) for number in range(place)]
    assert len(list(source)) == 2000 - place - 1


def test_a_request_of_another_resource_is_told_by_its_place() -> None:
    told = Told([A("0"), A("1", resource="alice"), A("2", resource="bob")], resource="alice")

    assert isinstance(told.error, InvalidOptionError)
    assert place_of(told.error) == 2
    assert told.stored == ["0", "1"]


def test_a_request_that_cannot_be_made_is_told_by_its_place() -> None:
    values: list[Any] = [0, 1, "two"]

    told = Told(WorkflowRef("a", int)(value) for value in values)

    assert isinstance(told.error, InvalidInputError)
    assert place_of(told.error) == 2
    assert told.stored == ["0", "1"]


def test_what_the_requests_themselves_raise_comes_as_it_is_when_those_before_it_are_stored() -> None:
    own = ConnectionError("the source is gone")

    def requests() -> Iterable[RunRequest[None]]:
        yield from requests_of(1500)
        raise own

    told = Told(requests())

    assert told.error is own
    assert not hasattr(own, "__notes__")
    assert len(told.stored) == 1500


@pytest.mark.parametrize("raised", [KeyboardInterrupt, GeneratorExit])
def test_an_interruption_of_the_requests_is_not_put_off(raised: type[BaseException]) -> None:
    def requests() -> Iterable[RunRequest[None]]:
        yield A("0")
        raise raised

    with pytest.raises(raised):
        Told(requests(), refuse=lambda _: pytest.fail("nothing may be sent"))


@pytest.mark.parametrize("place", [0, 1, 500, 999, 1000, 1500])
@pytest.mark.parametrize("error", [lambda: InvalidOptionError("no"), lambda: DatabaseError("no", "23514")])
def test_a_refusal_that_names_no_request_is_found_by_halves(place: int, error: Callable[[], KedgeError]) -> None:
    told = Told(requests_of(2000), unnamed({place}, error))

    assert type(told.error) is type(error())
    assert place_of(told.error) == place
    assert told.stored == [str(number) for number in range(place)]
    assert told.tries <= 23


def test_a_refusal_of_everything_ends_soon() -> None:
    told = Told(requests_of(2000), lambda _: DatabaseError("no", "P0001"))

    assert place_of(told.error) == 0
    assert told.stored == []
    assert told.tries <= 11


@pytest.mark.parametrize("pick", [first_one, last_one, middle_one])
@pytest.mark.parametrize("first", [0, 3, 998, 1000, 1003])
def test_however_many_keys_are_taken_the_first_in_order_is_told_soon(
    first: int, pick: Callable[[list[Start]], Start]
) -> None:
    told = Told(requests_of(2000), taken(set(range(first, 2000)), pick))

    assert isinstance(told.error, RunExistsError)
    assert place_of(told.error) == first
    assert told.stored == [str(number) for number in range(first)]
    assert told.tries <= 25


@given(
    count=st.integers(0, 40),
    bad=st.sets(st.integers(0, 39), max_size=6),
    named=st.booleans(),
    last=st.booleans(),
    most=st.integers(1, 12),
)
def test_whatever_is_refused_all_before_it_is_stored_and_nothing_behind_it(
    count: int, bad: set[int], named: bool, last: bool, most: int
) -> None:
    refuse = taken(bad, last_one if last else first_one) if named else unnamed(bad, lambda: InvalidOptionError("no"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streams, "BATCH", most)

        told = Told(requests_of(count), refuse)

    first = min((place for place in bad if place < count), default=None)
    assert told.stored == [str(number) for number in range(count if first is None else first)]
    assert (told.error is None) == (first is None)
    if first is not None:
        assert place_of(told.error) == first


def test_an_outage_says_how_far_it_has_come() -> None:
    told = Told(requests_of(2000), unnamed({1000}, lambda: UnavailableError("gone")))

    assert place_of(told.error) == 1000
    assert told.tries == 2
    assert told.error is not None
    assert told.error.__notes__ == ["start_stream: the first 1,000 requests are started, the others are not"]


def test_an_unknown_outcome_is_that_of_one_chunk() -> None:
    told = Told(requests_of(2500), unnamed({1000}, lambda: OutcomeUnknownError("no answer")))

    assert place_of(told.error) == 1000
    assert told.error is not None
    assert told.error.__notes__ == [
        "start_stream: the first 1,000 requests are started, of the next 1,000 all are or none, the others are not"
    ]


def test_an_outage_does_not_hide_that_the_requests_have_failed() -> None:
    def requests() -> Iterable[RunRequest[None]]:
        yield A("0")
        raise ValueError("a secret")

    told = Told(requests(), lambda _: UnavailableError("gone"))

    assert isinstance(told.error, UnavailableError)
    assert told.error.__notes__[-1] == "start_stream: behind them comes a ValueError, which is not raised"
