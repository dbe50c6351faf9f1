"""The waits that a handler can ask for: what mail and time mean to each, and what its row means to the handler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from kedge.durations import parse_duration
from kedge.errors import ErrorInfo, EventTimeoutError, InvalidOptionError, NotDecodableError
from kedge.event_refs import check_topic, event_slot
from kedge.failures import encode_error, kind_of
from kedge.result_types import MISSING
from kedge.shown import shown
from kedge_worker._signals import ReplayMismatch
from kedge_worker._waits import KEY_SLOT, Kept, Wait

if TYPE_CHECKING:
    from kedge.event_refs import EventRef
    from kedge_worker._execution import Execution
    from kedge_worker._runs import Mail, MemoRow

_log: Final = logging.getLogger("kedge.worker")


def sleep(key: str, duration: object) -> Wait:
    """
    A wait for a time.

    Raises:
        InvalidDurationError: It is no duration.
    """
    return _sleep(key, delay_s=parse_duration(duration, option="sleep").total_seconds())


def sleep_until(key: str, when: object) -> Wait:
    """
    A wait until a moment; one that has passed ends at once.

    Raises:
        InvalidOptionError: It is no datetime with a time zone, or beyond the years that UTC has.
    """
    if not isinstance(when, datetime) or when.utcoffset() is None:
        raise InvalidOptionError(f"sleep_until: {shown(when)} is no time: give a datetime with a time zone")
    try:
        moment = when.astimezone(UTC)
    except OverflowError:
        raise InvalidOptionError(f"sleep_until: {shown(when)} is out of range in UTC") from None
    return _sleep(key, due_at=moment)


def _sleep(key: str, *, delay_s: float | None = None, due_at: datetime | None = None) -> Wait:
    ended = Kept("d", b"", "d")
    return Wait("d", key, read=lambda _: ended, time_up=lambda: ended, delay_s=delay_s, due_at=due_at)


def no_value(_: MemoRow) -> None:
    """What the handler gets of a sleep or a pause."""


def pause(key: str) -> Wait:
    """A wait for somebody's `resume`."""
    ended = Kept("u", b"", "u")
    return Wait("u", key, read=lambda _: ended, time_up=lambda: None)


def event(execution: Execution, key: str, ref: EventRef[Any], *, topic: object, timeout: object) -> Wait:
    """
    A wait for an event, sent to the run or to a topic.

    Raises:
        InvalidDurationError: The timeout is no duration.
        InvalidNameError: The topic cannot be one.
    """
    limit = None if timeout is None else parse_duration(timeout, option="timeout")
    slot = event_slot(ref.name, None if topic is None else check_topic(topic))
    run_id = execution.run.claimed.id

    def read(mail: Mail) -> Kept | None:
        if mail.slot.startswith(KEY_SLOT):
            try:
                ref.decode(mail.payload)
            except NotDecodableError as error:
                _log.warning("run %s: fast-forward of %r is dropped: %s", run_id, key, error)
                return None
        return Kept("e", mail.payload, "e")

    def time_up() -> Kept:
        info = ErrorInfo(kind_of(EventTimeoutError), f"no event {ref.name!r} within {limit}", key)
        return Kept("f", encode_error(info), "e")

    return Wait(
        "e", key, read=read, time_up=time_up, slot=slot, delay_s=None if limit is None else limit.total_seconds()
    )


def event_payload(execution: Execution, ref: EventRef[Any], default: Any) -> Callable[[MemoRow], Any]:
    """What the handler gets of an event: its payload, or the default or `EventTimeoutError` when none came in time."""

    def recall(row: MemoRow) -> Any:
        if row.kind == "f":
            if default is MISSING:
                raise EventTimeoutError(execution.run.claimed.id, row.key)
            return default
        try:
            return ref.decode(row.value)
        except NotDecodableError as error:
            raise ReplayMismatch(f"{row.key!r}: {error}") from None

    return recall
