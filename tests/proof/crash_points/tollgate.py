"""
A proxy before Postgres, for one process, that counts its calls and lets one of them meet its fate.

A call is what a client sends up to a Sync or a simple Query, with its answer up to ReadyForQuery; so is the opening of
a connection. Calls are numbered by the role of their connection (its application_name), for these go side by side.
"""

from __future__ import annotations

import asyncio
import enum
import os
import re
import signal
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PATIENCE_S: Final = 30.0
_CANCEL: Final = 80877102

TIMED: Final = frozenset({"BEAT", "take_back", "expire_runs", "HAS_SOLO_RUNS", "TIMES_UP", "FORGET_WATCHERS"})
"""Calls that come with time, not with a run: they are not numbered."""

_LABELS: Final = (
    ("set lease_until = clock_timestamp() + lease", "BEAT"),
    ("solo_lane", "HAS_SOLO_RUNS"),
    ("with watchers as", "FORGET_WATCHERS"),
    ("w.run_id, w.key, w.attempt", "TIMES_UP"),
    ("m.run_id, m.id", "NEW_MAIL"),
    ("coalesce(r.request::text", "REQUESTS"),
    ("min(d.due_at)", "NEXT_DUE"),
    ("kedge.inbox)", "HAS_MAIL"),
)


class Fate(enum.Enum):
    """What becomes of the call and of its process."""

    DIES_BEFORE = enum.auto()
    """The process is dead before the call has arrived."""
    DIES_AMIDST = enum.auto()
    """Of the call's statements only some arrive; then the process is dead."""
    DIES_SENT = enum.auto()
    """The call is executed; the process is dead before it has read the answer."""
    DIES_AFTER = enum.auto()
    """The process is killed when the answer has been written to it."""
    DIES_LATE = enum.auto()
    """The process is dead, and the call is on its way still: it arrives when `Fault.release` says so."""
    ENDED = enum.auto()
    """The server's session is ended before the call arrives; the process lives on."""
    CUT = enum.auto()
    """The call is executed, and the connection goes before its answer has come; the process lives on."""
    STOPS_BEFORE = enum.auto()
    """The process stands still from now on; the call arrives at `Fault.release`."""
    STOPS_SENT = enum.auto()
    """The call is executed, and the process stands still; the answer is there at `Fault.release`."""


