"""
Pairs of moves that can meet on a run, the inbox, a worker's row, a key or a singleton: all orders of their statements,
inside of functions too, leave what was promised, and nobody waits for somebody who waits for him.

In the thin lane a selection of the pairs, with some of their orders drawn at random (KEDGE_PROOF_TURN repeats them); in
the full lane every order, or of a pair that has very many of them several hundred. What an order that fails has done
stands in the message: a letter an actor.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from kedge_worker.testing._databases import Databases, broken_invariants
from tests.integration import (
    test_interleavings_claim,
    test_interleavings_inbox,
    test_interleavings_singletons,
    test_interleavings_take_back,
    test_moves_children,
    test_moves_control,
    test_moves_topics,
    test_moves_waits,
)
from tests.proof.interleavings import (
    pairs_claiming_flushes,
    pairs_families,
    pairs_letters,
    pairs_requests,
    pairs_retention,
    pairs_singular,
    pairs_starts,
    pairs_workers,
)
from tests.proof.interleavings.breakpoints import SplitError, places, sources, statements
from tests.proof.interleavings.faults import FAULTS, Fault
from tests.proof.interleavings.items import ELSEWHERE, HOLES, NO_MORE
from tests.proof.interleavings.pairs import PAIRS, Pair
from tests.proof.interleavings.runner import explore_all, explore_some, explore_well
from tests.proof.interleavings.world import World, world
from tests.proof.kit.lanes import lane, thinned, turn
from tests.proof.kit.plugin import Figure
from tests.sessions import Session

ROOMS: Final = (
    pairs_claiming_flushes,
    pairs_families,
    pairs_letters,
    pairs_requests,
    pairs_retention,
    pairs_singular,
    pairs_starts,
    pairs_workers,
)
"""Their pairs register themselves."""

SOME_ORDERS: Final = 12
ROOT: Final = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def arena(databases: Databases) -> Generator[World]:
    """The database of all orders of this process."""
    url = databases.create()
    with world(url) as made:
        yield made
    databases.drop(url)


@pytest.mark.parametrize("pair", thinned(PAIRS, of=4), ids=str)
def test_whatever_the_order_of_their_statements_nothing_is_lost_doubled_or_stuck(
    arena: World, pair: Pair, figure: Figure
) -> None:
    full = lane() == "full"
    some = {"count": SOME_ORDERS, "seed": turn()}
    verdict = explore_well(arena, pair, seed=turn()) if full else explore_some(arena, pair, **some)

    if full:
        figure("interleavings: pairs", 1)
        figure("interleavings: pairs of which every order was executed", int(verdict.is_complete))
        figure("interleavings: orders", verdict.orders)
        figure("interleavings: orders that broke a promise", len(verdict.violations), goal=0)
        figure("interleavings: deadlocks", verdict.deadlocks, goal=0)
    assert verdict.deadlocks == 0
    assert not verdict.violations, "\n".join(verdict.violations)
    assert verdict.orders > 0


# ---- the tester itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", thinned(FAULTS, of=6), ids=str)
def test_a_guard_that_is_taken_out_is_missed_by_some_order(arena: World, fault: Fault) -> None:
    (pair,) = [pair for pair in PAIRS if pair.name == fault.pair]
    arena.replace(fault.planted())
    try:
        verdict = explore_all(arena, pair, most=400)
    finally:
        arena.replace(fault.mended())

    assert verdict.violations


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        "start / start with the same key, read committed",
        "start / start with the same key, repeatable read",
        "start with a key / retention of the run that holds it, read committed",
        "register_definitions / register_definitions, the other way round",
        "doorbell / doorbell",
        "start repeated / end of the run, repeatable read",
        "transactional step / flush of a sibling that ends the run",
    ],
)
def test_orders_that_are_left_out_as_equal_would_have_had_no_other_outcome(arena: World, name: str) -> None:
    (pair,) = [pair for pair in PAIRS if pair.name == name]

    reduced = explore_all(arena, pair)
    whole = explore_all(arena, pair, most=3000, reduced=False)

    assert reduced.shapes.keys() >= whole.shapes.keys()
    assert reduced.orders <= whole.orders
    assert not reduced.violations + whole.violations


MODULES: Final[tuple[ModuleType, ...]] = (
    test_interleavings_claim,
    test_interleavings_inbox,
    test_interleavings_singletons,
    test_interleavings_take_back,
    test_moves_children,
    test_moves_control,
    test_moves_topics,
    test_moves_waits,
)
PLAIN: Final = [
    test
    for module in MODULES
    for name, test in sorted(vars(module).items())
    if name.startswith("test_") and [*inspect.signature(test).parameters] == ["db"]
]


@pytest.mark.parametrize("test", thinned(PLAIN, of=12), ids=lambda test: test.__name__)
def test_with_stops_the_functions_do_what_they_did(databases: Databases, test: Callable[[Session], None]) -> None:
    url = databases.create()
    with world(url) as made:
        test(made.db)
    left = broken_invariants(url)
    databases.drop(url)

    assert left == []


def test_a_body_is_split_where_its_statements_begin() -> None:
    body = """
    declare v int := 1;
    begin
        -- if this; were a statement;
        if exists (select 1 from kedge.runs where case when true then 'a;' = ';' end) then
            perform 1;
        elsif v > 1 then
            v := case v when 1 then 2 else 3 end;
        else
            delete from kedge.runs where reason = 'then; else';
        end if;
        for v_row in select * from (select 1; ) loop
            begin
                update kedge.runs set reason = null;
            exception when others then
                raise;
            end;
        end loop;
        return next;
    end """

    texts = [" ".join(statement.text.split()) for statement in statements(body)]

    assert texts == [
        "if exists (select 1 from kedge.runs where case when true then 'a;' = ';' end)",
        "perform 1",
        "v := case v when 1 then 2 else 3 end",
        "delete from kedge.runs where reason = 'then; else'",
        "for v_row in select * from (select 1; )",
        "update kedge.runs set reason = null",
        "raise",
        "return next",
    ]


def test_a_body_that_is_not_understood_is_refused() -> None:
    with pytest.raises(SplitError):
        list(statements("begin case v when 1 then null; end case; end"))


def test_every_function_that_writes_stops_in_front_of_its_statements() -> None:
    """A new function is split without being named anywhere; those that are one statement have one snapshot."""
    stopping = {function for function, _ in places()}
    writing = {
        name
        for name, function in sources().items()
        if function.is_split and any(verb in function.body for verb in ("insert into", "update kedge", "delete from"))
    }

    assert writing <= stopping
    assert min(Counter(function for function, _ in places()).values()) >= 1


# ---- the list -----------------------------------------------------------------------------------------------------


def test_no_hole_of_an_earlier_design_is_without_a_test() -> None:
    held = {item for pair in PAIRS for item in pair.covers} | ELSEWHERE.keys() | NO_MORE.keys()

    assert held == HOLES.keys()


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_the_tests_that_hold_what_no_order_shows_are_there(place: str) -> None:
    file, name = place.split("::")

    assert f"def {name}(" in (ROOT / file).read_text("utf-8")


def test_names_of_pairs_are_not_used_twice() -> None:
    assert [name for name, count in Counter(pair.name for pair in PAIRS).items() if count > 1] == []
    assert {fault.pair for fault in FAULTS} <= {pair.name for pair in PAIRS}
