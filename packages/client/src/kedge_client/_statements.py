"""
Every statement that a client sends: one-line calls of the api functions, in the order of a run's life.

One text each, written with `{name}` where a value goes. From it come libpq's form ($1), psycopg's (%(name)s) and
SQLAlchemy's (:name); `cast(... as type)` and not `::type`, because SQLAlchemy's text() stumbles over colons.
"""

# ruff: noqa: S608  # the texts are put together from constants; values are always parameters

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from kedge import schema as kedge_schema
from kedge_client._binary import DECODERS, ENCODERS

_PLACE: Final = re.compile(r"\{(\w+)\}")


class Statement:
    """A statement with typed parameters and columns. It names no schema: that goes in when the text is asked for."""

    def __init__(self, name: str, text: str, parameters: dict[str, str], columns: Sequence[str]) -> None:
        self.name = name.encode()
        """Under which a connection prepares it."""
        self.text = text
        self.parameters = parameters
        """Name -> type, in the order in which values are given."""
        self.formats = [1] * len(parameters)
        self._encoders = [ENCODERS[kind] for kind in parameters.values()]
        self.columns = [(place, DECODERS[kind]) for place, kind in enumerate(columns)]
        """Where each value of a row stands, and what reads it."""

    def libpq(self, schema: str) -> bytes:
        """Return the text with $1, $2, as bytes."""
        return _libpq(self, schema)

    def numbered(self, schema: str) -> str:
        """Return the text with $1, $2."""
        places = {name: f"${place}" for place, name in enumerate(self.parameters, 1)}
        return self._written(schema, places.__getitem__)

    def pyformat(self, schema: str) -> str:
        """Return the text with %(name)s."""
        return _pyformat(self, schema)

    def named(self, schema: str) -> str:
        """Return the text with :name."""
        return self._written(schema, lambda name: f":{name}")

    def encode(self, values: Sequence[Any]) -> list[bytes | None]:
        """Turn values, in the order of the parameters, into what libpq sends."""
        return [None if value is None else encode(value) for encode, value in zip(self._encoders, values, strict=True)]

    def _written(self, schema: str, place: Callable[[str], str]) -> str:
        text = _PLACE.sub(lambda found: f"cast({place(found[1])} as {self.parameters[found[1]]})", self.text)
        return kedge_schema.render(text, schema)


# A statement has no equality of its own, so these remember each by itself, for each schema.
@cache
def _libpq(statement: Statement, schema: str) -> bytes:
    return statement.numbered(schema).encode()


@cache
def _pyformat(statement: Statement, schema: str) -> str:
    return statement._written(schema, lambda name: f"%({name})s")  # noqa: SLF001  # same module


_START_PARAMETERS: Final = {
    "id": "uuid",
    "workflow": "text",
    "queue": "text",
    "priority": "int4",
    "input": "bytea",
    "meta": "bytea",
    "key": "text",
    "key_hash": "bytea",
    "on_conflict": "text",
    "resource": "text",
    "delay_s": "float8",
    "start_at": "timestamptz",
    "tags": "text[]",
    "strict": "bool",
    "timeout_s": "float8",
    "singleton": "text",
}
_START_COLUMNS: Final = ("uuid", "bool", "text", "text")
_START_CALL: Final = f"kedge.start_run_v1({', '.join(f'{{{name}}}' for name in _START_PARAMETERS)})"

START: Final = Statement(
    "start", f"select r.run_id, r.created, r.status, r.conflict from {_START_CALL} r", _START_PARAMETERS, _START_COLUMNS
)

# For a caller's own transaction: one round trip, and the doorbell rings if and when the caller commits. A run that
# takes another one's place has sent letters, which everybody can sort.
START_AND_RING: Final = Statement(
    "start_and_ring",
    "select r.run_id, r.created, r.status, r.conflict,"
    " case when r.created and r.status = 'pending' then kedge.ring_on_commit_v1({queue}, {workflow})"
    " when r.created and {singleton} = 'cancel_old' then kedge.ring_on_commit_v1(null, null) end"
    f" from {_START_CALL} r",
    _START_PARAMETERS,
    (*_START_COLUMNS, "void"),
)

_START_MANY_PARAMETERS: Final = {
    "ids": "uuid[]",
    "workflow": "text",
    "queue": "text",
    "priority": "int4",
    "inputs": "bytea[]",
    "metas": "bytea[]",
    "keys": "text[]",
    "key_hashes": "bytea[]",
    "on_conflict": "text",
    "resources": "text[]",
    "delay_s": "float8",
    "start_at": "timestamptz",
    "tags": "text[]",
    "strict": "bool",
    "timeout_s": "float8",
    "singleton": "text",
}
START_MANY: Final = Statement(
    "start_many",
    "select r.place, r.run_id, r.created, r.status, r.conflict"
    f" from kedge.start_runs_v1({', '.join(f'{{{name}}}' for name in _START_MANY_PARAMETERS)}) r",
    _START_MANY_PARAMETERS,
    ("int4", *_START_COLUMNS),
)

_RING_PARAMETERS: Final = {"queue": "text", "workflow": "text"}

# Always behind the Sync of what there is to do: NOTIFY holds one lock of the whole server across a commit's flush.
RING: Final = Statement("ring", "select kedge.ring_v1({queue}, {workflow})", _RING_PARAMETERS, ("void",))

RING_ON_COMMIT: Final = Statement(
    "ring_on_commit", "select kedge.ring_on_commit_v1({queue}, {workflow})", _RING_PARAMETERS, ("void",)
)

_RERUN_PARAMETERS: Final = {"id": "uuid", "run": "uuid", "resource": "text", "step": "text"}
_RERUN_COLUMNS: Final = {
    "created": "bool",
    "status": "text",
    "workflow": "text",
    "keys": "text[]",
    "key": "text",
    "holder": "uuid",
}
_RERUN_SAID: Final = ", ".join(f"r.{name}" for name in _RERUN_COLUMNS)
_RERUN_CALL: Final = "kedge.rerun_run_v1({id}, {run}, {resource}, {step})"

RERUN: Final = Statement(
    "rerun", f"select {_RERUN_SAID} from {_RERUN_CALL} r", _RERUN_PARAMETERS, tuple(_RERUN_COLUMNS.values())
)

RERUN_AND_RING: Final = Statement(
    "rerun_and_ring",
    f"select {_RERUN_SAID}, case when r.created then kedge.ring_on_commit_v1(r.queue, r.workflow) end"
    f" from {_RERUN_CALL} r",
    _RERUN_PARAMETERS,
    (*_RERUN_COLUMNS.values(), "void"),
)

RING_RUN: Final = Statement("ring_run", "select kedge.ring_run_v1({run})", {"run": "uuid"}, ("void",))
