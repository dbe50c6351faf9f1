"""One connection through the tollgate: it reads the protocol, and does to a call what its fate says."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from tests.proof.crash_points.fates import PATIENCE_S, Fate, Fault
from tests.proof.crash_points.messages import first, named

_CANCEL: Final = 80877102


class Gate(Protocol):
    """What a connection needs of the tollgate."""

    pid: int
    is_shut: bool
    backends: set[int]
    lingering: set[int]
    end_session: Callable[[int], Awaitable[None]]
    died: Callable[[], Awaitable[object]]

    def join(self, link: Link) -> None:
        """A connection is there."""
        ...

    def part(self, link: Link) -> None:
        """It has gone."""
        ...

    def spawn(self, work: Awaitable[None]) -> None:
        """Do this beside everything else."""
        ...

    def touch(self) -> None:
        """Something was said."""
        ...

    def fault_at(self, role: str, label: str, statements: int) -> Fault | None:
        """Number a call; answers the fault whose turn it is."""
        ...

    def stop(self) -> None:
        """Let the process stand still."""
        ...

    async def kill(self) -> None:
        """End the process, and wait for its end."""
        ...

    async def is_known(self) -> None:
        """Return when `pid` was said: a process may speak before we have heard of its birth."""
        ...


class Link(asyncio.Protocol):
    """One connection; as a protocol it is the client's side."""

    def __init__(self, gate: Gate) -> None:
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
                names.append(named(body.rstrip(b"\0").decode()))
            elif kind == b"P":
                name, sql = body.split(b"\0", 2)[:2]
                self._sql[name] = sql.decode()
                if not any(one[:1] == b"B" for one in call):
                    names = ["prepare"]
            elif kind == b"B":
                name = body.split(b"\0", 2)[1]
                is_ours = name and not name.startswith(b"_pg3")
                names.append(name.decode() if is_ours else named(self._sql.get(name, "?")))
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
        async with asyncio.timeout(PATIENCE_S):
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
                    self._server.write(b"".join(first(call, fault.point.amidst)))
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
