"""The verbs by which the async client speaks to runs; bases of its public face. Twin of _sync_control."""

from __future__ import annotations

from uuid import UUID

import kedge_client._letters as letters
from kedge.event_refs import EventMessage
from kedge.run_state import RunStatus
from kedge_client._async_connections import AsyncConnection
from kedge_client._async_core import AsyncCore
from kedge_client._letters import Delivery
from kedge_client._run_refs import RunRef


class AsyncControl:
    """
    The methods of `AsyncClient` that want something of a run: each puts one letter into the inbox.

    A worker sorts it, in order with all others, within milliseconds; without one it waits. `get` shows what was asked
    for and what became of it.
    """

    _core: AsyncCore
    _resource: str | None

    async def send(
        self,
        message: EventMessage,
        /,
        *,
        run: RunRef | None = None,
        topic: str | None = None,
        conn: AsyncConnection | None = None,
    ) -> Delivery:
        """
        Send an event to a run, or to every live run that waits for it on a topic.

        A run gets its events in the order of their sends, each once. It need not wait yet: what comes early is kept,
        while a topic keeps nothing.

        Args:
            message: event(payload); with a `key`, repeats are dropped, for the life of the run.
            run: A handle, a view or an id.
            topic: Instead of a run; up to 200 bytes.
            conn: A psycopg connection: the event is sent if and only if its transaction commits.

        Raises:
            RunNotActiveError: The run has ended.
            RunNotFoundError: There is no such run.
            TooLargeError: The run has 1,000 events that it has not read.
            InvalidOptionError: No message, not exactly one of run and topic, or a topic through a scoped client.
            InvalidNameError: The topic's name is refused.
        """
        letter = letters.send(message, run=run, topic=topic, resource=self._resource, codec=self._core.settings.codec)
        return await self._core.post(letter, conn)

    async def cancel(
        self,
        run: RunRef,
        /,
        *,
        reason: str | None = None,
        cascade: bool = False,
        conn: AsyncConnection | None = None,
    ) -> RunStatus:
        """
        Ask for a run's end, and return its status as it was when asked. Repeats are harmless.

        A run that nobody executes ends when a worker sorts the letter; one that is executed is cancelled in its worker.

        Args:
            run: A handle, a view or an id.
            reason: For people; up to 4,000 characters.
            cascade: Whether its children are cancelled too, and theirs. Those of a run that was cancelled before are
                left alone.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has completed or failed.
            RunNotFoundError: There is no such run.
        """
        letter = letters.cancel(run, resource=self._resource, reason=reason, cascade=cascade)
        return await self._core.post(letter, conn)

    async def pause(
        self, run: RunRef, /, *, reason: str | None = None, conn: AsyncConnection | None = None
    ) -> RunStatus:
        """
        Ask that a run be held until it is resumed, and return its status as it was when asked. Repeats are harmless.

        One that is executed is held when the steps under way have ended, and begins no other one. Events are kept for
        it meanwhile and its time runs, but neither lets it go on.

        Args:
            run: A handle, a view or an id.
            reason: For people; up to 4,000 characters.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has ended.
            RunNotFoundError: There is no such run.
        """
        return await self._core.post(letters.pause(run, resource=self._resource, reason=reason), conn)

    async def resume(self, run: RunRef, /, *, conn: AsyncConnection | None = None) -> RunStatus:
        """
        Ask that a paused run go on, and return its status as it was when asked. Repeats are harmless.

        Also ends the oldest `ctx.pause` that a run waits in.

        Args:
            run: A handle, a view or an id.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has ended, or nothing holds it.
            RunNotFoundError: There is no such run.
        """
        return await self._core.post(letters.resume(run, resource=self._resource), conn)

    async def retry(self, run: RunRef, /, *, conn: AsyncConnection | None = None) -> RunStatus:
        """
        Ask that a failed run go on from where it failed, and return its status as it was when asked.

        What its finished steps returned is kept; repeats are harmless.

        Args:
            run: A handle, a view or an id.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has not failed.
            RunNotFoundError: There is no such run.
        """
        return await self._core.post(letters.retry(run, resource=self._resource), conn)

    async def fast_forward(
        self,
        run: RunRef,
        /,
        data: object = None,
        *,
        wait: str | None = None,
        conn: AsyncConnection | None = None,
    ) -> bool:
        """
        End a wait of a run, for an event, a time, a poll or a resume, and tell whether there was one.

        Args:
            run: A handle, a view or an id.
            data: What the wait returns; of the type that it would return.
            wait: The wait's key, as `get` shows it; None: the oldest one.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has ended.
            RunNotFoundError: There is no such run.
            NotEncodableError: The data cannot be kept.
            TooLargeError: It has more than 1 MiB, or more than 128 levels.
            InvalidOptionError: `wait` is no text.
        """
        return await self._core.post(
            letters.fast_forward(run, data, resource=self._resource, wait=wait, codec=self._core.settings.codec), conn
        )


