"""What a run's operations answer, as bytes and back: values, errors, and whether a row is what the code asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from kedge.errors import (
    ErrorInfo,
    NotDecodableError,
    NotEncodableError,
    PayloadError,
    StepFailedError,
    StepTimedOutError,
    TooLargeError,
    TransactionFailedError,
    WaitTimeoutError,
)
from kedge.failures import decode_error, describe_error, domain_error, kind_of
from kedge.hashes import argument_hashes
from kedge.result_types import check_plain
from kedge.wire import encode
from kedge_worker._memo import RowMeta
from kedge_worker._signals import ReplayMismatch
from kedge_worker._time_ups import PollTimeUp, StepTimeUp, TimeUp

if TYPE_CHECKING:
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._outcomes import Operation
    from kedge_worker._runs import LiveRun, MemoRow

_NAMES: Final[dict[str, str]] = {
    "s": "a step",
    "t": "a transaction",
    "e": "a wait for an event",
    "d": "a sleep",
    "p": "a poll",
    "u": "a pause",
    "c": "a child's result",
    "n": "a child's start",
    "m": "a send",
    "o": "a first of several",
}

# In an error's data. No field of a DomainError can have this name, for exceptions have it.
_ARGUMENTS: Final = "args"

# Of values that could not be kept: these are raised again as themselves, which the failure of a body is not.
_PAYLOAD_ERRORS: Final[dict[str, type[PayloadError]]] = {
    kind_of(cls): cls for cls in (NotEncodableError, NotDecodableError, TooLargeError)
}


class KeptValues:
    """The part of an execution that knows what is kept, and neither when nor whether."""

    __slots__ = ("run",)

    def __init__(self, run: LiveRun) -> None:
        self.run = run

    def encode(self, definition: StepDefinition, key: str, value: object) -> tuple[bytes, Any]:
        """
        Answer the value's bytes, and the value as every reader of them gets it.

        Raises:
            PayloadError: It cannot be kept, or not be read back by the type it is promised to have.
        """
        where = f"step {key!r}"
        if not definition.is_typed:
            check_plain(value, where=where)
        data = encode(value, where=where)
        return data, value if type(value) is definition.same else definition.decode(data, where=where)

    def describe(
        self, error: BaseException, operation: Operation, key: str, *, attempt: int, of_value: bool = False
    ) -> ErrorInfo:
        """
        Answer what is kept of an error.

        Args:
            error: What the body raised, or what the engine has made of its time.
            operation: What it failed in.
            key: Of that.
            attempt: How many attempts were made.
            of_value: The body went well, and its value cannot be kept.
        """
        info = describe_error(error, key=key, attempt=attempt)
        if of_value:
            return _with_arguments(info, *error.args)
        if issubclass(type(error), TimeUp):
            kept_as = cast("TimeUp", error).kept_as
            return _with_arguments(msgspec.structs.replace(info, kind=kept_as, traceback=None))
        if operation == "t" and info.data is None and hasattr(type(error), "sqlstate"):
            # psycopg's error: that package is not known here.
            state = getattr(error, "sqlstate", None)
            return _with_arguments(info, state if isinstance(state, str) else None)
        return info

    def rebuilt(self, info: ErrorInfo, key: str, definition: StepDefinition) -> Exception:
        """Make the error that the handler gets of what is kept, now and on replay."""
        run_id, data = self.run.claimed.id, info.data
        arguments = None if data is None else data.get(_ARGUMENTS)
        if arguments is None:
            return domain_error(info, definition.raises) or StepFailedError(run_id, key, info)
        if info.kind == StepTimeUp.kept_as:
            return StepTimedOutError(run_id, key, info)
        if info.kind == PollTimeUp.kept_as:
            return WaitTimeoutError(run_id, key)
        payload_error = _PAYLOAD_ERRORS.get(info.kind)
        return payload_error(*arguments) if payload_error else TransactionFailedError(run_id, key, info, *arguments)

    def recall(self, row: MemoRow, definition: StepDefinition) -> Any:
        """
        Answer the kept value, or raise the kept error.

        Raises:
            ReplayMismatch: The kept value is of a type that the code no longer has.
        """
        if row.kind == "f":
            raise self.rebuilt(decode_error(row.value), row.key, definition)
        try:
            return definition.decode(row.value, where=f"step {row.key!r}")
        except NotDecodableError as error:
            raise ReplayMismatch(f"the kept value of {error}") from None

    def recall_with(self, definition: StepDefinition, args: tuple[Any, ...]) -> Callable[[MemoRow], Any]:
        """How a step is recalled whose arguments must be those that it was called with."""

        def recall(row: MemoRow) -> Any:
            self.check_inputs(row, args)
            return self.recall(row, definition)

        return recall

    def check_row(self, row: MemoRow, operation: Operation) -> None:
        """
        Refuse a row that another operation has left.

        Raises:
            ReplayMismatch: The code asks for something else than the journal holds.
        """
        kept = RowMeta.decode(row.meta).operation if row.kind in ("f", "x") else row.kind
        if kept != operation:
            found = _NAMES.get(kept, f"of kind {kept!r}")
            raise ReplayMismatch(
                f"{row.key!r} is {found} in the journal (seq {row.seq}), and {_NAMES[operation]} in the code"
            )

    def check_inputs(self, row: MemoRow, args: tuple[Any, ...]) -> None:
        """
        Refuse a row of a step that was called with other arguments, as far as hashes of these are kept.

        Raises:
            ReplayMismatch: The code passes something else now.
        """
        kept = RowMeta.decode(row.meta).inputs if row.meta else ()
        if not kept:
            return
        found = argument_hashes(args)
        if len(kept) != len(found):
            raise ReplayMismatch(
                f"{row.key!r} was called with {len(kept)} arguments (seq {row.seq}), and with {len(found)} in the code"
            )
        others = [str(place) for place, (one, two) in enumerate(zip(kept, found, strict=True), 1) if one and two != one]
        if others:
            raise ReplayMismatch(
                f"{row.key!r} was called with another argument {' and '.join(others)} (seq {row.seq}) than in the code"
            )


def _with_arguments(info: ErrorInfo, *arguments: object) -> ErrorInfo:
    return msgspec.structs.replace(info, data={_ARGUMENTS: list(arguments)})
