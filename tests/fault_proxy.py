"""
A TCP proxy before Postgres that reads its protocol and fails exactly where a test tells it to.

    async with FaultProxy(database_url) as proxy:
        trap = proxy.set_trap(answers_commit, Fault.CUT)
        ...                      # what speaks through proxy.url
        await trap.sprung()      # the COMMIT was executed, its answer never came
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from psycopg.conninfo import conninfo_to_dict, make_conninfo

PATIENCE_S: Final = 10.0

Sender: TypeAlias = Literal["client", "server"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of Postgres' protocol; the first of a connection has no kind."""

    sender: Sender
    kind: bytes
    body: bytes
    connection: int = 0
    """Which one, counted from 1."""

    def encoded(self) -> bytes:
        return self.kind + (len(self.body) + 4).to_bytes(4, "big") + self.body


Match: TypeAlias = Callable[[Message], bool]


class Fault(enum.Enum):
    """What happens when a message matches."""

    CUT = enum.auto()
    """The message does not arrive, and both sockets are closed."""
    CUT_BEHIND = enum.auto()
    """The message arrives, then both sockets are closed."""
    FREEZE = enum.auto()
    """The message does not arrive; nothing passes any more on any connection until `thaw`."""
    ABANDON = enum.auto()
    """For a client's message: the client's socket is closed, and the server gets the message, with the rest of that
    round trip, only at `Trap.release`; until then it stands in an open transaction and knows of nothing."""
    SWALLOW = enum.auto()
    """The message does not arrive, nor anything behind it, both ways, on this connection; both sockets stay open, and
    the server never learns that the client is gone."""


class Trap:
    """Springs once, at the first message that matches."""

    def __init__(self, match: Match, fault: Fault) -> None:
        self.match = match
        self.fault = fault
        self._sprung = asyncio.Event()
        self._released = asyncio.Event()
        self._delivered = asyncio.Event()

    @property
    def has_sprung(self) -> bool:
        return self._sprung.is_set()

    async def sprung(self) -> None:
        """Return when it has sprung."""
        async with asyncio.timeout(PATIENCE_S):
            await self._sprung.wait()

    async def release(self) -> None:
        """Let the server have what an ABANDON has held back."""
        self._released.set()
        async with asyncio.timeout(PATIENCE_S):
            await self._delivered.wait()

    async def spring(self) -> None:
        self._sprung.set()

    async def hold(self, deliver: Callable[[], None]) -> None:
        self._sprung.set()
        await self._released.wait()
        deliver()
        self._delivered.set()


def answers_commit(message: Message) -> bool:
    """The server says that a COMMIT is done."""
    return message.sender == "server" and message.kind == b"C" and message.body == b"COMMIT\0"


def asks_commit(message: Message) -> bool:
    """The client sends a COMMIT, as text or as the journal's prepared statement."""
    if message.sender != "client":
        return False
    if message.kind == b"Q":
        return message.body.rstrip(b"\0").strip().lower() == b"commit"
    return message.kind == b"B" and binds(message) == b"commit"


def executes(name: str) -> Match:
    """The client executes a prepared statement of this name."""
    return lambda message: message.sender == "client" and message.kind == b"B" and binds(message) == name.encode()


def binds(message: Message) -> bytes:
    """The name of the prepared statement that a Bind is for."""
    return message.body.split(b"\0", 2)[1]


def nth(number: int, sender: Sender, match: Match = lambda _: True) -> Match:
    """The n-th message (that matches) of one side, from 1, over all connections from now on."""
    seen = 0

    def matches(message: Message) -> bool:
        nonlocal seen
        if message.sender != sender or not match(message):
            return False
        seen += 1
        return seen == number

    return matches


