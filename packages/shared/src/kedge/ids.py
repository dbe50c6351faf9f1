"""Ids of runs: UUIDv7, made before the first try of a start, so that repeating it is harmless."""

from __future__ import annotations

import os
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, SafeUUID

from kedge.errors import InvalidOptionError
from kedge.shown import shown

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Beyond it the process's clock was set back, and going on from the old time would make ids that start refuses.
_SET_BACK: Final = 60 * 1000 << 12

# UUID(int=...) spends 0.5 microseconds on checks that cannot fail here; its slots are written directly.
_new_uuid: Final = UUID.__new__
_set_int: Final[Any] = UUID.__dict__["int"].__set__
_set_is_safe: Final[Any] = UUID.__dict__["is_safe"].__set__
_UNKNOWN: Final = SafeUUID.unknown
_time_ns: Final = time.time_ns


class _Clock:
    """The last time given out, in 1/4096 ms, and the randomness of this process."""

    __slots__ = ("last", "lock", "random_bits")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last = 0
        # Not the module's own generator: an application may seed that one, and two processes would agree.
        self.random_bits = random.Random(os.urandom(32)).getrandbits  # noqa: S311  # ids are no secrets


_clock = _Clock()


def _after_fork() -> None:
    # A child must share neither the lock, which may be held, nor the randomness, which would repeat the parent's ids.
    global _clock
    _clock = _Clock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def new_run_id() -> UUID:
    """
    Make the id of a new run: 48 bits of milliseconds, 12 bits of their fraction, 62 random bits.

    Ids of one process sort in the order in which they were made, also within a millisecond and over threads, unless
    the system's clock is set back by more than a minute.

    Source: RFC 9562, 5.7 and 6.2 (method 3).
    """
    clock = _clock
    with clock.lock:
        # 4096/1000000 of the nanoseconds: milliseconds, and 12 bits behind them.
        now = (_time_ns() << 6) // 15625
        if now <= clock.last and clock.last - now < _SET_BACK:
            now = clock.last + 1
        clock.last = now
        bits = clock.random_bits(62)
    return uuid_of((now >> 12) << 80 | 0x7000 << 64 | (now & 0xFFF) << 64 | 1 << 63 | bits)


def uuid_of(number: int) -> UUID:
    """Make a UUID of the 128 bits that it has, unchecked."""
    made = _new_uuid(UUID)
    _set_int(made, number)
    _set_is_safe(made, _UNKNOWN)
    return made


def run_id_time(run_id: UUID) -> datetime:
    """
    Tell when an id was made, in UTC, by the clock of the process that made it, to the millisecond.

    Raises:
        InvalidOptionError: It is no UUIDv7.
    """
    return _EPOCH + timedelta(milliseconds=parse_run_id(run_id).int >> 80)


def parse_run_id(value: UUID | str) -> UUID:
    """
    Read an id of a run, whatever its letters' case.

    Raises:
        InvalidOptionError: It is no UUID, or one of another version than 7.
    """
    if isinstance(value, UUID):
        run_id = value
    else:
        try:
            run_id = UUID(value)
        except (ValueError, AttributeError, TypeError):
            raise InvalidOptionError(f"{shown(value)} is no id of a run: it is not a UUID") from None
    if run_id.version != 7:
        raise InvalidOptionError(f"{run_id} is no id of a run: its version is {run_id.version}, not 7")
    return run_id
