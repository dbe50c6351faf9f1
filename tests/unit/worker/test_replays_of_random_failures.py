"""Whatever fails, times out and polls in a handler: it goes the same way again, wherever its lives were cut off."""

from datetime import timedelta

import pytest

from kedge_worker import _polling
from kedge_worker._outcomes import End, Move, Park
from kedge_worker._runs import ClaimedRun
from tests.unit.worker.journal import Lives
from tests.unit.worker.random_failures import FAILING_LEAVES, random_failing
from tests.unit.worker.random_handlers import LEAVES, world

SEEDS = tuple(range(60))


@pytest.fixture(autouse=True)
def failing_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that fail, and polls without pauses."""
    monkeypatch.setattr(_polling, "MIN_EVERY", timedelta())
    for name, leaf in FAILING_LEAVES.items():
        monkeypatch.setitem(LEAVES, name, leaf)


async def to_its_end(lives: Lives, claimed: ClaimedRun, move: Move) -> str:
    """Claim it again as often as it is parked: each of its pauses is over at once."""
    while isinstance(move, Park):
        world.trace = []
        move = await lives.again(claimed)
    assert isinstance(move, End), move
    return str(lives.result(move))


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_replay_goes_the_same_way(seed: int) -> None:
    async with Lives(random_failing, linger_s=60 if seed % 2 else 0) as lives:
        world.new_life(seed)
        claimed, move = await lives.run(seed)
        await to_its_end(lives, claimed, move)
        for cut in range(len(lives.journal.memo(claimed.id)) + 1):
            world.new_life(1000 * seed + cut)
            second = await to_its_end(lives, claimed, await lives.again(claimed, up_to=cut))
            trace = world.trace
            world.new_life(-1000 * seed - cut - 1)
            third = await to_its_end(lives, claimed, await lives.again(claimed))

            assert third == second, f"after {cut} outcomes"
            if seed % 2:  # of a parked run the trace is its last life's
                assert world.trace == trace, f"another order of the handler's code, after {cut} outcomes"
            assert world.bodies == 0, f"bodies ran again, after {cut} outcomes"
            assert lives.journal.left_open == []
