"""Random nests of joins, timeouts and foreign awaits, against a model that knows nothing of coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import anyio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.worker.suspended import Suspended, suspended


@dataclass(frozen=True)
class Node:
    kind: str
    inner: tuple[Node, ...] = ()


LEAVES: Final = ("wait", "wait", "wait", "wait", "done", "sleep", "event")
ONE: Final = (
    "task",
    "lock",
    "endless timeout",
    "endless scope",
    "endless wait_for",
    "stack",
    "timeout",
    "scope",
    "wait_for",
    "shield",
)
MANY: Final = ("sequence", "gather", "group", "anyio group", "wait", "first", "as_completed", "gathered gathers")
# Tasks that begin eagerly exist from Python 3.12 on.
FACTORIES: Final[list[Any]] = [None]
if sys.version_info >= (3, 12):
    FACTORIES.append(asyncio.eager_task_factory)

OPEN: Final = ("timeout", "scope", "wait_for", "shield", "stack")
"""These keep the run while what is in them has not ended."""


# ---- what happens


async def play(node: Node, run: Suspended) -> None:
    match node.kind:
        case "wait" if not node.inner:
            await run.wait()
        case "done":
            pass
        case "sleep":
            await asyncio.sleep(1000)
        case "event":
            await asyncio.Event().wait()
        case kind if kind in ONE:
            await play_one(kind, node.inner[0], run)
        case _:
            await play_many(node, run)


async def play_one(kind: str, inner: Node, run: Suspended) -> None:
    match kind:
        case "task":
            await asyncio.create_task(play(inner, run))
        case "lock":
            async with asyncio.Lock():
                await play(inner, run)
        case "timeout" | "endless timeout":
            async with asyncio.timeout(1000 if kind == "timeout" else None):
                await play(inner, run)
        case "scope" | "endless scope":
            with anyio.move_on_after(1000 if kind == "scope" else None):
                await play(inner, run)
        case "stack":
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(asyncio.timeout(1000))
                await play(inner, run)
        case "shield":
            await asyncio.shield(play(inner, run))
        case _:
            await asyncio.wait_for(play(inner, run), 1000 if kind == "wait_for" else None)


async def play_many(node: Node, run: Suspended) -> None:
    match node.kind:
        case "sequence":
            for each in node.inner:
                await play(each, run)
        case "gather":
            await asyncio.gather(*(play(each, run) for each in node.inner))
        case "gathered gathers":
            await asyncio.gather(*(asyncio.gather(play(each, run)) for each in node.inner))
        case "group":
            async with asyncio.TaskGroup() as group:
                for each in node.inner:
                    group.create_task(play(each, run))
        case "anyio group":
            async with anyio.create_task_group() as anyio_group:
                for each in node.inner:
                    anyio_group.start_soon(play, each, run)
        case "as_completed":
            for ended in asyncio.as_completed([asyncio.create_task(play(each, run)) for each in node.inner]):
                await ended
        case kind:
            await asyncio.wait(
                [asyncio.create_task(play(each, run)) for each in node.inner],
                return_when=asyncio.FIRST_COMPLETED if kind == "first" else asyncio.ALL_COMPLETED,
            )


# ---- what should be said of it


@dataclass
class Model:
    waits: int = 0
    kept: bool = False

    def ends(self, node: Node) -> bool:
        match node.kind:
            case "wait" if not node.inner:
                self.waits += 1
                return False
            case "done":
                return True
            case "sleep" | "event":
                self.kept = True
                return False
            case "sequence":
                return all(self.ends(each) for each in node.inner)
            case "first":
                ends = [self.ends(each) for each in node.inner]
                return any(ends)
            case kind:
                ends = [self.ends(each) for each in node.inner]
                ended = all(ends)
                self.kept = self.kept or (kind in OPEN and not ended)
                return ended

    @classmethod
    def parks(cls, node: Node) -> bool:
        model = cls()
        return not model.ends(node) and not model.kept and model.waits > 0


def nests() -> st.SearchStrategy[Node]:
    leaves = st.sampled_from(LEAVES).map(Node)

    def around(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        make: Callable[[str, list[Node]], Node] = lambda kind, parts: Node(kind, tuple(parts))  # noqa: E731
        # Twice as often what lets a run leave: else hardly a large nest would.
        one = st.builds(make, st.sampled_from(ONE[:5] * 2 + ONE[5:]), st.lists(inner, min_size=1, max_size=1))
        return one | st.builds(make, st.sampled_from(MANY), st.lists(inner, min_size=1, max_size=3))

    return st.recursive(leaves, around, max_leaves=12)


@given(nests())
@example(Node("gathered gathers", (Node("wait"), Node("done"))))
@example(Node("first", (Node("done"), Node("sleep"))))
@example(Node("sequence", (Node("timeout", (Node("done"),)), Node("wait"))))
@example(Node("group", (Node("anyio group", (Node("wait"), Node("done"))), Node("as_completed", (Node("wait"),)))))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_random_nests_park_when_the_model_says_so(node: Node) -> None:
    async def main(factory: Any) -> str | None:
        asyncio.get_running_loop().set_task_factory(factory)
        async with suspended(lambda run: play(node, run)) as run:
            return run.blocker

    for factory in FACTORIES:
        blocker = asyncio.run(main(factory))

        assert (blocker is None) == Model.parks(node), blocker
