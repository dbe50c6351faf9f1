"""Letters as values: what is sent, that a repeat is the same letter, and how answers are read."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import pytest

from kedge import EventRef, InvalidRunStateError, RunNotActiveError, RunNotFoundError, TooLargeError
from kedge.event_refs import keyed_letter_id
from kedge_client import Delivery, _letters
from kedge_client._letters import Letter
from kedge_client._statements import RING

RUN: Final = UUID("0198c0de-0000-7000-8000-000000000000")
APPROVED: Final = EventRef("approved")
ANSWERED: Final = EventRef("answered", int)

LETTERS: Final[dict[str, Callable[[], Letter[Any]]]] = {
    "send": lambda: _letters.send(APPROVED(), run=RUN, resource="alice"),
    "cancel": lambda: _letters.cancel(RUN, resource="alice", reason="no stock", cascade=True),
    "pause": lambda: _letters.pause(RUN, resource="alice", reason="a look"),
    "resume": lambda: _letters.resume(RUN, resource="alice"),
    "retry": lambda: _letters.retry(RUN, resource="alice"),
    "fast_forward": lambda: _letters.fast_forward(RUN, 3, resource="alice", wait="answer"),
}
every_verb = pytest.mark.parametrize("make", LETTERS.values(), ids=LETTERS.keys())


def said(letter: Letter[Any]) -> dict[str, Any]:
    return dict(zip(letter.plain.parameters, letter.values, strict=True))


@pytest.mark.parametrize("verb", LETTERS)
def test_a_letter_says_what_its_function_asks_for(verb: str) -> None:
    letter = LETTERS[verb]()
    values = said(letter)

    assert letter.plain.name == verb.encode()
    assert letter.ringing.parameters == letter.plain.parameters
    assert (values["run"], values["resource"]) == (RUN, "alice")
    assert isinstance(values["letter"], UUID)
    expected = {
        "send": {"event": "approved", "topic": None, "payload": b"\x01null"},
        "cancel": {"reason": "no stock", "cascade": True},
        "pause": {"reason": "a look"},
        "fast_forward": {"wait": "answer", "payload": b"\x013"},
    }
    assert {name: values[name] for name in values.keys() - {"run", "resource", "letter"}} == expected.get(verb, {})


@every_verb
def test_a_repeat_is_the_same_letter_and_two_letters_are_two(make: Callable[[], Letter[Any]]) -> None:
    letter = make()
    call = letter.call(wake=True)

    tries = [[list(transaction) for transaction in call.transactions()] for _ in range(3)]

    assert tries[0] == tries[1] == tries[2]
    assert call.writes
    assert said(letter)["letter"] != said(make())["letter"]


@every_verb
def test_the_doorbell_rings_behind_the_commit_or_with_the_callers(make: Callable[[], Letter[Any]]) -> None:
    letter = make()

    first, bell = (list(transaction) for transaction in letter.call(wake=True).transactions())

    assert [command.statement for command in first] == [letter.plain]
    assert [(command.statement, command.values) for command in bell] == [(RING, (None, None))]
    assert len(letter.call(wake=False).transactions()) == 1
    assert [command.statement for command in letter.here(wake=True)] == [letter.ringing]
    assert [command.statement for command in letter.here(wake=False)] == [letter.plain]


@every_verb
def test_no_row_is_no_run(make: Callable[[], Letter[Any]]) -> None:
    with pytest.raises(RunNotFoundError) as caught:
        make().read([])

    assert caught.value.run_id == RUN


def test_a_message_with_a_key_has_an_id_of_its_own() -> None:
    to_run, to_topic = (
        _letters.send(APPROVED(key="k"), run=RUN, resource=None),
        _letters.send(APPROVED(key="k"), topic="orders", resource=None),
    )

    assert said(to_run)["letter"] == keyed_letter_id(RUN, "approved", "k")
    assert said(to_topic)["letter"] == keyed_letter_id("orders", "approved", "k")
    assert said(to_topic)["run"] is None


def test_names_that_are_members_of_an_enum_are_sent_as_text() -> None:
    class Topic(StrEnum):
        ORDERS = "orders"

    assert type(said(_letters.send(APPROVED(), topic=Topic.ORDERS, resource=None))["topic"]) is str
    assert type(said(_letters.pause(RUN, resource=None, reason=Topic.ORDERS))["reason"]) is str
    assert type(said(_letters.fast_forward(RUN, None, resource=None, wait=Topic.ORDERS))["wait"]) is str


@pytest.mark.parametrize("delivered", [True, False])
def test_an_accepted_message_is_answered_with_its_id(*, delivered: bool) -> None:
    letter = _letters.send(ANSWERED(3), run=RUN, resource=None)

    assert letter.read([(True, "waiting", False, delivered, 7)]) == Delivery(said(letter)["letter"], delivered)


def test_a_refused_message_says_why() -> None:
    letter = _letters.send(ANSWERED(3), run=RUN, resource=None)

    with pytest.raises(RunNotActiveError, match="start a new run") as ended:
        letter.read([(False, "completed", True, False, 0)])
    with pytest.raises(TooLargeError) as full:
        letter.read([(False, "waiting", False, False, 1000)])

    assert (ended.value.status, ended.value.action) == ("completed", "send to")
    assert (full.value.size, full.value.limit, full.value.unit) == (1001, 1000, "unread events")


def test_an_ended_run_with_much_mail_is_ended() -> None:
    letter = _letters.send(ANSWERED(3), run=RUN, resource=None)

    with pytest.raises(RunNotActiveError):
        letter.read([(False, "failed", True, False, 1000)])
    # A retry is on its way.
    with pytest.raises(TooLargeError):
        letter.read([(False, "failed", False, False, 1000)])


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
def test_an_accepted_letter_is_answered_with_the_status(verb: str) -> None:
    assert LETTERS[verb]().read([(True, "running")]) == "running"


@pytest.mark.parametrize(("verb", "wanted"), [("pause", "pending"), ("resume", "paused"), ("retry", "failed")])
def test_a_refused_letter_says_what_the_run_must_be(verb: str, wanted: str) -> None:
    with pytest.raises(InvalidRunStateError) as caught:
        LETTERS[verb]().read([(False, "completed")])

    assert (caught.value.status, caught.value.wanted[0], caught.value.action) == ("completed", wanted, verb)


def test_a_cancel_of_what_is_cancelled_is_harmless() -> None:
    assert LETTERS["cancel"]().read([(False, "cancelled")]) == "cancelled"
    with pytest.raises(InvalidRunStateError):
        LETTERS["cancel"]().read([(False, "failed")])


def test_a_fast_forward_tells_whether_there_was_a_wait() -> None:
    letter = LETTERS["fast_forward"]()

    assert letter.read([(True, "waiting", False)]) is True
    assert letter.read([(False, "waiting", False)]) is False
    # A retry is on its way.
    assert letter.read([(False, "failed", False)]) is False
    # A repeat of one that was sorted before the run ended.
    assert letter.read([(True, "completed", True)]) is True
    with pytest.raises(InvalidRunStateError) as caught:
        letter.read([(False, "completed", True)])
    assert caught.value.action == "fast-forward"
