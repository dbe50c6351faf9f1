"""The workflows that the tests of the client start."""

from __future__ import annotations

from typing import Final

import msgspec

from kedge import DomainError, WorkflowRef


class Order(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 100


class Receipt(msgspec.Struct, frozen=True):
    order_id: str
    charge_id: str


class CardDeclined(DomainError):
    code: str


PROCESS: Final = WorkflowRef("process-order", Order, Receipt, raises=(CardDeclined,))
NOTIFY: Final = WorkflowRef("notify", str, queue="mail", priority=3)
NIGHTLY: Final = WorkflowRef("nightly", version="2")

ORDER: Final = Order("o-1")
RECEIPT: Final = Receipt("o-1", "ch-1")
