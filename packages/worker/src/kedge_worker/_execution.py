"""One run while its handler is executed here: what its contexts and the executor share of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import msgspec

from kedge.errors import (
    ErrorInfo,
    NotDecodableError,
    NotEncodableError,
    PayloadError,
    StepFailedError,
    TooLargeError,
    TransactionFailedError,
)
from kedge.failures import decode_error, describe_error, domain_error, encode_error, kind_of
from kedge.result_types import check_plain
from kedge.wire import encode
from kedge_worker._branches import Branch, BranchTasks, RunBranches
from kedge_worker._memo import Memo, RowMeta
from kedge_worker._outcomes import Outcome
from kedge_worker._run_clock import RunClock
from kedge_worker._runs import Journal, LiveRun, MemoRow, Transactions
from kedge_worker._signals import ClosedError, LeaseLostError, ReplayMismatch
from kedge_worker._turns import COMMITTED, Turns

if TYPE_CHECKING:
    from kedge_worker._definitions import StepDefinition
    from kedge_worker._threads import Threads

Operation: TypeAlias = Literal["s", "t"]
_NAMES: Final[dict[str, str]] = {"s": "a step", "t": "a transaction"}

# In an error's data. No field of a DomainError can have this name, for exceptions have it.
_ARGUMENTS: Final = "args"

# Of values that could not be kept: these are raised again as themselves, which the failure of a body is not.
_PAYLOAD_ERRORS: Final[dict[str, type[PayloadError]]] = {
    kind_of(cls): cls for cls in (NotEncodableError, NotDecodableError, TooLargeError)
}


class Owner(Protocol):
    """What an execution tells its executor."""

    def stopped(self, execution: Execution, /) -> None:
        """Something else than the handler's own end decided; called once."""
        ...

    def threads_ended(self, execution: Execution, /) -> None:
        """The last body in a thread has ended, after the execution was closed."""
        ...


