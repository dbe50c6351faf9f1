"""What the API service and the worker service share: what an order and a receipt are, and the workflow's name."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from kedge import WorkflowRef

# No control characters: Postgres keeps no NUL in a text column, and nobody has one in a name.
Text = Annotated[str, Meta(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f]+$")]
Currency = Literal["EUR", "GBP", "USD"]
Country = Literal["AT", "DE", "ES", "FR", "GB", "IE", "IT", "NL", "PL", "US"]

SHIPPING_CENTS: dict[str, int] = {"GB": 690, "US": 1490}


class Line(Struct, frozen=True):
    """So many pieces of one article."""

    sku: Annotated[str, Meta(pattern=r"^[A-Z]{3}-[0-9]{4}$")]
    quantity: Annotated[int, Meta(ge=1, le=999)]
    unit_cents: Annotated[int, Meta(ge=1, le=1_000_000)]


class Order(Struct, frozen=True):
    """What a customer sends. The types say what a valid order is; the API service adds no rules of its own."""

    order_id: Annotated[str, Meta(pattern=r"^[A-Z]{2}-[0-9]{6}$")]
    customer: Text
    email: Annotated[str, Meta(max_length=120, pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
    country: Country
    currency: Currency
    lines: Annotated[tuple[Line, ...], Meta(min_length=1, max_length=20)]
    gift_note: Text | None = None

    @property
    def total_cents(self) -> int:
        """The price of the goods, without shipping."""
        return sum(line.quantity * line.unit_cents for line in self.lines)

    @property
    def shipping_cents(self) -> int:
        """What it costs to send them."""
        return SHIPPING_CENTS.get(self.country, 490)


class Receipt(Struct, frozen=True):
    """What the customer gets. The two entries are rows of the ledger."""

    order_id: str
    shelf: str
    goods_entry: int
    shipping_entry: int
    paid_cents: int
    currency: Currency


# The key makes a repeated order the same run: a client that got no answer simply posts again.
process_order = WorkflowRef("process-order", Order, Receipt, key=lambda order: f"order:{order.order_id}")
