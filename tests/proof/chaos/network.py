"""
The network between a worker and its database, broken at one place at a time.

Builds on the proxy that frames Postgres' protocol: a connection's place is the application name of its first message
("kedge journal", "kedge lease", ...), and each place has a weather of its own. It runs in a thread, for tests that do
not await.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.fault_proxy import Fault, FaultProxy, Match, Message, Sender, Trap, read_message

if TYPE_CHECKING:
    from tests.fault_proxy import Link

PLACES: Final = ("journal", "control", "transaction", "listener", "lease")
_NOTIFICATION: Final = b"A"
_READY: Final = b"Z"
_SYNC: Final = b"S"
_QUERY: Final = b"Q"


@dataclass
class Weather:
    """How it is between a place and the server; all good unless said otherwise."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    loses_notifications: bool = False
    refuses: bool = False
    """New connections are reset."""
    handshake_s: float = 0.0
    """How long each of the server's messages takes until a session is ready."""
    is_black_hole: bool = False
    """What is sent vanishes, both ways; connections that have seen it are dead for good, and nobody is told."""
    is_deaf: bool = False
    """What the server says vanishes; what it is told arrives."""
    frozen: bool = False
    """Nothing arrives until it is over; then everything does."""


@dataclass
class _State:
    place: str = ""
    is_dead: bool = False
    is_ready: bool = False
    passed: int = 0
    ends: Callable[[bool], None] = field(default=lambda _: None)


class Network(FaultProxy):
    """Every place has fine weather at first; `trap_at` fails at one message of one place."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.weather: dict[str, Weather] = {place: Weather() for place in PLACES}
        self.ambiguous: float = 0.0
        """The share of transactions of which the end is cut: on its way there, or its answer."""
        self.cuts = 0
        """How many ends were cut."""
        self._states: dict[int, _State] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- from the test's thread

    def set(self, weather: Weather, *places: str) -> None:
        """From now on the weather of these places, or of all."""
        for place in places or PLACES:
            self.weather[place] = weather

    def heal(self) -> None:
        """Fine weather everywhere; what was dead stays dead."""
        self.set(Weather())
        self._in_loop(self._traps.clear)

    def melt(self) -> None:
        """Let go on what a trap has frozen."""
        self._in_loop(self.thaw)

    def end(self, place: str, *, reset: bool = False) -> None:
        """Close the connections of a place, with a reset if that is wanted."""

        def close() -> None:
            for state in list(self._states.values()):
                if state.place == place:
                    state.ends(reset)

        self._in_loop(close)

    def trap_at(self, place: str, match: Match, fault: Fault) -> None:
        """Fail at the first message of this place that matches."""
        self._in_loop(lambda: self._traps.append(Trap(lambda m: self._place(m) == place and match(m), fault)))

    def _in_loop(self, work: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        assert self._loop is not None
        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    # ---- inside

    def _place(self, message: Message) -> str:
        return self._states[message.connection].place if message.connection in self._states else ""

    async def _pump(self, link: Link, sender: Sender) -> None:
        state = self._states.setdefault(link.number, _State())
        state.ends = lambda reset: _reset(link) if reset else link.close()
        source, target = (link.client[0], link.server[1]) if sender == "client" else (link.server[0], link.client[1])
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            first = sender == "client"
            while True:
                message = await read_message(source, sender, link, startup=first)
                if first:
                    state.place = _application(message.body).removeprefix("kedge ")
                    if self._now(state).refuses:
                        _reset(link)
                        return
                first = False
                if message.kind == _READY:
                    state.is_ready = True
                if not await self._passes(state, message):
                    continue
                if self._is_cut(state, message):
                    self.cuts += 1
                    link.close()
                    return
                trap = self._sprung_by(message)
                if trap is None:
                    target.write(message.encoded())
                    await target.drain()
                elif await self._fail(link, trap, message, target):
                    return
        # Nobody tells the server that the client of a dead connection is gone, until the weather changes.
        while state.is_dead and (self._now(state).is_black_hole or self._now(state).is_deaf):
            await asyncio.sleep(0.05)
        if not link.abandoned:
            link.close()

    async def _passes(self, state: _State, message: Message) -> bool:
        """Let the weather have its way with a message; answers whether it arrives."""
        weather = self._now(state)
        state.is_dead = state.is_dead or weather.is_black_hole
        if state.is_dead:
            return False
        if message.sender == "server":
            if weather.is_deaf:
                state.is_dead = True
                return False
            if weather.loses_notifications and message.kind == _NOTIFICATION:
                return False
        pause_s = weather.latency_s + random.random() * weather.jitter_s
        if message.sender == "server" and not state.is_ready:
            pause_s += weather.handshake_s
        if weather.bytes_per_s is not None:
            pause_s += (len(message.body) + 5) / weather.bytes_per_s
        if pause_s:
            await asyncio.sleep(pause_s)
        while self._now(state).frozen:
            await asyncio.sleep(0.02)
        return True

    def _is_cut(self, state: _State, message: Message) -> bool:
        """By half each: before the server has it, and after it is done."""
        if not self.ambiguous or not state.is_ready:
            return False
        asks = message.sender == "client" and message.kind in (_SYNC, _QUERY)
        answers = message.sender == "server" and message.kind == _READY
        return (asks or answers) and random.random() < self.ambiguous / 2

    def _now(self, state: _State) -> Weather:
        return self.weather.get(state.place, _FINE)


_FINE: Final = Weather()


@contextmanager
def network(url: str) -> Generator[Network]:
    """A network before this database, in a thread of its own; its `url` leads through it."""
    made = Network(url)
    ready, over = threading.Event(), threading.Event()

    async def run() -> None:
        async with made:
            made._loop = asyncio.get_running_loop()
            ready.set()
            while not over.is_set():
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        over.set()
        thread.join()


def _application(startup: bytes) -> str:
    parts = startup[4:].split(b"\0")
    return dict(zip(parts[::2], parts[1::2], strict=False)).get(b"application_name", b"").decode()


def _reset(link: Link) -> None:
    for _, writer in (link.client, link.server):
        sock = writer.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
