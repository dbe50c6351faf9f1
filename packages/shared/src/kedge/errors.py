"""
The tree of exceptions: callers tell failures apart by type, and find ids as attributes.

::

    KedgeError                             .request_place: set by start_stream
    |- UsageError (ValueError)               wrong at the place where it is written; nothing was sent
    |  |- InvalidNameError                   workflow, event, step, queue, key, tag
    |  |- InvalidDurationError               not a duration; shows the accepted forms
    |  |- InvalidOptionError                 value out of range, options that exclude each other, naive datetime
    |  |- DefinitionError                    refs, handlers and steps whose types cannot work
    |  `- ClosedClientError                  client closed, or used in another event loop or after a fork
    |- PayloadError (ValueError)             .where .path
    |  |- InvalidInputError                  start: the input does not fit the ref
    |  |- InvalidEventError                  send: the payload does not fit the event
    |  |- NotEncodableError                  NaN, surrogate, cycle, unknown type, no type to decode by
    |  |- TooLargeError                      .size .limit .unit
    |  `- NotDecodableError                  stored bytes do not fit the type asked for
    |     |- KeyMissingError                 .key_id: encrypted, and the key is not held here
    |     `- DamagedPayloadError             encrypted, and changed, moved, or in clear where that is refused
    |- RunError                              .run_id
    |  |- RunNotFoundError (LookupError)     unknown id, or the resource does not match
    |  |- StepNotFoundError (LookupError)    .step .keys: nothing of this step is kept
    |  |- InvalidRunStateError               .status .wanted .action
    |  |  `- RunNotActiveError               send to a run that has ended
    |  |- RunExistsError                     .existing_id: the key is taken and on_conflict says raise
    |  |  |- InputConflictError              same key, other input
    |  |  `- RunActiveError                  singleton: another run is active
    |  |- RunFailedError                     .error
    |  |  |- RunDeadlineError                the run's own timeout
    |  |  `- RunCrashedError                 its workers died too often
    |  |- RunCancelledError                  .reason
    |  `- ResultTimeoutError (TimeoutError)  not ended yet; the run goes on
    |- StepError                             .run_id .key .error; raised into handlers, the same on replay
    |  |- StepFailedError                    budget used up or given up; .error.kind is the user's type
    |  |  `- StepTimedOutError (TimeoutError) the last attempt ran into the step's timeout
    |  |- WaitTimeoutError (TimeoutError)    poll: time or attempts were up
    |  |  `- EventTimeoutError               wait_for: no event in time
    |  |- ChildFailedError                   .child_id
    |  |- ChildCancelledError                .child_id .reason
    |  `- TransactionFailedError             .sqlstate: the database refused for good
    |- HandlerUseError                       a mistake in handler code, raised at the call
    |  |- NestedStepError                    the context used inside a step's body
    |  |- WrongThreadError                   SyncContext used in another thread
    |  |- ForeignTaskError                   the context used in a task outside the run, or after its end
    |  `- RawTimeoutError                    a raw timeout around a durable wait, longer than the limit
    |- ReplayMismatchError                   never raised into a handler; on RunView.reason and in logs
    |- DomainError                           base for errors that travel: declared fields, rebuilt as their class
    |- NonRetryable, RetryAfter              raised by steps and handlers to steer; they stand in retry.py
    `- DatabaseError                         .sqlstate
       |- UnavailableError (ConnectionError) not reached or not done; repeating is safe
       |- OutcomeUnknownError                asked to commit, no answer, and repeating did not settle it
       |- TransactionStateError              the caller's transaction is lost: roll back and repeat
       |- SchemaError                        .found .wanted .command
       `- PrivilegesError                    the role may not do this

Constructors hand their arguments, not a text, to Exception: else an error can be neither copied nor unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast, dataclass_transform
from uuid import UUID

import msgspec

from kedge.run_state import RunStatus
from kedge.shown import shown


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of an exception. The traceback is for people; nothing parses it."""

    kind: str
    """Module and qualified name of the exception's class."""
    message: str
    key: str | None = None
    """The step's key, when a step failed."""
    attempt: int | None = None
    """Which attempt failed, from 1."""
    traceback: str | None = None
    """Without the values of local variables."""
    cause: ErrorInfo | None = None
    data: dict[str, Any] | None = None
    """The declared fields of a DomainError."""

    def __str__(self) -> str:
        kind = self.kind.removeprefix("builtins.")
        return f"{kind}: {self.message}" if self.message else kind

    def __repr__(self) -> str:
        # Without `data`, which is a payload, and the traceback: a repr ends up in logs.
        step = f", key={self.key!r}, attempt={self.attempt!r}" if self.key is not None else ""
        return f"ErrorInfo(kind={self.kind!r}, message={self.message!r}{step})"


