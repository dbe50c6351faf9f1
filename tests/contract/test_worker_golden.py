"""Bytes that releases of the worker have written. They lie in databases: they must be read for ever."""

import pytest

from kedge.hashes import argument_hashes
from kedge_worker._memo import RowMeta
from kedge_worker._polling import PollState

METAS: list[tuple[RowMeta, bytes]] = [
    (RowMeta(), b""),
    (RowMeta("f"), b'\x01{"operation":"f"}'),
    (RowMeta("s", {"a": 1893456000000000}), b'\x01{"nows":{"a":1893456000000000}}'),
    (RowMeta("s", {}, (b"\x00" * 8, b"")), b'\x01{"inputs":["AAAAAAAAAAA=",""]}'),
]


@pytest.mark.parametrize(("meta", "stored"), METAS, ids=range(len(METAS)))
def test_the_meta_of_an_outcome_is_written_and_read_as_ever(meta: RowMeta, stored: bytes) -> None:
    assert meta.encode() == stored
    assert RowMeta.decode(stored) == meta


POLLS: list[tuple[PollState, bytes]] = [
    (PollState.of(0, 1, None, 1), b'\x01{"failed":1,"failures":1}'),
    (PollState.of(7, 0, b'\x01{"page":3}', 0), b'\x01{"checks":7,"state":{"page":3}}'),
]


@pytest.mark.parametrize(("state", "stored"), POLLS, ids=range(len(POLLS)))
def test_the_state_of_a_poll_is_written_and_read_as_ever(state: PollState, stored: bytes) -> None:
    read = PollState.decode(stored, where="test")

    assert state.encode() == stored
    assert (read.checks, read.failed, read.payload) == (state.checks, state.failed, state.payload)
    assert read.failures == state.failures


def test_a_poll_that_has_only_begun_has_no_state() -> None:
    begun = PollState.decode(b"", where="test")

    assert (begun.checks, begun.failed, begun.payload) == (0, 0, None)


def test_arguments_have_the_hashes_that_they_have_always_had() -> None:
    hashes = argument_hashes((1, "é", None, {"b": 2, "a": [1.5]}, {3, 1}, object()))

    assert [one.hex() for one in hashes] == [
        "f6fc42039fba3776",
        "b7cbc2fff315654e",
        "7376b2cbfa0ad26e",
        "61ea1a56d498ddab",
        "47302b0e892cee2e",
        "",
    ]