KILLING: Final = frozenset({Fate.DIES_BEFORE, Fate.DIES_AMIDST, Fate.DIES_SENT, Fate.DIES_AFTER, Fate.DIES_LATE})
STOPPING: Final = frozenset({Fate.STOPS_BEFORE, Fate.STOPS_SENT})


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as the proxy saw it arrive."""

    role: str
    number: int
    """Of its role, from 1; 0: not numbered."""
    label: str
    statements: int
    """How many it executes."""

    def __str__(self) -> str:
        return f"{self.role}#{self.number} {self.label}"


@dataclass(frozen=True, slots=True)
class Point:
    """Which call meets its fate: the n-th of a role, or the first of a label."""

    role: str
    number: int
    label: str = ""
    amidst: int = 0
    """Of DIES_AMIDST: so many statements arrive."""

    def is_at(self, call: Call) -> bool:
        """Whether this is the call."""
        if self.number:
            return (call.role, call.number) == (self.role, self.number)
        return (call.role, call.label) == (self.role, self.label)


async def _nothing() -> None:
    pass


@dataclass(slots=True)
class Fault:
    """A fate that waits for its call; `witness` is called while everything stands still there."""

    fate: Fate
    point: Point
    witness: Callable[[], Awaitable[None]] = _nothing
    call: Call | None = None
    """The call that it has met."""
    fired: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    delivered: asyncio.Event = field(default_factory=asyncio.Event)

    async def release(self) -> None:
        """Let what is held arrive, and return when the server is done with it."""
        self.released.set()
        async with asyncio.timeout(_PATIENCE_S):
            await self.delivered.wait()


class Tollgate:
    """
    Any number of connections of one process; `url` is what that connects to, `pid` must be said before a fault.

    Args:
        url: The database's.
        end_session: Ends a backend, by pid, and returns when it is gone.
        died: Returns when the process is gone.
    """

    def __init__(
        self, url: str, *, end_session: Callable[[int], Awaitable[None]], died: Callable[[], Awaitable[object]]
    ) -> None:
        self._target = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
        self._url = url
        self.end_session = end_session
        self.died = died
        self.pid = 0
        self.url = ""
        self.calls: list[Call] = []
        """Those since `count` was called."""
        self._numbers: Counter[str] = Counter()
        self._is_counting = False
        self._faults: list[Fault] = []
        self._links: set[Link] = set()
        self.backends: set[int] = set()
        """The pids of all sessions that there were."""
        self.lingering: set[int] = set()
        """Those of them that outlive their process."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors: list[BaseException] = []
        self.touched_at = 0.0
        self.is_shut = False
        """The process stands still: nothing new is numbered."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Link(self), "127.0.0.1", 0)
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
        for link in list(self._links):
            link.close()

    def count(self, *faults: Fault) -> None:
        """Number calls from 1 on, from now on; the faults come in this order, numbered from the one before."""
        self.calls.clear()
        self._numbers.clear()
        self._faults = list(faults)
        self._is_counting = True

    def count_no_more(self) -> None:
        """What comes now meets no fault."""
        self.calls, self._faults = [], []
        self._is_counting = False

    async def quiet(self, seconds: float) -> None:
        """Return when no call was under way for so long."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                left = self.touched_at + seconds - loop.time()
                if left <= 0 and not any(link.pending for link in self._links):
                    return
                await asyncio.sleep(max(left, 0.005))

    async def answered(self) -> None:
        """Return when all calls have their answers but those that meet a fault: a process that stands still."""
        async with asyncio.timeout(_PATIENCE_S):
            while any(link.pending and not link.meets for link in self._links):
                await asyncio.sleep(0.005)

    # ---- what links use

    async def open(self, link: Link) -> None:
        """Connect to the server."""
        host, port = self._target.get("host", "127.0.0.1"), self._target.get("port", "5432")
        loop = asyncio.get_running_loop()
        try:
            if host.startswith("/"):
                await loop.create_unix_connection(lambda: ServerSide(link), f"{host}/.s.PGSQL.{port}")
            else:
                await loop.create_connection(lambda: ServerSide(link), host, int(port))
        except OSError:
            link.close()

    def join(self, link: Link) -> None:
        self._links.add(link)
        self.spawn(self.open(link))

    def part(self, link: Link) -> None:
        self._links.discard(link)

    def spawn(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001  # told with the case
                self.errors.append(error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def touch(self) -> None:
        self.touched_at = asyncio.get_running_loop().time()

    def fault_at(self, role: str, label: str, statements: int) -> Fault | None:
        """Number a call; answers the fault whose turn it is."""
        if not self._is_counting or self.is_shut:
            return None
        number = 0
        if label not in TIMED:
            self._numbers[role] += 1
            number = self._numbers[role]
        call = Call(role, number, label, statements)
        self.calls.append(call)
        if not self._faults or not self._faults[0].point.is_at(call):
            return None
        fault = self._faults.pop(0)
        self._numbers.clear()
        fault.call = call
        self.is_shut = fault.fate in KILLING
        return fault

    def stop(self) -> None:
        self.is_shut = True
        os.kill(self.pid, signal.SIGSTOP)

    async def kill(self) -> None:
        self.is_shut = True
        os.kill(self.pid, signal.SIGKILL)
        await self.died()

    async def is_known(self) -> None:
        """Return when `pid` was said: a process may speak before we have heard of its birth."""
        async with asyncio.timeout(_PATIENCE_S):
            while not self.pid:
                await asyncio.sleep(0.001)


class Link(asyncio.Protocol):
    """One connection; as a protocol it is the client's side."""

    def __init__(self, gate: Tollgate) -> None:
        self._gate = gate
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._from_client = bytearray()
        self._from_server = bytearray()
        self._part: list[bytes] = []
        """Messages of the call that is not complete yet."""
        self._held = False
        """What the client sends waits."""
        self.meets = False
        """A call meets its fault."""
        self._has_begun = False
        self._sql: dict[bytes, str] = {}
        self.role = "?"
        self.backend = 0
        self.pending = 0
        """Calls without an answer."""
        self._swallows = False
        """What the server says is dropped."""
        self._kept: list[bytes] | None = None
        """What the server says is kept back."""
        self._on_ready: Callable[[], None] | None = None
        self._outlives = False
        """The server's side stays, though the client has gone."""

    # ---- the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._client = transport
        self._gate.join(self)

    def data_received(self, data: bytes) -> None:
        self._gate.touch()
        self._from_client += data
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._client = None
        if not self._outlives:
            self.close()

    def close(self) -> None:
        """Close both sides; what has been written goes out first."""
        for transport in (self._client, self._server):
            if transport is not None:
                transport.close()
        self.pending = 0
        self._gate.part(self)

    def server_made(self, transport: asyncio.Transport) -> None:
        self._server = transport
        if self._client is None:
            transport.close()
        self._pump()

    def _pump(self) -> None:
        while self._server is not None and not self._held:
            kind_size = 1 if self._has_begun else 0
            if len(self._from_client) < kind_size + 4:
                return
            size = kind_size + int.from_bytes(self._from_client[kind_size : kind_size + 4], "big")
            if len(self._from_client) < size:
                return
            message = bytes(self._from_client[:size])
            del self._from_client[:size]
            self._take(message)

    def _take(self, message: bytes) -> None:
        assert self._server is not None
        if not self._has_begun:
            self._has_begun = True
            if struct.unpack("!I", message[4:8])[0] == _CANCEL:
                self._server.write(message)
                return
            words = message[8:].split(b"\0")
            named = dict(zip(words[::2], words[1::2], strict=False))
            self.role = named.get(b"application_name", b"client").decode().removeprefix("kedge ")
            self._arrive([message], "connect")
            return
        kind = message[:1]
        if kind in (b"S", b"Q"):
            call, self._part = [*self._part, message], []
            self._arrive(call, self._label(call))
        elif kind in (b"P", b"B", b"D", b"E", b"C", b"H"):
            self._part.append(message)
        else:
            self._server.write(message)

    def _arrive(self, call: list[bytes], label: str) -> None:
        assert self._server is not None
        self.pending += 1
        executed = sum(message[:1] == b"E" for message in call if label != "connect")
        fault = self._gate.fault_at(self.role, label, executed)
        if fault is None:
            self._server.write(b"".join(call))
            return
        self._held = self.meets = True
        self._gate.spawn(self._meet(fault, call))

    def _label(self, call: list[bytes]) -> str:
        names: list[str] = []
        for message in call:
            kind, body = message[:1], message[5:]
            if kind == b"Q":
                names.append(_named(body.rstrip(b"\0").decode()))
            elif kind == b"P":
                name, sql = body.split(b"\0", 2)[:2]
                self._sql[name] = sql.decode()
                if not any(one[:1] == b"B" for one in call):
                    names = ["prepare"]
            elif kind == b"B":
                name = body.split(b"\0", 2)[1]
                is_ours = name and not name.startswith(b"_pg3")
                names.append(name.decode() if is_ours else _named(self._sql.get(name, "?")))
        return " ".join(names) or "sync"

    # ---- the server's side

    def server_said(self, data: bytes) -> None:
        self._gate.touch()
        self._from_server += data
        out: list[bytes] = []
        while len(self._from_server) >= 5:
            size = 1 + int.from_bytes(self._from_server[1:5], "big")
            if len(self._from_server) < size:
                break
            message = bytes(self._from_server[:size])
            del self._from_server[:size]
            out.append(message)
            if message[:1] == b"K":
                self.backend = int.from_bytes(message[5:9], "big")
                self._gate.backends.add(self.backend)
            elif message[:1] == b"Z":
                self.pending -= 1
                self._tell(out)
                out = []
                if (ready := self._on_ready) is not None and not self.pending:
                    self._on_ready = None
                    ready()
        self._tell(out)

    def _tell(self, messages: list[bytes]) -> None:
        if self._kept is not None:
            self._kept += messages
        elif not self._swallows and self._client is not None and messages:
            self._client.write(b"".join(messages))

    def server_lost(self) -> None:
        self._server = None
        if (ready := self._on_ready) is not None:
            self._on_ready = None
            ready()
        if not self._held:
            self.close()

    async def _executed(self, call: list[bytes]) -> None:
        """Let the server execute it, and drop the answer."""
        self._swallows = True
        await self._answered(call)

    async def _answered(self, call: list[bytes]) -> None:
        done = asyncio.Event()
        self._on_ready = done.set
        if self._server is None:
            return
        self._server.write(b"".join(call))
        async with asyncio.timeout(_PATIENCE_S):
            await done.wait()

    async def _meet(self, fault: Fault, call: list[bytes]) -> None:
        gate = self._gate
        await gate.is_known()
        match fault.fate:
            case Fate.DIES_BEFORE:
                await gate.kill()
                self.close()
            case Fate.DIES_AMIDST:
                self._outlives = True
                await gate.kill()
                if self._server is not None:
                    self._server.write(b"".join(_first(call, fault.point.amidst)))
                self.close()
            case Fate.DIES_SENT:
                self._outlives = True
                await self._executed(call)
                await gate.kill()
                self.close()
            case Fate.DIES_AFTER:
                self._on_ready = lambda: os.kill(gate.pid, signal.SIGKILL)
                if self._server is not None:
                    self._server.write(b"".join(call))
                await gate.died()
                gate.is_shut = True
                self.close()
            case Fate.DIES_LATE:
                self._outlives = True
                gate.lingering.add(self.backend)
                await gate.kill()
                fault.fired.set()
                await fault.released.wait()
                await self._executed(call)
                self.close()
                fault.delivered.set()
            case Fate.ENDED:
                if self.backend:
                    await gate.end_session(self.backend)
                await fault.witness()
                self._held = False
                if self._server is not None:
                    self._server.write(b"".join(call))
                else:
                    self.close()
            case Fate.CUT:
                await self._executed(call)
                await fault.witness()
                self.close()
            case Fate.STOPS_BEFORE:
                gate.stop()
                fault.fired.set()
                await fault.released.wait()
                self._kept = []
                await self._answered(call)
                self._let_go()
                fault.delivered.set()
            case Fate.STOPS_SENT:
                self._kept = []
                await self._answered(call)
                gate.stop()
                fault.fired.set()
                await fault.released.wait()
                self._let_go()
                fault.delivered.set()
        fault.fired.set()

    def _let_go(self) -> None:
        """Give the client what was kept back, and go on."""
        kept, self._kept = self._kept or [], None
        self._tell(kept)
        self._held = False
        if self._server is None:
            self.close()
        else:
            self._pump()


class ServerSide(asyncio.Protocol):
    """The server's side of a link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._link.server_made(transport)

    def data_received(self, data: bytes) -> None:
        self._link.server_said(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._link.server_lost()


def _named(sql: str) -> str:
    """A short name for a statement."""
    text = " ".join(sql.split())
    for part, label in _LABELS:
        if part in text:
            return label
    if found := re.search(r'select(?: [\w, ]+ from)? "?kedge"?\.(\w+)\(', text):
        return found[1]
    verb = text.split(" ", 1)[0].lower()
    table = re.search(r'(?:into|from|update) (?:"?kedge"?\.)?(\w+)', text)
    return f"{verb} {table[1]}" if table else verb


def _first(call: list[bytes], statements: int) -> list[bytes]:
    """So many statements of a call, without its Sync."""
    taken: list[bytes] = []
    left = statements
    for message in call:
        if left == 0:
            break
        taken.append(message)
        left -= message[:1] == b"E"
    return taken
