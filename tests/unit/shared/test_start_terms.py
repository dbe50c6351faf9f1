"""A request's options as values of columns, of a client's start and of a child's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import pytest

from kedge import Retry, RunRequest, WorkflowRef
from kedge.run_meta import RunMeta
from kedge.start_terms import ChildTerms, child_start_terms, child_terms, start_terms, starts_alone

PLAIN = WorkflowRef("plain", str)
URGENT = WorkflowRef("urgent", str, version="2", queue="fast", priority=7, timeout="1h", key=lambda text: text)
MOMENT = datetime(2030, 1, 2, tzinfo=UTC)


def test_a_plain_request_says_what_it_is_and_nothing_else() -> None:
    terms = start_terms(PLAIN("x"))

    assert (terms.workflow, terms.queue, terms.priority, terms.input, terms.meta) == (
        "plain",
        "default",
        0,
        b'\x01"x"',
        b"",
    )
    assert (terms.key, terms.key_hash, terms.on_conflict, terms.singleton) == (None, None, "return", None)
    assert (terms.resource, terms.delay_s, terms.start_at, terms.tags, terms.timeout_s) == (
        None,
        None,
        None,
        None,
        None,
    )


def test_what_is_said_stands_in_its_column() -> None:
    request = URGENT("x", on_conflict="raise", resource="r", delay="90s", tags=["a", "b"], retry=Retry(3))

    terms = start_terms(request)

    assert (terms.workflow, terms.queue, terms.priority) == ("urgent@2", "fast", 7)
    assert (terms.key, terms.key_hash, terms.on_conflict) == ("x", request.key_hash, "raise")
    assert (terms.resource, terms.delay_s, terms.tags, terms.timeout_s) == ("r", 90.0, ("a", "b"), 3600.0)
    assert RunMeta.decode(terms.meta).retry is not None
    assert start_terms(PLAIN("x", start_at=MOMENT)).start_at == MOMENT


@pytest.mark.parametrize(
    ("request_", "timeout_s"),
    [
        (PLAIN("x"), None),
        (PLAIN("x", timeout=None), inf),
        (PLAIN("x", timeout=timedelta(milliseconds=1500)), 1.5),
        (URGENT("x", timeout=None), inf),
    ],
    ids=["nothing said", "explicitly none", "a duration", "none instead of the ref's"],
)
def test_no_timeout_is_another_thing_than_nothing_said(request_: RunRequest[None], timeout_s: float | None) -> None:
    assert start_terms(request_).timeout_s == timeout_s
    assert child_terms(request_, resource=None, priority=0).timeout_s == timeout_s


@pytest.mark.parametrize(
    ("options", "key"),
    [({}, ""), ({"key": "k"}, "k")],
    ids=["of the workflow", "of a key"],
)
def test_with_singleton_the_key_is_the_singletons_and_no_idempotency_key(options: Any, key: str) -> None:
    terms = start_terms(PLAIN("x", singleton="cancel_old", **options))

    assert (terms.key, terms.key_hash, terms.singleton) == (key, None, "cancel_old")


def test_a_refs_key_function_makes_the_singletons_key_too() -> None:
    assert start_terms(URGENT("x", singleton="return")).key == "x"
    assert start_terms(URGENT("x", singleton="return", key=None)).key == ""


def test_only_keys_and_singletons_need_a_transaction_of_their_own() -> None:
    assert not starts_alone(PLAIN("x"))
    assert starts_alone(PLAIN("x", key="k"))
    assert starts_alone(PLAIN("x", singleton="raise"))
    assert starts_alone(URGENT("x"))
    assert not starts_alone(URGENT("x", key=None))


def test_a_child_has_of_its_parent_what_is_not_said() -> None:
    inherited = child_terms(PLAIN("x"), resource="customer-7", priority=5)
    own = child_terms(PLAIN("x", resource="other", priority=1, tags=["a", "b"]), resource="customer-7", priority=5)
    emptied = child_terms(PLAIN("x", resource=None, priority=0, tags=[]), resource="customer-7", priority=5)
    by_ref = child_terms(URGENT("x", key=None), resource="customer-7", priority=5)

    assert (inherited.resource, inherited.priority, inherited.tags) == ("customer-7", 5, None)
    assert (own.resource, own.priority, own.tags) == ("other", 1, "a\x1fb")
    assert (emptied.resource, emptied.priority, emptied.tags) == (None, 0, "")
    assert (by_ref.resource, by_ref.priority, by_ref.queue) == ("customer-7", 7, "fast")


def test_a_child_with_a_start_of_its_own_inherits_in_the_same_way() -> None:
    inherited = child_start_terms(PLAIN("x", key="k"), resource="customer-7", priority=5)
    emptied = child_start_terms(PLAIN("x", key="k", resource=None, tags=[]), resource="customer-7", priority=5)

    assert (inherited.resource, inherited.priority, inherited.tags, inherited.key) == ("customer-7", 5, None, "k")
    assert (emptied.resource, emptied.tags) == (None, ())


def test_a_childs_terms_are_the_columns_of_its_start_in_their_order() -> None:
    request = PLAIN("x", queue="q", delay=3, timeout=4, metadata={"a": 1})

    assert child_terms(request, resource="r", priority=2) == ChildTerms(
        "plain", "q", 2, b'\x01"x"', request.options.meta, "r", None, 3.0, 4.0, None
    )
    assert child_terms(PLAIN("x", start_at=MOMENT), resource=None, priority=0).due_at == MOMENT