class KedgeError(Exception):
    """Everything that kedge raises on purpose."""

    request_place: int | None = None
    """Raised by `start_stream`: the first request, counted from 0, that is not (known to be) started. Else None."""


# ------------------------------------------------------------------ wrong where it is written


class UsageError(KedgeError, ValueError):
    """A mistake at the place where it is written; nothing was sent."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class InvalidNameError(UsageError):
    """A name of a workflow, event, step or queue, a key or a tag that cannot be used."""

    def __init__(self, what: str, name: str, problem: str) -> None:
        Exception.__init__(self, what, name, problem)
        self.what = what
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.what} {shown(self.name)} {self.problem}"


DURATION_FORMS: Final = "a timedelta, seconds, '2 days 12 hours', '1h30m', '500ms' or 'PT1H'"


class InvalidDurationError(UsageError):
    """Not a duration, or one that makes no sense here."""

    def __init__(self, option: str, given: str, problem: str) -> None:
        Exception.__init__(self, option, given, problem)
        self.option = option
        self.given = given
        """The refused value's repr."""
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.option}={self.given} {self.problem}; write {DURATION_FORMS}, up to 10 years"


class InvalidOptionError(UsageError):
    """An option that is unknown, out of range, or excludes another one that is given too."""


class DefinitionError(UsageError):
    """A ref, handler or step whose types cannot work, or a name that is defined twice."""


class ClosedClientError(UsageError):
    """The client is closed, or is used in another event loop or after a fork."""


# ------------------------------------------------------------------ payloads


class PayloadError(KedgeError, ValueError):
    """A value that does not fit, cannot be encoded, or cannot be read back."""

    def __init__(self, where: str, problem: str, path: str = "$") -> None:
        super().__init__(where, problem, path)
        self.where = where
        """Whose value it is, such as "step 'charge'"."""
        self.problem = problem
        self.path = path
        """The field, such as `$.items[3]`; `$` is the value itself."""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem} (at {self.path})"


class InvalidInputError(PayloadError):
    """The input does not fit the ref's type; nothing was sent."""


class InvalidEventError(PayloadError):
    """The payload does not fit the event's type; nothing was sent."""


class NotEncodableError(PayloadError):
    """The value cannot be kept: NaN, a lone surrogate, a cycle, an unknown type, or no type to decode by."""


class TooLargeError(PayloadError):
    """More bytes, levels, steps or events than the limit."""

    def __init__(self, where: str, size: int, limit: int, unit: str = "bytes") -> None:
        Exception.__init__(self, where, size, limit, unit)
        self.where = where
        self.size = size
        self.limit = limit
        self.unit = unit
        self.path = "$"
        self.problem = f"{size:,} {unit}, the limit is {limit:,}"

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}{_INSTEAD.get(self.unit, '')}"


_INSTEAD: Final = {
    "bytes": "; keep large values in object storage and pass a reference",
    "rows": "; let child runs do parts of it, each has a journal of its own",
    "unread events": "; send again when the run has read some with ctx.wait_for",
}


class NotDecodableError(PayloadError):
    """Stored bytes do not fit the type asked for: the ref or the annotation has changed since."""


class KeyMissingError(NotDecodableError):
    """The payload is encrypted with a key that is not held here; a worker puts the run off until one has it."""

    def __init__(self, where: str, key_id: str, *, has_codec: bool = True) -> None:
        Exception.__init__(self, where, key_id)
        self.where = where
        self.key_id = key_id
        """Its name, which is no secret."""
        self.path = "$"
        self.problem = f"is encrypted with key {shown(key_id)}, which is not held here"
        if not has_codec:
            self.problem = f"is encrypted: codec= with key {shown(key_id)} is needed"

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class DamagedPayloadError(NotDecodableError):
    """An encrypted payload was changed, or moved from its place; or one is in clear, and that is not allowed here."""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


