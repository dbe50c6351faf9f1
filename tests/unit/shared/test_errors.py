import copy
import inspect
import pickle
import re
from datetime import date
from typing import Any
from uuid import UUID

import pytest

import kedge
from kedge import errors
from kedge.errors import (
    ChildCancelledError,
    ChildFailedError,
    DefinitionError,
    DomainError,
    ErrorInfo,
    EventTimeoutError,
    InputConflictError,
    InvalidDurationError,
    InvalidNameError,
    InvalidRunStateError,
    KedgeError,
    PayloadError,
    ReplayMismatchError,
    ResultTimeoutError,
    RunActiveError,
    RunCancelledError,
    RunError,
    RunExistsError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    SchemaError,
    StepError,
    StepFailedError,
    StepNotFoundError,
    TooLargeError,
    TransactionFailedError,
    UnavailableError,
)

RUN = UUID("01934b00-0000-7000-8000-000000000001")
OTHER = UUID("01934b00-0000-7000-8000-000000000002")
INFO = ErrorInfo("shop.PaymentError", "card 4242 was declined", key="charge", attempt=3)


class CardDeclined(DomainError):
    code: str
    on: date | None = None


class OutOfStock(DomainError):
    """Without fields."""


def arguments_of(cls: type[KedgeError]) -> tuple[Any, ...]:
    """What the class's constructor takes, by the names of its parameters."""
    by_name: dict[str, Any] = {
        "problem": "it cannot be done",
        "what": "queue",
        "name": "a b",
        "option": "timeout",
        "given": "'soon'",
        "where": "step 'charge'",
        "path": "$.items[3]",
        "size": 2_000_000,
        "limit": 1_048_576,
        "unit": "bytes",
        "run_id": RUN,
        "status": "completed",
        "wanted": ("pending", "waiting"),
        "action": "pause",
        "existing_id": OTHER,
        "step": "charge",
        "keys": ("reserve", "mail"),
        "workflow": "process-order",
        "key": "order:1",
        "key_id": "2026-q1",
        "error": INFO,
        "reason": "a duplicate",
        "timeout_s": 1.5,
        "child_id": OTHER,
        "sqlstate": "23505",
        "found": 1,
        "wanted_version": 2,
        "command": "kedge-worker migrate",
        "delay": "30s",
        "message": "busy",
    }
    if cls is SchemaError:
        return (1, 2, "kedge-worker migrate")
    parameters = list(inspect.signature(cls).parameters.values())
    return tuple(by_name[p.name] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def public_errors() -> list[type[KedgeError]]:
    found = [getattr(kedge, name) for name in kedge.__all__]
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, KedgeError)]


CONCRETE = [cls for cls in public_errors() if cls not in (KedgeError, DomainError, RunError)]


