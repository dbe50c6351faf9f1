"""
One case: a worker stands still at one of its calls until another one has taken over and gone on; then it goes on, too.

It believes in its lease: that is ended by hand, so by its own clock it may still write when it wakes up. Nothing that
it sends then may be accepted, what was held on its way neither. In the slow form the lease, a short one, really lapses.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import tests.proof.crash_points.plays as plays
from tests.proof.crash_points.cases import QUIET_S, SETTINGS, Account, Case, Outcome, fires, leftovers, played
from tests.proof.crash_points.fates import Fate, Fault
from tests.proof.crash_points.nursery import Child, Nursery
from tests.proof.crash_points.stage import Snapshot, Stage
from tests.proof.crash_points.tollgate import Tollgate
from tests.proof.kit.lanes import setting

_PATIENCE_S: Final = 60.0
_BRANCHES: Final = 3
"""So many bodies may begin at once in a scene."""
_SHORT: Final = {**SETTINGS, "LEASE": f"{setting('lease', 2)}s"}
"""By KEDGE_PROOF_LEASE; so that a worker on a busy machine does not lose it before it stands still."""
_LEASE_LOST: Final = "starting a new life"
"""What a worker says that has lost its lease."""


@dataclass(slots=True)
class Haunting(Outcome):
    """What came of it; of a case that met its call."""

    stale: int = 0
    """Rows of the zombie's epochs that were not there when it was taken for dead."""
    noticed_s: float = 0.0
    """From its awakening to its new life."""


async def haunt(case: Case, stage: Stage, nursery: Nursery, folder: Path) -> Haunting:
    """Play a case to its end and look at what is left."""
    return await _played(case, stage, nursery, folder, lapses=False)


async def haunt_slowly(case: Case, stage: Stage, nursery: Nursery, folder: Path) -> Haunting:
    """The same, but nobody ends the zombie's lease, of a second: it lapses, and the heir takes over by itself."""
    return await _played(case, stage, nursery, folder, lapses=True)


async def _played(case: Case, stage: Stage, nursery: Nursery, folder: Path, *, lapses: bool) -> Haunting:
    outcome = Haunting(case)
    async with played(outcome, stage, folder, patience_s=_PATIENCE_S) as children:
        await _haunt(outcome, stage, nursery, children, lapses=lapses)
    return outcome


async def _haunt(outcome: Haunting, stage: Stage, nursery: Nursery, children: list[Child], *, lapses: bool) -> None:
    ((fate, point),) = outcome.case.fates
    scene = outcome.case.scene
    account = Account(scene)
    zombie: Child

    async def died() -> int:
        return await zombie.ended()

    async with Tollgate(stage.url, end_session=stage.end_session, died=died) as gate:
        fault = Fault(fate, point)

        async def begin() -> UUID:
            gate.count(fault)
            return await stage.start(scene)

        run = await begin() if scene.is_first else None
        zombie = await nursery.worker(gate.url, stage.folder, name="zombie", **(_SHORT if lapses else SETTINGS))
        children.append(zombie)
        gate.pid = zombie.pid
        if run is None:
            await stage.is_idle(zombie)
            await gate.quiet(QUIET_S)
            run = await begin()
        drive = asyncio.create_task(scene.drive(stage, run))
        try:
            if not await fires(fault, stage, gate):
                gate.count_no_more()
                await stage.is_idle(zombie)
                zombie.signal(signal.SIGTERM)
                await zombie.ended()
                return
            assert fault.call is not None
            before, epochs = await _last_words(stage, gate)
            if _LEASE_LOST not in zombie.log():  # else it was no worker any more when it stood still: on a busy machine
                outcome.met.append(fault.call)
            account.notes(before)
            if not lapses:
                await stage.lapse(zombie)
            heir = await nursery.worker(stage.url, stage.folder, name="heir", **SETTINGS)
            children.append(heir)
            await stage.is_buried(zombie)  # of a lease that is not over nobody takes anything
            await _goes_on(stage, before)

            if outcome.case.sabotage:
                await stage.rows(outcome.case.sabotage)
            woken_at = time.monotonic()
            delivered = asyncio.create_task(fault.release())
            if fate is Fate.STOPS_BEFORE:
                await delivered  # what was on its way is executed, though the zombie stands still
            gate.is_shut = True
            zombie.signal(signal.SIGCONT)
            await delivered
            await stage.has_ended()
            async with asyncio.timeout(10):
                await drive
            await stage.is_idle(zombie)
            outcome.noticed_s = time.monotonic() - woken_at
        finally:
            drive.cancel()
        outcome.problems += await _stale(outcome, stage, before, epochs)
        outcome.problems += await account.settle(stage, run, zombie=(f"process-{zombie.pid}", woken_at, _BRANCHES))
        outcome.bodies, outcome.extra, outcome.predicted = account.bodies, account.extra, account.predicted
        heir.signal(signal.SIGTERM)
        if (code := await heir.ended()) != 0:
            outcome.problems.append(f"the heir ended with {code}")
        outcome.problems += await _lives_again(stage, zombie)
        zombie.signal(signal.SIGTERM)
        if (code := await zombie.ended()) != 0:
            outcome.problems.append(f"the zombie ended with {code}")
        outcome.problems += [repr(error) for error in gate.errors]
    if zombie.log().count(_LEASE_LOST) > (0 if lapses else 1):
        # On a busy machine its new life may lose the lease, too, and the heir is no more that would bury it.
        await stage.forget_lapsed()
    outcome.problems += await leftovers(stage)


async def _last_words(stage: Stage, gate: Tollgate) -> tuple[Snapshot, dict[UUID, int]]:
    """What it had kept when it stood still, and the epochs of the runs; what is on its way elsewhere arrives first."""
    await gate.answered()
    epochs = {run: int(epoch) for run, epoch in await stage.rows("select id, epoch from kedge.all_runs")}
    return await stage.snapshot(), epochs


async def _goes_on(stage: Stage, before: Snapshot) -> None:
    """Return when somebody else has kept a step, or there is nothing left to do."""
    while True:
        now = await stage.snapshot()
        if len(now.rows) > len(before.rows) or not await stage.rows("select 1 from kedge.runs limit 1"):
            return
        await asyncio.sleep(0.01)


async def _stale(outcome: Haunting, stage: Stage, before: Snapshot, epochs: dict[UUID, int]) -> list[str]:
    """Rows that the zombie has written after it was taken for dead."""
    now = await stage.snapshot()
    stale = [
        (place, row)
        for place, row in now.rows.items()
        if place not in before.rows and row[0] <= epochs.get(place[0], -1)
    ]
    outcome.stale = len(stale)
    return [f"stale write: {one}" for one in stale]


async def _lives_again(stage: Stage, zombie: Child) -> list[str]:
    """The zombie, in its new life, is the only worker there is: it executes a run."""
    run = await stage.client.start(plays.steps())
    async with asyncio.timeout(15):
        await stage.has_ended()
    who = {line["who"] for line in stage.lines() if line["what"] == "body" and line["run"] == str(run.id)}
    return [] if who == {f"process-{zombie.pid}"} else [f"the run after it was executed by {who}"]
