"""One case: a scene, in which one call of the worker meets its fate; what must be so afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

import msgspec

from tests.proof.crash_points.fates import KILLING, Call, Fate, Fault, Point
from tests.proof.crash_points.nursery import Child, Nursery
from tests.proof.crash_points.scenes import Scene
from tests.proof.crash_points.stage import Snapshot, Stage, step_of
from tests.proof.crash_points.tollgate import Tollgate

SETTINGS: Final = {"LEASE": "4s", "POLL": "2s", "GRACE": "5s", "CONCURRENCY": "20"}
"""The lease is long, for nothing here is about time; that of a dead worker is ended by hand."""
QUIET_S: Final = 0.05
EMPTY_AT_REST: Final = ("runs", "waits", "inbox", "inbox_failed", "workers", "idle", "run_watchers", "singletons")
_PATIENCE_S: Final = 45.0
"""For a broken build, not a promise."""


@dataclass(frozen=True, slots=True)
class Case:
    """Which fates at which points, one after the other."""

    scene: Scene
    fates: tuple[tuple[Fate, Point], ...] = ()
    sabotage: str = ""
    """SQL that is executed when a dead worker's works have been looked at: a fault that must be noticed."""

    def __str__(self) -> str:
        told = [
            f"{fate.name} at {point.role}#{point.number or ''}{point.label}{f'.{point.amidst}' if point.amidst else ''}"
            for fate, point in self.fates
        ]
        return f"{self.scene.title}: {', then '.join(told) or 'undisturbed'}"


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    case: Case
    calls: list[Call] = field(default_factory=list[Call])
    """Of an undisturbed case: all."""
    met: list[Call] = field(default_factory=list[Call])
    problems: list[str] = field(default_factory=list[str])
    bodies: int = 0
    extra: int = 0
    """Bodies that were executed once more because of the fault."""
    predicted: int = 0
    """So many of these were predicted. One that is cancelled may not have begun, a zombie may have begun more."""
    log: str = ""

    def __str__(self) -> str:
        return "\n  ".join([f"{self.case} (met {', '.join(map(str, self.met))})", *self.problems, self.log])


class Told(Protocol):
    """What is told of a case, whatever its kind."""

    problems: list[str]
    log: str


@contextlib.asynccontextmanager
async def played(
    outcome: Told, stage: Stage, folder: Path, *, patience_s: float = _PATIENCE_S
) -> AsyncGenerator[list[Child]]:
    """
    Play a case in here; whatever goes wrong is told with it.

    Yields:
        Where its processes are put: none outlives the case, and what they have written is told if it went wrong.
    """
    children: list[Child] = []
    folder.mkdir()
    try:
        async with asyncio.timeout(patience_s):
            await stage.clear(folder)
            yield children
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told with the case
        outcome.problems.append(f"{type(error).__name__}: {error}")
    finally:
        for child in children:
            child.kill()
    if outcome.problems:
        outcome.log = "\n".join(f"--- {child.pid}\n{child.log()[-4000:]}" for child in children)
        with contextlib.suppress(Exception):
            await clean_up(stage, children)


async def perform(case: Case, stage: Stage, nursery: Nursery, folder: Path) -> Outcome:
    """Play a case to its end and look at what is left."""
    outcome = Outcome(case)
    async with played(outcome, stage, folder) as children:
        await _perform(outcome, stage, nursery, children)
    return outcome


