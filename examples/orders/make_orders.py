"""
Makes orders.jsonl, the same one each time: `python -m examples.orders.make_orders`.

A line holds an `order` as it is posted and, where the service must refuse it, `refused_for`: the field to blame.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("orders.jsonl")
SEED: Final = 1848
ORDERS: Final = 2_000
DUPLICATES: Final = 112
WRONG_OF_A_KIND: Final = 3

GIVEN_NAMES: Final = ("Ada", "Amélie", "Björn", "Chiara", "Göran", "Hana", "Jānis", "Łucja", "María", "Niamh", "Zoë")
FAMILY_NAMES: Final = ("Arnold", "Dvořák", "García", "Ionescu", "L'Amour", "Müller", "Nguyễn", "Rossi", "山田")
CURRENCIES: Final = {"DE": "EUR", "ES": "EUR", "FR": "EUR", "GB": "GBP", "IE": "EUR", "PL": "EUR", "US": "USD"}
NOTES: Final = ("Happy birthday! 🎂", "Für Dich", 'The bell is "shy", ring twice', "'); drop table orders; --")
PRICES: Final = {f"{group}-{number:04d}": 95 + 37 * number for group in ("BOK", "TEA", "TOY") for number in range(60)}

Fields = dict[str, Any]  # of an order or a line, right or wrong


def without(name: str) -> Callable[[Fields], Fields]:
    """Leave a field out."""
    return lambda order: {field: value for field, value in order.items() if field != name}


def having(**wrong: Any) -> Callable[[Fields], Fields]:
    """Give a field a wrong value."""
    return lambda order: order | wrong


def in_last_line(change: Callable[[Fields], Fields]) -> Callable[[Fields], Fields]:
    """Make the mistake in the order's last line."""
    return lambda order: order | {"lines": [*order["lines"][:-1], change(order["lines"][-1])]}


WRONG: Final = (
    ("order_id", without("order_id")),
    ("order_id", having(order_id="42")),
    ("customer", having(customer="")),
    ("customer", having(customer="Bobby\0Tables")),
    ("email", having(email="nobody at example.com")),
    ("email", having(email=None)),
    ("country", having(country="Atlantis")),
    ("currency", without("currency")),
    ("currency", having(currency="eur")),
    ("lines", having(lines=[])),
    ("lines", having(lines="two books")),
    ("lines[{last}].sku", in_last_line(without("sku"))),
    ("lines[{last}].quantity", in_last_line(having(quantity=0))),
    ("lines[{last}].quantity", in_last_line(having(quantity="3"))),
    ("lines[{last}].unit_cents", in_last_line(having(unit_cents=19.99))),
    ("gift_note", having(gift_note="Dear all, " * 9)),
)


def valid(rng: random.Random, number: int) -> Fields:
    """Make an order of one to four lines, seldom twenty."""
    country = rng.choice(list(CURRENCIES))
    order: Fields = {
        "order_id": f"{country}-{number:06d}",
        "customer": f"{rng.choice(GIVEN_NAMES)} {rng.choice(FAMILY_NAMES)}",
        "email": f"customer{number}@example.{country.lower()}",
        "country": country,
        "currency": CURRENCIES[country],
        "lines": [
            {"sku": sku, "quantity": 999 if rng.random() < 0.01 else rng.randint(1, 6), "unit_cents": PRICES[sku]}
            for sku in rng.sample(list(PRICES), 20 if rng.random() < 0.01 else rng.randint(1, 4))
        ],
    }
    return order | {"gift_note": rng.choice(NOTES)} if rng.random() < 0.2 else order


def repeated(rng: random.Random, earlier: list[Fields]) -> Fields:
    """Repeat the latest order, as an impatient customer does, or any; seldom with its fields in another order."""
    order = earlier[-1] if rng.random() < 0.5 else rng.choice(earlier)
    return dict(reversed(order.items())) if rng.random() < 0.3 else order


def make_lines() -> list[str]:
    """Return the file's lines: a valid order first, then valid ones with duplicates and wrong ones strewn in."""
    rng = random.Random(SEED)
    kinds = ["repeated"] * DUPLICATES + ["wrong"] * len(WRONG) * WRONG_OF_A_KIND
    kinds += ["valid"] * (ORDERS - 1 - len(kinds))
    rng.shuffle(kinds)

    mistakes = list(WRONG) * WRONG_OF_A_KIND
    good: list[Fields] = []
    lines: list[Fields] = []
    for number, kind in enumerate(["valid", *kinds], start=1):
        if kind == "repeated":
            lines.append({"order": repeated(rng, good)})
            continue
        order = valid(rng, number)
        if kind == "wrong":
            field, mistake = mistakes.pop()
            lines.append({"order": mistake(order), "refused_for": field.format(last=len(order["lines"]) - 1)})
        else:
            good.append(order)
            lines.append({"order": order})
    return [json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines]


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in make_lines()), encoding="utf-8")
    print(f"{FILE}: {ORDERS:,} orders")
