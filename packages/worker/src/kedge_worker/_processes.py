"""
`kedge-worker run --processes N`: a process that starts N workers, each a process of its own, and keeps as many.

It takes no part in their work: it has no connection, none of the application's code, and nothing that they would need
to go on. Source: docs/decisions/0018-several-processes.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from typing import Final

from kedge.errors import InvalidOptionError
from kedge_worker._child_process import ChildProcess, spawn

_log: Final = logging.getLogger("kedge.worker")

_MOST: Final = 256
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_A_WHILE_S: Final = 60.0
"""Who has lived for so long has not died of how it started."""


def read_processes(given: str | None) -> int:
    """
    Answer how many: what is given, else `KEDGE_PROCESSES`, else one.

    Raises:
        InvalidOptionError: No number, or none from 1 to 256.
    """
    name, said = "--processes", given
    if said is None:
        name, said = "KEDGE_PROCESSES", os.environ.get("KEDGE_PROCESSES") or "1"
    try:
        number = int(said)
    except ValueError:
        number = 0
    if not 1 <= number <= _MOST:
        raise InvalidOptionError(f"{name}={said!r}: how many worker processes to run, from 1 to {_MOST}")
    return number


class Processes:
    """
    Runs so many processes of one worker until SIGTERM or SIGINT; `run` once.

    Args:
        target: Where the worker is, such as `shop.worker:worker`.
        number: How many.
    """

    def __init__(self, target: str, number: int) -> None:
        self._target = target
        self._number = number
        self._children: set[ChildProcess] = set()
        self._working: set[ChildProcess] = set()
        self._one_has_worked = asyncio.Event()
        self._stop = asyncio.Event()
        self._is_hurried = False
        self._code = 0

    async def run(self) -> int:
        """
        Answer the exit code: 0 if all have ended well when they were asked to, else the first other one.

        A process that ends is replaced. But one that ends by itself before it has ever worked, while no other works,
        ends all, and its exit code is the answer: what is wrong there (the target, the schema) no new one would mend.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)
        await asyncio.gather(*(self._keep(place) for place in range(1, self._number + 1)))
        return self._code

    async def _keep(self, place: int) -> None:
        """Have a process in this place until all are to end."""
        if place > 1:
            # What is wrong for all of them is said once, by the first.
            await self._one_has_worked.wait()
        pause_s = 0.0
        while not self._stop.is_set():
            since = time.monotonic()
            how = await self._live(place)
            if self._stop.is_set():
                break
            pause_s = next_pause_s(pause_s, lived_s=time.monotonic() - since)
            _log.error("processes: %s; the next one starts in %g s", how, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()

    async def _live(self, place: int) -> str:
        """Start a process, wait for its end, and answer in words how that came."""
        which = f"{place} of {self._number}"
        try:
            # A group of its own: Ctrl-C is for this process, which passes it on as what it is.
            child = ChildProcess(*await spawn("one", self._target, process_group=0))
        except OSError as error:
            how = f"process {which} was not started: {error}"
            if not self._working and not self._stop.is_set():
                self._give_up(how, 1)
            return how
        self._children.add(child)
        which = f"process {child.pid} ({which})"
        _log.info("processes: %s started", which)
        if self._stop.is_set():
            child.ask_to_end()
        if self._is_hurried:
            child.let_go()
        if has_worked := await child.works():
            self._working.add(child)
            self._one_has_worked.set()
        code = await child.wait()
        self._children.discard(child)
        self._working.discard(child)
        how = f"{which} ended{'' if has_worked else ' before it worked'}: {ending(code)}"
        if self._stop.is_set():
            # Before it works it has nothing to give back, and SIGTERM is all that it hears.
            if has_worked or code != -signal.SIGTERM:
                self._code = self._code or exit_code(code)
            _log.info("processes: %s", how)
        elif code >= 0 and not has_worked and not self._working:
            self._give_up(how, code)
        return how

    def _give_up(self, how: str, code: int) -> None:
        _log.error("processes: %s, and no other works: the end of all", how)
        self._code = code
        self._end_all()

    def _received(self, number: signal.Signals) -> None:
        _log.info("processes: %s", number.name)
        if not self._stop.is_set():
            self._end_all()
            return
        # Not by another signal: whoever signals the children as well, as systemd may, would skip the grace by that.
        self._is_hurried = True
        for child in self._children:
            child.let_go()

    def _end_all(self) -> None:
        self._stop.set()
        self._one_has_worked.set()
        for child in self._children:
            child.ask_to_end()


def next_pause_s(last_s: float, *, lived_s: float) -> float:
    """How long to wait before the next start: 1 s, doubling to 30 s, and 1 s again behind a life of a minute."""
    if last_s == 0 or lived_s >= _A_WHILE_S:
        return _FIRST_PAUSE_S
    return min(last_s * 2, _LONGEST_PAUSE_S)


def ending(code: int) -> str:
    """What an exit code says, or minus a signal's number."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"


def exit_code(code: int) -> int:
    """The same as a process can answer it: shells know a signal by 128 and its number."""
    return code if code >= 0 else 128 - code
