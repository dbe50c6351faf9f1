"""Polls: a function that is called until it answers, with durable pauses in between."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from kedge.durations import parse_duration
from kedge.errors import InvalidDurationError, InvalidOptionError, NotDecodableError
from kedge.result_types import MISSING, check_plain, type_of_parameter
from kedge.shown import shown
from kedge.wire import JSON_CODEC, Decode, decoder, encode
from kedge_worker._attempts import Attempts
from kedge_worker._not_yet import NotYet
from kedge_worker._outcomes import Mismatched
from kedge_worker._side_writes import OPEN_WAITS
from kedge_worker._signals import ReplayMismatch
from kedge_worker._suspension import check_raw_timeout
from kedge_worker._time_ups import PollTimeUp
from kedge_worker._waits import KEY_SLOT, Kept, Wait

if TYPE_CHECKING:
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution
    from kedge_worker._runs import Mail, StoredWait

_log: Final = logging.getLogger("kedge.worker")

MIN_EVERY: Final = timedelta(milliseconds=100)
LONGEST_PAUSE: Final = timedelta(days=1)
"""As far as a backoff grows; `every` itself may be longer."""
MAX_STATE_BYTES: Final = 64 * 1024

_MAX_BACKOFF: Final = 100


class PollState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The column `state` of a poll's wait; fields are only ever added, at the end, with a default."""

    checks: int = 0
    """How many have answered `NotYet`; the wait's `attempt` counts those that failed, too."""
    failed: int = 0
    """How many have failed since then."""
    state: msgspec.Raw = msgspec.Raw(b"null")
    """What the last one left for the next, in JSON."""
    failures: int = 0
    """How many have failed in all."""

    @classmethod
    def of(cls, checks: int, failed: int, payload: bytes | None, failures: int) -> PollState:
        """Put it together; the payload is the state's."""
        if payload is None:
            return cls(checks, failed, failures=failures)
        return cls(checks, failed, msgspec.Raw(payload[1:]), failures)

    @property
    def payload(self) -> bytes | None:
        """The state as a payload; None: there is none."""
        state = bytes(self.state)
        return None if state == b"null" else JSON_CODEC + state

    def encode(self) -> bytes:
        """Turn it into bytes."""
        return JSON_CODEC + _encode_state(self)

    @classmethod
    def decode(cls, data: bytes, *, where: str) -> PollState:
        """
        Read it back; fields of newer releases are skipped.

        Raises:
            NotDecodableError: The bytes are damaged.
        """
        return _decode_state(data, where=where) if data else _BEGUN


_BEGUN: Final = PollState()
_encode_state: Final = msgspec.json.Encoder().encode
_decode_state: Final[Decode[PollState]] = decoder(PollState)
_decode_plain: Final[Decode[Any]] = decoder(Any)


class PollTerms(NamedTuple):
    """When and how often."""

    every_s: float
    timeout: timedelta | None
    max_attempts: int | None
    backoff: float

    def pause_s(self, checks: int) -> float:
        """How long to wait after so many checks."""
        longest = max(LONGEST_PAUSE.total_seconds(), self.every_s)
        try:
            return min(self.every_s * self.backoff ** (checks - 1), longest)
        except OverflowError:
            return longest


def poll_terms(*, every: object, timeout: object, max_attempts: object, backoff: object) -> PollTerms:
    """
    Check what is given to a poll.

    Raises:
        InvalidDurationError: `every` or the timeout is no duration, or `every` is less than 100 ms.
        InvalidOptionError: A number is out of its range.
    """
    pause = parse_duration(every, option="every")
    if pause < MIN_EVERY:
        raise InvalidDurationError("every", shown(every), "is less than 100 ms")
    if max_attempts is not None and (type(max_attempts) is not int or max_attempts < 1):
        raise InvalidOptionError(f"max_attempts={shown(max_attempts)}: give 1 or more, or None for no limit")
    if isinstance(backoff, bool) or not isinstance(backoff, int | float) or not 1 <= backoff <= _MAX_BACKOFF:
        raise InvalidOptionError(f"backoff={shown(backoff)}: give a number from 1 to {_MAX_BACKOFF}")
    limit = None if timeout is None else parse_duration(timeout, option="timeout")
    return PollTerms(pause.total_seconds(), limit, max_attempts, float(backoff))


