"""Many moves a second by a generator of ours, without a love of the small."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from tests.proof.model.machine import EVENTS, MOVES, RULES, TENANTS, Machine

# How often each rule is taken in a walk, and what it may be given.
_RULES: Final[list[tuple[int, str, dict[str, Sequence[Any]]]]] = [
    (2, "begin_run", {
        "tenant": TENANTS, "kind": ("plain", "key", "raise", "return", "cancel_old"), "delay": (0, 0, 1, 3),
        "timeout": (None, None, None, 3, 9),
    }),
    (5, "post", {"n": range(4096), "kind": "xXsssuuuurrggeeeeeetb", "stranger": (False, False, False, True)}),
    (6, "sort", {"limit": (1, 3, 500, 500, 500, 500)}),
    (2, "advance", {"units": (1, 1, 3), "expire": (False, False, True)}),
    (5, "claim", {"n": range(4096), "limit": (1, 2, 100, 100)}),
    (9, "work", {"n": range(4096), "op": RULES, "delay": (0, 1, 3)}),
    (5, "move", {"n": range(4096), "op": MOVES, "delay": (0, 1, 3)}),
    (3, "zombie", {"n": range(4096), "op": RULES + MOVES, "delay": (0, 1, 3), "holding": (False, True)}),
    (1, "repeat_flush", {}),
    (2, "live", {"n": range(4096), "event": EVENTS}),
]  # fmt: skip
_WEIGHTS: Final = [weight for weight, _, _ in _RULES]


def walk(machine: type[Machine], seed: int, steps: int) -> list[str]:
    """
    Moves by a generator of ours: ten times as many a second as hypothesis makes, and without its love of the small.

    On a failure the note says what was done; hypothesis cannot shrink it.
    """
    chance, one, done = random.Random(seed), machine(), list[str]()
    try:
        one.begin(kinds=(chance.choice(("plain", "key")), chance.choice(("plain", "raise", "cancel_old"))))
        one.the_database_stands_as_the_specification_says()
        while len(done) < steps:
            ((_, name, options),) = chance.choices(_RULES, _WEIGHTS)
            arguments = {option: chance.choice(values) for option, values in options.items()}
            method = getattr(machine, name)
            if all(holds(one) for holds in method.hypothesis_stateful_rule.preconditions):
                done.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
                method(one, **arguments)
                one.the_database_stands_as_the_specification_says()
        one.teardown()
    except BaseException as error:
        error.add_note(f"walk {seed}, after:\n  " + "\n  ".join(done))
        raise
    return done