class Execution:
    """Open until its outcome is decided; closed, nothing new begins and nothing more reaches the handler."""

    __slots__ = (
        "branches",
        "clock",
        "closed",
        "in_threads",
        "interrupt",
        "journal",
        "loop",
        "memo",
        "moved",
        "noticed",
        "outcome",
        "owner",
        "replaying",
        "run",
        "settled",
        "started",
        "task",
        "tasks",
        "threads",
        "transactions",
    )

    def __init__(
        self,
        run: LiveRun,
        *,
        journal: Journal,
        transactions: Transactions,
        threads: Threads,
        tasks: BranchTasks,
        owner: Owner,
    ) -> None:
        self.run = run
        self.journal = journal
        self.transactions = transactions
        self.threads = threads
        self.tasks = tasks
        self.loop = tasks.loop
        self.owner = owner
        self.branches = RunBranches(self._make_turns)
        self.memo = Memo(run.claimed.memo) if run.claimed.memo else None
        self.replaying = self.memo is not None
        """Until the first operation that earlier lives do not know."""
        self.closed = False
        self.outcome: Outcome | None = None
        """Decided from outside, or by a mismatch. None: the handler decides, or the lease is lost."""
        self.noticed = False
        """The handler has met the closed context: what it returns or raises after that does not count."""
        self.moved = False
        """The run's move is queued: nothing may be kept any more."""
        self.settled = False
        """The move is stored, although the handler has not ended yet."""
        self.in_threads = 0
        """Bodies that run in threads: they cannot be stopped."""
        self.task: asyncio.Task[None] | None = None
        """The root's: it ends with the handler."""
        self.interrupt: Callable[[], object] = _nothing
        """Make the handler notice that it is closed."""
        self.clock: RunClock | None = None
        self.started = time.monotonic()

    # ---- its end

    def stop(self, outcome: Outcome | None) -> None:
        """Close, and make the handler unwind. None: the lease is lost. The first reason counts."""
        if not self.closed:
            self.outcome = outcome
            self.close()
            self.owner.stopped(self)

    def close(self) -> None:
        self.closed = True
        if self.branches.turns is not None:
            self.branches.turns.close()

    def lose(self) -> LeaseLostError:
        self.run.lost = True
        self.stop(None)
        return LeaseLostError()

    # ---- operations

    def here(self) -> Branch:
        """
        The branch that asks, which no operation is under way in.

        Raises:
            ClosedError: The run leaves.
            HandlerUseError: The task is no branch of this run, or is inside a step's body.
        """
        here = self.tasks.here(self.branches)
        if self.closed:
            raise ClosedError
        return here

    def enter(self) -> Branch:
        """Begin an operation in the calling task; raises as `here` does."""
        branches = self.branches
        here = self.here()
        here.busy = True
        if branches.others and here.task is not None:
            branches.loose.discard(here.task)
            if branches.turns is not None:
                branches.turns.nudge()
        return here

    def leave(self, here: Branch) -> None:
        here.busy = False
        if self.branches.others and here.task is not None:
            self.branches.loose.add(here.task)

    async def take_turn(self, place: int, *, insist: bool = False) -> None:
        """
        Return when the next outcome may be kept and handed out; the caller does so without awaiting anything.

        With `insist` also if somebody cancels the task meanwhile, or once more.
        """
        branches, run = self.branches, self.run
        while True:
            if branches.others and branches.turns is not None:
                await branches.turns.take(place, insist=insist)
            # What is committed has its seq, below that of the transaction which holds the gate now.
            if run.gate is None or place <= COMMITTED:
                break
            try:
                await run.gate.wait()
            except asyncio.CancelledError:
                if self.closed or not insist:
                    raise

    def may_keep(self) -> bool:
        """Whether a closed run still takes an outcome, so that its body need not run again elsewhere."""
        return not self.moved and not self.run.lost and self.run.gate is None

    def thread_ended(self) -> None:
        self.in_threads -= 1
        if self.in_threads == 0 and self.closed:
            self.owner.threads_ended(self)

    async def barrier(self) -> None:
        """Return when everything that the run has queued is stored: only then may a body begin."""
        run = self.run
        while (batch := run.batch) is not None and not batch.stored:
            try:
                await self.journal.durable(run)
            except LeaseLostError:
                raise self.lose() from None
        if run.lost:
            raise self.lose()
        if self.closed:
            raise ClosedError

    def keep(
        self, kind: Literal["s", "f", "x"], operation: Operation, key: str, branch: Branch, value: bytes, took_ms: int
    ) -> None:
        """Queue an outcome. The gate is open, and it is this outcome's turn."""
        if self.run.lost:
            raise self.lose()
        branch.last = key
        nows = self.clock.take_pending() if self.clock is not None else None
        if kind == "s" and not nows:
            self.journal.keep(self.run, "s", key, value, took_ms=took_ms)
        else:
            meta = RowMeta(operation if kind != "s" else "s", nows or {}).encode()
            self.journal.keep(self.run, kind, key, value, took_ms=took_ms, meta=meta)

    # ---- values and errors

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

    def failure(
        self, error: BaseException, operation: Operation, key: str, definition: StepDefinition, *, of_value: bool
    ) -> tuple[bytes, Exception]:
        """
        Answer what is kept of an error, and what the handler gets for it, now and on replay.

        With `of_value` the body went well, and its value cannot be kept.
        """
        info = describe_error(error, key=key, attempt=1)
        if of_value:
            info = _with_arguments(info, *error.args)
        elif operation == "t" and info.data is None and hasattr(error, "sqlstate"):
            # psycopg's error: that package is not known here.
            info = _with_arguments(info, getattr(error, "sqlstate", None))
        return encode_error(info), self.rebuilt(info, key, definition)

    def rebuilt(self, info: ErrorInfo, key: str, definition: StepDefinition) -> Exception:
        """Make the error that the handler gets of what is kept."""
        run_id, data = self.run.claimed.id, info.data
        if data is None:
            return StepFailedError(run_id, key, info)
        arguments = data.get(_ARGUMENTS)
        if arguments is None:
            return domain_error(info, definition.raises) or StepFailedError(run_id, key, info)
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

    def _make_turns(self, branches: RunBranches) -> Turns:
        return Turns(self.run.claimed.id, branches.loose, self.memo, self.tasks.rounds, self.loop)


def _nothing() -> None:
    pass


def _with_arguments(info: ErrorInfo, *arguments: object) -> ErrorInfo:
    return msgspec.structs.replace(info, data={_ARGUMENTS: list(arguments)})
