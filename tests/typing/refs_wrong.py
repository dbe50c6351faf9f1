"""
Wrong uses of refs, requests and messages: each line must be refused by both type checkers.

Both report an "ignore" that they do not need, so a misuse that passes makes the check fail. Only they run this.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from kedge import DomainError, EventRef, Retry, RunRequest, WorkflowRef


class Order(msgspec.Struct, frozen=True):
    order_id: str


class Receipt(msgspec.Struct, frozen=True):
    charge_id: str


class CardDeclined(DomainError):
    code: str


process = WorkflowRef("process", Order, Receipt)
nightly = WorkflowRef("nightly")
order = Order("1")

# Inputs.
process(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
process(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process({"order_id": "1"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
nightly(order)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
process(value=order)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

# Options.
process(order, on_conflict="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, prioriti=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
process(order, priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, start_at="tomorrow")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, delay=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, tags=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, singleton="replace")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, singleton=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, timeout=datetime(2026, 1, 1, tzinfo=UTC))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order, retry=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
WorkflowRef("other", Order, Receipt, singleton="raise")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
process(order, singleton=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
process(order).with_options(queue=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
WorkflowRef("other", Order, Receipt, resource="customer-7")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
WorkflowRef("other", Order, Receipt, raises=(ValueError,))  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkflowRef("other", Order, Receipt, key=lambda order: order.charge_id)  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownMemberType, reportUnknownLambdaType, reportAttributeAccessIssue]
WorkflowRef("other", Order, Receipt, key=lambda order: len(order.order_id))  # type: ignore[arg-type, return-value]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkflowRef(3, Order)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
Retry(initial=datetime(2026, 1, 1, tzinfo=UTC))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Retry("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Requests.
request: RunRequest[str] = process(order)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
process(order).key = "another"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
process.name = "another"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def nobody_awaits_a_request() -> None:
    await process(order)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


# A ref is invariant in its input.
loose: WorkflowRef[object, Receipt] = process  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
narrow: WorkflowRef[Order, str] = process  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

# Events.
settled = EventRef("settled", Receipt)
approved = EventRef("approved")
settled(order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
settled()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
approved(order)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
settled(Receipt("c"), key=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
loose_event: EventRef[object] = settled  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

# Domain errors.
CardDeclined(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
CardDeclined()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
CardDeclined("expired", reason="old")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