# ------------------------------------------------------------------ runs


class RunError(KedgeError):
    """Something about one run."""

    def __init__(self, run_id: UUID, *details: object) -> None:
        # Exception's own: some subclasses are OSErrors too, which read a meaning into the second and third argument.
        Exception.__init__(self, run_id, *details)
        self.run_id = run_id


class RunNotFoundError(RunError, LookupError):
    """No such run, or not one of this resource: the two look exactly alike."""

    def __init__(self, run_id: UUID) -> None:
        super().__init__(run_id)

    def __str__(self) -> str:
        return f"run {self.run_id} not found: check the id, the resource, and whether its start was committed"


class StepNotFoundError(RunError, LookupError):
    """The run has neither an outcome nor a failure of such a step."""

    def __init__(self, run_id: UUID, step: str, keys: tuple[str, ...]) -> None:
        super().__init__(run_id, step, keys)
        self.step = step
        self.keys = keys
        """Those that there are, in the order of their outcomes; at most fifty."""

    def __str__(self) -> str:
        there = f"it has {', '.join(map(shown, self.keys[:10]))}" if self.keys else "it has none"
        more = " and more" if len(self.keys) > 10 else ""
        return f"run {self.run_id} has no step {shown(self.step)}: {there}{more}"


class InvalidRunStateError(RunError):
    """The run's status forbids what was asked for."""

    def __init__(self, run_id: UUID, status: RunStatus, wanted: tuple[RunStatus, ...], action: str) -> None:
        super().__init__(run_id, status, wanted, action)
        self.status = status
        self.wanted = wanted
        self.action = action
        """The verb that was refused, such as "pause"."""

    def __str__(self) -> str:
        advice = _advice(self.action, self.status)
        wanted = " or ".join(self.wanted)
        return f"cannot {self.action} run {self.run_id}: it is {self.status}, it must be {wanted}{advice}"


def _advice(action: str, status: str) -> str:
    """Say what to do instead, if there is something."""
    match action, status:
        case "send to" | "fast-forward", "failed":
            return "; retry it first"
        case "send to", _:
            return "; start a new run"
        case "resume", "pending" | "running" | "waiting":
            return " or wait in ctx.pause; fast_forward ends other waits"
        case "retry", "completed" | "cancelled":
            return "; rerun_from starts a new run from one of its steps"
        case "retry", _:
            return "; it goes on by itself"
        case _:
            return ""


class RunNotActiveError(InvalidRunStateError):
    """The run has ended: nothing can be sent to it any more."""


class RunExistsError(RunError):
    """The key is taken, and `on_conflict` says "raise"."""

    def __init__(self, run_id: UUID, existing_id: UUID, workflow: str, key: str) -> None:
        super().__init__(run_id, existing_id, workflow, key)
        self.existing_id = existing_id
        """The run that holds the key; of the same resource, since a key belongs to one."""
        self.workflow = workflow
        self.key = key
        """Empty for a singleton without one."""

    def __str__(self) -> str:
        return f"{self._taken()}; on_conflict='return' answers with that run"

    def _taken(self) -> str:
        return f"key {shown(self.key)} of workflow {self.workflow!r} is taken by run {self.existing_id}"


class InputConflictError(RunExistsError):
    """The key is taken by a run with another input."""

    def __str__(self) -> str:
        return f"{self._taken()} with another input; use another key, or on_conflict='return_any_input'"


class RunActiveError(RunExistsError):
    """Another run of this singleton is active."""

    def __str__(self) -> str:
        key = f" with key {shown(self.key)}" if self.key else ""
        return (
            f"run {self.existing_id} of workflow {self.workflow!r}{key} is active; wait for its end, or use"
            " singleton='return' or 'cancel_old'"
        )


class RunFailedError(RunError):
    """A run used up its attempts, or its handler raised a final error."""

    def __init__(self, run_id: UUID, error: ErrorInfo) -> None:
        super().__init__(run_id, error)
        self.error = error

    def __str__(self) -> str:
        return f"run {self.run_id} failed: {self.error}"


