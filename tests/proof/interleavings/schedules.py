"""
Every order of the statements of two or three actors, each executed from a fresh state.

A depth-first search without memory of states: an order is executed from its beginning, and the last choice that has
another side is taken differently the next time. Orders that differ only by steps which commute are one (sleep sets).
An actor that waits for a lock is not among the choices until the other one has let go of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty
from typing import Final

import psycopg

from tests.proof.interleavings.actors import Actor, Ended, Place
from tests.proof.interleavings.touches import Touch

PATIENCE_S: Final = 20.0
_LOOK_S: Final = 0.002
MOST_STEPS: Final = 400


class NotRepeatableError(Exception):
    """The same choices led to another place: the state before, or a clock, was not the same."""


@dataclass(slots=True)
class Executed:
    """One order: who went when, from where, and how each ended."""

    choices: list[int]
    places: list[str]
    ends: list[Ended]
    deadlock: bool = False
    waited: list[int] = field(default_factory=list[int])
    """Who had to wait for another one's lock, each time."""

    def __str__(self) -> str:
        """The order as a letter an actor, then the places."""
        return "".join("ABC"[choice] for choice in self.choices) + ": " + " · ".join(self.places)


@dataclass(slots=True)
class _Choice:
    enabled: dict[int, Touch]
    sleep: dict[int, Touch]
    tried: list[int] = field(default_factory=list[int])
    is_plain: bool = True
    """Nobody had to wait in this step, and nobody was let go on by it."""

    def left(self) -> list[int]:
        return [actor for actor in self.enabled if actor not in self.sleep and actor not in self.tried]

    def sleeping_behind(self) -> dict[int, Touch]:
        """Who need not be tried behind the choice that was made last: it commutes with it and was tried before."""
        if not self.is_plain:
            return {}
        *before, taken = self.tried
        asleep = self.sleep | {actor: self.enabled[actor] for actor in before}
        return {actor: touch for actor, touch in asleep.items() if touch.commutes_with(self.enabled[taken])}


class Tester:
    """
    Lets actors go on one statement at a time.

    Args:
        monitor: A connection of the tester's own, which holds the locks of all stops.
        actors: With the numbers 1, 2, ...
    """

    def __init__(self, monitor: psycopg.Connection, actors: Sequence[Actor]) -> None:
        self._monitor = monitor
        self.actors = actors
        self.is_impatient = False
        """The actors wait for a lock for a moment only: that they wait is no place to go on from."""
        self._freed: dict[Actor, int] = {}
        self._hold_all()

    def execute(
        self, programs: Sequence[Callable[[Actor], object]], choose: Callable[[dict[int, Touch]], int]
    ) -> Executed:
        """
        Execute one order.

        Args:
            programs: One an actor.
            choose: Of the actors that can go on (with what their next steps touch) the one that does.
        """
        taking_part = self.actors[: len(programs)]
        executed = Executed([], [], [])
        standing: dict[int, Place] = {}
        waiting: set[int] = set()
        ended: dict[int, Ended] = {}

        def arrive(actor: int) -> bool:
            """Whether it has come to a place, or to its end; False: it waits for a lock."""
            report = self._report(actor, taking_part)
            if report is None:
                waiting.add(actor)
                return False
            waiting.discard(actor)
            if isinstance(report, Ended):
                ended[actor] = report
            else:
                standing[actor] = report
            return True

        for number, program in enumerate(programs):
            taking_part[number].start(program)
            arrive(number)
        while standing or waiting:
            if not standing or len(executed.choices) > MOST_STEPS:
                executed.deadlock = not standing
                self._break(taking_part, standing, waiting)
                break
            able = {number: place.touch for number, place in sorted(standing.items()) if not place.rests}
            if not able and waiting:
                # Who rests has let go of everything: the others wait for each other.
                executed.deadlock = True
                self._break(taking_part, standing, waiting)
                break
            actor = choose(able or {number: place.touch for number, place in sorted(standing.items())})
            place = standing.pop(actor)
            executed.choices.append(actor)
            executed.places.append(place.name)
            self._let_go_on(taking_part[actor], place)
            self.is_plain = arrive(actor)
            executed.waited += [] if self.is_plain else [actor]
            if actor in ended and ended[actor].error is not None:
                self.is_plain = False  # its locks went with it
            for other in sorted(waiting - {actor}):
                if arrive(other):
                    self.is_plain = False
        executed.ends = [ended.get(number, Ended(None, None)) for number in range(len(programs))]
        return executed

    is_plain = True

    def _let_go_on(self, actor: Actor, place: Place) -> None:
        actor.passed(place.touch)
        if place.turn is None:
            actor.allow()
            return
        # It has left the lock of the turn before: that one is held again, before this one is let go of.
        self._hold_again(actor)
        self._freed[actor] = place.turn % 2
        self._monitor.execute("select pg_advisory_unlock(%s, %s)", (actor.number, place.turn % 2))

    def _hold_again(self, actor: Actor) -> None:
        freed = self._freed.pop(actor, None)
        if freed is not None:
            self._monitor.execute("select pg_advisory_lock(%s, %s)", (actor.number, freed))

    def _report(self, actor: int, actors: Sequence[Actor]) -> Place | Ended | None:
        """Where it arrives; None: it waits for another actor's lock."""
        reports = actors[actor].reports
        others = [other.pid for other in actors if other is not actors[actor]]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return reports.get(timeout=_LOOK_S)
            except Empty:
                if not self.is_impatient and self._waits_for(actors[actor].pid, others) and reports.empty():
                    return None
            if time.monotonic() > deadline:
                raise AssertionError(f"actor {'ABC'[actor]} neither goes on nor waits for another one")

    def _waits_for(self, pid: int, others: Sequence[int]) -> bool:
        row = self._monitor.execute("select pg_blocking_pids(%s) && %s::int[]", (pid, list(others))).fetchone()
        return row == (True,)

    def _break(self, actors: Sequence[Actor], standing: dict[int, Place], waiting: set[int]) -> None:
        """End what is under way, so that the next order finds free sessions."""
        while standing or waiting:
            for number in sorted(waiting):
                self._monitor.execute("select pg_cancel_backend(%s)", (actors[number].pid,))
            for number in sorted(standing):
                self._let_go_on(actors[number], standing.pop(number))
                waiting.add(number)
            for number in sorted(waiting):
                report = self._report(number, actors)
                if isinstance(report, Ended):
                    waiting.discard(number)
                elif report is not None:
                    waiting.discard(number)
                    standing[number] = report

    def _hold_all(self) -> None:
        for actor in self.actors:
            for turn in (0, 1):
                self._monitor.execute("select pg_advisory_lock(%s, %s)", (actor.number, turn))


