"""Right uses of refs, requests and messages. Only the type checkers run this."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypedDict, assert_type

import msgspec

from kedge import (
    DomainError,
    EventMessage,
    EventRef,
    NonRetryable,
    Retry,
    RetryAfter,
    RunRequest,
    Singleton,
    WorkflowRef,
)


class Order(msgspec.Struct, frozen=True):
    order_id: str
    cents: int


class Refund(msgspec.Struct, frozen=True, tag=True):
    order_id: str


class Bonus(msgspec.Struct, frozen=True, tag=True):
    cents: int


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


class Address(TypedDict):
    street: str
    zip: int


@dataclass
class Parcel:
    weight: float


class CardDeclined(DomainError):
    code: str
    retry_hint: str | None = None


# A ref's types come from its arguments.
process = WorkflowRef("process", Order, Receipt, key=lambda order: f"order:{order.order_id}", raises=(CardDeclined,))
assert_type(process, WorkflowRef[Order, Receipt])
notify = WorkflowRef("notify", Order, version="2", queue="mail", priority=3, timeout=None)
assert_type(notify, WorkflowRef[Order, None])
nightly = WorkflowRef("nightly", timeout="2h")
assert_type(nightly, WorkflowRef[None, None])

# Unions, Literal, Annotated and None are no classes, but types they are.
settle = WorkflowRef("settle", Refund | Bonus, Receipt | None)
assert_type(settle, WorkflowRef[Refund | Bonus, Receipt | None])
level = WorkflowRef("level", Annotated[int, msgspec.Meta(ge=0)], Literal["low", "high"])
assert_type(level(3), RunRequest[Literal["low", "high"]])
report = WorkflowRef("report", None, Receipt)
assert_type(report, WorkflowRef[None, Receipt])
floats = WorkflowRef("floats", list[float], dict[str, object])
objects = WorkflowRef("objects", dict[str, object], Parcel)
address = WorkflowRef("address", Address, bool)

# A request carries the output's type, whatever the input was.
order = Order("1", 1500)
assert_type(process(order), RunRequest[Receipt])
assert_type(notify(order, queue="slow"), RunRequest[None])
assert_type(nightly(), RunRequest[None])
assert_type(report(key="today"), RunRequest[Receipt])
assert_type(settle(Bonus(1)), RunRequest[Receipt | None])
assert_type(floats([1, 2]), RunRequest[dict[str, object]])
assert_type(objects({"a": 1}), RunRequest[Parcel])
assert_type(address({"street": "Am Kai", "zip": 20457}), RunRequest[bool])

# All options, at the request and later.
full = process(
    order,
    key="order:1",
    resource="customer-7",
    queue="fast",
    priority=10,
    delay=timedelta(minutes=1),
    timeout="48h",
    retry=Retry(3, initial="500ms", factor=1.5, maximum=60, jitter=False),
    tags=["import", "2026"],
    metadata={"source": "shop", "lines": [1, 2]},
    singleton="cancel_old",
)
assert_type(process(order, key="order:1", on_conflict="return_any_input"), RunRequest[Receipt])
assert_type(full.with_options(start_at=datetime(2026, 1, 1, tzinfo=UTC), key=None), RunRequest[Receipt])
assert_type(full.with_options(singleton="raise"), RunRequest[Receipt])
assert_type(process(order, singleton="return", key=None), RunRequest[Receipt])
assert_type(process(order, timeout=None), RunRequest[Receipt])
assert_type(process(order, timeout=90, retry=Retry.NEVER), RunRequest[Receipt])
policy: Singleton = "cancel_old"
assert_type(process(order, singleton=policy), RunRequest[Receipt])
assert_type(full.workflow, str)
assert_type(full.input, object)
assert_type(process.decode_output(b"\x01"), Receipt)

# A request for a receipt is a request for an object.
anything: list[RunRequest[object]] = [process(order), nightly(), address({"street": "", "zip": 1})]
wider: WorkflowRef[Order, object] = process

# A name alone.
assert_type(WorkflowRef.untyped("process")({"order_id": "1"}), RunRequest[Any])

# Events.
settled = EventRef("settled", Receipt)
assert_type(settled, EventRef[Receipt])
assert_type(settled(Receipt("c"), key="stripe-1"), EventMessage)
approved = EventRef("approved")
assert_type(approved, EventRef[None])
assert_type(approved(key="a"), EventMessage)
answer = EventRef("answer", Refund | None)
assert_type(answer, EventRef[Refund | None])
assert_type(answer(None), EventMessage)
assert_type(settled.decode(b"\x01"), Receipt)

# Domain errors get the constructor that their fields declare.
declined = CardDeclined("expired", retry_hint="tomorrow")
assert_type(declined.code, str)
assert_type(declined.retry_hint, str | None)
assert_type(Retry.NEVER, Retry)


def steer(*, hopeless: bool) -> None:
    if hopeless:
        raise NonRetryable("no such card")
    raise RetryAfter("30s", "busy")