class Polling(Attempts):
    """
    Of one poll. Its checks that fail are attempts on the function's retry policy, counted anew after each `NotYet`.

    Args:
        execution: As in `Attempts`.
        key: As in `Attempts`.
        definition: As in `Attempts`.
        fn: What is called.
        args: Its arguments.
        terms: When and how often.

    Raises:
        DefinitionError: The annotation of the function's parameter `state` cannot be resolved.
    """

    __slots__ = (
        "_all_failures",
        "_calls",
        "_checks",
        "_decode_state",
        "_is_typed",
        "_state",
        "_takes_state",
        "_terms",
        "_until",
    )

    wait_kind = "p"

    def __init__(
        self,
        execution: Execution,
        key: str,
        definition: StepDefinition,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        terms: PollTerms,
    ) -> None:
        super().__init__(execution, "p", key, definition)
        self._terms = terms
        self._calls = 0
        self._checks = 0
        self._all_failures = 0
        self._state: bytes | None = None
        """A payload."""
        self._until: float | None = None
        """When its time is up, in the event loop's time."""
        self._takes_state = _takes_state(fn, args)
        type_: Any = type_of_parameter(fn, "state") if self._takes_state else MISSING
        self._is_typed = type_ is not MISSING
        self._decode_state: Decode[Any] = decoder(type_) if self._is_typed else _decode_plain

    def bound(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if self._state is None or not self._takes_state:
            return fn
        return functools.partial(fn, state=self._decode_state(self._state, where=self._where))

    def is_answer(self, value: object) -> bool:
        if not isinstance(value, NotYet):
            return True
        self._calls += 1
        self._checks += 1
        self.failed = 0
        self._state = None if value.state is None else self._encoded(value.state)
        most = self._terms.max_attempts
        if most is not None and self._checks >= most:
            raise PollTimeUp(f"no answer in {self._checks} checks")
        self._plan(self._terms.pause_s(self._checks))
        return False

    def fails(self, error: BaseException, started: float, *, of_value: bool = False) -> BaseException | None:
        if issubclass(type(error), PollTimeUp):
            return error
        final = super().fails(error, started, of_value=of_value)
        if final is None:
            self._calls += 1
            self._all_failures += 1
            try:
                self._plan(self._delay_s)
            except PollTimeUp as time_up:
                time_up.__cause__ = error
                return time_up
        return final

    # ---- inside

    def _failures(self) -> int:
        return self._all_failures

    @property
    def _where(self) -> str:
        return f"state of poll {self.key!r}"

    def _plan(self, delay_s: float) -> None:
        """The last check is made when the time is up, not before."""
        if self._until is not None:
            left_s = self._until - self.execution.loop.time()
            if left_s <= 0:
                raise PollTimeUp(f"no answer within {self._terms.timeout}, in {self._calls} checks")
            delay_s = min(delay_s, left_s)
        self._delay_s = delay_s

    def _encoded(self, state: object) -> bytes:
        if not self._is_typed:
            check_plain(state, where=self._where)
        data = encode(state, where=self._where, limit=MAX_STATE_BYTES)
        self._decode_state(data, where=self._where)
        return data

    def _begin(self) -> None:
        """Its limit is counted from now, whatever becomes of the first check."""
        execution, limit = self.execution, self._terms.timeout
        task = asyncio.current_task()
        if task is not None and not execution.is_sync:
            check_raw_timeout(task)  # before the first check, not when the first pause begins
        if limit is not None:
            limit_s = limit.total_seconds()
            self._until = execution.loop.time() + limit_s
            self.is_open = True
            # Due at once: a life that finds it makes its first check.
            columns = (self.key, self.wait_kind, None, 0.0, None, limit_s, 0, 0, None, b"")
            execution.journal.add(execution.run, OPEN_WAITS, *columns)

    def _restore(self, stored: StoredWait) -> None:
        self._calls = stored.attempt
        limit_s = self.execution.open_waits().left_s(stored.limit_s)
        if limit_s is not None:
            self._until = self.execution.loop.time() + limit_s
        try:
            kept = PollState.decode(stored.state, where=self._where)
            self._checks, self.failed, self._state = kept.checks, kept.failed, kept.payload
            self._all_failures = kept.failures
            self.bound(_nothing)
        except NotDecodableError as error:
            mismatch = ReplayMismatch(f"the kept {error}")
            self.execution.noticed = True
            self.execution.stop(Mismatched(mismatch.reason))
            raise mismatch from None

    def _wait(self) -> Wait:
        return Wait(
            self.wait_kind,
            self.key,
            read=self._read,
            time_up=lambda: None,
            delay_s=self._delay_s,
            attempt=self._calls,
            state=PollState.of(self._checks, self.failed, self._state, self._all_failures).encode(),
        )

    def _read(self, mail: Mail) -> Kept | None:
        """Somebody answers in the place of the function."""
        if not mail.slot.startswith(KEY_SLOT):
            return None
        try:
            self.definition.decode(mail.payload, where=f"step {self.key!r}")
        except NotDecodableError as error:
            _log.warning("run %s: fast-forward of %r is dropped: %s", self.execution.run.claimed.id, self.key, error)
            return None
        return Kept("p", mail.payload, "p")


def _nothing(**_: object) -> None:
    pass


def _takes_state(fn: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether the function has a parameter `state` that its arguments leave free."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return False
    parameter = signature.parameters.get("state")
    if parameter is None or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return False
    try:
        return "state" not in signature.bind_partial(*args).arguments
    except TypeError:
        return False  # the call itself will say what is wrong
