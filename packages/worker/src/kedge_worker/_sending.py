"""Letters that a run sends: they go in the transaction that keeps their row."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid5

from kedge.errors import InvalidOptionError
from kedge.event_refs import EventMessage, check_topic, event_slot, keyed_letter_id
from kedge.ids import parse_run_id
from kedge.shown import shown

_TOPIC: Final = UUID(int=0).bytes
"""Where a letter to a topic goes before it is expanded."""


def event_letter(
    sender: UUID, key: str, message: object, *, run: object, topic: object
) -> tuple[tuple[object, ...], int]:
    """
    Make the columns of a letter (kind, to whom, id, slot, payload, sender, event_id) and say its size.

    They are the same whenever they are made again.

    Raises:
        InvalidOptionError: Neither or both of run and topic are given, it is no id of a run, or no message.
        InvalidNameError: The topic cannot be one.
    """
    if not isinstance(message, EventMessage):
        raise InvalidOptionError(f"send: {shown(message)} is no message: call the event's ref, as approved(payload)")
    if (run is None) == (topic is None):
        raise InvalidOptionError("send: give either run= or topic=")
    if run is None:
        name = check_topic(topic)
        to: UUID | str = name
        kind, recipient, slot = "t", _TOPIC, event_slot(message.event, name)
    else:
        if not isinstance(run, UUID | str):
            raise InvalidOptionError(f"send: run={shown(run)}: give the id of a run")
        to = parse_run_id(run)
        kind, recipient, slot = "e", to.bytes, event_slot(message.event)
    event_id = None if message.key is None else keyed_letter_id(to, message.event, message.key).bytes
    letter = (kind, recipient, _own_id(sender, key).bytes, slot, message.payload, None, event_id)
    return letter, 200 + len(message.payload)


def _own_id(sender: UUID, key: str) -> UUID:
    # Of version 8, which no client's letter has: one of the same id would keep this one from being written.
    return UUID(int=uuid5(sender, key).int & ~(0xF << 76) | 8 << 76)
