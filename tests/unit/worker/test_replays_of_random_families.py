"""Children and maps go the same way again, wherever lives were cut off and whenever ends came."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from kedge_worker._child_maps import ChildMap
from kedge_worker._children import Children
from kedge_worker._mapping import Maps
from kedge_worker._outcomes import End, Move, Park
from kedge_worker._runs import ClaimedRun
from tests.unit.worker.families import children
from tests.unit.worker.journal import Lives
from tests.unit.worker.random_families import Postman, random_family
from tests.unit.worker.random_handlers import world

SEEDS = tuple(range(60))


class Family:
    """Lives of one random run, parked and woken as often as it likes."""

    def __init__(self, lives: Lives) -> None:
        self.lives = lives
        self.postman = Postman(lives)

    async def first(self, seed: int) -> ClaimedRun:
        claimed = self.lives.begin(seed)
        await self.end(claimed, await self.lives.journal.moved(claimed.id))
        return claimed

    async def again(self, claimed: ClaimedRun, up_to: int | None = None) -> str:
        mail = self.postman.unread(claimed.id, up_to)
        return await self.end(claimed, await self.lives.again(claimed, up_to=up_to, mail=mail))

    async def end(self, claimed: ClaimedRun, move: Move) -> str:
        """Wake it whenever there is mail."""
        while isinstance(move, Park):
            async with asyncio.timeout(10):
                while not (mail := self.postman.unread(claimed.id)):
                    await asyncio.sleep(0)
            world.trace = []
            move = await self.lives.again(claimed, mail=mail)
        assert isinstance(move, End), move
        return str(self.lives.result(move))

    def started(self) -> int:
        return len(children(self.lives.journal)) + len(self.lives.child_starts.asked)


async def replays_wrongly(seed: int) -> str | None:
    """Live a run, cut it off after each of its outcomes, go on with other delays, and repeat what came of that."""
    async with Lives(random_family, linger_s=60 if seed % 2 else 0) as lives:
        family = Family(lives)
        world.new_life(seed)
        claimed = await family.first(seed)
        for cut in range(len(lives.journal.memo(claimed.id)) + 1):
            if cut % 3 == 0:
                lives.journal.forget_waits(claimed.id)
            world.new_life(1000 * seed + cut)
            second = await family.again(claimed, up_to=cut)
            trace, started = world.trace, family.started()
            world.new_life(-1000 * seed - cut - 1)
            third = await family.again(claimed)
            if third != second:
                return f"after {cut} outcomes {second}, then {third}"
            if world.trace != trace and seed % 2:  # of a parked run the trace is its last life's
                return f"another order of the handler's code, after {cut} outcomes: {trace}, then {world.trace}"
            if world.bodies:
                return f"{world.bodies} bodies ran again, after {cut} outcomes"
            if family.started() > started:
                return f"children were started again, after {cut} outcomes"
    return None


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_replay_goes_the_same_way(seed: int) -> None:
    assert await replays_wrongly(seed) is None


async def _no_failure(_maps: Maps, _key: str, _branch: Any, _error: BaseException) -> None:
    """Let a map of steps end where its step has failed."""


async def _at_once(a_map: ChildMap) -> Any:
    """Let a map of children end when its last child has."""
    last = a_map._last
    assert last is not None
    a_map._execution.handed_out(last[1].seq)
    return last


def _tell_nobody(_children: Children, _key: str, _child_id: UUID) -> None:
    """Do not ask for the end."""


def _without_failures_of_maps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Maps, "_keep_failure", _no_failure)


def _without_turns_of_maps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChildMap, "_take_turn", _at_once)


def _without_watches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Children, "watch", _tell_nobody)


@pytest.mark.parametrize("drop", [_without_failures_of_maps, _without_turns_of_maps, _without_watches])
async def test_replays_go_wrong_without(drop: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        drop(patch)

        assert await _first_wrong_seed() is not None


async def _first_wrong_seed() -> int | None:
    for seed in SEEDS:
        try:
            async with asyncio.timeout(2):  # one that waits for ever is wrong, too
                if await replays_wrongly(seed):
                    return seed
        except (TimeoutError, AssertionError):
            return seed
    return None
