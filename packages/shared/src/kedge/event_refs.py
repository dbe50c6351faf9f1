"""
What services share: the names of events with their types.

Calling a ref makes a message: a frozen value, checked where it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload
from uuid import UUID, uuid5

import msgspec

from kedge.errors import DefinitionError, InvalidEventError
from kedge.names import check_name, check_optional_key
from kedge.wire import Buffer, Decode, decoder, parser

if TYPE_CHECKING:
    from typing_extensions import TypeForm

# Invariant on purpose: a covariant payload would let ref(3) pass as a payload of Payment | int.
P = TypeVar("P")

# No name contains it: control characters are refused.
_SEPARATOR: Final = "\x1f"
# Part of what is stored: another one would let a message in that has been sent already.
_KEYED: Final = UUID("6b656467-6520-5e76-856e-742065766e74")


def event_slot(event: str, topic: str | None = None) -> str:
    """Return what a letter and a wait must agree on: an event of one run, or of a topic. send_v1 makes the same."""
    return f"e:{event}" if topic is None else f"t:{topic}{_SEPARATOR}{event}"


def check_topic(topic: object) -> str:
    """
    Return a topic's name, or refuse it; up to 200 bytes.

    Raises:
        InvalidNameError: As for every name.
    """
    return check_name("topic", topic)


def keyed_letter_id(to: UUID | str, event: str, key: str) -> UUID:
    """
    Return the id of a message that has a key: whoever sends it again, sends the same letter.

    Args:
        to: The run's id, or the topic.
        event: The event's name.
        key: The message's.
    """
    kind = "run" if isinstance(to, UUID) else "topic"
    return uuid5(_KEYED, _SEPARATOR.join((kind, str(to), event, key)))


class EventMessage(msgspec.Struct, frozen=True, gc=False):
    """An event that has not been sent: made by calling an event's ref, compared by value."""

    ref: EventRef[Any]
    payload: bytes
    """The encoded payload."""
    key: str | None = None
    """Of two messages with one key, a run gets the first."""

    @property
    def event(self) -> str:
        """The event's name."""
        return self.ref.name

    @property
    def value(self) -> object:
        """The parsed payload, as the handler will get it; decoded anew at each call."""
        return self.ref.decode(self.payload)

    def __repr__(self) -> str:
        key = "" if self.key is None else f" key={self.key!r}"
        return f"<EventMessage {self.ref.name}{key}>"

    def __rich_repr__(self) -> Any:
        yield self.ref.name
        yield "key", self.key, None


class EventRef(Generic[P]):
    """The name of an event with the type of its payload. Refs are equal when their names are."""

    __slots__ = ("__weakref__", "_decode", "_name", "_parse", "_payload_type")

    @overload
    def __init__(self: EventRef[None], name: str, /) -> None: ...
    @overload
    def __init__(self, name: str, payload: type[P], /) -> None: ...
    @overload
    def __init__(self, name: str, payload: TypeForm[P], /) -> None: ...
    def __init__(self, name: str, payload: Any = None, /) -> None:
        """
        Check and keep what services must agree on.

        Raises:
            InvalidNameError: The name is refused.
            DefinitionError: The type cannot be read back.
        """
        self._name = check_name("event", name)
        self._payload_type = payload
        try:
            self._decode: Decode[P] = decoder(payload)
            self._parse = parser(payload, where=f"payload of event {name!r}", error=InvalidEventError)
        except DefinitionError as error:
            raise DefinitionError(f"event {name!r}: {error.problem}") from error

    @overload
    def __call__(self: EventRef[None], /, *, key: str | None = None) -> EventMessage: ...
    @overload
    def __call__(self, payload: P, /, *, key: str | None = None) -> EventMessage: ...
    def __call__(self, payload: Any = None, /, *, key: str | None = None) -> EventMessage:
        """
        Make a message: check the payload against the type and encode what the handler will get.

        Args:
            payload: What happened.
            key: Repeats with the same key are dropped, for the life of the run; up to 255 bytes.

        Raises:
            InvalidEventError: The payload does not fit; `.path` names the field.
            NotEncodableError: It cannot be kept: NaN, a lone surrogate, a cycle, an unknown type.
            TooLargeError: It has more than 1 MiB, or more than 128 levels.
            InvalidNameError: The key is refused.
        """
        return EventMessage(self, self._parse(payload)[1], check_optional_key("key", key))

    @property
    def name(self) -> str:
        """What a send and a wait must agree on."""
        return self._name

    @property
    def payload_type(self) -> Any:
        """None when there is no payload."""
        return self._payload_type

    def decode(self, payload: Buffer) -> P:
        """
        Read a stored payload.

        Raises:
            NotDecodableError: It does not fit the ref's type, which has changed since.
        """
        return self._decode(payload, where=f"payload of event {self._name!r}")

    def __eq__(self, other: object) -> bool:
        return self._name == other._name if isinstance(other, EventRef) else NotImplemented

    def __hash__(self) -> int:
        return hash((EventRef, self._name))

    def __repr__(self) -> str:
        return f"<EventRef {self._name}>"

    def __reduce__(self) -> tuple[Callable[..., EventRef[Any]], tuple[Any, ...]]:
        return EventRef, (self._name, self._payload_type)
