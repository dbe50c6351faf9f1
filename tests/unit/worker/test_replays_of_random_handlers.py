"""Whatever a handler is made of, and wherever its lives were cut off: it goes the same way again."""

import asyncio
from collections.abc import Callable

import pytest

from kedge_worker import _turns
from kedge_worker._branches import Branch
from kedge_worker._operations import Operations
from kedge_worker._outcomes import End
from kedge_worker._turns import Turns
from tests.unit.worker.journal import Lives
from tests.unit.worker.random_handlers import random_handler, world


async def replays_wrongly(seed: int) -> str | None:
    """Live a run, cut it off after each of its outcomes, go on with other delays, and repeat what came of that."""
    async with Lives(random_handler) as lives:
        world.new_life(seed)
        claimed, move = await lives.run(seed)
        if wrong := _wrong(move):
            return f"first life: {wrong}"
        for cut in range(len(lives.journal.memo(claimed.id)) + 1):
            world.new_life(1000 * seed + cut)
            second = await lives.again(claimed, up_to=cut)
            if wrong := _wrong(second):
                return f"after {cut} outcomes: {wrong}"
            trace = world.trace
            world.new_life(-1000 * seed - cut - 1)
            third = await lives.again(claimed)
            if wrong := _wrong(third):
                return f"repeated after {cut} outcomes: {wrong}"
            if lives.result(third) != lives.result(second):
                return f"after {cut} outcomes {lives.result(second)}, then {lives.result(third)}"
            if world.trace != trace:
                return f"another order of the handler's code, after {cut} outcomes: {trace}, then {world.trace}"
            if world.bodies:
                return f"{world.bodies} bodies ran again, after {cut} outcomes"
    return None


def _wrong(move: object) -> str | None:
    return None if isinstance(move, End) and move.status == "c" else str(move)


SEEDS: tuple[int, ...] = (*range(60), *range(-40, 0))


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_replay_goes_the_same_way(seed: int) -> None:
    assert await replays_wrongly(seed) is None


async def _at_once(_turns: Turns, _place: int) -> None:
    """Hand out whatever comes, whenever it comes."""


async def _forget(_operations: Operations, _operation: str, _key: str, _branch: Branch) -> None:
    """Keep nothing of an interruption."""


def _without_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turns, "take", _at_once)


def _without_interruptions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Operations, "_interrupted", _forget)


def _without_branch_paths(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Branch, "child", _child_that_shares)


def _without_calm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_turns, "_CALM_ROUNDS", 0)


class _Sharing(Branch):
    """A branch that numbers together with its parent."""

    def __init__(self, parent: Branch) -> None:
        super().__init__(parent.run, parent.path)
        self._counts = parent._counts


def _child_that_shares(branch: Branch) -> Branch:
    return _Sharing(branch)


@pytest.mark.parametrize("drop", [_without_order, _without_interruptions, _without_branch_paths, _without_calm])
async def test_replays_go_wrong_without(drop: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        drop(patch)

        assert await _first_wrong_seed() is not None


async def _first_wrong_seed() -> int | None:
    for seed in SEEDS:
        try:
            async with asyncio.timeout(1):  # one that waits for ever is wrong, too
                if await replays_wrongly(seed):
                    return seed
        except TimeoutError:
            return seed
    return None
