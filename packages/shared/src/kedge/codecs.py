"""
What encrypts payloads, as a client and a worker know it: a `PayloadCodec`, given as `codec=`.

`kedge.encryption` has one. Nothing here knows an algorithm.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias, get_args
from uuid import UUID

from kedge.errors import DamagedPayloadError, KeyMissingError, NotDecodableError

Place: TypeAlias = Literal["input", "value", "arguments", "output", "error", "event", "fast-forward", "poll", "log"]
"""What kind of payload it is. `value`: what a step, event, poll or child has returned."""

KEY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
"""What names a key. It stands in clear beside each payload, in errors and in logs."""

HOME_END: Final = 17
"""In a sealed payload: behind its codec byte and the run that it is bound to."""

_NOWHERE: Final = UUID(int=0)
_PLACES: Final[dict[Place, bytes]] = {place: f"kedge payload 1 {place}\0".encode() for place in get_args(Place)}


class PayloadContext(NamedTuple):
    """Where a payload stands. A codec binds what it encodes to this, so that it is refused anywhere else."""

    run_id: UUID
    """Of the run; nil: of a topic. Of inputs and values: of the first of all runs that were started by reruns."""
    place: Place
    name: str = ""
    """Of an input the workflow, of an event its slot, else the step's key; with the kind of a value in front."""
    number: int = 0
    """Of a value its seq, of a poll's state the number of the check."""
    letter: UUID = _NOWHERE
    """Of an event."""

    def associated_data(self) -> bytes:
        """Return all of it as bytes; no two contexts have the same."""
        # All but the name have a fixed length, or end in a NUL.
        number, name = self.number.to_bytes(8, "big"), self.name.encode("utf-8", "surrogatepass")
        return b"".join((_PLACES[self.place], self.run_id.bytes, self.letter.bytes, number, name))

    def __str__(self) -> str:
        what = _WORDS[self.place]
        name = self.name.partition(":")[2] if self.place == "value" else self.name
        whose = f"of {self.name!r}" if self.run_id == _NOWHERE else f"of run {self.run_id}"
        return f"{what} {name!r} {whose}" if name and self.place not in ("input", "event") else f"{what} {whose}"


_WORDS: Final[dict[Place, str]] = {
    "input": "the input",
    "value": "the value",
    "arguments": "the arguments' hashes",
    "output": "the output",
    "error": "the error",
    "event": "an event",
    "fast-forward": "the data of a fast-forward",
    "poll": "the state of poll",
    "log": "a line of the log",
}


class PayloadCodec(Protocol):
    """
    Encrypts payloads on their way into the database and decrypts them on their way out.

    Shared by all threads and tasks of a process; its methods must not block. A key is never part of an error or a repr.
    """

    @property
    def strict(self) -> bool:
        """Whether payloads in clear are refused: those from before encryption was turned on, for example."""
        ...

    def encode(self, payload: bytes, context: PayloadContext, /) -> bytes:
        """Encrypt; what comes back begins with `key_header`, and can be decoded with an equal context only."""
        ...

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        """
        Decrypt what `encode` has made, perhaps with an older key.

        Raises:
            KeyMissingError: The key that the header names is not held.
            DamagedPayloadError: It was made for another context, or changed.
        """
        ...

    def digest(self, data: bytes, /) -> bytes:
        """Return a keyed hash, 16 bytes or more; the same for the same data as long as the key for it is the same."""
        ...


def key_header(key_id: str) -> bytes:
    """Return how an encoded payload begins: one byte says how long the key's id is, then the id."""
    name = key_id.encode()
    return len(name).to_bytes(1, "big") + name


def split_header(data: bytes) -> tuple[str, bytes] | None:
    """Return the key's id, and what stands behind the header; None if there is no proper header."""
    length = data[0] if data else 0
    try:
        key_id = data[1 : 1 + length].decode("ascii")
    except UnicodeDecodeError:
        return None
    return (key_id, data[1 + length :]) if KEY_ID.fullmatch(key_id) and len(key_id) == length else None


def lacks_codec(data: bytes | bytearray | memoryview, where: str) -> NotDecodableError:
    """Make the error of who meets a sealed payload and has no codec."""
    header = split_header(bytes(data[HOME_END:]))
    if header is None:
        return DamagedPayloadError(where, "is encrypted, and its header is damaged")
    return KeyMissingError(where, header[0], has_codec=False)