class RunDeadlineError(RunFailedError):
    """The run met its own timeout."""


class RunCrashedError(RunFailedError):
    """Too many workers died while they executed this run."""


class RunCancelledError(RunError):
    """Somebody cancelled the run."""

    def __init__(self, run_id: UUID, reason: str | None = None) -> None:
        super().__init__(run_id, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"run {self.run_id} was cancelled" + (f": {self.reason}" if self.reason else "")


class ResultTimeoutError(RunError, TimeoutError):
    """The run had not ended when the time was up. It goes on."""

    def __init__(self, run_id: UUID, timeout_s: float, status: RunStatus | None = None) -> None:
        super().__init__(run_id, timeout_s, status)
        self.timeout_s = timeout_s
        self.status = status
        """None when the run was not seen: its transaction is open, or the database has not answered in time."""

    def __str__(self) -> str:
        if self.status is None:
            return (
                f"run {self.run_id} was not seen within {self.timeout_s:g} s:"
                " wait longer, or commit the transaction that starts it"
            )
        return f"run {self.run_id} is {self.status} after {self.timeout_s:g} s and goes on: wait longer or ask again"


# ------------------------------------------------------------------ raised into handlers


class StepError(KedgeError):
    """A step, wait or child of a run ended badly; the same live and on replay."""

    def __init__(self, run_id: UUID, key: str, error: ErrorInfo | None = None, *details: object) -> None:
        Exception.__init__(self, run_id, key, error, *details)
        self.run_id = run_id
        self.key = key
        self.error = error

    def __str__(self) -> str:
        return f"{self.key!r} of run {self.run_id} failed: {self.error}"


class StepFailedError(StepError):
    """A step used up its attempts, or raised an error that is not to be retried."""

    def __init__(self, run_id: UUID, key: str, error: ErrorInfo) -> None:
        super().__init__(run_id, key, error)
        self.error: ErrorInfo = error

    @property
    def attempts(self) -> int:
        """How many attempts were made."""
        return self.error.attempt or 1

    def __str__(self) -> str:
        attempts = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"step {self.key!r} of run {self.run_id} failed{attempts}: {self.error}"


class StepTimedOutError(StepFailedError, TimeoutError):
    """The last attempt of a step ran into its timeout."""


class WaitTimeoutError(StepError, TimeoutError):
    """A wait ended without an answer: its time or its attempts were up."""

    def __init__(self, run_id: UUID, key: str) -> None:
        Exception.__init__(self, run_id, key)
        self.run_id = run_id
        self.key = key
        self.error = None

    def __str__(self) -> str:
        return f"wait {self.key!r} of run {self.run_id} timed out: catch {type(self).__name__}, or give it more time"


class EventTimeoutError(WaitTimeoutError):
    """No event came in time. `wait_for(default=...)` answers instead of raising."""


class ChildFailedError(StepError):
    """A child run failed."""

    def __init__(self, run_id: UUID, key: str, child_id: UUID, error: ErrorInfo) -> None:
        Exception.__init__(self, run_id, key, child_id, error)
        self.run_id = run_id
        self.key = key
        self.child_id = child_id
        self.error: ErrorInfo = error

    def __str__(self) -> str:
        return f"child {self.key!r} ({self.child_id}) of run {self.run_id} failed: {self.error}"


class ChildCancelledError(StepError):
    """A child run was cancelled."""

    def __init__(self, run_id: UUID, key: str, child_id: UUID, reason: str | None = None) -> None:
        Exception.__init__(self, run_id, key, child_id, reason)
        self.run_id = run_id
        self.key = key
        self.error = None
        self.child_id = child_id
        self.reason = reason

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"child {self.key!r} ({self.child_id}) of run {self.run_id} was cancelled{reason}"


class TransactionFailedError(StepError):
    """The database refused a transactional step for good, by a constraint for example."""

    def __init__(self, run_id: UUID, key: str, error: ErrorInfo, sqlstate: str | None = None) -> None:
        super().__init__(run_id, key, error, sqlstate)
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        state = f" ({self.sqlstate})" if self.sqlstate else ""
        return f"transaction {self.key!r} of run {self.run_id} was refused{state}: {self.error}"


class HandlerUseError(KedgeError):
    """A mistake in a handler's code, raised at the call."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class NestedStepError(HandlerUseError):
    """The context was used inside a step's body."""


class WrongThreadError(HandlerUseError):
    """A SyncContext was used in another thread than its handler's."""


class ForeignTaskError(HandlerUseError):
    """The context was used in a task outside the run, or after the run's end."""


class RawTimeoutError(HandlerUseError):
    """A raw timeout stands around a durable wait and is longer than the limit: use `timeout=` of the wait."""


class ReplayMismatchError(KedgeError):
    """The handler asked for something else than what the journal holds. Never raised into a handler."""

    def __init__(self, run_id: UUID, problem: str) -> None:
        super().__init__(run_id, problem)
        self.run_id = run_id
        self.problem = problem

    def __str__(self) -> str:
        return f"run {self.run_id}: {self.problem}; it goes on after a deploy that asks for the same again"


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
class DomainError(KedgeError):
    """
    Base of errors that travel: from a step to its handler, from a child to its parent, from a run to `result()`.

    A subclass declares its fields like a dataclass, of types that can be payloads, and gets its constructor::

        class CardDeclined(DomainError):
            code: str

    Where it is listed in `raises=`, it is rebuilt as its class, from the fields alone.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Not eq: an exception is equal to itself only. Not repr: str() below is what people see.
        dataclasses.dataclass(eq=False, repr=False)(cls)
        for name in field_names(cls):
            if hasattr(BaseException, name):
                raise DefinitionError(f"{cls.__qualname__}.{name}: exceptions use this name; choose another one")

    def __str__(self) -> str:
        names = field_names(type(self))
        return ", ".join(f"{name}={getattr(self, name, None)!r}" for name in names) or super().__str__()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name, None)!r}" for name in field_names(type(self)))
        return f"{type(self).__qualname__}({fields})" if fields else super().__repr__()

    def __reduce__(self) -> tuple[Callable[..., DomainError], tuple[type[DomainError], dict[str, Any]]]:
        # Fields may be keyword-only and come with a constructor of the user's: neither is asked.
        return revive, (type(self), dict(self.__dict__))


Domain = TypeVar("Domain", bound=DomainError)


def field_names(cls: type[DomainError]) -> tuple[str, ...]:
    """Answer the declared fields of a DomainError's class."""
    # The base itself is no dataclass.
    return () if cls is DomainError else tuple(field.name for field in dataclasses.fields(cast("Any", cls)))


def revive(cls: type[Domain], values: dict[str, Any]) -> Domain:
    """Make a DomainError from its fields, without running its constructor."""
    error = cls.__new__(cls)
    error.__dict__.update(values)
    return error


# ------------------------------------------------------------------ the database


class DatabaseError(KedgeError):
    """The database did not do what it was asked for."""

    def __init__(self, problem: str, sqlstate: str | None = None) -> None:
        Exception.__init__(self, problem, sqlstate)
        self.problem = problem
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        return f"{self.problem} ({self.sqlstate})" if self.sqlstate else self.problem


class UnavailableError(DatabaseError, ConnectionError):
    """The database was not reached, or did nothing: repeating is safe."""


class OutcomeUnknownError(DatabaseError):
    """The database was asked to commit, did not answer, and repeating did not settle it."""


class TransactionStateError(DatabaseError):
    """The caller's transaction is lost: roll it back and repeat it."""


class SchemaError(DatabaseError):
    """The database's schema is missing, older or newer than this release."""

    def __init__(self, found: int, wanted: int, command: str) -> None:
        Exception.__init__(self, found, wanted, command)
        self.found = found
        """The schema's version; 0 when there is none."""
        self.wanted = wanted
        self.command = command
        """What to run or do."""
        self.sqlstate = None
        if found == wanted:
            self.problem = f"the schema is at version {found}, but its functions are those of another release"
        else:
            self.problem = f"the schema is {f'at version {found}' if found else 'missing'}, this release wants {wanted}"

    def __str__(self) -> str:
        return f"{self.problem}: {self.command}"


class PrivilegesError(DatabaseError):
    """The role may not do this."""
