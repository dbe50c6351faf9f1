"""What a ref and a request may say about a run; each option is checked where it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast

import msgspec
from msgspec import UNSET, UnsetType

from kedge.durations import Duration, parse_duration, parse_positive_duration
from kedge.errors import DomainError, InvalidOptionError
from kedge.names import check_name, check_optional_key, check_queue
from kedge.retry import Retry
from kedge.run_meta import RetryTerms, RunMeta
from kedge.shown import shown
from kedge.wire import decode, encode

OnConflict: TypeAlias = Literal["return", "return_any_input", "raise"]
"""
What a start does when its key is taken: answer with the run that holds it if that has the same input, answer with it
in any case, or raise.
"""

Singleton: TypeAlias = Literal["raise", "return", "cancel_old"]
"""
What a start does when another run of the same workflow and key is active: raise, answer with that run, or cancel it and
begin when it has ended.
"""

DEFAULT_QUEUE: Final = "default"
MAX_PRIORITY: Final = 32767
"""The lowest is its negative: the database keeps the priority with its sign turned, in two bytes."""
MAX_TAGS: Final = 20
MAX_METADATA_BYTES: Final = 64 * 1024


class RunOptions(TypedDict, total=False):
    """What a request may say."""

    key: str | None
    """
    Idempotency key: one run per workflow, resource and key; runs without a resource share theirs. None: no key,
    although the ref would make one. With `singleton` it is the singleton's, and free again once the run has ended.
    """
    on_conflict: OnConflict
    """Of the idempotency key; not together with `singleton`."""
    resource: str | None
    """The application's entity that the run belongs to, with keys of its own; a child without one has its parent's."""
    queue: str
    priority: int
    """-32,767 to 32,767; higher is sooner."""
    delay: Duration
    """Counted by the database, from the start on."""
    start_at: datetime
    timeout: Duration | None
    """From when the run is due to its end; None: no limit."""
    retry: Retry
    tags: Sequence[str]
    """At most 20."""
    metadata: Mapping[str, Any]
    """A JSON object of at most 64 KiB, for people and for the handler."""
    singleton: Singleton
    """
    At most one run per workflow, resource and `key` is active; without a key, one per workflow and resource. Versions
    do not count.
    """


class RefDefaults(TypedDict, total=False):
    """What a client must know before any worker sees the run."""

    version: str
    queue: str
    priority: int
    timeout: Duration | None
    raises: tuple[type[DomainError], ...]


class StartOptions(msgspec.Struct, frozen=True, gc=False):
    """The options of a start, checked and resolved: the request's before the ref's before the engine's."""

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    on_conflict: OnConflict = "return"
    resource: str | None = None
    delay: timedelta | None = None
    start_at: datetime | None = None
    """In UTC."""
    timeout: timedelta | UnsetType | None = UNSET
    """Unset: neither the request nor the ref says anything."""
    retry: Retry | None = None
    tags: tuple[str, ...] = ()
    singleton: Singleton | None = None
    meta: bytes = b""
    """The column of that name, see run_meta.py: metadata, timeout, retry, and `asked` again."""
    asked: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    """Which of priority, resource and tags the ref or the request named; a child takes the others from its parent."""

    def with_inherited(self, *, resource: str | None, priority: int) -> StartOptions:
        """Return what holds for a child of a run with these."""
        return msgspec.structs.replace(
            self,
            resource=self.resource if "resource" in self.own else resource,
            priority=self.priority if "priority" in self.own else priority,
        )


def resolve(base: StartOptions, given: Mapping[str, object]) -> StartOptions:
    """
    Put a request's options over what is there already: whole values replace, nothing is merged.

    Raises:
        UsageError: An option is unknown, out of its range, or excludes another one that is given too.
        PayloadError: The metadata cannot be kept.
    """
    changes = _checked(given, _CHECKS)
    if "delay" in changes:
        if "start_at" in changes:
            raise InvalidOptionError("delay and start_at exclude each other: give one of them")
        changes["start_at"] = None
    elif "start_at" in changes:
        changes["delay"] = None
    if "singleton" in changes:
        if "on_conflict" in changes:
            raise InvalidOptionError("singleton and on_conflict exclude each other: singleton says what to do itself")
        changes["on_conflict"] = "return"
    elif "on_conflict" in changes:
        changes["singleton"] = None
    if named := _INHERITED.intersection(changes):
        changes["own"] = tuple(sorted(named.union(base.own)))
    if not _IN_META.isdisjoint(changes):
        metadata = changes.pop("metadata") if "metadata" in changes else RunMeta.decode(base.meta).metadata
        changes["asked"] = asked = tuple(sorted({*base.asked, *_ASKED.intersection(changes)}))
        changes["meta"] = _meta(msgspec.structs.replace(base, **changes), metadata, asked)
    return msgspec.structs.replace(base, **changes)


