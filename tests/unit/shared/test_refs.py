import copy
import pickle
from typing import Any

import msgspec
import pytest

from kedge import DomainError, EventMessage, EventRef, RunRequest, WorkflowRef
from kedge.errors import (
    DefinitionError,
    ErrorInfo,
    InvalidDurationError,
    InvalidEventError,
    InvalidInputError,
    InvalidNameError,
    InvalidOptionError,
    KedgeError,
    NotDecodableError,
    NotEncodableError,
    TooLargeError,
)
from kedge.failures import decode_error, encode_error
from kedge.hashes import fingerprint, input_hash
from kedge.run_meta import RunMeta


class Order(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 0
    tags: list[str] = []


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


class Untagged(msgspec.Struct):
    order_id: str


class CardDeclined(DomainError):
    code: str


class Alien(DomainError):
    what: complex


# For uses that the type checkers refuse as well.
LOOSE: Any = WorkflowRef
LOOSE_EVENT: Any = EventRef

PROCESS = WorkflowRef("process", Order, Receipt, key=lambda order: f"order:{order.order_id}", raises=(CardDeclined,))
NIGHTLY = WorkflowRef("nightly")
SETTLED = EventRef("settled", Receipt)


def test_a_request_holds_the_encoded_parsed_input() -> None:
    request = LOOSE("process", Order)({"order_id": "1", "unknown": True})

    assert request.payload == b'\x01{"order_id":"1","cents":0,"tags":[]}'
    assert request.input == Order("1")
    assert request.workflow == "process"


def test_a_request_does_not_change_with_what_it_was_made_from() -> None:
    order = Order("1", tags=["a"])
    request = PROCESS(order)

    order.tags.append("b")
    seen = request.input
    assert isinstance(seen, Order)
    seen.tags.append("c")

    assert request.input == Order("1", tags=["a"])


def test_a_ref_without_input_needs_none() -> None:
    assert NIGHTLY().payload == b"\x01null"
    assert NIGHTLY().input is None


def test_the_refs_key_is_made_of_the_parsed_input() -> None:
    def key_of(order: Order) -> str:
        return f"order:{order.order_id}"

    ref = LOOSE("process", Order, key=key_of)

    assert ref({"order_id": "7"}).key == "order:7"


def test_a_requests_key_comes_before_the_refs() -> None:
    assert PROCESS(Order("1"), key="mine").key == "mine"
    assert PROCESS(Order("1"), key=None).key is None
    assert NIGHTLY().key is None


def test_a_refs_key_is_checked_like_any_other() -> None:
    ref = WorkflowRef("process", Order, key=lambda order: order.order_id)

    with pytest.raises(InvalidNameError, match="key '' is empty"):
        ref(Order(""))
    with pytest.raises(InvalidNameError, match="has 300 bytes, the limit is 255"):
        ref(Order("x" * 300))


def test_a_refs_key_that_raises_is_an_input_that_does_not_fit() -> None:
    ref = WorkflowRef("process", Order, key=lambda order: order.tags[0])

    with pytest.raises(InvalidInputError, match="key= of the ref raised IndexError"):
        ref(Order("1"))


def test_a_refs_key_that_is_no_text_is_refused() -> None:
    def key_of(order: Order) -> int:
        return order.cents

    ref = LOOSE("process", Order, key=key_of)

    with pytest.raises(InvalidNameError, match="key '7' is a int; give text"):
        ref(Order("1", 7))


@pytest.mark.parametrize("key", ["", " a", "a\x00", "\ud800", "x" * 256, 3, b"x"])
def test_a_key_that_cannot_be_used_is_refused(key: Any) -> None:
    with pytest.raises(InvalidNameError):
        PROCESS(Order("1"), key=key)
    with pytest.raises(InvalidNameError):
        PROCESS(Order("1")).with_options(key=key)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"cents": 1}, "$.order_id"),
        ({"order_id": 1}, "$.order_id"),
        ({"order_id": "1", "tags": ["a", 2]}, "$.tags[1]"),
        (None, "$"),
        ([], "$"),
    ],
)
def test_an_input_that_does_not_fit_names_the_workflow_and_the_field(value: object, path: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        LOOSE("process", Order)(value)

    assert (caught.value.where, caught.value.path) == ("input of workflow 'process'", path)


def test_an_input_that_cannot_be_kept_is_refused() -> None:
    ref = LOOSE("any", Any)

    with pytest.raises(NotEncodableError, match="input of workflow 'any': is nan"):
        ref(float("nan"))
    with pytest.raises(TooLargeError):
        ref("x" * 1024 * 1024)


def test_a_request_resolves_its_options_over_the_refs() -> None:
    ref = WorkflowRef("mail", Order, queue="mail", priority=3, timeout="1h")

    plain, asked = ref(Order("1")), ref(Order("1"), queue="fast", timeout=None)

    assert (plain.options.queue, plain.options.priority) == ("mail", 3)
    assert RunMeta.decode(plain.options.meta) == RunMeta(timeout_s=3600.0)
    assert (asked.options.queue, asked.options.priority) == ("fast", 3)
    assert RunMeta.decode(asked.options.meta) == RunMeta(timeout_s=None, asked=("queue", "timeout"))


def test_requests_without_options_share_the_refs() -> None:
    assert PROCESS(Order("1")).options is PROCESS.options


def test_with_options_makes_another_request() -> None:
    request = PROCESS(Order("1"), queue="fast")

    other = request.with_options(priority=2, key="mine")

    assert (request.options.priority, request.key) == (0, "order:1")
    assert (other.options.queue, other.options.priority, other.key) == ("fast", 2, "mine")
    assert other.payload is request.payload


def test_an_unknown_option_is_refused_with_the_likely_one() -> None:
    with pytest.raises(InvalidOptionError, match="did you mean 'resource'"):
        PROCESS(Order("1"), ressource="c")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(InvalidOptionError, match="did you mean 'delay'"):
        PROCESS(Order("1")).with_options(delays=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_requests_are_compared_by_value_and_cannot_be_changed() -> None:
    one, same = PROCESS(Order("1"), tags=["a"]), PROCESS(Order("1"), tags=["a"])

    assert one == same != PROCESS(Order("2"), tags=["a"])
    assert hash(one) == hash(same)
    with pytest.raises(AttributeError):
        one.key = "x"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_printed_of_a_request_tells_nothing_of_its_payload() -> None:
    assert repr(PROCESS(Order("secret"), key="k")) == "<RunRequest process key='k'>"
    assert repr(NIGHTLY()) == "<RunRequest nightly>"
    assert repr(SETTLED(Receipt("secret"), key="k")) == "<EventMessage settled key='k'>"
    assert list(PROCESS(Order("secret"), key="k").__rich_repr__()) == ["process", ("key", "k", None)]
    assert list(SETTLED(Receipt("secret")).__rich_repr__()) == ["settled", ("key", None, None)]


def test_the_hash_of_a_key_joins_type_and_input() -> None:
    request = PROCESS(Order("1", 5))

    assert request.key_hash == fingerprint(Order) + input_hash(Order("1", 5))
    assert request.key_hash == WorkflowRef("other", Order)(Order("1", 5)).key_hash
    assert request.key_hash != PROCESS(Order("1", 6)).key_hash


def test_equal_inputs_have_one_hash_whatever_their_keys_order() -> None:
    ref = LOOSE("any", dict[str, Any])

    assert ref({"a": 1, "b": {"c": 2, "d": 3}}).key_hash == ref({"b": {"d": 3, "c": 2}, "a": 1}).key_hash


def test_refs_are_equal_by_name_and_version() -> None:
    assert WorkflowRef("a", Order) == WorkflowRef("a")
    assert WorkflowRef("a", version="1") != WorkflowRef("a", version="2")
    assert WorkflowRef("a") != EventRef("a")
    refs: dict[object, int] = {WorkflowRef("a", Order): 1}
    assert refs[WorkflowRef("a")] == 1
    assert EventRef("a", Order) == EventRef("a") != EventRef("b")
    assert len({EventRef("a"), EventRef("a"), WorkflowRef("a")}) == 2


@pytest.mark.parametrize(("version", "qualified"), [(None, "a"), ("2", "a@2"), ("2026-01", "a@2026-01")])
def test_a_version_is_part_of_the_qualified_name(version: str | None, qualified: str) -> None:
    ref = WorkflowRef.untyped("a", version=version)

    assert (ref.name, ref.version, ref.qualified_name) == ("a", version, qualified)


@pytest.mark.parametrize(
    ("make", "error", "problem"),
    [
        (lambda: LOOSE(""), InvalidNameError, "workflow '' is empty"),
        (lambda: LOOSE("a@b"), InvalidNameError, "contains '@'"),
        (lambda: LOOSE("a", version="1@2"), InvalidNameError, "version '1@2' contains '@'"),
        (lambda: LOOSE("a", version=""), InvalidNameError, "version '' is empty"),
        (lambda: LOOSE(3), InvalidNameError, "give text"),
        (lambda: LOOSE("x" * 201), InvalidNameError, "the limit is 200"),
        (lambda: LOOSE("a", queue="\n"), InvalidNameError, "control character"),
        (lambda: LOOSE("a", priority=10**6), InvalidOptionError, "whole number"),
        (lambda: LOOSE("a", timeout="0s"), InvalidDurationError, "longer than zero"),
        (lambda: LOOSE("a", resource="c"), InvalidOptionError, "unknown option 'resource'"),
        (lambda: LOOSE("a", "Order"), DefinitionError, "workflow 'a': the type 'Order' is a text"),
        (lambda: LOOSE("a", Order, "Receipt"), DefinitionError, "the type 'Receipt' is a text"),
        (lambda: LOOSE("a", Order | Untagged), DefinitionError, "give each Struct a tag"),
        (lambda: LOOSE("a", Order, complex), DefinitionError, "complex is no type that can be read back"),
        (lambda: LOOSE("a", Order, key="id"), DefinitionError, "give a function of the input"),
        (lambda: LOOSE("a", Order, raises=(ValueError,)), DefinitionError, "derive from DomainError"),
        (lambda: LOOSE("a", Order, raises=CardDeclined), DefinitionError, "give a tuple"),
        (lambda: LOOSE("a", Order, raises=(Alien,)), DefinitionError, "complex is no type"),
        (lambda: LOOSE_EVENT(" "), InvalidNameError, "event ' ' begins or ends with a blank"),
        (lambda: LOOSE_EVENT("a", "Payment"), DefinitionError, "event 'a': the type 'Payment' is a text"),
    ],
)
def test_a_ref_that_cannot_work_is_refused_when_it_is_written(make: Any, error: type[KedgeError], problem: str) -> None:
    with pytest.raises(error, match=problem):
        make()


def test_a_handlers_result_is_checked_and_comes_back_typed() -> None:
    payload = PROCESS.encode_output(Receipt("c1"))

    assert payload == b'\x01{"charge_id":"c1"}'
    assert PROCESS.decode_output(payload) == Receipt("c1")
    assert PROCESS.decode_output(PROCESS.encode_output({"charge_id": "c1", "unknown": 1})) == Receipt("c1")


@pytest.mark.parametrize(
    ("value", "path"), [(None, "$"), (Order("1"), "$.charge_id"), ({"charge_id": 1}, "$.charge_id")]
)
def test_a_handlers_result_that_does_not_fit_is_refused(value: object, path: str) -> None:
    with pytest.raises(NotEncodableError) as caught:
        PROCESS.encode_output(value)

    assert (caught.value.where, caught.value.path) == ("result of workflow 'process'", path)


def test_stored_values_that_no_longer_fit_name_the_workflow() -> None:
    with pytest.raises(NotDecodableError, match=r"input of workflow 'process': .*missing required field `order_id`"):
        PROCESS.decode_input(b"\x01{}")
    with pytest.raises(NotDecodableError, match="result of workflow 'process': unknown codec 9"):
        PROCESS.decode_output(b"\x09")


def test_a_declared_error_is_rebuilt() -> None:
    again = PROCESS.domain_error(decode_error(encode_error(CardDeclined("expired"))))

    assert isinstance(again, CardDeclined)
    assert again.code == "expired"
    assert PROCESS.domain_error(ErrorInfo("builtins.ValueError", "x")) is None
    assert NIGHTLY.domain_error(decode_error(encode_error(CardDeclined("expired")))) is None


def test_an_untyped_ref_takes_any_json() -> None:
    ref = WorkflowRef.untyped("process")

    assert ref({"order_id": "1"}).payload == PROCESS.untyped("process")({"order_id": "1"}).payload
    assert ref.decode_output(b'\x01{"charge_id":"c"}') == {"charge_id": "c"}


def test_refs_and_requests_survive_pickle_and_copy() -> None:
    ref = WorkflowRef("a", Order, Receipt, version="2", queue="q", timeout="1h", raises=(CardDeclined,))
    request = ref(Order("1"), key="k", metadata={"a": 1})

    again: RunRequest[Receipt] = pickle.loads(pickle.dumps(request))

    assert again == copy.deepcopy(request) == request
    assert (again.ref.options, again.ref.raises, again.ref.input_type) == (ref.options, (CardDeclined,), Order)
    message: EventMessage = pickle.loads(pickle.dumps(SETTLED(Receipt("c"), key="k")))
    assert message == SETTLED(Receipt("c"), key="k")


def test_a_message_holds_the_encoded_parsed_payload() -> None:
    message = SETTLED(Receipt("c"), key="stripe-1")

    assert (message.event, message.key, message.payload) == ("settled", "stripe-1", b'\x01{"charge_id":"c"}')
    assert message.value == Receipt("c")
    assert EventRef("approved")().payload == b"\x01null"


def test_a_payload_that_does_not_fit_names_the_event_and_the_field() -> None:
    with pytest.raises(InvalidEventError) as caught:
        SETTLED({"charge_id": 3})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert (caught.value.where, caught.value.path) == ("payload of event 'settled'", "$.charge_id")


@pytest.mark.parametrize("key", ["", "a\x00", "x" * 256, 3])
def test_a_messages_key_is_checked(key: Any) -> None:
    with pytest.raises(InvalidNameError):
        SETTLED(Receipt("c"), key=key)


def test_a_stored_event_that_no_longer_fits_names_the_event() -> None:
    with pytest.raises(NotDecodableError, match="payload of event 'settled'"):
        SETTLED.decode(b"\x01[]")
