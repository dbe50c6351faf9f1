"""Says what came of the orders, by the service's answers and by the tables, and what of it does not add up."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Final
from uuid import UUID

import msgspec
import psycopg

from examples.orders.refs import Order
from examples.orders.stage.customers import Posted
from examples.orders.stage.mishaps import Mishap

RUNS: Final = "select id, status, epoch from kedge.runs_view"
STEPS: Final = "select kind, count(*) from kedge.steps_view group by kind"
BODIES: Final = "select count(*) from step_bodies"
LEDGER: Final = "select order_id, what, amount_cents, count(*) from ledger group by order_id, what, amount_cents"
BROKEN: Final = "select promise, run_id, what from kedge.check_invariants(history => true)"


@dataclass(frozen=True)
class Books:
    """What the tables say in the end."""

    runs: dict[UUID, tuple[str, int]]
    """Status and epoch."""
    steps: Counter[str]
    """How many values were kept, by kind of step."""
    bodies: int
    """How often the body of a plain step ran."""
    ledger: Counter[tuple[str, str, int]]
    """How often this order's charge of this kind and amount was made."""
    broken: list[tuple[str, UUID, str]]
    """What check_invariants() finds."""


def read_books(database_url: str) -> Books:
    """Read what the tables say."""
    with psycopg.connect(database_url) as conn:
        return Books(
            runs={run: (status, epoch) for run, status, epoch in conn.execute(RUNS)},
            steps=Counter(dict(conn.execute(STEPS))),
            bodies=sum(count for (count,) in conn.execute(BODIES)),
            ledger=Counter({(order, what, cents): count for order, what, cents, count in conn.execute(LEDGER)}),
            broken=conn.execute(BROKEN).fetchall(),
        )


class Audit:
    """The answers beside the books."""

    def __init__(
        self, posted: Sequence[Posted], mishaps: Sequence[Mishap], books: Books, *, kills: int, seconds: float
    ) -> None:
        self._posted = posted
        self._mishaps = mishaps
        self._books = books
        self._kills = kills
        self._seconds = seconds
        self._answers = Counter(one.status_code for one in posted)
        self._accepted = self._with_orders(202)
        self._repeated = self._with_orders(200)

    def table(self) -> list[tuple[str, str]]:
        """Return what to print: names and figures."""
        books = self._books
        completed = sum(status == "completed" for status, _ in books.runs.values())
        percentiles = quantiles([one.took_s * 1000 for _, one in self._accepted], n=100)
        return [
            ("posted", f"{len(self._posted):,}"),
            ("accepted", f"{self._answers[202]:,}"),
            ("refused, with the field's name", f"{self._answers[422]:,}"),
            ("duplicates answered with the first run", f"{self._answers[200]:,}"),
            ("completed", f"{completed:,}"),
            ("steps executed", f"{books.steps['step'] + books.steps['transaction']:,}"),
            ("bodies run for plain steps kept", f"{books.bodies:,} for {books.steps['step']:,}"),
            ("charges in the ledger", f"{books.ledger.total():,}"),
            ("workers killed", f"{len(self._mishaps)}"),
            ("take-backs", f"{sum(self._taken_back(mishap) for mishap in self._mishaps):,}"),
            ("seconds", f"{self._seconds:.1f}"),
            ("runs/s", f"{completed / self._seconds:,.0f}"),
            ("start to result, p50", f"{percentiles[49]:,.0f} ms"),
            ("start to result, p99", f"{percentiles[98]:,.0f} ms"),
        ]

    def problems(self) -> Iterator[str]:
        """Find what does not add up."""
        yield from self._wrong_answers()
        yield from self._wrong_receipts()
        yield from self._wrong_charges()
        if len(self._mishaps) < self._kills:
            yield f"{len(self._mishaps)} workers were killed with runs in hand, not {self._kills}"
        for mishap in self._mishaps:
            if not self._taken_back(mishap):
                yield f"{mishap.victim} was killed, but none of its {len(mishap.orphans)} runs was taken back"
        if self._books.bodies < self._books.steps["step"]:
            yield f"{self._books.steps['step']} plain steps were kept, but only {self._books.bodies} bodies ran"
        for promise, run, what in self._books.broken:
            yield f"check_invariants: {promise}: run {run}: {what}"

    def _with_orders(self, status_code: int) -> list[tuple[Order, Posted]]:
        return [
            (msgspec.json.decode(one.line.order, type=Order), one)
            for one in self._posted
            if one.status_code == status_code and one.line.refused_for is None
        ]

    def _taken_back(self, mishap: Mishap) -> int:
        # Nobody but another worker moves a dead worker's run, and that shows in the epoch.
        return sum(self._books.runs.get(run, ("gone", 0))[1] > epoch for run, epoch in mishap.orphans.items())

    def _wrong_answers(self) -> Iterator[str]:
        """Refused are the wrong orders, for the right reason; a repeated order has one run."""
        for one in self._posted:
            expected = {422} if one.line.refused_for else {200, 202}
            if one.status_code not in expected or one.answer.field != one.line.refused_for:
                blamed = f"{one.status_code} for {one.answer.field}"
                yield f"answered {blamed}, expected {one.line.refused_for or 'a run'}: {bytes(one.line.order).decode()}"
        first = {order.order_id: one for order, one in self._accepted}
        if len(first) < len(self._accepted):
            yield f"{len(self._accepted)} orders were accepted as new, but only {len(first)} are different ones"
        for order, one in self._repeated:
            if order.order_id not in first or one.answer.run_id != first[order.order_id].answer.run_id:
                yield f"order {order.order_id} was posted again and got run {one.answer.run_id}, not its first"

    def _wrong_receipts(self) -> Iterator[str]:
        """Every accepted order has one run, which has completed, and every customer saw its receipt."""
        for order, one in self._accepted:
            receipt = one.look.receipt if one.look else None
            if receipt is None:
                yield f"order {order.order_id} has no receipt: {one.look}"
            elif (receipt.order_id, receipt.paid_cents) != (order.order_id, order.total_cents + order.shipping_cents):
                yield f"order {order.order_id} got a wrong receipt: {receipt}"
        statuses = Counter(status for status, _ in self._books.runs.values())
        if statuses != Counter(completed=len(self._accepted)):
            yield f"{len(self._accepted)} orders were accepted, and the runs are {dict(statuses)}"

    def _wrong_charges(self) -> Iterator[str]:
        """Every accepted order's two charges stand in the ledger once, and nothing else does."""
        due = Counter((order.order_id, "goods", order.total_cents) for order, _ in self._accepted)
        due += Counter((order.order_id, "shipping", order.shipping_cents) for order, _ in self._accepted)
        for order_id, what, cents in self._books.ledger.keys() | due.keys():
            times = self._books.ledger[order_id, what, cents]
            if times != 1 or (order_id, what, cents) not in due:
                yield f"{what} of order {order_id}, {cents} cents, stands in the ledger {times} times"
