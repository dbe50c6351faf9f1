"""What may become of a call: the fates, the points at which they wait, the calls that they meet."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

PATIENCE_S: Final = 30.0
"""For a broken build, not a promise."""


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
    seen: str = ""
    """What the call was in the undisturbed play."""

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
        async with asyncio.timeout(PATIENCE_S):
            await self.delivered.wait()
