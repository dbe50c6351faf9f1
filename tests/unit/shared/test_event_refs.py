"""Events: what a letter and a wait agree on, what makes a message the same one, and what a ref and a message are."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.errors import InvalidEventError, InvalidNameError, NotEncodableError, TooLargeError
from kedge.event_refs import EventMessage, EventRef, check_topic, event_slot, keyed_letter_id

RUN = UUID("0198c0de-0000-7000-8000-000000000000")
OTHER = UUID("0198c0de-0000-7000-8000-000000000001")


class Payment(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 100


SETTLED = EventRef("payment-settled", Payment)
ANSWERED = EventRef("answered", int | None)
APPROVED = EventRef("approved")

# Every text that can be a name.
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40)


def test_a_ref_makes_messages_with_a_key_of_their_own() -> None:
    message = SETTLED(Payment("o-1"), key="stripe-evt-1")

    assert (message.event, message.key, message.value) == ("payment-settled", "stripe-evt-1", Payment("o-1"))
    assert message == SETTLED({"order_id": "o-1"}, key="stripe-evt-1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a dict may stand for a Struct
    assert message != SETTLED(Payment("o-1")) != SETTLED(Payment("o-2"))
    assert len({message, copy.deepcopy(message), pickle.loads(pickle.dumps(message))}) == 1


def test_none_is_a_payload() -> None:
    message = ANSWERED(None)

    assert (message.payload, message.value) == (b"\x01null", None)
    assert ANSWERED.decode(message.payload) is None
    assert ANSWERED.decode(ANSWERED(3).payload) == 3
    assert APPROVED().value is None


def test_refs_are_equal_by_name_and_survive_pickle_and_copy() -> None:
    for again in (copy.copy(SETTLED), copy.deepcopy(SETTLED), pickle.loads(pickle.dumps(SETTLED))):
        assert again == SETTLED
        assert hash(again) == hash(SETTLED)
        assert again.decode(SETTLED(Payment("o")).payload) == Payment("o")
    assert SETTLED == EventRef("payment-settled") != APPROVED
    assert SETTLED != "payment-settled"
    assert repr(SETTLED) == "<EventRef payment-settled>"


@pytest.mark.parametrize("name", ["", " a", "a ", "a\x1fb", "a\x00", "a\ud800", "a\u2028b", "x" * 201, 3, None])
def test_a_name_that_a_workflow_could_not_have_is_no_events_and_no_topics_either(name: Any) -> None:
    with pytest.raises(InvalidNameError, match="event"):
        EventRef(name)
    with pytest.raises(InvalidNameError, match="topic"):
        check_topic(name)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"cents": 1}, InvalidEventError),
        ("o-1", InvalidEventError),
        (None, InvalidEventError),
        (Payment("a\ud800"), NotEncodableError),
        (Payment("x" * 1024 * 1024), TooLargeError),
    ],
    ids=["a field is missing", "a text", "nothing", "surrogate", "large"],
)
def test_a_payload_that_cannot_be_read_by_whoever_waits_is_refused_at_the_sender(
    payload: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="payload of event 'payment-settled'"):
        SETTLED(payload)


def test_a_slot_names_the_event_and_the_topic() -> None:
    assert event_slot("settled") == "e:settled"
    assert event_slot("settled", "orders") == "t:orders\x1fsettled"


@given(names, names, names, names)
def test_slots_differ_when_names_or_topics_do(event: str, other: str, topic: str, second: str) -> None:
    slots = [event_slot(event), event_slot(event, topic), event_slot(other, second)]

    assert slots[0] != slots[1]
    assert (slots[1] == slots[2]) == ((event, topic) == (other, second))


def test_a_keyed_messages_id_is_the_same_in_every_process_and_release() -> None:
    # Stored with the mail: another id would let in what has been consumed.
    assert keyed_letter_id(RUN, "settled", "k") == UUID("3a71a19f-e72f-51aa-a284-bf95b11cc081")
    assert keyed_letter_id("orders", "settled", "k") == UUID("bdff81c2-176d-5860-b4d5-0dcdf04f1e6d")


def test_a_keyed_messages_id_says_to_whom_what_and_which() -> None:
    ids = {
        keyed_letter_id(to, event, key)
        for to in (RUN, OTHER, str(RUN), "orders")
        for event in ("settled", "refunded")
        for key in ("1", "2")
    }

    assert len(ids) == 16


def test_a_message_tells_nothing_of_its_payload() -> None:
    message: EventMessage = SETTLED(Payment("a secret"), key="k")

    assert repr(message) == "<EventMessage payment-settled key='k'>"
