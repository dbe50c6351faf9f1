"""Many cases at once, each in a database of its own: most of a case is waiting."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.cases import Case, Outcome, perform
from tests.proof.crash_points.clients import ClientOutcome
from tests.proof.crash_points.fates import Call, Fate, Point
from tests.proof.crash_points.nursery import Nursery
from tests.proof.crash_points.scenes import SCENES, Scene
from tests.proof.crash_points.stage import Stage, stage
from tests.proof.kit.lanes import amount, setting

T = TypeVar("T")
O = TypeVar("O")  # noqa: E741
P = TypeVar("P", bound="Told")

Player: TypeAlias = Callable[[T, Stage, Nursery, Path], Awaitable[O]]

WIDTH: Final = int(setting("width", amount(thin=6, full=14)))
"""How many cases at once, by KEDGE_PROOF_WIDTH: a case takes two seconds, of which a quarter is work."""

DEATHS: Final = (Fate.DIES_BEFORE, Fate.DIES_SENT, Fate.DIES_AFTER, Fate.DIES_LATE)
CUTS: Final = (Fate.ENDED, Fate.CUT)
_TRIES: Final = 4

_READING: Final = frozenset(
    {"connect", "prepare", "NEW_MAIL", "REQUESTS", "HAS_MAIL", "select", "select migrations", "select runs"}
)
"""Calls that leave nothing behind in the database."""
_EQUAL: Final = frozenset({Fate.DIES_SENT, Fate.DIES_AFTER, Fate.DIES_LATE})
"""At a call that reads these are equal to DIES_BEFORE: executed or not, now or later, nobody is left to hear of it."""

free: Final[list[str]] = []
"""Databases of earlier tests, clean: what belongs to a case in them is told by when it began."""
_undisturbed: Final[dict[str, Outcome]] = {}


async def play_all(
    cases: Iterable[T], player: Player[T, O], databases: Databases, folder: Path, *, width: int = WIDTH
) -> list[O]:
    """Play all cases; answers what came of each, in no order."""
    queue = list(cases)[::-1]
    outcomes: list[O] = []
    numbers = itertools.count()
    urls = [free.pop() if free else databases.create() for _ in range(min(width, len(queue)))]
    spoilt: set[str] = set()

    async with Nursery() as nursery:

        async def work(url: str) -> None:
            is_clean = True
            async with stage(url, folder) as its:
                while queue:
                    spoilt.add(url)
                    outcome = await player(queue.pop(), its, nursery, folder / f"case-{next(numbers)}")
                    outcomes.append(outcome)
                    if not isinstance(outcome, Outcome | ClientOutcome) or outcome.problems:
                        is_clean = False
                if is_clean:
                    spoilt.discard(url)

        async with asyncio.TaskGroup() as group:
            for url in urls:
                group.create_task(work(url))
    free.extend(url for url in urls if url not in spoilt)
    for url in spoilt:
        databases.drop(url)
    return outcomes


def until_met(player: Player[Case, P]) -> Player[Case, P]:
    """Play a case again if its call did not come: what runs beside each other has no fixed order."""

    async def play(case: Case, on: Stage, nursery: Nursery, folder: Path) -> P:
        for number in range(_TRIES - 1):
            outcome = await player(case, on, nursery, folder.with_name(f"{folder.name}-{number}"))
            if outcome.problems or len(outcome.met) == len(case.fates):
                return outcome
        return await player(case, on, nursery, folder)

    return play


def cases_of(scene: Scene, calls: Sequence[Call], fates: Iterable[Fate]) -> Iterator[Case]:
    """Each call of an undisturbed scene with each of these fates; of calls that come with time the first of a kind."""
    if scene.is_slow:
        labels = {(call.role, call.label) for call in calls if not call.number or call.role == "lease"}
        yield from (
            Case(scene, ((fate, Point(role, 0, label, seen=label)),))
            for fate, (role, label) in itertools.product(fates, sorted(labels))
            if fate is not Fate.DIES_AMIDST
        )
        return
    for fate in fates:
        for call in calls:
            if not call.number or (fate in _EQUAL and call.label in _READING):
                continue
            if fate is not Fate.DIES_AMIDST:
                yield Case(scene, ((fate, Point(call.role, call.number, seen=call.label)),))
                continue
            for statements in amidst(call):
                yield Case(scene, ((fate, Point(call.role, call.number, amidst=statements, seen=call.label)),))


def amidst(call: Call) -> list[int]:
    """Where a call of several statements breaks in two: before its first COMMIT, and behind each but the last."""
    names = call.label.split(" ")
    commits = [place for place, name in enumerate(names, 1) if name == "commit"]
    if not commits or len(names) != call.statements:
        return []
    return [one for one in (commits[0] - 1, *commits) if 0 < one < call.statements]


class Told(Protocol):
    """What came of a case of any kind; as text it tells all."""

    problems: list[str]
    met: list[Call]


async def undisturbed(names: Sequence[str], databases: Databases, folder: Path) -> list[Outcome]:
    """Play scenes without any fault, once a process: the calls that there are, and that all is well then."""
    again = amount(thin=1, full=3)
    if new := [Case(SCENES[name]) for name in names if name not in _undisturbed] * again:
        folder.mkdir(exist_ok=True)
        outcomes = await play_all(new, perform, databases, folder)
        assert_well(outcomes)
        assert all(outcome.extra == 0 for outcome in outcomes)
        # The fewest calls: a play that was slow has some that others do not have.
        outcomes.sort(key=lambda outcome: len(outcome.calls), reverse=True)
        _undisturbed.update({outcome.case.scene.title: outcome for outcome in outcomes})
    return [_undisturbed[name] for name in names]


def assert_met(outcomes: Sequence[Outcome | ClientOutcome]) -> None:
    """
    No point was missed.

    What writes a run's way comes in a fixed order, and so do a client's calls: each of them must have been met. When
    the listener, the courier or a claim speaks is a matter of moments: of these one in ten may be missed. Writes that
    are ready together go in one call: then there is one less, and the last number is missed.
    """
    writes = [one for one in outcomes if isinstance(one, Outcome) and not is_loose(one)]
    last = max((one.case.fates[0][1].number for one in writes), default=0)
    missed = [outcome for outcome in outcomes if not outcome.met]
    loose = sum(is_loose(outcome) for outcome in outcomes)
    strict = [
        outcome
        for outcome in missed
        if not is_loose(outcome) and (isinstance(outcome, ClientOutcome) or outcome.case.fates[0][1].number < last)
    ]
    told = "\n".join(str(outcome.case) for outcome in missed)
    assert not strict, f"{len(strict)} calls of a fixed order were not met:\n{told}"
    assert len(missed) <= 1 + loose // 10, f"{len(missed)} calls of {loose} were not met:\n{told}"


def is_loose(outcome: Outcome | ClientOutcome) -> bool:
    """Whether the call of a case comes in no fixed order."""
    if isinstance(outcome, ClientOutcome):
        return False
    ((_, point),) = outcome.case.fates
    return point.role not in ("journal", "transaction")


def assert_well(outcomes: Sequence[Told]) -> None:
    """No case has left a problem."""
    bad = [outcome for outcome in outcomes if outcome.problems]
    told = "\n\n".join(map(str, bad[:5]))
    assert not bad, f"{len(bad)} of {len(outcomes)} cases are not well:\n{told}"
