"""
Letters to runs: what each verb sends, and how it reads the answer. Pure, shared by the twins.

A letter's id is made with it, before the first try, so that a repeat is the same letter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast
from uuid import UUID, uuid4

import msgspec

import kedge_client._letter_statements as statements
from kedge.codecs import PayloadCodec
from kedge.errors import InvalidOptionError, InvalidRunStateError, RunNotActiveError, RunNotFoundError, TooLargeError
from kedge.event_refs import EventMessage, EventRef, check_topic, event_slot, keyed_letter_id
from kedge.run_state import RunStatus
from kedge.sealing import event_place, fast_forward_place, seal
from kedge.wire import encode
from kedge_client._calls import Call, Rows, writing
from kedge_client._round_trip import Command, Row
from kedge_client._run_refs import RunRef, run_id_of
from kedge_client._statements import Statement

T = TypeVar("T")

MAX_UNREAD: Final = 1000
"""Events that a run has not read; send_v1 refuses more."""

MAX_REASON_CHARACTERS: Final = 4000
MAX_WAIT_KEY_CHARACTERS: Final = 10_000
"""More than any run's branches make of it."""

# In the order in which people think of them.
_LIVE: Final[tuple[RunStatus, ...]] = ("pending", "running", "waiting", "paused")


class Delivery(msgspec.Struct, frozen=True):
    """What became of a message when it was accepted."""

    event_id: UUID
    """Of messages with one id a run gets the first; it comes from the message's key, if it has one."""
    delivered: bool
    """
    Whether a wait that was open takes it. If not, it is kept until the run asks for it; on a topic, which keeps
    nothing, nobody was waiting.
    """


class Letter(NamedTuple, Generic[T]):
    """One insert into the inbox, for a connection of the client's or for a caller's transaction."""

    plain: Statement
    ringing: Statement
    """Rings when the caller's transaction commits."""
    values: tuple[Any, ...]
    read: Callable[[Rows], T]

    def call(self, *, wake: bool) -> Call[T]:
        """Put it into the inbox, and ring for anybody behind the commit."""
        return writing(Command(self.plain, self.values), [(None, None)] if wake else (), self.read)

    def here(self, *, wake: bool) -> list[Command]:
        """Put it into the inbox in a caller's transaction."""
        return [Command(self.ringing if wake else self.plain, self.values)]


def send(
    message: object,
    *,
    run: RunRef | None = None,
    topic: str | None = None,
    resource: str | None,
    codec: PayloadCodec | None = None,
) -> Letter[Delivery]:
    """
    Send an event to a run or to a topic.

    Raises:
        UsageError: No message, not exactly one of run and topic, or a topic through a scoped client.
    """
    if not isinstance(message, EventMessage):
        given = "an EventRef: call it" if isinstance(message, EventRef) else f"a {type(message).__name__}"
        raise InvalidOptionError(f"send takes a message, event(payload), not {given}")
    if (run is None) == (topic is None):
        raise InvalidOptionError("send takes run= or topic=, exactly one of them")
    run_id = None if run is None else run_id_of(run)
    if topic is not None:
        topic = check_topic(topic)
        if resource is not None:
            raise InvalidOptionError(
                "a topic reaches runs of every resource: a scoped client cannot send to it; use the client that it was"
                " made from, or send to each run"
            )
    to = run_id or cast("str", topic)
    event_id = uuid4() if message.key is None else keyed_letter_id(to, message.event, message.key)

    def read(rows: Rows) -> Delivery:
        if not rows:
            raise RunNotFoundError(cast("UUID", run_id))
        accepted, status, has_ended, delivered, unread = rows[0][:5]
        if accepted:
            return Delivery(event_id, delivered)
        if has_ended:
            raise RunNotActiveError(cast("UUID", run_id), status, _LIVE, "send to")
        raise TooLargeError(f"mail of run {run_id}", unread + 1, MAX_UNREAD, "unread events")

    payload = message.payload
    if codec is not None:
        payload = seal(codec, payload, event_place(run_id, event_slot(message.event, topic), event_id))
    values = (event_id, run_id, topic, message.event, resource, payload)
    return Letter(statements.SEND, statements.SEND_AND_RING, values, read)