class FaultProxy:
    """Any number of connections; `url` is what clients connect to. Traps and switches work for all of them."""

    def __init__(self, url: str) -> None:
        self._target = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
        self._url = url
        self._server: asyncio.Server | None = None
        self._links: set[Link] = set()
        self._traps: list[Trap] = []
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.delay_s = 0.0
        """How long each message is on its way."""
        self.refusing = False
        """New connections are closed at once."""
        self._knocked = asyncio.Event()
        self._accepted = 0
        self.commits = 0
        """How many COMMITs the server has confirmed so far."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        # Encryption would hide the messages.
        self.url = make_conninfo(self._url, host=host, port=port, sslmode="disable", gssencmode="disable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    def set_trap(self, match: Match, fault: Fault) -> Trap:
        """Fail at the first message from now on that matches."""
        trap = Trap(match, fault)
        self._traps.append(trap)
        return trap

    async def knock(self) -> None:
        """Return when the next client connects, or tries to."""
        self._knocked.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self._knocked.wait()

    def cut(self) -> None:
        """Close all connections."""
        for link in list(self._links):
            link.close()

    def freeze(self) -> None:
        """A black hole: sockets stay open, nothing arrives any more."""
        self._passing.clear()

    def thaw(self) -> None:
        self._passing.set()

    # ---- inside

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._knocked.set()
        if self.refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # Cancelled at the end of the test: nobody else waits for this task.
            with contextlib.suppress(asyncio.CancelledError):
                await self._connect(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()  # one that came while nothing passes has no link yet

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        host, port = self._target.get("host", "127.0.0.1"), self._target.get("port", "5432")
        try:
            if host.startswith("/"):
                server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                server = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._accepted += 1
        link = Link((reader, writer), server, self._accepted)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(link, "client"), self._pump(link, "server"))
        finally:
            self._links.discard(link)
            link.close()

    async def _pump(self, link: Link, sender: Sender) -> None:
        source, target = (link.client[0], link.server[1]) if sender == "client" else (link.server[0], link.client[1])
        first = sender == "client"
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await read_message(source, sender, link, startup=first)
                first = False
                if sender == "server" and answers_commit(message):
                    self.commits += 1
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._passing.wait()
                if link.is_silent:
                    continue
                if (trap := self._sprung_by(message)) is None:
                    target.write(message.encoded())
                    await target.drain()
                elif await self._fail(link, trap, message, target):
                    return
        if link.is_silent and sender == "client":
            return
        if not link.abandoned:
            link.close()

    def _sprung_by(self, message: Message) -> Trap | None:
        for trap in self._traps:
            if trap.match(message):
                self._traps.remove(trap)
                return trap
        return None

    async def _fail(self, link: Link, trap: Trap, message: Message, target: asyncio.StreamWriter) -> bool:
        """Do what the trap says; answers whether this direction is over."""
        match trap.fault:
            case Fault.CUT:
                link.close()
                await trap.spring()
                return True
            case Fault.CUT_BEHIND:
                target.write(message.encoded())
                await target.drain()
                link.close()
                await trap.spring()
                return True
            case Fault.FREEZE:
                self.freeze()
                await trap.spring()
                await self._passing.wait()
                target.write(message.encoded())
                return False
            case Fault.ABANDON:
                held = [message]
                while held[-1].kind not in (b"S", b"Q"):
                    held.append(await read_message(link.client[0], "client", link, startup=False))
                link.abandon()
                await trap.hold(lambda: target.writelines([one.encoded() for one in held]))
                return True
            case Fault.SWALLOW:
                link.is_silent = True
                await trap.spring()
                return False


class Link:
    """The two sockets of one connection."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        number: int,
    ) -> None:
        self.number = number
        self.client = client
        self.server = server
        self.abandoned = False
        self.is_silent = False

    def abandon(self) -> None:
        """Close the client's side; the server's stays as it is."""
        self.abandoned = True
        self.client[1].transport.abort()

    def close(self) -> None:
        # Written bytes go out first; a reset could overtake them.
        for _, writer in (self.client, self.server):
            writer.close()


async def read_message(reader: asyncio.StreamReader, sender: Sender, link: Link, *, startup: bool) -> Message:
    kind = b"" if startup else await reader.readexactly(1)
    size = int.from_bytes(await reader.readexactly(4), "big")
    return Message(sender, kind, await reader.readexactly(size - 4), link.number)
