"""
How a child is started: in the flush that keeps its row, so that stored once is started once, and a replay starts none.

A child with a key or singleton may have to wait for others: it is started by itself, between a wait of kind `n`, which
holds its id, and its row.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from uuid import UUID

from kedge.errors import (
    ErrorInfo,
    HandlerUseError,
    InputConflictError,
    InvalidOptionError,
    NotDecodableError,
    RunActiveError,
    RunExistsError,
    StepFailedError,
)
from kedge.failures import decode_error, describe_error, encode_error, kind_of
from kedge.ids import new_run_id
from kedge.refs import RunRequest, WorkflowRef
from kedge.shown import shown
from kedge.start_terms import child_start_terms, child_terms, starts_alone
from kedge.wire import decoder, encode
from kedge_worker._memo import RowMeta
from kedge_worker._operations import Operations
from kedge_worker._side_writes import CLOSE_WAITS, OPEN_WAITS, START_CHILDREN
from kedge_worker._signals import ClosedError, LeaseLostError, ReplayMismatch
from kedge_worker._turns import LIVE

if TYPE_CHECKING:
    from kedge_worker._branches import Branch
    from kedge_worker._runs import MemoRow, Started

_CONFLICTS: Final[dict[str, type[RunExistsError]]] = {
    "exists": RunExistsError,
    "input": InputConflictError,
    "active": RunActiveError,
}
_REFUSALS: Final = {kind_of(cls): cls for cls in _CONFLICTS.values()}
_decode_text: Final = decoder(str)


class ChildStart(NamedTuple):
    """A start that a handler asks for."""

    key: str
    """Of its row."""
    request: RunRequest[Any]
    is_dependent: bool


def child_start(key: str, request: object, on_parent_end: object = "abandon") -> ChildStart:
    """
    Check what a handler asks for.

    Raises:
        HandlerUseError: It is no request.
        InvalidOptionError: There is no such policy.
    """
    if not isinstance(request, RunRequest):
        advice = "call a ref with the input, as in process_order(order)"
        if isinstance(getattr(request, "ref", request), WorkflowRef):
            advice = "call the ref with the input; of a handler that is its .ref"
        raise HandlerUseError(f"{shown(request)} is no request: {advice}")
    if on_parent_end not in ("abandon", "cancel"):
        raise InvalidOptionError(f"on_parent_end={shown(on_parent_end)}: give 'abandon' or 'cancel'")
    return ChildStart(key, request, on_parent_end == "cancel")


class Starting(Operations):
    """The part of what a context says of children that ends with their starts."""

    __slots__ = ()

    def kept(self, key: str) -> MemoRow | None:
        memo = self._execution.memo
        return None if memo is None else memo.get(key)

    async def begin(self, start: ChildStart, branch: Branch) -> UUID:
        """
        Start a child of which the handler is told; answers its id.

        Raises:
            RunExistsError: Its key is taken, and the request says to raise. Kept like a value.
        """
        execution = self._execution
        if starts_alone(start.request):
            return await self.begin_alone(start, branch, execution.take_turn(LIVE))
        try:
            await execution.take_turn(LIVE)
        except asyncio.CancelledError:
            await self._interrupted("n", start.key, branch)
            raise
        if execution.closed:
            raise ClosedError
        return self.begin_with_row(start, branch)

    def begin_with_row(self, start: ChildStart, branch: Branch, watched: str | None = None) -> UUID:
        """Queue a start with its row; the gate is open. The wait with the key `watched` is told of the child's end."""
        execution = self._execution
        run = execution.run
        child_id = new_run_id()
        terms = child_terms(start.request, resource=run.claimed.resource, priority=-run.claimed.rank)
        seq = run.next_seq
        self._keep_start(start, branch, child_id)
        execution.journal.add(
            run,
            START_CHILDREN,
            seq,
            watched or "",
            child_id.bytes,
            *terms,
            start.is_dependent,
            watched is not None,
            size=400 + len(terms.input) + len(terms.meta),
        )
        return child_id

    def intend(self, start: ChildStart) -> UUID:
        """Queue what says under which id a child will be started alone; answers it, or that of an earlier life."""
        execution = self._execution
        execution.check_wait(start.key, "n", None)
        stored = execution.open_waits().stored(start.key)
        if stored is not None:
            return UUID(_decode_text(stored.state, where=start.key))
        child_id = new_run_id()
        state = encode_id(child_id)
        execution.journal.add(
            execution.run, OPEN_WAITS, start.key, "n", None, None, None, None, 0, 0, None, state, size=200
        )
        return child_id

    async def begin_alone(self, start: ChildStart, branch: Branch, may_keep: Coroutine[Any, Any, object]) -> UUID:
        """
        Start a child in a transaction of its own, which may have to wait; answers whose run holds its key.

        `may_keep` returns when the row of the start may be kept.
        """
        with contextlib.closing(may_keep):
            try:
                answer = await self.ask_alone(start, self.intend(start))
                if isinstance(answer, UUID):
                    await may_keep
            except asyncio.CancelledError:
                await self._interrupted("n", start.key, branch)
                raise
        if self._execution.closed:
            raise ClosedError
        if isinstance(answer, ErrorInfo):
            return await self.refuse(start, branch, answer)
        self.keep_alone(start, branch, answer)
        return answer

    async def ask_alone(self, start: ChildStart, child_id: UUID) -> UUID | ErrorInfo:
        """Start a child alone, and keep nothing of that yet; answers whose run holds its key, or what is wrong."""
        execution = self._execution
        claimed = execution.run.claimed
        terms = child_start_terms(start.request, resource=claimed.resource, priority=-claimed.rank)
        await execution.barrier()
        try:
            answer = await execution.child_starts.start(execution.run, child_id, terms, is_dependent=start.is_dependent)
        except LeaseLostError:
            raise execution.lose() from None
        except Exception as error:  # noqa: BLE001  # the database's: it refuses the child for good
            return describe_error(error, key=start.key)
        if answer.conflict is None:
            return answer.run_id
        return _refused(start, child_id, answer)

    def keep_alone(self, start: ChildStart, branch: Branch, child_id: UUID) -> None:
        """Keep that a child was started alone."""
        self._keep_start(start, branch, child_id)
        self._close_intent(start)

    async def refuse(self, start: ChildStart, branch: Branch, info: ErrorInfo) -> NoReturn:
        """Keep that a child was not started, and raise it."""
        close = functools.partial(self._close_intent, start)
        await self._keep_in_turn("f", "n", start.key, branch, encode_error(info), 0, beside=close)
        raise self._refusal(info, start.key)

    def _keep_start(self, start: ChildStart, branch: Branch, child_id: UUID) -> None:
        self._execution.keep("n", "n", start.key, branch, encode_id(child_id), 0, inputs=_mark(start.request))

    def _close_intent(self, start: ChildStart) -> None:
        self._execution.journal.add(self._execution.run, CLOSE_WAITS, start.key)

    def _refusal(self, info: ErrorInfo, key: str) -> Exception:
        data, cls = info.data or {}, _REFUSALS.get(info.kind)
        if cls is None or not data:
            return StepFailedError(self._execution.run.claimed.id, key, info)
        return cls(UUID(data["run_id"]), UUID(data["existing_id"]), data["workflow"], data["key"])

    def recall_start(self, start: ChildStart, row: MemoRow) -> UUID:
        """
        Answer the child's id, or raise what its start was refused with.

        Raises:
            ReplayMismatch: Another child was started.
        """
        if row.kind == "f":
            raise self._refusal(decode_error(row.value), row.key)
        workflow, digest = _mark(start.request)
        kept = RowMeta.decode(row.meta).inputs if row.kind == "n" and row.meta else ()
        if kept and kept[0] != workflow:
            raise ReplayMismatch(
                f"{row.key!r} has started workflow {kept[0].decode()!r} (seq {row.seq}), and starts "
                f"{workflow.decode()!r} in the code"
            )
        # Of another type's input a hash says nothing.
        if kept and kept[1] != digest and kept[1][:8] == digest[:8]:
            raise ReplayMismatch(
                f"{row.key!r} has started {workflow.decode()!r} with another input (seq {row.seq}, hash "
                f"{kept[1][8:].hex()}) than the code gives it now ({digest[8:].hex()})"
            )
        try:
            return UUID(_decode_text(row.value, where=f"child {row.key!r}"))
        except (NotDecodableError, ValueError) as error:
            raise ReplayMismatch(f"{row.key!r}: {error}") from None

    def pass_over(self, row: MemoRow) -> None:
        """Nobody is told of this outcome by itself."""
        execution = self._execution
        assert execution.memo is not None  # noqa: S101  # the row came from it
        execution.check_row(row, "c" if row.kind == "c" else "n")
        execution.memo.hand_out(row)

    async def gate_opens(self) -> None:
        """Return when outcomes may be kept."""
        while (gate := self._execution.run.gate) is not None:
            await gate.wait()
        if self._execution.closed:
            raise ClosedError


def _refused(start: ChildStart, child_id: UUID, answer: Started) -> ErrorInfo:
    cls = _CONFLICTS.get(answer.conflict or "", RunExistsError)
    error = cls(child_id, answer.run_id, start.request.ref.name, start.request.key or "")
    data = {
        "run_id": str(child_id),
        "existing_id": str(answer.run_id),
        "workflow": error.workflow,
        "key": error.key,
    }
    return ErrorInfo(kind_of(cls), str(error), start.key, data=data)


def _mark(request: RunRequest[Any]) -> tuple[bytes, bytes]:
    """By which a replay knows the child again: its workflow; its input's type and hash, 8 bytes of each."""
    return request.ref.qualified_name.encode(), request.key_hash[:16]


def encode_id(child_id: UUID) -> bytes:
    """What stands in rows and waits of a child."""
    return encode(str(child_id), where="a child's id")
