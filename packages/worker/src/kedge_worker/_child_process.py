"""
Two processes, one of which has started the other: `ChildProcess` is the second as the first sees it, `Parent` the first
as the second does. When the first dies, however, the second sees its standard input end, and goes as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

_LAST_S: Final = 20.0


async def spawn(
    *arguments: str, folder: str | None = None, process_group: int | None = None
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Start `kedge-worker` with these arguments; answers what a `ChildProcess` is made of."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "kedge_worker", *arguments),
                cwd=folder,
                stdin=theirs.fileno(),
                process_group=process_group,
            )
        except BaseException:
            ours.close()
            raise
    ours.settimeout(0)
    return process, ours


class ChildProcess:
    """A process that this one has started. Wait for its end: only then everything of it is closed."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: socket.socket) -> None:
        self._process = process
        self._pipe = pipe

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, or minus the number of the signal that ended it; None: it runs."""
        return self._process.returncode

    async def works(self) -> bool:
        """Wait until it says that it works, or has ended; answers whether it has said so. Only once."""
        saying = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(self._pipe, 1))
        # Its end as well: what it has forked may hold its side of the pipe.
        ending = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait((saying, ending), return_when=asyncio.FIRST_COMPLETED)
            return saying.done() and saying.exception() is None and saying.result() != b""
        finally:
            saying.cancel()
            ending.cancel()

    async def wait(self) -> int:
        """Wait for its end, however long; answers `code`."""
        code = await self._process.wait()
        self._pipe.close()
        return code

    async def ended(self, within_s: float, *, hurry: asyncio.Event | None = None) -> bool:
        """Wait for its end, so long or until somebody is in a hurry; answers whether it has come."""
        waited: list[asyncio.Task[object]] = [asyncio.create_task(self._process.wait())]
        if hurry is not None:
            waited.append(asyncio.create_task(hurry.wait()))
        try:
            await asyncio.wait(waited, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waited:
                one.cancel()
        if self._process.returncode is None:
            return False
        self._pipe.close()
        return True

    def ask_to_end(self) -> None:
        """Let it end its runs within its grace, or give them back."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def let_go(self) -> None:
        """Let it give its runs back at once."""
        # Not closed: somebody may wait for what it says.
        with contextlib.suppress(OSError):
            self._pipe.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class Parent:
    """
    The process that has started this one: our standard input ends when it lets us go, or dies.

    Make it before the application's code is imported: from then on that finds nothing in its standard input.
    """

    def __init__(self) -> None:
        self._pipe = os.dup(0)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        self._gone = threading.Event()
        self._heard: Callable[[], object] = _nobody
        threading.Thread(target=self._watch, name="kedge-parent", daemon=True).start()

    def when_gone(self, heard: Callable[[], object]) -> None:
        """Call this in the running event loop when the parent has gone; soon if it has."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(heard)

        self._heard = tell
        if self._gone.is_set():
            tell()

    def say_that_we_work(self) -> None:
        """Once; for a parent that waits for it with `ChildProcess.works`."""
        with contextlib.suppress(OSError):  # it has gone
            os.write(self._pipe, b".")

    def _watch(self) -> None:
        # An error is an end as well: of a parent that died before it had read what we said.
        with contextlib.suppress(OSError):
            while os.read(self._pipe, 100):
                pass
        self._gone.set()
        self._heard()
        # Code that blocks the event loop must not stay behind for ever.
        time.sleep(_LAST_S)
        os._exit(1)


def _nobody() -> None:
    pass
