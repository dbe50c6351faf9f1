"""
Runs that a run starts, and what it is told of their ends.

Rows: `n`, that a child was started (its id); `c`, or `f` of that operation, what became of it. Its end comes as mail
for the key of a wait, to whoever is noted as watching: in the flush of the start, else by a letter.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar
from uuid import UUID, uuid5

from kedge.errors import ChildCancelledError, ChildFailedError, ErrorInfo, NotDecodableError
from kedge.failures import decode_error, encode_error, kind_of
from kedge.refs import WorkflowRef
from kedge.start_terms import starts_alone
from kedge_worker._branches import operation
from kedge_worker._side_writes import CLOSE_WAITS, SEND_LETTERS
from kedge_worker._signals import ReplayMismatch
from kedge_worker._starting import ChildStart, Starting, encode_id
from kedge_worker._waits import KEY_SLOT, Kept, Wait

if TYPE_CHECKING:
    from kedge_worker._branches import Branch
    from kedge_worker._outcomes import Operation
    from kedge_worker._races import Race
    from kedge_worker._runs import Mail, MemoRow

Out_co = TypeVar("Out_co", covariant=True)

OnParentEnd: TypeAlias = Literal["abandon", "cancel"]
"""What becomes of a child when its parent ends, in whatever way: it goes on, or it is cancelled."""

START: Final = "/start"
"""Behind the key of a call: the key of its child's start. No id contains that sign."""
RESULT: Final = "/result"
"""Behind the key of a child's start: the key of its result."""

_CANCELLED: Final = kind_of(ChildCancelledError)
_FAILED: Final = kind_of(ChildFailedError)


class KnownCall(NamedTuple):
    """What the journal holds of a call."""

    child_id: UUID | None
    """None: nothing is started yet."""
    row: MemoRow | None
    """With which it ended."""
    of: Operation
    recall: Callable[[MemoRow], Any]


class StartedRun(Generic[Out_co]):
    """What a handler holds of a run that it has started."""

    __slots__ = ("_key", "_ref", "_results", "_run_id")

    def __init__(self, start: ChildStart, run_id: UUID) -> None:
        self._key = start.key
        self._ref: WorkflowRef[Any, Out_co] = start.request.ref
        self._run_id = run_id
        self._results = 0

    @property
    def run_id(self) -> UUID:
        """The child's id; if its key was taken, that of the run which holds it."""
        return self._run_id

    def _next_result(self) -> str:
        """The key of the next wait for its end."""
        self._results += 1
        return self._key + RESULT if self._results == 1 else f"{self._key}{RESULT}#{self._results}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._ref.qualified_name} {self._run_id}>"


class Child(StartedRun[Out_co]):
    """A run that `ctx.start` has started."""

    __slots__ = ("_children",)

    def __init__(self, start: ChildStart, run_id: UUID, children: Children) -> None:
        super().__init__(start, run_id)
        self._children = children

    def result(self) -> Coroutine[object, None, Out_co]:
        """
        Wait until the child has ended, and answer its result, as `ctx.call` does.

        Raises:
            ChildFailedError: It failed; `.error` says how.
            DomainError: It failed with one of the errors that its ref declares.
            ChildCancelledError: Somebody cancelled it.
            HandlerUseError: As in `ctx.sleep`.
        """
        branch = self._children.here()
        return self._children.result(self._next_result(), branch, self._run_id, self._ref)