class AsyncRunControl:
    """The same of `AsyncRunHandle`, about its own run."""

    __slots__ = ()

    _core: AsyncCore
    _id: UUID
    _resource: str | None

    async def send(self, message: EventMessage, /, *, conn: AsyncConnection | None = None) -> Delivery:
        """
        Send an event to the run. It need not wait yet: what comes early is kept.

        Args:
            message: event(payload); with a `key`, repeats are dropped, for the life of the run.
            conn: A psycopg connection: the event is sent if and only if its transaction commits.

        Raises:
            RunNotActiveError: The run has ended.
            RunNotFoundError: There is no such run.
            TooLargeError: The run has 1,000 events that it has not read.
            InvalidOptionError: No message.
        """
        return await self._core.post(
            letters.send(message, run=self._id, resource=self._resource, codec=self._core.settings.codec), conn
        )

    async def cancel(
        self, *, reason: str | None = None, cascade: bool = False, conn: AsyncConnection | None = None
    ) -> RunStatus:
        """
        Ask for the run's end, and return its status as it was when asked. Repeats are harmless.

        Args:
            reason: For people; up to 4,000 characters.
            cascade: Whether its children are cancelled too, and theirs.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has completed or failed.
            RunNotFoundError: There is no such run.
        """
        letter = letters.cancel(self._id, resource=self._resource, reason=reason, cascade=cascade)
        return await self._core.post(letter, conn)

    async def pause(self, *, reason: str | None = None, conn: AsyncConnection | None = None) -> RunStatus:
        """
        Ask that the run be held until it is resumed, and return its status as it was when asked. Repeats are harmless.

        Args:
            reason: For people; up to 4,000 characters.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has ended.
            RunNotFoundError: There is no such run.
        """
        return await self._core.post(letters.pause(self._id, resource=self._resource, reason=reason), conn)

    async def resume(self, *, conn: AsyncConnection | None = None) -> RunStatus:
        """
        Ask that the run go on, and return its status as it was when asked. Repeats are harmless.

        Args:
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has ended, or nothing holds it.
            RunNotFoundError: There is no such run.
        """
        return await self._core.post(letters.resume(self._id, resource=self._resource), conn)

    async def retry(self, *, conn: AsyncConnection | None = None) -> RunStatus:
        """
        Ask that the failed run go on from where it failed, and return its status as it was when asked.

        Args:
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has not failed.
            RunNotFoundError: There is no such run.
        """
        return await self._core.post(letters.retry(self._id, resource=self._resource), conn)

    async def fast_forward(
        self, data: object = None, *, wait: str | None = None, conn: AsyncConnection | None = None
    ) -> bool:
        """
        End a wait of the run, for an event, a time, a poll or a resume, and tell whether there was one.

        Args:
            data: What the wait returns; of the type that it would return.
            wait: The wait's key, as `view` shows it; None: the oldest one.
            conn: As for `send`.

        Raises:
            InvalidRunStateError: It has ended.
            RunNotFoundError: There is no such run.
            NotEncodableError: The data cannot be kept.
            TooLargeError: It has more than 1 MiB, or more than 128 levels.
            InvalidOptionError: `wait` is no text.
        """
        letter = letters.fast_forward(
            self._id, data, resource=self._resource, wait=wait, codec=self._core.settings.codec
        )
        return await self._core.post(letter, conn)