def ref_options(defaults: Mapping[str, object]) -> StartOptions:
    """
    Check what a ref says about queue, priority and timeout.

    Raises:
        UsageError: An option is unknown or out of its range.
    """
    options = StartOptions(**_checked(defaults, {name: _CHECKS[name] for name in ("queue", "priority", "timeout")}))
    own = tuple(sorted(_INHERITED.intersection(defaults)))
    return msgspec.structs.replace(options, meta=_meta(options, {}, ()), own=own)


def _meta(options: StartOptions, metadata: dict[str, Any], asked: tuple[str, ...]) -> bytes:
    timeout_s = options.timeout.total_seconds() if isinstance(options.timeout, timedelta) else options.timeout
    retry = RetryTerms.of(options.retry) if options.retry else None
    return RunMeta(metadata, timeout_s, retry, asked).encode()


def _checked(given: Mapping[str, object], checks: Mapping[str, Callable[[object], object]]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name not in checks:
            # Only on the way to an error: importing it costs every client half a millisecond.
            import difflib

            close = difflib.get_close_matches(name[:60], checks, 1)
            advice = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(checks)}"
            raise InvalidOptionError(f"unknown option {shown(name)}; {advice}")
        changes[name] = checks[name](value)
    return changes


def _queue(value: object) -> str:
    return check_queue(value)


def _priority(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        raise InvalidOptionError(f"priority={shown(value)}: give a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    return int(value)


def _one_of(option: str, *choices: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value not in choices:
            raise InvalidOptionError(f"{option}={shown(value)}: give one of {', '.join(map(repr, choices))}")
        return value

    return check


def _resource(value: object) -> str | None:
    return check_optional_key("resource", value)


def _delay(value: object) -> timedelta:
    return parse_duration(value, option="delay")


def _timeout(value: object) -> timedelta | None:
    return None if value is None else parse_positive_duration(value, option="timeout")


def _start_at(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidOptionError(f"start_at={shown(value)}: give a datetime with a time zone")
    if not has_zone(value):
        raise InvalidOptionError(f"start_at={shown(value)} has no time zone: give datetime(..., tzinfo=UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidOptionError(f"start_at={value.isoformat()} is outside the years 1 to 9999 in UTC") from None


def has_zone(at: datetime) -> bool:
    """Tell whether a time has an offset from UTC: a tzinfo alone is none, and may be anybody's code."""
    try:
        return at.utcoffset() is not None
    except Exception:  # noqa: BLE001  # the zone's own code
        return False


def _retry(value: object) -> Retry:
    if not isinstance(value, Retry):
        raise InvalidOptionError(f"retry={shown(value)}: give a Retry, or Retry.NEVER for one attempt")
    if value.retry_on != (Exception,) or value.give_up_on:
        raise InvalidOptionError("retry= of a request cannot name exception classes: put them where the handler is")
    return value


def _tags(value: object) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidOptionError(f"tags={shown(value)}: give a list of names")
    tags = tuple(dict.fromkeys(check_name("tag", tag) for tag in cast("Sequence[object]", value)))
    if len(tags) > MAX_TAGS:
        raise InvalidOptionError(f"tags: {len(tags)} of them, the limit is {MAX_TAGS}; put the others into metadata")
    return tags


def _metadata(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidOptionError(f"metadata={shown(value)}: give a dict")
    entries = dict(cast("Mapping[object, object]", value))
    if not all(isinstance(name, str) for name in entries):
        raise InvalidOptionError("metadata: its keys must be text, as a JSON object's are")
    # Decoded at once: the request must not change with the mapping that it was made from.
    return decode(encode(entries, where="metadata", limit=MAX_METADATA_BYTES), dict[str, Any], where="metadata")


_CHECKS: Final[Mapping[str, Callable[[object], object]]] = {
    "on_conflict": _one_of("on_conflict", "return", "return_any_input", "raise"),
    "resource": _resource,
    "queue": _queue,
    "priority": _priority,
    "delay": _delay,
    "start_at": _start_at,
    "timeout": _timeout,
    "retry": _retry,
    "tags": _tags,
    "metadata": _metadata,
    "singleton": _one_of("singleton", "raise", "return", "cancel_old"),
}

_ASKED: Final = frozenset({"queue", "priority", "timeout", "retry"})
"""Those that may also come from a ref or a definition: of these it is noted where they come from."""

_IN_META: Final = _ASKED | {"metadata"}

_INHERITED: Final = frozenset({"priority", "resource", "tags"})
"""Those that a child has of its parent, unless something else is said."""
