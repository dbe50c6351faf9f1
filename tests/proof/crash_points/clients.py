"""One case: a client's process, of which one call meets its fate; the same script again; a worker; what must be so."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.proof.crash_points.cases import SETTINGS, leftovers, played
from tests.proof.crash_points.fates import KILLING, Call, Fate, Fault, Point
from tests.proof.crash_points.nursery import Child, Nursery
from tests.proof.crash_points.scripts import CONFUSED
from tests.proof.crash_points.stage import HISTORY, Stage
from tests.proof.crash_points.tollgate import Tollgate
from tests.proof.kit.journal import Line

SCRIPTS: Final = {"starts": 2, "sends": 1, "controls": 1, "transaction": 1}
"""With how many runs: those without a key, and of the script that is executed twice."""
_PATIENCE_S: Final = 60.0
NOWHERE: Final = Point("", 0)
_LETTERS: Final = {"pause": "s", "resume": "u", "cancel": "x"}


@dataclass(frozen=True, slots=True)
class ClientCase:
    """Which script, and which call of it meets what."""

    script: str
    fate: Fate | None = None
    point: Point = NOWHERE
    sabotage: str = ""
    """SQL that is executed when the first client has ended: a fault that must be noticed."""

    def __str__(self) -> str:
        return f"client {self.script}: {self.fate and self.fate.name} at {self.point.role}#{self.point.number}"


@dataclass(slots=True)
class ClientOutcome:
    """What came of it."""

    case: ClientCase
    calls: list[Call] = field(default_factory=list[Call])
    met: list[Call] = field(default_factory=list[Call])
    problems: list[str] = field(default_factory=list[str])
    unknown: int = 0
    """Calls of which the client was told that nobody knows."""
    log: str = ""

    def __str__(self) -> str:
        return "\n  ".join([f"{self.case} (met {', '.join(map(str, self.met))})", *self.problems, self.log])


async def tell(case: ClientCase, stage: Stage, nursery: Nursery, folder: Path) -> ClientOutcome:
    """Play a case to its end and look at what is left."""
    outcome = ClientOutcome(case)
    async with played(outcome, stage, folder, patience_s=_PATIENCE_S) as children:
        await _forget(stage)
        await _tell(outcome, stage, nursery, children)
    return outcome


async def _tell(outcome: ClientOutcome, stage: Stage, nursery: Nursery, children: list[Child]) -> None:
    case = outcome.case
    client: Child

    async def died() -> int:
        return await client.ended()

    async with Tollgate(stage.url, end_session=stage.end_session, died=died) as gate:
        fault = Fault(case.fate or Fate.CUT, case.point)
        gate.count(*([fault] if case.fate else []))
        client = await nursery.client(case.script, gate.url, stage.folder, name="first")
        gate.pid = client.pid
        children.append(client)
        code = await client.ended()
        await stage.gone(gate.backends - gate.lingering)
        outcome.calls = gate.calls
        if fault.call is not None:
            outcome.met.append(fault.call)
        first = stage.lines()
        outcome.unknown = sum(line["what"].endswith(".unknown") for line in first)
        expected = [-9] if fault.call and fault.fate in KILLING else [0]
        if fault.fate is Fate.DIES_AFTER:
            expected.append(0)  # by its last call it may have ended itself
        # In a caller's transaction nothing is repeated: that is the caller's.
        if code not in (expected if case.script != "transaction" else [*expected, CONFUSED]):
            outcome.problems.append(f"the client ended with {code}: {first[-1:]}")
        if case.sabotage:
            await stage.rows(case.sabotage)
        outcome.problems += await _kept(stage, first)
        if case.sabotage:
            return

        second = await nursery.client(case.script, stage.url, stage.folder, name="second")
        children.append(second)
        if fault.call and fault.fate is Fate.DIES_LATE:
            # Callers with equal keys wait for each other: until then, where the first stands in a transaction.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(second.ended(), 0.5)
            await fault.release()
        if (code := await second.ended()) != 0:
            outcome.problems.append(f"the second client ended with {code}")
        outcome.problems += [repr(error) for error in gate.errors]
    outcome.problems += await _kept(stage, stage.lines())
    outcome.problems += await _number(stage, case, stage.lines())
    worker = await nursery.worker(stage.url, stage.folder, name="worker", **SETTINGS)
    children.append(worker)
    await stage.has_ended()
    await stage.is_idle(worker)
    worker.signal(signal.SIGTERM)
    await worker.ended()
    outcome.problems += await _ended(stage, case)
    outcome.problems += await leftovers(stage)


async def _forget(stage: Stage) -> None:
    """Keys are used again by the next case."""
    for table in HISTORY:
        await stage.rows(f"delete from kedge.{table}")
    await stage.rows("delete from effects")


async def _kept(stage: Stage, lines: list[Line]) -> list[str]:
    """What was acknowledged is there, once, whoever said so; nothing is there twice."""
    problems: list[str] = []
    runs = {str(run) for (run,) in await stage.rows("select r.id from kedge.runs r")}
    inputs = {str(run) for (run,) in await stage.rows("select run_id from kedge.journal where seq = 0")}
    if runs != inputs:
        problems.append(f"runs are {runs}, inputs are {inputs}")
    keys = {str(key): str(run) for key, run in await stage.rows("select key, run_id from kedge.run_keys")}
    for line in lines:
        if line["what"] == "start.ok":
            if line["run"] not in runs:
                problems.append(f"an acknowledged start is lost: {line}")
            if line["key"] is not None and keys.get(line["key"]) != line["run"]:
                problems.append(f"the key is of another run, {keys.get(line['key'])}: {line}")
        elif line["what"] == "starts.ok":
            found = [keys.get(key) for key in line["keys"]]
            if found != line["runs"] or not set(line["runs"]) <= runs:
                problems.append(f"the keys are of other runs, {found}: {line}")
    letters = [
        (kind, _read(payload))
        for kind, payload in await stage.rows("select kind::text, payload from kedge.inbox order by seq")
    ]
    for line in lines:
        if line["what"] == "send.ok":
            value = line["key"] or line["value"]
            if letters.count(("e", value)) != 1:
                problems.append(f"an acknowledged event stands there {letters.count(('e', value))} times: {line}")
    told = [payload for kind, payload in letters if kind == "e"]
    problems += [f"{value!r} was sent {n} times" for value, n in Counter(told).items() if n > 1]
    for verb, kind in _LETTERS.items():
        asked = sum(line["what"] == f"{verb}.ok" for line in lines)
        there = sum(one == kind for one, _ in letters)
        if there < min(asked, 1):
            problems.append(f"of {asked} times that {verb} was acknowledged {there} letters are there")
    own = (await stage.rows("select count(*) from effects where step = 'own'"))[0][0]
    done = any(line["what"] == "transaction.ok" for line in lines)
    if own != ("own" in keys) or own > 1 or (done and not own):
        problems.append(f"the caller's row is there {own} times, its run {'own' in keys}, acknowledged: {done}")
    return problems


async def _number(stage: Stage, case: ClientCase, lines: list[Line]) -> list[str]:
    """Of the starts without a key that nobody has acknowledged, each has happened once or not at all."""
    keyed = (await stage.rows("select count(*) from kedge.run_keys"))[0][0]
    runs = (await stage.rows("select count(*) from kedge.runs"))[0][0]
    said = sum(line["what"] == "start.ok" and line["key"] is None for line in lines)
    asked = sum(line["what"] == "start.invoke" and line["key"] is None for line in lines)
    return (
        [] if said <= runs - keyed <= asked else [f"{runs} runs, {keyed} of them with a key; {said} to {asked} without"]
    )


async def _ended(stage: Stage, case: ClientCase) -> list[str]:
    """All went its way, and events came in their order."""
    problems: list[str] = []
    for run, workflow, status, output in await stage.rows(
        "select id, workflow, status::text, output from kedge.finished"
    ):
        expected = "x" if case.script == "controls" else "c"
        if status != expected:
            problems.append(f"run {run} ended as {status}")
        if workflow == "event" and status == "c":
            told: Any = _read(output)
            if (told["event"], told["other"]) != ("event", "other"):
                problems.append(f"it was told {told}")
    bodies = Counter((line["run"], line["step"]) for line in stage.lines() if line["what"] == "body")
    problems += [f"{one} began {n} times" for one, n in bodies.items() if n > 1]
    return problems


def _read(payload: bytes | None) -> Any:
    return msgspec.json.decode(payload[1:]) if payload else None
