"""One case: a worker is asked to end, and one of the calls with which it takes its leave meets its fate."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

from tests.proof.crash_points.cases import QUIET_S, SETTINGS, Account, Case, Outcome, leftovers, played
from tests.proof.crash_points.fates import KILLING, Fate, Fault
from tests.proof.crash_points.nursery import Child, Nursery
from tests.proof.crash_points.stage import Stage
from tests.proof.crash_points.tollgate import Tollgate

_HASTY: Final = {**SETTINGS, "GRACE": "300ms"}


async def take_leave(case: Case, stage: Stage, nursery: Nursery, folder: Path) -> Outcome:
    """Play a case to its end and look at what is left."""
    outcome = Outcome(case)
    async with played(outcome, stage, folder) as children:
        await _take_leave(outcome, stage, nursery, children)
    return outcome


async def _take_leave(outcome: Outcome, stage: Stage, nursery: Nursery, children: list[Child]) -> None:
    scene = outcome.case.scene
    account = Account(scene)
    faults = [Fault(fate, point) for fate, point in outcome.case.fates]
    worker: Child

    async def died() -> int:
        return await worker.ended()

    async with Tollgate(stage.url, end_session=stage.end_session, died=died) as gate:
        worker = await nursery.worker(gate.url, stage.folder, name="first", **_HASTY)
        children.append(worker)
        gate.pid = worker.pid
        await stage.is_idle(worker)
        run = await stage.start(scene)
        await scene.farewell(stage, run)
        await gate.quiet(QUIET_S)
        gate.count(*faults)
        worker.signal(signal.SIGTERM)
        code = await worker.ended()
        await stage.gone(gate.backends - gate.lingering)
        outcome.calls = gate.calls
        outcome.met = [fault.call for fault in faults if fault.call is not None]
        expected = {0}
        for fault in faults:
            if fault.call is not None and fault.fate in KILLING:
                # By its last call it may have ended itself before it is killed.
                expected = {-signal.SIGKILL, 0} if fault.fate is Fate.DIES_AFTER else {-signal.SIGKILL}
        if code not in expected:
            outcome.problems.append(f"the worker ended with {code}")
        account.notes(await stage.snapshot())
        await stage.lapse(worker)
        heir = await nursery.worker(stage.url, stage.folder, name="heir", **SETTINGS)
        children.append(heir)
        await stage.is_buried(worker)
        for fault in faults:
            if fault.call is not None and fault.fate is Fate.DIES_LATE:
                await fault.release()
        await scene.drive(stage, run)
        await stage.has_ended()
        await stage.is_idle(heir)
        await stage.is_alone()
        heir.signal(signal.SIGTERM)
        if (code := await heir.ended()) != 0:
            outcome.problems.append(f"the heir ended with {code}")
        outcome.problems += [repr(error) for error in gate.errors]
    outcome.problems += await account.settle(stage, run)
    outcome.problems += await leftovers(stage)
    outcome.bodies, outcome.extra, outcome.predicted = account.bodies, account.extra, account.predicted
