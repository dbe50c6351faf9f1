"""A start as text and values, for connections that psycopg has not made: SQLAlchemy, Django, asyncpg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, overload
from uuid import UUID

from kedge.refs import WorkflowRef
from kedge_client._handles import AsyncRunHandle, RunHandle
from kedge_client._requests import Start, start_values
from kedge_client._settings import ClientSettings
from kedge_client._statements import START, START_AND_RING, Statement

if TYPE_CHECKING:
    from sqlalchemy import TextClause


Out = TypeVar("Out")
Out_co = TypeVar("Out_co", covariant=True)

# SQLAlchemy's names of the types that it would guess wrongly: a datetime without zone, a list of nothing in particular.
_ARRAY_OF_TEXT: Final = "text[]"
_MOMENT: Final = "timestamptz"


class SyncHandles(Protocol):
    """The sync client, as far as a statement needs it."""

    def handle(self, ref: WorkflowRef[Any, Out], run: UUID | str, /) -> RunHandle[Out]:
        """Return a handle of a run."""
        ...


class AsyncHandles(Protocol):
    """The async client, as far as a statement needs it."""

    def handle(self, ref: WorkflowRef[Any, Out], run: UUID | str, /) -> AsyncRunHandle[Out]:
        """Return a handle of a run."""
        ...


class StartStatement(Generic[Out_co]):
    """
    One statement that starts the run; executed twice, it starts one run.

    Execute it inside your own transaction: the run exists if and only if that commits. It answers one row: `run_id`,
    `created`, `status`. A key that is taken by a run with another input raises your driver's error with SQLSTATE KE002,
    KE003 where on_conflict says "raise", and KE010 where singleton says "raise" while another run is active.
    """

    __slots__ = ("_schema", "_start", "_statement", "_values")

    def __init__(self, start: Start, settings: ClientSettings) -> None:
        self._start = start
        self._schema = settings.schema
        self._statement: Statement = START_AND_RING if settings.wake else START
        self._values = start_values(start, strict=True)

    @property
    def run_id(self) -> UUID:
        """The run's id, unless its key is taken: then the row that is answered has the id of the run that holds it."""
        return self._start.run_id

    def psycopg(self) -> tuple[str, dict[str, Any]]:
        """Return text and values with %(name)s, for psycopg's and Django's cursor.execute(*...)."""
        return self._statement.pyformat(self._schema), self._named_values()

    def asyncpg(self) -> tuple[str, list[Any]]:
        """Return text and values with $1, for asyncpg: `sql, values = ...; await conn.fetchrow(sql, *values)`."""
        return self._statement.numbered(self._schema), list(self._values)

    def sqlalchemy(self) -> TextClause:
        """Return a text clause with its values, for `session.execute(...)` on psycopg and asyncpg alike."""
        # Here, because whoever has no SQLAlchemy needs none.
        from sqlalchemy import DateTime, Text, bindparam, text
        from sqlalchemy.dialects.postgresql import ARRAY

        types: dict[str, Any] = {_ARRAY_OF_TEXT: ARRAY(Text), _MOMENT: DateTime(timezone=True)}
        values = self._named_values()
        return text(self._statement.named(self._schema)).bindparams(
            *(bindparam(name, values[name], types.get(kind)) for name, kind in self._statement.parameters.items())
        )

    @overload
    def handle(self, client: SyncHandles, run_id: UUID | None = None) -> RunHandle[Out_co]: ...
    @overload
    def handle(self, client: AsyncHandles, run_id: UUID | None = None) -> AsyncRunHandle[Out_co]: ...
    def handle(self, client: SyncHandles | AsyncHandles, run_id: UUID | None = None) -> Any:
        """
        Return a handle of the run, to be used after the commit.

        Args:
            client: Who waits and asks.
            run_id: What the statement answered, if the key may have been taken.
        """
        return client.handle(self._start.request.ref, run_id or self._start.run_id)

    def __repr__(self) -> str:
        return f"<StartStatement {self._start.request.ref.qualified_name} {self.run_id}>"

    def _named_values(self) -> dict[str, Any]:
        names: Sequence[str] = tuple(self._statement.parameters)
        return dict(zip(names, self._values, strict=True))
