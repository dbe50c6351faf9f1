"""Looks at every state that can be reached, breadth first, so that a counterexample is as short as can be."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(slots=True)
class Found(Generic[S]):
    states: int
    depth: int
    complete: bool
    wrong: str | None = None
    """What is broken in the last state of the trace."""
    trace: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        steps = "\n".join(f"  {n:3} {step}" for n, step in enumerate(self.trace, 1))
        return f"{self.wrong or 'nothing is wrong'} ({self.states:,} states, depth {self.depth})\n{steps}"


def explore(
    first: S,
    successors: Callable[[S], Iterable[tuple[str, S]]],
    wrong: Callable[[S, bool], str | None],
    *,
    canonical: Callable[[S], S],
    most: int,
) -> Found[S]:
    """
    Visit states until one is wrong, all were seen, or there are more than `most`.

    `wrong` says what is broken in a state, and is told whether nothing but faults can follow it; `canonical` picks one
    of several states that are alike but for names.
    """
    first = canonical(first)
    # Of a state that was seen its hash is kept, 64 bits: the chance that two of a million states share one is 1 : 10^7.
    came_from: dict[int, tuple[int, str]] = {hash(first): (0, "")}
    level, depth = [first], 0

    def trace(state: S) -> list[str]:
        steps, at = list[str](), hash(state)
        while at:
            at, step = came_from[at]
            steps.append(step)
        return steps[-2::-1]

    while level:
        following: list[S] = []
        for state in level:
            is_still = True
            for step, reached in successors(state):
                is_still = is_still and step.startswith("!")
                after = canonical(reached)
                name = hash(after)
                if name not in came_from:
                    came_from[name] = (hash(state), step)
                    following.append(after)
            if (what := wrong(state, is_still)) is not None:
                return Found(len(came_from), depth, False, what, trace(state))
            if len(came_from) > most:
                return Found(len(came_from), depth, False)
        level = following
        depth += 1
    return Found(len(came_from), depth, True)
