"""
Processes at the price of a fork: a parent that has imported everything, and forks on demand.

A child is a worker as `python -m kedge_worker run` makes it, or a client's script; real, and alone after the fork. The
interpreter's start and the imports, 0.5 s, are paid once.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

_PR_SET_PDEATHSIG: Final = 1
_PATIENCE_S: Final = 30.0
_IMPORTED: Final = (
    "kedge_worker.__main__",
    "tests.proof.crash_points.plays",
    "tests.proof.crash_points.scripts",
    # Imported at their first use, by each child anew; half of what a child would cost.
    "anyio._backends._asyncio",
    "anyio.to_thread",
    "concurrent.futures.thread",
    "importlib.resources.readers",
)


class Child:
    """A process of the nursery's."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self._log = log
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def is_alive(self) -> bool:
        return not self._ended.done()

    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text("utf-8") if self._log.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it is gone."""
        if self.is_alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Wait for its end; answers the exit code, or minus the number of the signal."""
        async with asyncio.timeout(_PATIENCE_S):
            return await asyncio.shield(self._ended)

    def note_end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


class Nursery:
    """
    Use it as a context; what is left at its end is killed.

    The parent is one for all of them, and lives as long as this process: its imports cost as much as ten cases.
    """

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._births: list[asyncio.Future[Child]] = []
        self._children: dict[int, Child] = {}

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_parent(), [b"x"], [theirs.fileno()])
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listener = asyncio.create_task(self._listen(reader))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._writer is not None
        assert self._listener is not None
        for child in (left := list(self._children.values())):
            child.kill()  # also one that stands still
        await asyncio.gather(*(child.ended() for child in left))
        self._listener.cancel()
        self._writer.close()
        await asyncio.gather(self._listener, return_exceptions=True)

    async def worker(self, url: str, folder: Path, *, name: str, **settings: str) -> Child:
        """Start a worker of the plays."""
        environment = {"KEDGE_DATABASE_URL": url, **{f"KEDGE_{key}": value for key, value in settings.items()}}
        target = ["kedge_worker.__main__", "main", ["run", "tests.proof.crash_points.company:worker"]]
        return await self._bear(target, environment, folder, name)

    async def client(self, script: str, url: str, folder: Path, *, name: str) -> Child:
        """Start a client's script: a function of tests.proof.crash_points.scripts, which gets the URL."""
        return await self._bear(["tests.proof.crash_points.scripts", script, url], {}, folder, name)

    async def _bear(self, target: list[Any], environment: dict[str, str], folder: Path, name: str) -> Child:
        assert self._writer is not None
        log = folder / f"{name}.log"
        order = {"target": target, "log": str(log), "environment": {**environment, "PROOF_FOLDER": str(folder)}}
        birth: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._births.append(birth)
        self._writer.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(_PATIENCE_S):
            child = await birth  # on a busy machine it may have ended by now
        child._log = log
        return child

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            what, pid, code = json.loads(line)
            if what == "born":
                self._children[pid] = born = Child(pid, Path())
                self._births.pop(0).set_result(born)
            elif (child := self._children.pop(pid, None)) is not None:
                child.note_end(code)


@cache
def _parent() -> socket.socket:
    """Start the parent; answers the socket that gives it the sockets of nurseries."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-m", __name__], stdin=theirs.fileno(), cwd=os.getcwd())

    def end() -> None:
        ours.close()  # it sees the end, and goes; so do children that are left
        process.wait()

    atexit.register(end)
    return ours


def main() -> None:
    """Be the parent: sockets come in on the standard input; on each orders come in, births and ends go out."""
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # a child that collects garbage copies no page of what is here
    nurseries = socket.socket(fileno=os.dup(0))
    waker, woken = socket.socketpair()
    for end in (waker, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _wake_up)
    selector = selectors.DefaultSelector()
    for one in (nurseries, woken):
        selector.register(one, selectors.EVENT_READ, bytearray())
    parents: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            source = key.fileobj
            assert isinstance(source, socket.socket)
            if source is woken:
                woken.recv(4096)
            elif source is nurseries:
                _, fds, _, _ = socket.recv_fds(nurseries, 1, 1)
                if not fds:
                    return
                selector.register(socket.socket(fileno=fds[0]), selectors.EVENT_READ, bytearray())
            elif not (received := source.recv(65536)):
                selector.unregister(source)
                source.close()
            else:
                *lines, rest = bytes(key.data + received).split(b"\n")
                key.data[:] = rest
                for line in lines:
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        for other in (*(one.fd for one in selector.get_map().values()), selector.fileno()):
                            os.close(other)
                        waker.close()
                        _live(json.loads(line))
                    parents[pid] = source
                    _tell(source, "born", pid, 0)
        _bury(parents)


def _tell(nursery: socket.socket, what: str, pid: int, code: int) -> None:
    with contextlib.suppress(OSError):  # it has gone
        nursery.sendall(json.dumps([what, pid, code]).encode() + b"\n")


def _wake_up(number: int, frame: FrameType | None) -> None:
    """A handler must be there, that the waker is written to."""


def _bury(parents: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(parents.pop(pid), "ended", pid, os.waitstatus_to_exitcode(status))


def _live(order: dict[str, Any]) -> NoReturn:
    """Be the child."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(order["environment"])
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        module, name, argument = order["target"]
        code = int(getattr(importlib.import_module(module), name)(argument) or 0)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  # as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