def every_order(
    tester: Tester, prepare: Callable[[], Sequence[Callable[[Actor], object]]], *, reduced: bool = True
) -> Iterator[Executed]:
    """
    Execute all orders, each from a fresh state.

    Args:
        tester: Who lets the actors go on.
        prepare: Makes the state, and answers the programs.
        reduced: Leave out those that differ from another one only by steps which commute.
    """
    path: list[_Choice] = []
    while True:
        depth = 0
        is_redundant = False

        def choose(enabled: dict[int, Touch]) -> int:
            nonlocal depth, is_redundant
            if is_redundant:
                return min(enabled)
            if depth > 0:
                path[depth - 1].is_plain = tester.is_plain
            if depth == len(path):
                sleep = path[-1].sleeping_behind() if path and reduced else {}
                new = _Choice(enabled, {actor: touch for actor, touch in sleep.items() if actor in enabled})
                if not new.left():  # every way on from here has been gone in another order
                    is_redundant = True
                    return min(enabled)
                new.tried.append(new.left()[0])
                path.append(new)
            here = path[depth]
            if here.enabled.keys() != enabled.keys():
                raise NotRepeatableError(
                    f"step {depth}: {sorted(enabled)} can go on, before it was {sorted(here.enabled)}"
                )
            depth += 1
            return here.tried[-1]

        executed = tester.execute(prepare(), choose)
        if not is_redundant:
            yield executed
        while path and not path[-1].left():
            path.pop()
        if not path:
            return
        path[-1].tried.append(path[-1].left()[0])


def random_orders(
    tester: Tester, prepare: Callable[[], Sequence[Callable[[Actor], object]]], count: int, seed: int
) -> Iterator[Executed]:
    """Execute so many orders, drawn at random: an actor goes on for a while before the next one has its turn."""
    draw = random.Random(seed)
    last, stay = -1, 0.0

    def choose(enabled: dict[int, Touch]) -> int:
        nonlocal last
        if last not in enabled or draw.random() > stay:
            last = draw.choice(sorted(enabled))
        return last

    for _ in range(count):
        last, stay = -1, draw.uniform(0.2, 0.9)
        yield tester.execute(prepare(), choose)