async def _perform(outcome: Outcome, stage: Stage, nursery: Nursery, children: list[Child]) -> None:
    case = outcome.case
    worker: Child

    async def died() -> int:
        return await worker.ended()

    async with Tollgate(stage.url, end_session=stage.end_session, died=died) as gate:
        account = Account(case.scene)
        faults = [Fault(fate, point, account.witness(stage, point)) for fate, point in case.fates]

        async def begin() -> UUID:
            gate.count(*faults)
            return await stage.start(case.scene)

        run = await begin() if case.scene.is_first else None
        worker = await nursery.worker(gate.url, stage.folder, name="first", **SETTINGS)
        children.append(worker)
        gate.pid = worker.pid
        if run is None:
            await stage.is_idle(worker)
            await gate.quiet(QUIET_S)
            run = await begin()
        drive = asyncio.create_task(case.scene.drive(stage, run))
        try:
            for fault in faults:
                if not await fires(fault, stage, gate):
                    break
                assert fault.call is not None
                outcome.met.append(fault.call)
                if fault.fate in KILLING:
                    dead = worker
                    await dead.ended()
                    # Of a call that is on its way still the session stays; nothing of it has arrived.
                    await stage.gone(gate.backends - gate.lingering)
                    account.notes(await stage.snapshot())
                    if case.sabotage:
                        await stage.rows(case.sabotage)
                    await stage.lapse(dead)
                    gate.pid, gate.is_shut = 0, False
                    worker = await nursery.worker(gate.url, stage.folder, name=f"next-{len(children)}", **SETTINGS)
                    children.append(worker)
                    gate.pid = worker.pid
                    if fault.fate is Fate.DIES_LATE:
                        await stage.is_buried(dead)
                        await fault.release()
            await stage.has_ended()
            async with asyncio.timeout(10):
                await drive
        finally:
            drive.cancel()
        await gate.quiet(QUIET_S)
        outcome.calls = gate.calls
        gate.count_no_more()
        await stage.is_idle(worker)
        await stage.is_alone()
        worker.signal(signal.SIGTERM)
        if (code := await worker.ended()) != 0:
            outcome.problems.append(f"the worker ended with {code}")
        outcome.problems += [repr(error) for error in gate.errors]
    outcome.problems += await account.settle(stage, run)
    outcome.problems += await leftovers(stage)
    outcome.bodies, outcome.extra, outcome.predicted = account.bodies, account.extra, account.predicted


