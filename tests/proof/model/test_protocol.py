"""Every order of the protocol's statements, with faults: no promise is broken, and without a precaution one is."""

from __future__ import annotations

import itertools
from typing import Final

import pytest

from tests.proof.kit.plugin import Figure
from tests.proof.model.explorer import Found, explore
from tests.proof.model.promises import what_is_wrong
from tests.proof.model.protocol import Protocol
from tests.proof.model.states import Broken, Budget, State, first_state, renamed

NOTHING: Final = Budget(events=0, resends=0, cancels=0, ticks=0, stalls=0, crashes=0, losses=0, leftovers=0)
MOST: Final = 2_000_000

SMALL: Final = {
    "an event, while a lease lapses and an answer is lost": (NOTHING._replace(events=1, stalls=1, losses=1), False),
    "a handler that writes on though its run was given up": (NOTHING._replace(events=1, leftovers=1), False),
    "a child, while a worker dies": (NOTHING._replace(crashes=1), True),
}

LARGE: Final = {
    "an event, its timeout, a cancel": (NOTHING._replace(events=1, ticks=1, cancels=1), False),
    "two events, the first of them sent twice": (NOTHING._replace(events=2, resends=1), False),
    "two events, a timeout, a lease that lapses": (NOTHING._replace(events=2, ticks=1, stalls=1), False),
    "an event, a cancel, a death": (NOTHING._replace(events=1, cancels=1, crashes=1), False),
    "an event, a cancel, a lease that lapses": (NOTHING._replace(events=1, cancels=1, stalls=1), False),
    "an event, a lease that lapses, a death": (NOTHING._replace(events=1, stalls=1, crashes=1), False),
    "a timeout, two lost answers": (NOTHING._replace(ticks=1, events=1, losses=2), False),
    "a child, a cancel of its parent, a lost answer": (NOTHING._replace(cancels=1, losses=1), True),
    "a child, a lease that lapses, a lost answer": (NOTHING._replace(stalls=1, losses=1), True),
}

ONE_EVENT: Final = NOTHING._replace(events=1)
MISSING: Final = {
    Broken.FLUSH_HAS_NO_FENCE: (ONE_EVENT._replace(losses=1), False),
    Broken.FLUSH_HAS_NO_EPOCH: (ONE_EVENT._replace(leftovers=1), False),
    Broken.FLUSH_DOES_NOT_HOLD_ITS_WORKER: (NOTHING._replace(stalls=1), False),
    Broken.CLAIM_DOES_NOT_HOLD_ITS_WORKER: (NOTHING._replace(stalls=1), False),
    Broken.CLAIM_DOES_NOT_LOOK_BEHIND_ITS_LOCK: (NOTHING, False),
    Broken.CLAIM_KEEPS_THE_EPOCH: (ONE_EVENT._replace(leftovers=1), False),
    Broken.PARK_LOCKS_AND_LOOKS_IN_ONE_STATEMENT: (ONE_EVENT, False),
    Broken.PARK_LOOKS_BEFORE_IT_LOCKS: (ONE_EVENT, False),
    Broken.PARK_FORGETS_REQUESTS: (NOTHING._replace(cancels=1), False),
    Broken.COURIER_DECIDES_IN_THE_LOCKING_STATEMENT: (ONE_EVENT, False),
    Broken.COURIER_TAKES_SKIPPED_FOR_GONE: (ONE_EVENT, False),
    Broken.CANCEL_OVERWRITES_COMPLETED: (NOTHING._replace(events=2, cancels=1), False),
    Broken.TIMEOUT_IS_DECIDED_BY_THE_SWEEPER: (ONE_EVENT._replace(ticks=1), False),
    Broken.EVENT_IS_CONSUMED_BEFORE_ITS_ROW: (ONE_EVENT._replace(stalls=1), False),
    Broken.CONSUMED_MAIL_IS_DELETED: (ONE_EVENT._replace(resends=1), False),
    Broken.REPEAT_TAKES_A_NEW_SEQ: (ONE_EVENT._replace(losses=1), False),
    Broken.TAKE_BACK_GOES_BY_ID: (ONE_EVENT._replace(stalls=1), False),
    Broken.TAKE_BACK_DROPS_ITS_WORKER_AT_ONCE: (ONE_EVENT._replace(stalls=1), False),
    Broken.NEW_CONNECTION_DOES_NOT_END_THE_OLD_ONE: (ONE_EVENT._replace(losses=1), False),
    Broken.CHILD_STARTS_WITHOUT_ITS_ROW: (NOTHING._replace(losses=1), True),
    Broken.END_TELLS_BEHIND_ITS_COMMIT: (NOTHING._replace(crashes=1), True),
}

# Precautions that stand behind each other: whoever writes for a run that was taken from it is refused by any of them.
LAYERS: Final = [
    (Broken.BEAT_REVIVES, Broken.FLUSH_HAS_NO_FENCE),
    (Broken.BEAT_REVIVES, Broken.FLUSH_HAS_NO_OWNER, Broken.TAKE_BACK_KEEPS_THE_EPOCH),
]


def look(budget: Budget, is_family: bool, *broken: Broken) -> Found[State]:
    return explore(
        first_state(budget, is_family=is_family),
        Protocol(*broken).successors,
        what_is_wrong,
        canonical=renamed,
        most=MOST,
    )


@pytest.mark.parametrize("name", SMALL)
def test_no_order_of_the_statements_breaks_a_promise(name: str, figure: Figure) -> None:
    sound(name, *SMALL[name], figure)


@pytest.mark.full
@pytest.mark.parametrize("name", LARGE)
def test_no_order_of_the_statements_breaks_a_promise_with_more_that_happens(name: str, figure: Figure) -> None:
    sound(name, *LARGE[name], figure)


def sound(name: str, budget: Budget, is_family: bool, figure: Figure) -> None:
    found = look(budget, is_family)
    assert found.wrong is None, str(found)
    assert found.complete, f"more than {found.states:,} states"
    figure(f"states: {name}", found.states)


@pytest.mark.parametrize("missing", MISSING, ids=lambda broken: broken.name.lower())
def test_without_a_precaution_a_promise_is_broken(missing: Broken, capsys: pytest.CaptureFixture[str]) -> None:
    found = look(*MISSING[missing], missing)

    print(missing.name, found)  # noqa: T201  # the trace, for who asks with -s
    assert found.wrong is not None
    assert found.trace


@pytest.mark.parametrize("budget", {case[0] for case in MISSING.values() if not case[1]}, ids=str)
def test_it_is_the_precaution_that_was_missing(budget: Budget) -> None:
    assert look(budget, is_family=False).wrong is None


@pytest.mark.parametrize("layers", LAYERS, ids=lambda layers: " and ".join(one.name.lower() for one in layers))
def test_of_precautions_that_stand_behind_each_other_one_is_enough(layers: tuple[Broken, ...]) -> None:
    budget = NOTHING._replace(stalls=1)
    for some in range(len(layers)):
        for removed in itertools.combinations(layers, some):
            assert look(budget, False, *removed).wrong is None

    assert look(budget, False, *layers).wrong is not None
