"""From requests to statements: shapes, batches, the order of keys, doorbells."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge import (
    InputConflictError,
    InvalidOptionError,
    Retry,
    RunActiveError,
    RunExistsError,
    RunRequest,
    WorkflowRef,
)
from kedge.start_terms import starts_alone
from kedge_client import _requests
from kedge_client._requests import (
    Start,
    batch_values,
    batches,
    conflict_of,
    doorbells,
    new_start,
    start_values,
    started,
)
from kedge_client._statements import START, START_MANY

A = WorkflowRef("a", str)
B = WorkflowRef("b", str, queue="other")


def starts(*requests: Any) -> list[Start]:
    return [new_start(request, None) for request in requests]


def test_values_stand_in_the_order_of_the_statements_parameters() -> None:
    (one,) = starts(A("x", key="k", resource="r", priority=3, tags=["t"], delay="90s"))

    named = dict(zip(START.parameters, start_values(one), strict=True))

    assert named["id"] == one.run_id
    assert (named["workflow"], named["queue"], named["priority"]) == ("a", "default", 3)
    assert (named["key"], len(named["key_hash"]), named["on_conflict"]) == ("k", 24, "return")
    assert (named["resource"], named["delay_s"], named["start_at"], named["tags"]) == ("r", 90.0, None, ["t"])
    assert named["strict"] is False


def test_values_of_a_batch_stand_in_the_order_of_the_statements_parameters() -> None:
    (batch,) = batches(starts(A("x"), A("y", resource="r")))

    named = dict(zip(START_MANY.parameters, batch_values(batch, strict=True), strict=True))

    assert (named["workflow"], named["inputs"]) == ("a", [b'\x01"x"', b'\x01"y"'])
    assert named["resources"] == [None, "r"]
    assert (named["keys"], named["key_hashes"], named["metas"], named["tags"]) == (None, None, None, None)


def test_starts_of_one_shape_share_a_statement_of_at_most_a_thousand() -> None:
    found = batches(starts(*(A(str(i)) for i in range(2001)), B("x"), A("y", priority=1)))

    assert sorted(len(batch.places) for batch in found) == [1, 1, 1, 1000, 1000]


def test_metadata_and_resources_make_no_shape_of_their_own() -> None:
    assert len(batches(starts(A("x", resource="r"), A("y", metadata={"a": 1}), A("z")))) == 1


def test_what_a_statement_says_once_makes_a_shape() -> None:
    later = datetime(2100, 1, 1, tzinfo=UTC)
    requests = [
        A("x"),
        B("x"),
        A("x", queue="q"),
        A("x", priority=1),
        A("x", delay=1),
        A("x", start_at=later),
        A("x", tags=["t"]),
        A("x", key="k"),
        A("x", key="k", on_conflict="raise"),
        A("x", timeout="1h"),
        A("x", timeout=None),
        A("x", singleton="raise"),
        A("x", singleton="return"),
        A("x", key="k", singleton="return"),
    ]

    assert len(batches(starts(*requests))) == len(requests)


def requested(
    ref: WorkflowRef[str, None], key: str | None, priority: int, single: bool, resource: str | None
) -> RunRequest[None]:
    request = ref("x", key=key, priority=priority, resource=resource)
    return request.with_options(singleton="return") if single else request


REQUESTS = st.lists(
    st.builds(
        requested,
        st.sampled_from([A, B]),
        st.none() | st.sampled_from(["k1", "k2", "k3", "k4"]),
        st.integers(0, 2),
        st.booleans(),
        st.none() | st.sampled_from(["r1", "r2"]),
    ),
    max_size=30,
)


@given(REQUESTS)
def test_every_start_is_in_exactly_one_batch_at_its_place(requests: Sequence[Any]) -> None:
    made = starts(*requests)

    found = batches(made)

    assert sorted(place for batch in found for place in batch.places) == list(range(len(made)))
    assert all(made[place] is start for batch in found for place, start in zip(*batch, strict=True))
    assert all(batch.places for batch in found)


@given(REQUESTS, st.randoms(use_true_random=False))
def test_keys_go_in_one_order_whatever_the_order_of_the_requests(requests: list[Any], shuffled: random.Random) -> None:
    def order(these: Sequence[Any]) -> list[tuple[str, str, bool, str]]:
        requests = [start.request for batch in batches(starts(*these)) for start in batch.starts]
        return [
            (
                request.ref.name,
                request.key or "",
                request.options.singleton is not None,
                request.options.resource or "",
            )
            for request in requests
            if starts_alone(request)
        ]

    first = order(requests)
    shuffled.shuffle(requests)

    assert order(requests) == first == sorted(first)


def test_large_batches_of_keys_are_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_requests, "BATCH", 3)

    found = batches(starts(*(A("x", key=f"k{i}") for i in range(7))))

    assert [len(batch.places) for batch in found] == [3, 3, 1]


def test_a_scope_fills_in_the_resource() -> None:
    assert new_start(A("x"), "r").request.options.resource == "r"
    assert new_start(A("x", resource="r"), "r").request.options.resource == "r"
    with pytest.raises(InvalidOptionError):
        new_start(A("x", resource="s"), "r")


def test_a_timeout_a_policy_and_a_singleton_go_with_the_start() -> None:
    (one,) = starts(A("x", timeout="90s", retry=Retry(3), singleton="raise", key="k"))

    named = dict(zip(START.parameters, start_values(one), strict=True))

    assert (named["timeout_s"], named["singleton"], named["key"]) == (90.0, "raise", "k")
    assert named["key_hash"] is None
    assert b'"max_attempts":3' in named["meta"]


def test_a_batch_of_singletons_says_a_key_for_each_and_no_hash() -> None:
    (batch,) = batches(starts(A("x", singleton="return", timeout=None)))

    named = dict(zip(START_MANY.parameters, batch_values(batch, strict=True), strict=True))

    assert (named["keys"], named["key_hashes"], named["singleton"]) == ([""], None, "return")
    assert named["timeout_s"] == inf


def test_the_doorbell_rings_once_for_what_is_due() -> None:
    past, future = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)
    made = starts(
        A("x"),
        A("y"),
        A("z", delay="1h"),
        B("x", start_at=past),
        B("y", queue="late", start_at=future),
        A("0", delay=0),
    )

    assert doorbells(made) == [("default", "a"), ("other", "b")]


def test_a_run_that_takes_anothers_place_rings_for_its_letters_too() -> None:
    assert doorbells(starts(A("x", singleton="cancel_old"))) == [(None, None), ("default", "a")]
    assert doorbells(starts(A("x", singleton="cancel_old", delay="1h"))) == [(None, None)]
    assert doorbells(starts(A("x", singleton="return"))) == [("default", "a")]


class Refused(psycopg.Error):
    """A strict start's error."""

    def __init__(self, sqlstate: str, detail: str) -> None:
        super().__init__("taken")
        self.sqlstate = sqlstate
        self._detail = detail

    @property
    def diag(self) -> Any:
        return msgspec.defstruct("Diag", ["message_detail"])(self._detail)


def test_a_conflict_names_the_request_that_has_it() -> None:
    first, second = starts(A("x", key="k1"), A("y", key="k2"))
    holder = starts(A("z"))[0].run_id

    exists = conflict_of([first, second], Refused("KE003", f"{second.run_id} {holder}"))
    other = conflict_of([first, second], Refused("KE002", f"{first.run_id} {holder}"))

    assert type(exists) is RunExistsError
    assert (exists.run_id, exists.existing_id, exists.key) == (second.run_id, holder, "k2")
    assert type(other) is InputConflictError
    assert (other.existing_id, other.key) == (holder, "k1")
    assert conflict_of([first], Refused("23505", "")) is None


def test_an_active_singleton_is_told_with_its_run() -> None:
    (one,) = starts(A("x", singleton="raise"))
    holder = starts(A("z"))[0].run_id

    active = conflict_of([one], Refused("KE010", f"{one.run_id} {holder}"))

    assert isinstance(active, RunActiveError)
    assert (active.existing_id, active.workflow, active.key) == (holder, "a", "")
    assert started(one, (holder, False, "running", None)) == (holder, False)
    with pytest.raises(RunActiveError):
        started(one, (holder, False, "running", "active"))
