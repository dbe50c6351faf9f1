"""Whatever names a run: an id, a view, or a handle; and what handles of both clients have in common."""

from __future__ import annotations

import weakref
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar
from uuid import UUID

from kedge.ids import parse_run_id
from kedge.refs import WorkflowRef
from kedge_client._lent import AnyConnection
from kedge_client._views import RunView

Out_co = TypeVar("Out_co", covariant=True)


class BaseRunHandle(Generic[Out_co]):
    """A run, with the type of its result. Equal to every handle of the same run."""

    __slots__ = ("_conn", "_created", "_id", "_ref", "_resource")

    def __init__(
        self,
        ref: WorkflowRef[Any, Out_co],
        run_id: UUID,
        *,
        resource: str | None,
        created: bool | None = None,
        conn: AnyConnection | None = None,
    ) -> None:
        self._ref = ref
        self._id = run_id
        self._resource = resource
        self._created = created
        # Weak: a handle that is kept must not keep a connection from being let go.
        self._conn = None if conn is None else weakref.ref(conn)

    @property
    def id(self) -> UUID:
        """The run's id: this is what to store."""
        return self._id

    @property
    def ref(self) -> WorkflowRef[Any, Out_co]:
        """The workflow."""
        return self._ref

    @property
    def created(self) -> bool | None:
        """False when the key named a run that existed already; None when the handle comes from no start."""
        return self._created

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaseRunHandle):
            return NotImplemented
        return self._id == other.id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._ref.qualified_name} {self._id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} belongs to its client and can be neither pickled nor copied:"
            " keep run.id, and use client.handle(ref, id)"
        )


RunRef: TypeAlias = UUID | str | BaseRunHandle[Any] | RunView
"""Every method that is about a run takes any of these."""


def run_id_of(run: RunRef) -> UUID:
    """
    Return the id of whatever names a run.

    Raises:
        InvalidOptionError: It names none.
    """
    if isinstance(run, BaseRunHandle | RunView):
        return run.id
    return parse_run_id(run)
