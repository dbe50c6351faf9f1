"""What an async handler is given: operations, each of which is done once and then remembered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, TypeVarTuple, cast, overload
from uuid import UUID

import kedge_worker._racing as racing
import kedge_worker._sending as letters
import kedge_worker._waiting as waiting
from kedge.durations import Duration
from kedge.event_refs import EventMessage, EventRef
from kedge.result_types import MISSING
from kedge_worker._bodies import Bodies
from kedge_worker._operations import Never
from kedge_worker._signals import StubbornHandler

if TYPE_CHECKING:
    from kedge_worker._branches import Branch

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
E = TypeVar("E")
T = TypeVar("T")
P = TypeVar("P")
D = TypeVar("D")
Ts = TypeVarTuple("Ts")


# What they return is typed Coroutine[object, None, T] and not [Any, Any, T]: with Any in it, mypy cannot choose between
# the overloads of asyncio.gather, and answers Any.


class Context(Bodies):
    """
    The durable operations of an async handler.

    They are plain functions that return a coroutine: the key of an operation is taken when it is *called*, so that
    `gather(*(ctx.step("f", fetch, url) for url in urls))` numbers in the order of the program.

    Source: docs/explanation/concepts.md, keys and branches.
    """

    __slots__ = ()

    def sleep(self, step_id: str, duration: Duration, /) -> Coroutine[object, None, None]:
        """
        Wait for a time that is counted and kept by the database: it passes once, whatever happens to workers.

        Args:
            step_id: As in `step`.
            duration: `timedelta`, seconds, or text such as "2 days 12 hours"; of no length it ends at once.

        Raises:
            InvalidDurationError: It is no duration; the message shows the accepted forms.
            HandlerUseError: As in `step`.
            RawTimeoutError: A raw timeout of more than five minutes is open around it.
        """
        branch = self._here()
        return self._operations.wait(waiting.sleep(branch.key(step_id), duration), "d", branch, waiting.no_value)

    def sleep_until(self, step_id: str, when: datetime, /) -> Coroutine[object, None, None]:
        """
        Wait until a moment of the database's clock; one that has passed ends at once.

        Args:
            step_id: As in `step`.
            when: With a time zone.

        Raises:
            InvalidOptionError: It has no time zone.
            HandlerUseError: As in `sleep`.
        """
        branch = self._here()
        return self._operations.wait(waiting.sleep_until(branch.key(step_id), when), "d", branch, waiting.no_value)

    @overload
    def wait_for(
        self, step_id: str, event: EventRef[P], /, *, topic: str | None = None, timeout: Duration | None = None
    ) -> Coroutine[object, None, P]: ...
    @overload
    def wait_for(
        self, step_id: str, event: EventRef[P], /, *, topic: str | None = None, timeout: Duration | None, default: D
    ) -> Coroutine[object, None, P | D]: ...
    def wait_for(
        self,
        step_id: str,
        event: EventRef[Any],
        /,
        *,
        topic: str | None = None,
        timeout: Duration | None = None,
        default: Any = MISSING,
    ) -> Coroutine[object, None, Any]:
        """
        Wait for an event that is sent to this run, and answer its payload.

        An event that came before is kept; of several the oldest is taken, each by one wait.

        Args:
            step_id: As in `step`.
            event: Its ref.
            topic: Take what is sent to this topic while the wait is open, and nothing that is sent to the run.
            timeout: Counted and kept by the database; zero takes only what is there. None: as long as it takes.
            default: What to answer when the time is up, instead of raising.

        Raises:
            EventTimeoutError: None came in time.
            InvalidDurationError: The timeout is no duration.
            InvalidNameError: The topic cannot be one.
            HandlerUseError: As in `sleep`.
        """
        branch = self._here()
        wait = waiting.event(self._execution, branch.key(step_id), event, topic=topic, timeout=timeout)
        return self._operations.wait(wait, "e", branch, waiting.event_payload(self._execution, event, default))

    def pause(self, step_id: str, /) -> Coroutine[object, None, None]:
        """
        Wait until somebody calls `client.resume`, however long that takes. Other branches of the run go on.

        Args:
            step_id: As in `step`.

        Raises:
            HandlerUseError: As in `sleep`.
        """
        branch = self._here()
        return self._operations.wait(waiting.pause(branch.key(step_id)), "u", branch, waiting.no_value)

    @overload
    def first(
        self, step_id: str, a: Awaitable[A], b: Awaitable[B], /
    ) -> Coroutine[object, None, tuple[Literal[0], A] | tuple[Literal[1], B]]: ...
    @overload
    def first(
        self, step_id: str, a: Awaitable[A], b: Awaitable[B], c: Awaitable[C], /
    ) -> Coroutine[object, None, tuple[Literal[0], A] | tuple[Literal[1], B] | tuple[Literal[2], C]]: ...
    @overload
    def first(
        self, step_id: str, a: Awaitable[A], b: Awaitable[B], c: Awaitable[C], d: Awaitable[D], /
    ) -> Coroutine[
        object, None, tuple[Literal[0], A] | tuple[Literal[1], B] | tuple[Literal[2], C] | tuple[Literal[3], D]
    ]: ...
    @overload
    def first(
        self, step_id: str, a: Awaitable[A], b: Awaitable[B], c: Awaitable[C], d: Awaitable[D], e: Awaitable[E], /
    ) -> Coroutine[
        object,
        None,
        tuple[Literal[0], A]
        | tuple[Literal[1], B]
        | tuple[Literal[2], C]
        | tuple[Literal[3], D]
        | tuple[Literal[4], E],
    ]: ...
    def first(self, step_id: str, /, *branches: Awaitable[Any]) -> Any:
        """
        Run several at once until one of them has ended, and answer which, and its value; the others are cancelled.

        ::

            match await ctx.first("answer", ctx.wait_for("yes", approved), ctx.sleep("late", "3 days")):
                case 0, approval: ...
                case 1, _: ...

        Of two waits only one takes its event: what the others would have taken is kept for later waits. What the winner
        raises is raised here.

        Args:
            step_id: As in `step`.
            branches: Two to five operations of this context, or calls of async functions that use it.

        Raises:
            HandlerUseError: As in `step`, or there are too few, or too many of them.
        """
        racing.check_branches(branches)
        branch = self._here()
        if self._execution.is_hopeless:
            racing.discard(branches)
            return Never().wait()
        return racing.first(self._operations, self._execution, branch.key(step_id), branch, branches)

    def send(
        self, step_id: str, event: EventMessage, /, *, run: UUID | str | None = None, topic: str | None = None
    ) -> Coroutine[object, None, None]:
        """
        Send an event to another run, or to a topic: once, whatever happens to this run.

        Nobody is told whether the run is there, or still is: a letter to a run that has ended is dropped.

        Args:
            step_id: As in `step`.
            event: ref(payload).
            run: To whom; it is kept until that run waits for it.
            topic: To every run that waits for it then.

        Raises:
            InvalidOptionError: Neither or both of run and topic are given, or it is no id of a run.
            HandlerUseError: As in `step`.
        """
        branch = self._here()
        key = branch.key(step_id)
        letter, size = letters.event_letter(self.run_id, key, event, run=run, topic=topic)
        return self._operations.send(key, branch, letter, size)

    def branch(self, name: str, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts) -> Coroutine[object, None, T]:
        """
        Run a part of the handler as a branch with a name: its keys begin with `name/`, whatever tasks were made before.

        For what runs concurrently and must survive changes of the code around it::

            await asyncio.gather(ctx.branch("left", work, 1), ctx.branch("right", work, 2))

        Args:
            name: As a step's id.
            fn: An async function; it is the handler's code, not a step.
            args: Its positional arguments.

        Raises:
            HandlerUseError: As in `step`.
            InvalidNameError: The name cannot be one.
        """
        return self._operations.branch(self._here().named(name), fn, args)

    def _here(self) -> Branch:
        try:
            return self._execution.here()
        except StubbornHandler:
            if not self._execution.is_hopeless:
                raise
            self._operations = self._children = cast("Any", Never())
            return self._execution.branches.root
