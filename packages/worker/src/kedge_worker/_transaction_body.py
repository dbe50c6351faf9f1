"""What a transactional step runs on its connection, and how its value comes back from there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from kedge.errors import PayloadError
from kedge_worker._branches import call_in_step

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

    from kedge_worker._definitions import StepDefinition
    from kedge_worker._execution import Execution

AsyncConn: TypeAlias = "AsyncConnection[Any]"
SyncConn: TypeAlias = "Connection[Any]"


class TransactionBody:
    """What runs on the connection: answers the value's bytes, and holds the value as the handler gets it."""

    __slots__ = ("_args", "_definition", "_execution", "_fn", "_key", "returned", "value")

    def __init__(
        self,
        execution: Execution,
        key: str,
        definition: StepDefinition,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._execution = execution
        self._key = key
        self._definition = definition
        self._fn = fn
        self._args = args
        self.value: Any = None
        self.returned = False
        """Of the last try: what went wrong afterwards is the value's encoding, or the commit."""

    async def in_loop(self, conn: AsyncConn) -> bytes:
        self.returned = False
        value = self._fn(conn, *self._args)
        return self._encoded(await value if inspect.isawaitable(value) else value)

    def in_thread(self, conn: SyncConn) -> bytes:
        self.returned = False
        return self._encoded(call_in_step(self._fn, (conn, *self._args)))

    def _encoded(self, value: Any) -> bytes:
        try:
            data, self.value = self._execution.encode(self._definition, self._key, value)
        except PayloadError:
            self.returned = True
            raise
        return data
