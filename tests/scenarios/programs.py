"""
Random handlers: trees of operations, interpreted. Every operation has a name of its own, so what a life of a run was
told, and in which order, can be compared with what another life was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import anyio

from kedge import EventRef, Retry
from kedge_worker import Context, NotYet, StepFailedError

EVENTS: Final = {name: EventRef(name, int) for name in ("a", "b", "c")}
TOPIC: Final = "news"

_LEAVES: Final = {
    "wait": 6, "timeout": 4, "sleep": 4, "until": 1, "step": 4, "slow": 1, "retry": 1, "fail": 1, "transaction": 1,
    "send": 2, "say": 1, "poll": 1, "pause": 1, "raw": 1, "now": 1, "topic": 1, "patched": 1,
}  # fmt: skip
_NODES: Final = {
    "gather": 3, "group": 2, "first": 4, "race": 1, "doomed": 2, "raw_timeout": 1, "tasks": 1, "done": 1, "move_on": 1,
}  # fmt: skip
_TIMED: Final = frozenset({"raw_timeout", "move_on"})
_IN_FULL: Final = frozenset({"gather", "group", "tasks"})
_DEEPEST: Final = 3

Told = list[tuple[str, Any]]


@dataclass
class Op:
    """One node: `kind` says which, `name` is its id, `body` its branches."""

    kind: str
    name: str
    number: int = 0
    event: str = "a"
    body: list[list[Op]] = field(default_factory=list["list[Op]"])

    def inside(self) -> Iterable[Op]:
        """All operations of its branches."""
        for child in itertools.chain.from_iterable(self.body):
            yield child
            yield from child.inside()


def program(seed: int, *, size: int = 12) -> list[Op]:
    """The program of a seed: about so many operations, in a sequence of trees."""
    return _Generator(seed, size).program()


class _Generator:
    def __init__(self, seed: int, size: int) -> None:
        self._random = random.Random(seed)
        self._names = itertools.count()
        self._left = size

    def program(self) -> list[Op]:
        ops: list[Op] = []
        while self._left > 0:
            ops.append(self._op(0))
        return ops

    def _op(self, depth: int) -> Op:
        self._left -= 1
        chance = self._random
        kinds = _LEAVES | (_NODES if depth < _DEEPEST and self._left > 0 else {})
        kind = chance.choices(list(kinds), list(kinds.values()))[0]
        op = Op(kind, f"o{next(self._names)}", chance.randint(0, 5), chance.choice(list(EVENTS)))
        if kind in _NODES:
            # A raw timeout is heard where something durable is awaited, and of two nobody knows who comes first.
            depth, branches = (_DEEPEST, 1) if kind in _TIMED else (depth + 1, chance.randint(2, 4))
            op.body = [[self._op(depth) for _ in range(chance.randint(1, 3))] for _ in range(branches)]
            if kind not in _IN_FULL:
                for child in op.inside():  # who comes first must be kedge's to say
                    child.kind = "step" if child.kind == "raw" else child.kind
        return op


class Player:
    """Interprets a program for one life of a run; `told` is what the handler was told, in order."""

    def __init__(self, ctx: Context, began: Callable[[UUID, str], None]) -> None:
        self.ctx = ctx
        self.told: Told = []
        self._began = began
        self._racing: set[str] = set()
        """Losers of a race are not run again on replay: what these are told is not compared."""

    async def play(self, ops: Sequence[Op]) -> list[Any]:
        return [await self.one(op) for op in ops]

    async def one(self, op: Op) -> Any:
        return await getattr(self, f"_{op.kind}")(op)

    async def end(self) -> None:
        """The last outcome: what unwinds behind it has no place in the order any more."""
        self._tell("end", await self.ctx.step("end", self._body, "end"))

    def _tell(self, name: str, value: Any) -> Any:
        if name not in self._racing:
            self.told.append((name, value))
        return value

    async def _body(self, name: str) -> str:
        self._began(self.ctx.run_id, name)
        return f"{name}.{random.randrange(1_000_000)}"

    # ---- leaves

    def _leaf(self, op: Op) -> Awaitable[Any] | None:
        """The bare operation, as a race may have it."""
        ctx = self.ctx
        if op.kind == "wait":
            return ctx.wait_for(op.name, EVENTS[op.event])
        if op.kind == "timeout":
            return ctx.wait_for(op.name, EVENTS[op.event], timeout=60 * op.number, default=-1)
        if op.kind == "sleep":
            return ctx.sleep(op.name, 60 * op.number)
        if op.kind in ("step", "raw"):
            return ctx.step(op.name, self._body, op.name)
        if op.kind == "pause":
            return ctx.pause(op.name)
        return None

    async def _wait(self, op: Op) -> Any:
        leaf = self._leaf(op)
        assert leaf is not None
        return self._tell(op.name, await leaf)

    _timeout = _sleep = _step = _pause = _wait

    async def _topic(self, op: Op) -> Any:
        ref, limit = EVENTS[op.event], 60 * op.number
        return self._tell(op.name, await self.ctx.wait_for(op.name, ref, topic=TOPIC, timeout=limit, default=-1))

    async def _until(self, op: Op) -> Any:
        when = self.ctx.now() + timedelta(seconds=60 * op.number)
        await self.ctx.sleep_until(op.name, when)
        return self._tell(op.name, str(when))

    async def _slow(self, op: Op) -> Any:
        async def slow() -> str:
            await asyncio.sleep(random.random() * 0.02)
            return await self._body(op.name)

        return self._tell(op.name, await self.ctx.step(op.name, slow))

    async def _retry(self, op: Op) -> Any:
        async def flaky() -> str:
            if random.random() < 0.5:
                raise ValueError("flaky")
            return await self._body(op.name)

        try:
            retry = Retry(4, initial="20s", jitter=False)
            return self._tell(op.name, await self.ctx.step(op.name, flaky, retry=retry))
        except StepFailedError:
            return self._tell(op.name, "failed")

    async def _fail(self, op: Op) -> Any:
        async def fails() -> int:
            raise ValueError("always")

        try:
            return self._tell(op.name, await self.ctx.step(op.name, fails))
        except StepFailedError:
            return self._tell(op.name, "failed")

    async def _transaction(self, op: Op) -> Any:
        async def insert(conn: Any) -> int:
            await conn.execute("insert into ledger (name) values (%s)", (f"{self.ctx.run_id} {op.name}",))
            return random.randrange(1_000_000)

        return self._tell(op.name, await self.ctx.transaction(op.name, insert))

    async def _send(self, op: Op) -> Any:
        await self.ctx.send(op.name, EVENTS[op.event](1_000_000 + int(op.name[1:])), run=self.ctx.run_id)
        return self._tell(op.name, "sent")

    async def _say(self, op: Op) -> Any:
        self.ctx.log.info("at", name=op.name)
        self.ctx.progress(int(op.name[1:]), 100)
        self.ctx.set_metadata(at=op.name)
        return self._tell(op.name, "said")

    async def _poll(self, op: Op) -> Any:
        def look(state: int = 0) -> str | NotYet:
            return "seen" if state >= op.number else NotYet(state + 1)

        return self._tell(op.name, await self.ctx.poll(op.name, look, every="1m"))

    async def _raw(self, op: Op) -> Any:
        # Only what is durable has a place in the order of the branches.
        await asyncio.sleep(random.random() * 0.01)
        return await self._wait(op)

    async def _now(self, op: Op) -> Any:
        now = self.ctx.now()
        # What was told of the time is kept with the next outcome.
        return self._tell(op.name, (str(now), str(self.ctx.uuid()), await self.ctx.step(op.name, self._body, op.name)))

    async def _patched(self, op: Op) -> Any:
        return self._tell(op.name, self.ctx.patched(op.name))

    # ---- nodes

    def _tasks_of(self, op: Op) -> contextlib.AbstractAsyncContextManager[list[asyncio.Task[Any]]]:
        return _owned([asyncio.create_task(self.play(body)) for body in op.body])

    async def _gather(self, op: Op) -> Any:
        async with self._tasks_of(op) as tasks:
            await asyncio.gather(*tasks)
        return self._tell(op.name, "gathered")

    async def _group(self, op: Op) -> Any:
        async with asyncio.TaskGroup() as group:
            for body in op.body:
                group.create_task(self.play(body))
        return self._tell(op.name, "grouped")

    async def _first(self, op: Op) -> Any:
        self._racing |= {child.name for child in op.inside()}
        branches = [self._leaf(body[0]) or self.play(body) for body in op.body]
        return self._tell(op.name, await self.ctx.first(op.name, *branches))

    async def _race(self, op: Op) -> Any:
        async with self._tasks_of(op) as tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            won = [place for place, task in enumerate(tasks) if task.done()]
        return self._tell(op.name, won)

    async def _doomed(self, op: Op) -> Any:
        async def doomed(body: list[Op]) -> None:
            await self.play(body)
            raise KeyError(op.name)

        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(doomed(op.body[0]))
                for body in op.body[1:]:
                    group.create_task(self.play(body))
        return self._tell(op.name, "survived")

    async def _raw_timeout(self, op: Op) -> Any:
        try:
            async with asyncio.timeout(op.number * 0.01):
                await self.play(op.body[0])
        except TimeoutError:
            return self._tell(op.name, "out of time")
        return self._tell(op.name, "in time")

    async def _move_on(self, op: Op) -> Any:
        with anyio.move_on_after(op.number * 0.01) as scope:
            await self.play(op.body[0])
        return self._tell(op.name, scope.cancelled_caught)

    async def _tasks(self, op: Op) -> Any:
        async with self._tasks_of(op) as tasks:
            for task in reversed(tasks):
                await task
        return self._tell(op.name, "tasks")

    async def _done(self, op: Op) -> Any:
        async with self._tasks_of(op) as tasks:
            for number, done in enumerate(asyncio.as_completed(tasks)):
                await done
                self._tell(op.name, number)
        return self._tell(op.name, "done")


@contextlib.asynccontextmanager
async def _owned(tasks: list[asyncio.Task[Any]]) -> AsyncGenerator[list[asyncio.Task[Any]]]:
    """Tasks that do not outlive the block: whoever is left behind is in nobody's order."""
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        while not all(task.done() for task in tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(tasks)