def cancel(run: RunRef, *, resource: str | None, reason: object, cascade: bool) -> Letter[RunStatus]:
    """
    Ask for a run's end.

    Raises:
        UsageError: It names no run, or the reason cannot be kept.
    """
    run_id = run_id_of(run)

    def read(rows: Rows) -> RunStatus:
        accepted, status, *_ = _answer(run_id, rows)
        # What has been cancelled already is as it was wanted.
        if not accepted and status != "cancelled":
            raise InvalidRunStateError(run_id, status, _LIVE, "cancel")
        return cast("RunStatus", status)

    values = (uuid4(), run_id, resource, _check_reason(reason), cascade)
    return Letter(statements.CANCEL, statements.CANCEL_AND_RING, values, read)


def pause(run: RunRef, *, resource: str | None, reason: object) -> Letter[RunStatus]:
    """Ask that a run be held."""
    run_id = run_id_of(run)
    values = (uuid4(), run_id, resource, _check_reason(reason))
    return Letter(statements.PAUSE, statements.PAUSE_AND_RING, values, _status(run_id, "pause", _LIVE))


def resume(run: RunRef, *, resource: str | None) -> Letter[RunStatus]:
    """Ask that a run go on."""
    run_id = run_id_of(run)
    read = _status(run_id, "resume", ("paused",))
    return Letter(statements.RESUME, statements.RESUME_AND_RING, (uuid4(), run_id, resource), read)


def retry(run: RunRef, *, resource: str | None) -> Letter[RunStatus]:
    """Ask that a failed run go on from where it failed."""
    run_id = run_id_of(run)
    read = _status(run_id, "retry", ("failed",))
    return Letter(statements.RETRY, statements.RETRY_AND_RING, (uuid4(), run_id, resource), read)


def fast_forward(
    run: RunRef, data: object, *, resource: str | None, wait: object, codec: PayloadCodec | None = None
) -> Letter[bool]:
    """
    End a wait of a run.

    Raises:
        UsageError: The wait's key is no text.
        PayloadError: The data cannot be kept.
    """
    run_id = run_id_of(run)
    key = _check_text("wait", wait, MAX_WAIT_KEY_CHARACTERS)

    def read(rows: Rows) -> bool:
        accepted, status, has_ended = _answer(run_id, rows)[:3]
        if has_ended and not accepted:
            raise InvalidRunStateError(run_id, status, _LIVE, "fast-forward")
        return bool(accepted)

    letter, payload = uuid4(), encode(data, where="data of fast_forward")
    if codec is not None:
        payload = seal(codec, payload, fast_forward_place(run_id, letter))
    values = (letter, run_id, resource, key, payload)
    return Letter(statements.FAST_FORWARD, statements.FAST_FORWARD_AND_RING, values, read)


def _check_reason(reason: object) -> str | None:
    return _check_text("reason", reason, MAX_REASON_CHARACTERS)


def _check_text(option: str, text: object, limit: int) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidOptionError(f"{option}= is text, not a {type(text).__name__}")
    if len(text) > limit:
        raise InvalidOptionError(f"{option}= has {len(text):,} characters, the limit is {limit:,}")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InvalidOptionError(f"{option}= contains a lone surrogate, which no database can keep") from None
    if b"\0" in encoded:
        raise InvalidOptionError(f"{option}= contains NUL, which PostgreSQL cannot keep")
    # A StrEnum's member is a str, but drivers know it as an Enum.
    return str.__str__(text)


def _answer(run_id: UUID, rows: Rows) -> Row:
    if not rows:
        raise RunNotFoundError(run_id)
    return rows[0]


def _status(run_id: UUID, action: str, wanted: tuple[RunStatus, ...]) -> Callable[[Rows], RunStatus]:
    def read(rows: Rows) -> RunStatus:
        accepted, status, *_ = _answer(run_id, rows)
        if not accepted:
            raise InvalidRunStateError(run_id, status, wanted, action)
        return cast("RunStatus", status)

    return read
