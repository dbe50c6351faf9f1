"""How long an outcome waits for the effects of the one before it."""

import asyncio
import threading

from kedge_worker._turns import Rounds


class Onlooker:
    """Looks once, and notes in which round that was."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.looked_in: int | None = None
        self.has_looked = threading.Event()

    def look(self) -> None:
        self.rounds.waiting.clear()
        self.looked_in = self.rounds.now
        self.has_looked.set()


async def test_in_a_quiet_event_loop_the_rounds_that_would_be_empty_are_skipped() -> None:
    loop = asyncio.get_running_loop()
    rounds = Rounds(loop)
    onlooker = Onlooker(rounds)
    rounds.waiting.add(onlooker)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # as Turns look

    until = rounds.soon()
    await loop.run_in_executor(None, onlooker.has_looked.wait)  # for a thread: in this one nothing is about to happen

    assert until > 1
    assert onlooker.looked_in == until


async def test_while_something_is_about_to_happen_every_round_is_gone_through() -> None:
    loop = asyncio.get_running_loop()
    rounds = Rounds(loop)
    seen: list[int] = []

    def happen(again: int) -> None:
        seen.append(rounds.now)
        if again:
            loop.call_soon(happen, again - 1)

    until = rounds.soon()
    loop.call_soon(happen, 2 * until)
    while rounds.now < until:
        await asyncio.sleep(0)

    assert seen[:until] == list(range(1, until + 1))


async def test_a_loop_that_does_not_show_what_it_is_about_to_do_is_believed_to_do_something() -> None:
    class Hidden:
        """As another event loop: it only calls."""

        def __init__(self) -> None:
            self.call_soon = asyncio.get_running_loop().call_soon

    rounds = Rounds(Hidden())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # all that it needs of a loop

    until = rounds.soon()
    await asyncio.sleep(0)

    assert 0 < rounds.now < until