async def fires(fault: Fault, stage: Stage, gate: Tollgate) -> bool:
    """Wait until it has met its call; answers False if the run has ended and nothing more is said."""

    async def is_over() -> bool:
        await stage.has_ended()
        await gate.quiet(QUIET_S)
        return True

    tasks: list[asyncio.Task[bool]] = [asyncio.create_task(_is_set(fault.fired)), asyncio.create_task(is_over())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if fault.call is not None:
            async with asyncio.timeout(30):
                await fault.fired.wait()
            return True
        gate.disarm()  # at once: the next call may be on its way
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def leftovers(stage: Stage) -> list[str]:
    """What stands in the tables when nothing is to be done any more, and should not."""
    broken = await stage.rows("select * from kedge.check_invariants(true)")
    problems = [f"invariant: {row}" for row in broken]
    found = {table: await stage.rows(f"select * from kedge.{table}") for table in EMPTY_AT_REST}
    problems += [f"left in {table}: {rows}" for table, rows in found.items() if rows]
    return problems


async def _is_set(event: asyncio.Event) -> bool:
    return await event.wait()


class Account:
    """
    Predicts how often each body begins, from what stands in the journal when a fault comes.

    The rule: after a death a body begins anew if, and only if, its outcome was not kept; as often as it would have from
    there. Where the process lives on, none does, but for a transaction that was ended with its connection.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._predicted = dict(scene.bodies)
        self._seen: list[Snapshot] = []
        self.bodies = self.extra = 0

    @property
    def predicted(self) -> int:
        """How many bodies begin once more."""
        return sum(self._predicted.values()) - sum(self._scene.bodies.values())

    def witness(self, stage: Stage, point: Point) -> Callable[[], Awaitable[None]]:
        """For a fault of a process that lives on."""

        async def look() -> None:
            now = await stage.snapshot()
            if point.role == "transaction":
                self._note(now, self._scene.effects)
            else:
                self._seen.append(now)

        return look

    def notes(self, now: Snapshot) -> None:
        """After a death."""
        self._note(now, frozenset(self._scene.bodies))

    def _note(self, now: Snapshot, steps: frozenset[str]) -> None:
        self._seen.append(now)
        kept = now.kept()
        for step in steps:
            begun = now.begun[step]
            left = 0 if step in kept else max(1, self._scene.bodies[step] - begun)
            self._predicted[step] = begun + left

    async def settle(self, stage: Stage, run: UUID, *, zombie: tuple[str, float, int] | None = None) -> list[str]:
        """
        What is not as it must be, when all is over.

        A zombie (who, since when it is one, how many at once) may have begun bodies before it noticed: so many, not of
        a transaction's effects. What is kept of its process since then comes from its new life, if nothing is stale.
        """
        scene, problems = self._scene, list[str]()
        now = await stage.snapshot()
        self.bodies = now.begun.total()
        self.extra = self.bodies - sum(scene.bodies.values())

        haunted = Counter[str]()
        if zombie is not None:
            who, since, most = zombie
            kept = now.kept(kinds="stp")
            lines = [
                one
                for one in stage.lines()
                if one["what"] == "body"
                and (one["who"], one["at"] > since) == (who, True)
                and kept.get(one["step"]) != one["value"]
            ]
            haunted = Counter(str(line["step"]) for line in lines)
            if haunted.total() > most:
                problems.append(f"the zombie has begun {dict(haunted)}")
        for step, predicted in self._predicted.items():
            begun = now.begun[step] - haunted[step]
            if not (begun == predicted or (step in scene.endless and begun == predicted - 1 and begun > 0)):
                problems.append(f"the body of {step!r} began {begun} times, not {predicted}")
        if strange := set(now.begun) - set(scene.bodies):
            problems.append(f"nobody expected bodies of {strange}")

        for before in self._seen:
            for place, row in before.rows.items():
                if row[1] not in "fx" and now.rows.get(place) != row:
                    problems.append(f"row {place} was {row}, is {now.rows.get(place)}")

        problems += await self._ends(stage, run, now)
        problems += self._values(stage, now)
        problems += await self._effects(stage, now)
        return problems

    async def _ends(self, stage: Stage, run: UUID, now: Snapshot) -> list[str]:
        scene, problems = self._scene, list[str]()
        ends = await stage.rows(
            "select f.id, f.status::text, f.output, f.crashes from kedge.finished f"
            " where f.id in (select run_id from kedge.journal where seq = 0 and at >= %s)",
            stage.began,
        )
        roots = [end for end in ends if end[0] == run]
        if [end[1] for end in roots] != [scene.status]:
            problems.append(f"the run ended as {roots}, not {scene.status}")
        if scene.status == "c" and roots:
            told = _decoded(roots[0][2])
            kept = {step: value for step, value in now.kept(kinds="stp").items() if step in scene.bodies}
            if told != (expected := {**kept, **scene.told}):
                problems.append(f"the run answered {told}, kept is {expected}")
        return problems

    def _values(self, stage: Stage, now: Snapshot) -> list[str]:
        """
        What a body was given is what was kept: it stood there before the body began. Of a transaction's bodies that
        is so for the one that was committed: its commit is what waits.
        """
        problems: list[str] = []
        kept = now.kept(kinds="stp")
        runs: dict[str, set[str]] = {}
        for line in stage.lines():
            if line["what"] != "body":
                continue
            runs.setdefault(line["step"], set()).add(line["run"])
            if line["step"] in self._scene.effects and kept.get(line["step"]) != line["value"]:
                continue
            for step, value in line["given"].items():
                if step in self._scene.bodies and kept.get(step) != value:
                    problems.append(f"{line['step']!r} was given {value} of {step!r}; kept is {kept.get(step)}")
        answers = {line["value"] for line in stage.lines() if line["what"] == "body"}
        problems += [
            f"nobody has answered {value} of {step!r}"
            for step, value in kept.items()
            if value not in answers and step in self._scene.bodies
        ]
        problems += [f"{step!r} was executed by {len(ids)} runs" for step, ids in runs.items() if len(ids) > 1]
        keys = [(place[0], step_of(row[2]), row[2]) for place, row in now.rows.items() if row[1] in "stped"]
        problems += [f"{key} is kept more than once" for key in set(keys) if keys.count(key) > 1]
        return problems

    async def _effects(self, stage: Stage, now: Snapshot) -> list[str]:
        effects = sorted(
            (step, value)
            for step, value in await stage.rows("select step, value from effects where at >= %s", stage.began)
        )
        kept = now.kept(kinds="t")
        expected = sorted((step, kept.get(step)) for step in self._scene.effects)
        return [] if effects == expected else [f"effects are {effects}, kept is {expected}"]


def _decoded(value: bytes | None) -> object:
    return None if value is None else msgspec.json.decode(value[1:])


async def clean_up(stage: Stage, children: Sequence[Child]) -> None:
    """The next case must not suffer from this one."""
    for child in children:
        await child.ended()
    for table in (*EMPTY_AT_REST, "events"):
        await stage.rows(f"delete from kedge.{table}")