class Children(Starting):
    """The coroutines behind what a context says of children."""

    __slots__ = ()

    # ---- what handlers ask for

    @operation
    async def start(self, start: ChildStart, branch: Branch) -> Child[Any]:
        """Start a child, now or in an earlier life."""
        execution = self._execution
        here = execution.enter()
        try:
            row = self.kept(start.key)
            if row is not None:
                child_id = await self._replay(row, "n", branch, here, functools.partial(self.recall_start, start))
            else:
                execution.begin_anew()
                child_id = await self.begin(start, branch)
            return Child(start, child_id, self)
        finally:
            execution.leave(here)

    @operation
    async def call(self, key: str, start: ChildStart, branch: Branch) -> Any:
        """Start a child and wait for its end."""
        execution = self._execution
        here = execution.enter()
        try:
            try:
                known = self.known_call(key, start)
            except ReplayMismatch as mismatch:
                self.mismatch(mismatch)
                raise
            if known.row is not None:
                if here.race is not None and known.row.kind != "x":
                    here.race.is_decided = True
                return await self._replay(known.row, known.of, branch, here, known.recall)
            if known.child_id is None:
                execution.begin_anew()
            else:
                execution.replaying = False
            return await self.end_of_call(key, start, branch, known.child_id, here.race)
        finally:
            execution.leave(here)

    @operation
    async def result(self, key: str, branch: Branch, child_id: UUID, ref: WorkflowRef[Any, Any]) -> Any:
        """Wait for the end of a child that was started before."""
        execution = self._execution
        here = execution.enter()
        try:
            if (row := self.kept(key)) is not None:
                if here.race is not None and row.kind != "x":
                    here.race.is_decided = True
                return await self._replay(row, "c", branch, here, self.recall_end(child_id, ref))
            execution.begin_anew()
            return await self.end(key, branch, child_id, ref, race=here.race)
        finally:
            execution.leave(here)

    def here(self) -> Branch:
        """The branch that asks; raises as `Execution.here` does."""
        return self._execution.here()

    # ---- what earlier lives know

    def known_call(self, key: str, start: ChildStart) -> KnownCall:
        """
        Answer what is known of a call. Of its start nobody but its end tells, so that need not wait for its turn.

        Raises:
            ReplayMismatch: Another child was started in its place.
        """
        row, began = self.kept(key), self.kept(start.key)
        child_id = None
        if began is not None and began.kind == "n":
            child_id = self.recall_start(start, began)
            self.pass_over(began)
            began = None
        if row is not None or began is None:
            return KnownCall(child_id, row, "c", self.recall_end(child_id, start.request.ref))
        return KnownCall(None, began, "n", functools.partial(self.recall_start, start))

    def recall_end(self, child_id: UUID | None, ref: WorkflowRef[Any, Any]) -> Callable[[MemoRow], Any]:
        """What the handler gets of a child's end: its result, or what became of it instead."""
        run_id = self._execution.run.claimed.id
        child = child_id or run_id  # there is no end without a start

        def recall(row: MemoRow) -> Any:
            if row.kind == "f":
                info = decode_error(row.value)
                if info.kind == _CANCELLED:
                    raise ChildCancelledError(run_id, row.key, child, info.message or None)
                error = info.cause or info
                raise ref.domain_error(error) or ChildFailedError(run_id, row.key, child, error)
            try:
                return ref.decode_output(row.value)
            except NotDecodableError as error:
                raise ReplayMismatch(f"{row.key!r}: {error}") from None

        return recall

    # ---- an end

    async def end_of_call(
        self, key: str, start: ChildStart, branch: Branch, child_id: UUID | None, race: Race | None = None
    ) -> Any:
        """Start the child, unless it is, and answer its result."""
        if child_id is not None:
            return await self.end(key, branch, child_id, start.request.ref, race=race)
        if starts_alone(start.request):
            child_id = await self.begin_alone(start, branch, self.gate_opens())
            return await self.end(key, branch, child_id, start.request.ref, race=race)
        try:
            await self.gate_opens()
        except asyncio.CancelledError:
            await self._interrupted("n", start.key, branch)
            raise
        child_id = self.begin_with_row(start, branch, watched=key)
        return await self.end(key, branch, child_id, start.request.ref, race=race, is_watched=True)

    async def end(
        self,
        key: str,
        branch: Branch,
        child_id: UUID,
        ref: WorkflowRef[Any, Any],
        *,
        race: Race | None = None,
        is_watched: bool = False,
    ) -> Any:
        """Wait for a child's end and answer its result, or raise what became of it instead."""
        if not is_watched:
            self.watch(key, child_id)
        wait = self.end_wait(key, child_id, is_new=is_watched)
        wait.race = race
        served = await self.serve(wait, "c", branch)
        return self.outcome(served, key, self.recall_end(child_id, ref))

    def watch(self, key: str, child_id: UUID) -> None:
        """
        Ask to be told of the end, or to be told again of one that was missed. A wait that earlier lives of this
        attempt have stored has asked already.
        """
        execution = self._execution
        if execution.open_waits().stored(key) is None:
            run_id = execution.run.claimed.id
            letter = uuid5(run_id, f"{key}/{execution.run.claimed.epoch}")
            execution.journal.add(
                execution.run, SEND_LETTERS, "w", child_id.bytes, letter.bytes, KEY_SLOT + key, None, run_id.bytes, None
            )

    def end_wait(
        self, key: str, child_id: UUID, *, is_new: bool = False, need: int = 0, group_key: str | None = None
    ) -> Wait:
        """A wait for a child's end; of a new child nothing can have come yet."""
        wait = Wait(
            "c",
            key,
            read=functools.partial(_read_end, child_id, key),
            time_up=lambda: None,
            need=need,
            group_key=group_key,
            state=encode_id(child_id),
        )
        wait.looked = is_new
        return wait

    def close_wait(self, key: str) -> None:
        """Nobody waits any more for what is stored."""
        self._execution.journal.add(self._execution.run, CLOSE_WAITS, key)

    async def interrupted(self, key: str, branch: Branch) -> None:
        """Keep that the handler's own code cancelled what waits for ends."""
        await self._interrupted("c", key, branch)


def _read_end(child_id: UUID, key: str, mail: Mail) -> Kept:
    """What the letter of a child's end becomes: one byte says how it ended."""
    status, payload = bytes(mail.payload[:1]), bytes(mail.payload[1:])
    if status == b"c":
        return Kept("c", payload, "c")
    if status == b"x":
        info = ErrorInfo(_CANCELLED, payload.decode("utf-8", "replace"), key)
    else:
        cause = decode_error(payload)
        info = ErrorInfo(_FAILED, f"run {child_id} failed: {cause}", key, cause=cause)
    return Kept("f", encode_error(info), "c")