@pytest.mark.parametrize("cls", CONCRETE, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickle_and_copy_with_its_attributes(cls: type[KedgeError]) -> None:
    error = cls(*arguments_of(cls))
    error.add_note("seen in the test")

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert again.args == error.args


@pytest.mark.parametrize("cls", CONCRETE, ids=lambda cls: cls.__name__)
def test_every_error_says_one_readable_sentence(cls: type[KedgeError]) -> None:
    text = str(cls(*arguments_of(cls)))

    assert text
    assert "\n" not in text
    assert "ErrorInfo(" not in text
    assert "UUID(" not in text


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = ["KedgeError"]
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        if found := re.match(r"^    ([| ]*)[|`]- (\w+(?:, \w+)*)", line):
            depth = len(found[1]) // 3 + 1
            for name in found[2].split(", "):
                drawn[name] = above[depth - 1]
            above[depth:] = [found[2]]

    actual = {cls.__name__: cls.__bases__[0].__name__ for cls in public_errors() if cls is not KedgeError}
    assert drawn == actual


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.UsageError, ValueError),
        (PayloadError, ValueError),
        (RunNotFoundError, LookupError),
        (ResultTimeoutError, TimeoutError),
        (EventTimeoutError, TimeoutError),
        (UnavailableError, ConnectionError),
    ],
)
def test_errors_that_have_a_builtin_meaning_can_be_caught_by_it(cls: type, builtin: type) -> None:
    assert issubclass(cls, builtin)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidNameError("queue", "x" * 300, "is too long"), f"queue '{'x' * 27}...{'x' * 28}' is too long"),
        (
            InvalidDurationError("delay", "'soon'", "cannot be read"),
            (
                "delay='soon' cannot be read; write a timedelta, seconds, '2 days 12 hours', '1h30m', '500ms' or "
                "'PT1H', up to 10 years"
            ),
        ),
        (
            TooLargeError("input of workflow 'a'", 1_048_577, 1_048_576),
            (
                "input of workflow 'a': 1,048,577 bytes, the limit is 1,048,576; keep large values in object storage "
                "and pass a reference"
            ),
        ),
        (TooLargeError("step 'a'", 129, 128, "levels"), "step 'a': 129 levels, the limit is 128"),
        (
            RunNotFoundError(RUN),
            f"run {RUN} not found: check the id, the resource, and whether its start was committed",
        ),
        (
            InvalidRunStateError(RUN, "completed", ("pending", "waiting"), "pause"),
            f"cannot pause run {RUN}: it is completed, it must be pending or waiting",
        ),
        (
            RunNotActiveError(RUN, "failed", ("running",), "send to"),
            f"cannot send to run {RUN}: it is failed, it must be running; retry it first",
        ),
        (
            RunNotActiveError(RUN, "cancelled", ("running",), "send to"),
            f"cannot send to run {RUN}: it is cancelled, it must be running; start a new run",
        ),
        (
            InvalidRunStateError(RUN, "waiting", ("paused",), "resume"),
            (
                f"cannot resume run {RUN}: it is waiting, it must be paused or wait in ctx.pause; fast_forward ends"
                " other waits"
            ),
        ),
        (
            InvalidRunStateError(RUN, "completed", ("failed",), "retry"),
            (
                f"cannot retry run {RUN}: it is completed, it must be failed; rerun_from starts a new run from one of"
                " its steps"
            ),
        ),
        (
            InvalidRunStateError(RUN, "running", ("failed",), "retry"),
            f"cannot retry run {RUN}: it is running, it must be failed; it goes on by itself",
        ),
        (
            TooLargeError(f"mail of run {RUN}", 1001, 1000, "unread events"),
            (
                f"mail of run {RUN}: 1,001 unread events, the limit is 1,000; send again when the run has read some"
                " with ctx.wait_for"
            ),
        ),
        (
            RunExistsError(RUN, OTHER, "a", "k"),
            f"key 'k' of workflow 'a' is taken by run {OTHER}; on_conflict='return' answers with that run",
        ),
        (
            InputConflictError(RUN, OTHER, "a", "k"),
            (
                f"key 'k' of workflow 'a' is taken by run {OTHER} with another input; use another key, or "
                "on_conflict='return_any_input'"
            ),
        ),
        (
            RunActiveError(RUN, OTHER, "a", "k"),
            (
                f"run {OTHER} of workflow 'a' with key 'k' is active; wait for its end, or use singleton='return' or "
                "'cancel_old'"
            ),
        ),
        (
            RunActiveError(RUN, OTHER, "a", ""),
            f"run {OTHER} of workflow 'a' is active; wait for its end, or use singleton='return' or 'cancel_old'",
        ),
        (StepNotFoundError(RUN, "charge", ()), f"run {RUN} has no step 'charge': it has none"),
        (
            StepNotFoundError(RUN, "charge", tuple("abcdefghijk")),
            f"run {RUN} has no step 'charge': it has {', '.join(map(repr, 'abcdefghij'))} and more",
        ),
        (RunFailedError(RUN, INFO), f"run {RUN} failed: shop.PaymentError: card 4242 was declined"),
        (RunFailedError(RUN, ErrorInfo("builtins.ValueError", "")), f"run {RUN} failed: ValueError"),
        (RunCancelledError(RUN), f"run {RUN} was cancelled"),
        (RunCancelledError(RUN, "a duplicate"), f"run {RUN} was cancelled: a duplicate"),
        (
            ResultTimeoutError(RUN, 1.5, "waiting"),
            f"run {RUN} is waiting after 1.5 s and goes on: wait longer or ask again",
        ),
        (
            ResultTimeoutError(RUN, 1.5),
            f"run {RUN} was not seen within 1.5 s: wait longer, or commit the transaction that starts it",
        ),
        (
            StepFailedError(RUN, "charge", INFO),
            f"step 'charge' of run {RUN} failed after 3 attempts: shop.PaymentError: card 4242 was declined",
        ),
        (
            EventTimeoutError(RUN, "settled"),
            f"wait 'settled' of run {RUN} timed out: catch EventTimeoutError, or give it more time",
        ),
        (
            ChildFailedError(RUN, "invoice", OTHER, INFO),
            f"child 'invoice' ({OTHER}) of run {RUN} failed: shop.PaymentError: card 4242 was declined",
        ),
        (ChildCancelledError(RUN, "invoice", OTHER), f"child 'invoice' ({OTHER}) of run {RUN} was cancelled"),
        (
            TransactionFailedError(RUN, "ledger", INFO, "23505"),
            f"transaction 'ledger' of run {RUN} was refused (23505): shop.PaymentError: card 4242 was declined",
        ),
        (
            ReplayMismatchError(RUN, "the journal holds step 'a', the handler asked for 'b'"),
            (
                f"run {RUN}: the journal holds step 'a', the handler asked for 'b'; it goes on after a deploy that "
                "asks for the same again"
            ),
        ),
        (
            SchemaError(0, 3, "run kedge-worker migrate"),
            "the schema is missing, this release wants 3: run kedge-worker migrate",
        ),
        (UnavailableError("no connection", "57P03"), "no connection (57P03)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_messages_name_the_ids_and_end_with_what_to_do(error: KedgeError, text: str) -> None:
    assert str(error) == text


def test_a_step_error_without_details_still_has_its_ids() -> None:
    error = StepError(RUN, "charge", None)

    assert (error.run_id, error.key, error.error) == (RUN, "charge", None)


def test_a_domain_error_gets_its_constructor_from_its_fields() -> None:
    error = CardDeclined("expired", on=date(2026, 1, 1))

    assert (error.code, error.on) == ("expired", date(2026, 1, 1))
    assert str(error) == "code='expired', on=datetime.date(2026, 1, 1)"
    assert repr(error) == "CardDeclined(code='expired', on=datetime.date(2026, 1, 1))"
    with pytest.raises(TypeError):
        CardDeclined()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("error", [CardDeclined(code="expired"), CardDeclined("x", on=date(2026, 1, 1)), OutOfStock()])
def test_a_domain_error_survives_pickle_and_copy(error: DomainError) -> None:
    error.add_note("seen")

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert vars(again) == vars(error)


def test_a_domain_error_may_have_a_text_and_a_constructor_of_its_own() -> None:
    class Declined(DomainError):
        code: str

        def __init__(self, gateway_answer: str) -> None:
            self.code = gateway_answer.split(":", maxsplit=1)[0]

        def __str__(self) -> str:
            return f"declined with {self.code}"

    error = Declined("expired: 2019")

    assert str(error) == "declined with expired"
    assert vars(copy.copy(error)) == {"code": "expired"}


def test_domain_errors_are_equal_to_themselves_only() -> None:
    error = CardDeclined("x")

    assert error == error
    assert error != CardDeclined("x")
    assert len({error, CardDeclined("x")}) == 2


@pytest.mark.parametrize("name", ["args", "with_traceback", "add_note", "__cause__"])
def test_a_field_may_not_hide_what_exceptions_are_made_of(name: str) -> None:
    with pytest.raises(DefinitionError, match="choose another one"):
        type("Bad", (DomainError,), {"__annotations__": {name: str}})
