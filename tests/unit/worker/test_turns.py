"""Who of a run's branches gets its outcome next, where moments count."""

import asyncio
from uuid import uuid4

from kedge_worker._turns import LIVE, Rounds, Turns


async def test_an_outcome_that_gets_its_place_after_a_turn_was_granted_still_comes_first() -> None:
    """A timer may end a wait between the grant and the moment in which its task goes on."""
    loop = asyncio.get_running_loop()
    assigned: set[int] = set()
    told: list[str] = []
    turns = Turns(uuid4(), set(), None, assigned, Rounds(loop), loop)

    async def step() -> None:
        await turns.take(LIVE)
        told.append("step")

    async def timer() -> None:
        await turns.take(7)
        assigned.discard(7)
        turns.stir()
        turns.nudge()
        told.append("timer")

    def comes() -> None:
        if turns._granted is None:
            loop.call_soon(comes)
        else:
            assigned.add(7)
            tasks.append(asyncio.ensure_future(timer()))

    turns.stir()
    tasks = [asyncio.ensure_future(step())]
    loop.call_soon(comes)
    async with asyncio.timeout(10):
        while len(told) < 2:
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    assert told == ["timer", "step"]
