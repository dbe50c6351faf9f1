"""What a pair of moves is, and how all its orders are judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import psycopg

from tests import moves
from tests.proof.interleavings.actors import (
    READ_COMMITTED,
    REPEATABLE_READ,
    Actor,
    Isolation,
    sqlstate,
)
from tests.proof.interleavings.schedules import Executed
from tests.proof.interleavings.world import World

T = TypeVar("T")
Program: TypeAlias = Callable[[Actor], object]
Check: TypeAlias = Callable[..., "Iterable[str]"]

LEVELS: Final[tuple[Isolation, ...]] = (READ_COMMITTED, REPEATABLE_READ)


@dataclass(frozen=True, slots=True)
class Scene:
    """The actors' programs from a fresh state, and what must be true when they have ended and the engine rests."""

    programs: Sequence[Program]
    check: Check
    """Called with what each program has answered; names what is wrong."""
    rests: bool = True
    """The engine is let go on before the check: letters sorted, dead workers taken back, times up."""
    never_wait: tuple[int, ...] = ()
    """Actors of the engine that must not wait for the others, who are callers."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair (or three) of moves that meet."""

    name: str
    prepare: Callable[[World], Scene]
    covers: tuple[str, ...] = ()
    """Items of the two reviews of the protocol: see items.py."""
    timeout_ms: int = 0
    """lock_timeout of the actors; 0: they wait."""

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True)
class Verdict:
    """What became of the orders of a pair."""

    orders: int = 0
    waits: int = 0
    deadlocks: int = 0
    violations: list[str] = field(default_factory=list[str])
    shapes: Counter[str] = field(default_factory=Counter[str])
    """What the orders have left in the tables, but for ids and times."""
    is_complete: bool = True

    def judge(self, world: World, scene: Scene, executed: Executed) -> None:
        """Look at the state that one order has left."""
        self.orders += 1
        self.waits += len(executed.waited)
        wrong: list[str] = []
        if executed.deadlock:
            self.deadlocks += 1
            wrong.append("deadlock: each waits for the other")
        wrong += [
            f"{'ABC'[number]} has waited for a caller" for number in scene.never_wait if number in executed.waited
        ]
        for number, end in enumerate(executed.ends):
            if end.error is not None:
                wrong.append(f"{'ABC'[number]} failed: {sqlstate(end.error)} {end.error!r}")
        if not wrong:
            if scene.rests:
                wrong += world.quiesce()
            wrong += scene.check(*(end.value for end in executed.ends))
        if wrong:
            self.violations.append(f"{'; '.join(wrong)} -- {executed}")
        self.shapes[world.shape()] += 1


PAIRS: Final[list[Pair]] = []


def pair(
    name: str, *covers: str, levels: bool = False, timeouts: bool = False
) -> Callable[[Callable[..., Scene]], Callable[..., Scene]]:
    """
    Register a pair.

    Args:
        name: Who meets whom.
        covers: Items of the reviews.
        levels: Once for each isolation level of callers, which the function gets as `level`.
        timeouts: Also with actors that wait for a lock for a moment only, as the journal's connection does.
    """

    def register(prepare: Callable[..., Scene]) -> Callable[..., Scene]:
        for level in LEVELS if levels else (None,):
            for timeout_ms in (0, 3) if timeouts else (0,):
                said = [name]
                if level is not None:
                    said.append(level)
                if timeout_ms:
                    said.append("impatient")

                def made(world: World, level: Isolation | None = level) -> Scene:
                    return prepare(world) if level is None else prepare(world, level)

                PAIRS.append(Pair(", ".join(said), made, covers, timeout_ms))
        return prepare

    return register


def client(call: Callable[[Actor], T], level: Isolation = READ_COMMITTED) -> Callable[[Actor], T]:
    """A caller's transaction around one call, repeated when it has lost a race (at REPEATABLE READ only)."""

    def program(actor: Actor) -> T:
        for _ in range(3):
            actor.begin(level)
            try:
                answer = call(actor)
                actor.commit()
            except psycopg.Error as error:
                actor.rollback()
                if error.sqlstate != "40001" or level == READ_COMMITTED:
                    raise
                actor.rest("lost a race")
            else:
                return answer
        raise AssertionError("a caller loses its race again and again")

    return program


def engine(call: Callable[[Actor], T]) -> Callable[[Actor], T]:
    """One call of the engine's in a transaction, whose commit is a step of its own; repeated when a lock is held."""

    def program(actor: Actor) -> T:
        while True:
            actor.begin()
            try:
                answer = call(actor)
                actor.commit()
            except psycopg.errors.LockNotAvailable:
                actor.rollback()
                actor.rest("a row is locked")
            else:
                return answer

    return program


def courier(rounds: int = 1) -> Callable[[Actor], int]:
    """Sort the inbox, so often."""

    def program(actor: Actor) -> int:
        total = 0
        for _ in range(rounds):
            total += engine(moves.sort_inbox)(actor).letters
        return total

    return program


def nothing(*_: Any) -> Iterable[str]:
    """No more is asked than what must be true always."""
    return ()


def expect(**facts: tuple[object, object] | bool) -> list[str]:
    """Name the facts that are not so: (is, should be), or a truth."""
    wrong: list[str] = []
    for name, fact in facts.items():
        if isinstance(fact, tuple):
            found, wanted = fact
            if found != wanted and not (isinstance(wanted, set) and found in wanted):
                wrong.append(f"{name} is {found!r}, should be {wanted!r}")
        elif not fact:
            wrong.append(f"not so: {name}")
    return wrong
