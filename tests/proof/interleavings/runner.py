"""Executes the orders of a pair and judges each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tests.proof.interleavings.actors import Actor
from tests.proof.interleavings.pairs import Pair, Program, Scene, Verdict
from tests.proof.interleavings.schedules import Executed, every_order, random_orders
from tests.proof.interleavings.world import World

MOST_ORDERS: Final = 400
"""Of a pair with more of them these are searched, and then some are drawn."""

DRAWN: Final = 150
_ENOUGH_VIOLATIONS: Final = 5

Explore = Callable[[Callable[[], Sequence[Program]]], Iterator[Executed]]


def explore_all(world: World, pair: Pair, *, most: int = MOST_ORDERS, reduced: bool = True) -> Verdict:
    """Every order; `is_complete` says whether there were no more than so many."""
    return _judge(world, pair, lambda prepare: every_order(world.tester, prepare, reduced=reduced), most)


def explore_well(world: World, pair: Pair, *, seed: int) -> Verdict:
    """Every order; of a pair that has too many the first ones of the search, and some that are drawn from all."""
    verdict = explore_all(world, pair)
    if not verdict.is_complete and not verdict.violations:
        drawn = explore_some(world, pair, count=DRAWN, seed=seed)
        verdict.orders += drawn.orders
        verdict.waits += drawn.waits
        verdict.deadlocks += drawn.deadlocks
        verdict.violations += drawn.violations
    return verdict


def explore_some(world: World, pair: Pair, *, count: int, seed: int) -> Verdict:
    """So many orders, drawn at random."""
    return _judge(world, pair, lambda prepare: random_orders(world.tester, prepare, count, seed), count + 1)


def _judge(world: World, pair: Pair, explore: Explore, most: int) -> Verdict:
    verdict = Verdict()
    scene: Scene | None = None

    def prepare() -> Sequence[Callable[[Actor], object]]:
        nonlocal scene
        world.clean()
        scene = pair.prepare(world)
        return scene.programs

    world.be_patient(pair.timeout_ms)
    for executed in explore(prepare):
        assert scene is not None
        verdict.judge(world, scene, executed)
        if len(verdict.violations) >= _ENOUGH_VIOLATIONS:
            break
        if verdict.orders >= most:
            verdict.is_complete = False
            break
    return verdict
