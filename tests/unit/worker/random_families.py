"""Random handlers with children and maps in them, and the postman who brings the children's ends at any time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5

import msgspec

from kedge.errors import ChildCancelledError, ChildFailedError, StepFailedError
from kedge.refs import RunRequest, WorkflowRef
from kedge.wire import decode
from kedge_worker._context import Context
from kedge_worker._runs import LiveRun, Mail, Started
from kedge_worker._side_writes import SideWrite
from kedge_worker._waits import KEY_SLOT
from kedge_worker._workflows import workflow
from tests.unit.worker import random_handlers
from tests.unit.worker.families import cancelled, ended, failed
from tests.unit.worker.journal import Lives
from tests.unit.worker.random_handlers import Plan, echo, make_plan, perform, some_rounds, world

mirror = WorkflowRef("mirror", str, str)
keyed_mirror = WorkflowRef("keyed-mirror", str, str, key=lambda path: path)


def make_family(seed: int) -> Plan:
    """A plan in which every second leaf or so has to do with children or many items."""
    return _with_children(make_plan(seed), random.Random(~seed))


def _with_children(plan: Plan, rng: random.Random) -> Plan:
    if plan.parts:
        return replace(plan, parts=tuple(_with_children(part, rng) for part in plan.parts))
    if plan.kind == "late" or rng.random() < 0.4:
        return plan
    return Plan(rng.choice(tuple(random_handlers.LEAVES)), plan.name)


# ---- leaves


async def _call(ctx: Context, name: str, path: str) -> str:
    return await ctx.call(name, mirror(path))


async def _keyed(ctx: Context, name: str, path: str) -> str:
    return await ctx.call(name, keyed_mirror(path))


async def _start(ctx: Context, name: str, path: str) -> str:
    child = await ctx.start(name, mirror(path))
    await ctx.step("meanwhile", echo, str(child.run_id))
    return await child.result()


async def _bad(ctx: Context, name: str, path: str) -> str:
    try:
        return await ctx.call(name, mirror(f"bad {path}"))
    except (ChildFailedError, ChildCancelledError):
        return path


async def _steps(ctx: Context, name: str, path: str) -> str:
    items = [f"{path}:{n}" for n in range(4)]
    values = await ctx.map(name, echo, items, limit=2)
    assert values == items
    return path


async def _failing_steps(ctx: Context, name: str, path: str) -> str:
    async def body(n: int) -> int:
        await some_rounds()
        return 1 // n

    try:
        await ctx.map(name, body, [1, 0, 2])
    except StepFailedError as error:
        return path if error.error.kind == "builtins.ZeroDivisionError" else str(error)
    return "no failure"


async def _children(ctx: Context, name: str, path: str) -> str:
    items = [f"{path}:{n}" for n in range(4)]
    values = await ctx.map(name, mirror, items, limit=2 if name == "a" else None)
    assert values == items
    return path


async def _failing_children(ctx: Context, name: str, path: str) -> str:
    try:
        await ctx.map(name, _request, [f"{path}:0", f"bad {path}:1", f"{path}:2"])
    except (ChildFailedError, ChildCancelledError) as error:
        return path if error.key.endswith("[1]") else error.key
    return "no failure"


def _request(path: str) -> RunRequest[str]:
    return (keyed_mirror if path.endswith("2") else mirror)(path)


random_handlers.LEAVES |= {
    "call": _call,
    "keyed": _keyed,
    "start": _start,
    "bad": _bad,
    "steps": _steps,
    "failing steps": _failing_steps,
    "children": _children,
    "failing children": _failing_children,
}


@workflow(WorkflowRef("random-family", int, str))
async def random_family(ctx: Context, seed: int) -> str:
    return await perform(ctx, make_family(seed), "p")


# ---- ends


class Postman:
    """Stands for children and courier: each child ends some rounds after its start, and who watches is told once."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives
        self._inputs: dict[UUID, str] = {}
        self._letters: dict[UUID, dict[UUID, Mail]] = {}
        self._consumed: dict[UUID, dict[UUID, int]] = {}
        self._add = lives.journal.add
        self._loop = asyncio.get_running_loop()
        lives.journal.add = self._see  # type: ignore[method-assign]  # between the run and its journal
        self._start = lives.child_starts.start
        lives.child_starts.start = self._start_alone  # type: ignore[method-assign]

    def unread(self, run_id: UUID, up_to: int | None = None) -> tuple[Mail, ...]:
        """What a claim would bring, after a crash that let rows up to a seq through."""
        consumed = self._consumed.get(run_id, {})
        if up_to is not None:
            for letter, seq in list(consumed.items()):
                if seq > up_to:
                    del consumed[letter]
        mail = self._letters.get(run_id, {}).values()
        return tuple(sorted((one for one in mail if one.id not in consumed), key=lambda one: one.seq))

    def _see(self, run: LiveRun, side: SideWrite, *values: Any, size: int = 100) -> None:
        self._add(run, side, *values, size=size)
        run_id = run.claimed.id
        if side.name == "START_CHILDREN":
            child = UUID(bytes=values[2])
            self._inputs[child] = decode(values[6], str, where="input")
            if values[-1]:
                self._send(run_id, child, values[1])
        elif side.name == "SEND_LETTERS" and values[0] == "w":
            self._send(run_id, UUID(bytes=values[1]), values[3].removeprefix(KEY_SLOT))
        elif side.name == "CONSUME_MAIL":
            self._consumed.setdefault(run_id, {})[UUID(bytes=values[1])] = values[0]

    async def _start_alone(self, run: LiveRun, child_id: UUID, terms: Any, *, is_dependent: bool) -> Started:
        self._inputs[child_id] = decode(terms.input, str, where="input")
        await asyncio.sleep(0)
        return await self._start(run, child_id, terms, is_dependent=is_dependent)

    def _send(self, run_id: UUID, child: UUID, key: str, rounds: int | None = None) -> None:
        # By callbacks: a task made here would be a branch of the run.
        left = world.rng.choice((0, 1, 3, 8, 20)) if rounds is None else rounds
        if left > 0:
            self._loop.call_soon(self._send, run_id, child, key, left - 1)
            return
        path = self._inputs[child]
        letter = ended(key, path) if not path.startswith("bad") else (failed, cancelled)[len(path) % 2](key)
        mail = msgspec.structs.replace(letter, id=uuid5(child, key))
        letters = self._letters.setdefault(run_id, {})
        if mail.id in letters:
            return
        letters[mail.id] = mail
        execution = self._lives.executor._execution(run_id)
        if execution is not None and not execution.closed:
            execution.open_waits().receive([mail])
