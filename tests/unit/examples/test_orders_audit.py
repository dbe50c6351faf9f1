"""The demo's audit passes sound books, and finds each thing that may be wrong with them."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from examples.orders.demo import verdict
from examples.orders.refs import Order, Receipt
from examples.orders.stage.audit import Audit, Books
from examples.orders.stage.customers import Answer, Line, Look, Posted, read_lines
from examples.orders.stage.mishaps import Mishap
from examples.orders.stage.screen import PlainScreen

RUNS = (UUID(int=1), UUID(int=2))


@dataclass(frozen=True)
class Case:
    """What an audit looks at."""

    posted: tuple[Posted, ...]
    mishaps: tuple[Mishap, ...]
    books: Books

    def audit(self) -> Audit:
        return Audit(self.posted, self.mishaps, self.books, kills=1, seconds=1)

    def problems(self) -> list[str]:
        return list(self.audit().problems())


def answered(line: Line, status_code: int, run_id: UUID) -> Posted:
    order = msgspec.json.decode(line.order, type=Order)
    paid = order.total_cents + order.shipping_cents
    look = Look("completed", Receipt(order.order_id, "shelf", 1, 2, paid, order.currency))
    return Posted(line, status_code, Answer(str(run_id), created=status_code == 202), look, took_s=0.1)


@pytest.fixture
def sound() -> Case:
    """Two orders, one of them posted twice, one wrong order, and a worker that was killed."""
    lines = read_lines(500)
    first, second = [line for line in lines if line.refused_for is None][:2]
    wrong = next(line for line in lines if line.refused_for)
    orders = [msgspec.json.decode(line.order, type=Order) for line in (first, second)]
    return Case(
        posted=(
            answered(first, 202, RUNS[0]),
            answered(second, 202, RUNS[1]),
            answered(first, 200, RUNS[0]),
            Posted(wrong, 422, Answer(field=wrong.refused_for), None, took_s=0.1),
        ),
        mishaps=(Mishap("worker-1", {RUNS[0]: 1}),),
        books=Books(
            runs={RUNS[0]: ("completed", 3), RUNS[1]: ("completed", 1)},
            steps=Counter(step=6, transaction=2),
            bodies=7,
            ledger=Counter(
                {(order.order_id, "goods", order.total_cents): 1 for order in orders}
                | {(order.order_id, "shipping", order.shipping_cents): 1 for order in orders}
            ),
            broken=[],
        ),
    )


def with_first_posted(case: Case, **changes: Any) -> Case:
    return replace(case, posted=(replace(case.posted[0], **changes), *case.posted[1:]))


def with_books(case: Case, **changes: Any) -> Case:
    return replace(case, books=replace(case.books, **changes))


def test_sound_books_pass(sound: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert sound.problems() == []
    assert verdict(PlainScreen(), sound.audit()) == 0
    assert "WRONG" not in capsys.readouterr().out


def test_the_demo_fails_and_says_why_when_something_is_wrong(sound: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(PlainScreen(), replace(sound, mishaps=()).audit()) == 1
    assert "WRONG: 0 workers were killed" in capsys.readouterr().out


def test_a_receipt_that_nobody_got_is_found(sound: Case) -> None:
    assert with_first_posted(sound, look=None).problems() != []


def test_a_receipt_over_a_wrong_sum_is_found(sound: Case) -> None:
    look = sound.posted[0].look
    assert look is not None
    assert look.receipt is not None

    cheap = msgspec.structs.replace(look, receipt=msgspec.structs.replace(look.receipt, paid_cents=1))

    assert with_first_posted(sound, look=cheap).problems() != []


def test_a_run_that_has_not_completed_is_found(sound: Case) -> None:
    assert with_books(sound, runs={RUNS[0]: ("completed", 3), RUNS[1]: ("failed", 1)}).problems() != []


def test_a_run_that_nobody_asked_for_is_found(sound: Case) -> None:
    assert with_books(sound, runs=sound.books.runs | {uuid4(): ("completed", 1)}).problems() != []


@pytest.mark.parametrize("times", [0, 2])
def test_a_charge_that_was_not_made_once_is_found(sound: Case, times: int) -> None:
    charge = next(iter(sound.books.ledger))

    assert with_books(sound, ledger=Counter({**sound.books.ledger, charge: times})).problems() != []


def test_a_charge_of_an_order_that_was_not_accepted_is_found(sound: Case) -> None:
    ledger = sound.books.ledger + Counter({("XX-000000", "goods", 100): 1})

    assert with_books(sound, ledger=ledger).problems() != []


def test_a_wrong_order_that_was_accepted_is_found(sound: Case) -> None:
    wrong = replace(sound.posted[3], status_code=200)

    assert replace(sound, posted=(*sound.posted[:3], wrong)).problems() != []


def test_a_wrong_order_that_was_refused_for_another_field_is_found(sound: Case) -> None:
    wrong = replace(sound.posted[3], answer=Answer(field="something"))

    assert replace(sound, posted=(*sound.posted[:3], wrong)).problems() != []


def test_a_right_order_that_was_refused_is_found(sound: Case) -> None:
    assert with_first_posted(sound, status_code=422, answer=Answer(field="email")).problems() != []


def test_an_order_that_was_accepted_twice_is_found(sound: Case) -> None:
    again = replace(sound.posted[2], status_code=202)

    assert replace(sound, posted=(*sound.posted[:2], again, sound.posted[3])).problems() != []


def test_a_repeated_order_with_a_run_of_its_own_is_found(sound: Case) -> None:
    again = replace(sound.posted[2], answer=Answer(str(uuid4())))

    assert replace(sound, posted=(*sound.posted[:2], again, sound.posted[3])).problems() != []


def test_a_killed_worker_whose_runs_nobody_took_back_is_found(sound: Case) -> None:
    assert replace(sound, mishaps=(Mishap("worker-1", {RUNS[0]: 3}),)).problems() != []


def test_a_kill_that_did_not_happen_is_found(sound: Case) -> None:
    assert replace(sound, mishaps=()).problems() != []


def test_a_kept_step_whose_body_did_not_run_is_found(sound: Case) -> None:
    assert with_books(sound, bodies=5).problems() != []


def test_a_broken_invariant_is_found(sound: Case) -> None:
    assert with_books(sound, broken=[("I3", RUNS[0], "two writers")]).problems() != []
