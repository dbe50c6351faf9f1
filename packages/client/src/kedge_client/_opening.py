"""
Rows with encrypted payloads as rows in clear, for a client that has a codec; the others never come here.

What cannot be decrypted stays as it is, since a view must not fail for one row; an error is replaced by one that
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from kedge.codecs import PayloadCodec, PayloadContext
from kedge.errors import NotDecodableError
from kedge.failures import encode_error
from kedge.run_meta import RunMeta
from kedge.sealing import (
    VALUES,
    SealedLine,
    arguments_place,
    error_place,
    input_place,
    is_sealed,
    lineage,
    output_place,
    unseal,
    unseal_error,
    unseal_line,
    value_place,
)
from kedge_client._round_trip import Row
from kedge_client._step_views import FailureRow, StepRow
from kedge_client._views import RunRow, RunView, run_view

_FAILED: Final = ("f", "x")


def seen(values: Row, codec: PayloadCodec | None) -> RunView:
    """Make a view of a row of get_runs_v1, which may be encrypted."""
    return run_view(values if codec is None else opened_run(codec, RunRow._make(values)))


def opened_run(codec: PayloadCodec, row: RunRow) -> RunRow:
    """Decrypt a row of get_runs_v1, or of a list."""
    errors = row.failure_errors
    place = error_place(row.id)
    return row._replace(
        input=_opened(codec, row.input, input_place(home_of(row), row.workflow)),
        output=_opened(codec, row.output, output_place(row.id)),
        error=_opened_error(codec, row.error, place) if row.error else row.error,
        failure_errors=None if errors is None else [_opened_error(codec, one, place) for one in errors],
    )


def home_of(row: RunRow, values: Iterable[bytes] = ()) -> UUID:
    """Return what a run's values are bound to, by its input, or by the values if that is in clear."""
    is_rerun = RunMeta.readable(row.meta).origin is not None
    return lineage(row.id, (row.input or b"", *values), is_rerun=is_rerun)


def opened_steps(codec: PayloadCodec, run: RunRow, rows: Sequence[StepRow]) -> list[StepRow]:
    """Decrypt rows of steps_v1."""
    home = home_of(run, (row.value for row in rows if row.kind in VALUES))
    return [_opened_step(codec, run.id, home, row) for row in rows]


def opened_failures(codec: PayloadCodec, run_id: UUID, rows: Iterable[FailureRow]) -> list[FailureRow]:
    """Decrypt rows of failures_v1."""
    return [row._replace(error=_opened_error(codec, row.error, error_place(run_id, row.key))) for row in rows]


def opened_line(codec: PayloadCodec | None, run_id: UUID, fields: bytes) -> SealedLine:
    """Decrypt a line of a log; without the key it says which one is missing."""
    try:
        if codec is None:
            raise NotDecodableError("a line of the log", "is encrypted: codec= is needed")
        return unseal_line(codec, run_id, fields)
    except NotDecodableError as unreadable:
        return SealedLine(f"({unreadable})")


def _opened_step(codec: PayloadCodec, run_id: UUID, home: UUID, row: StepRow) -> StepRow:
    if row.kind in VALUES:
        row = row._replace(value=_opened(codec, row.value, value_place(home, row.kind, row.key, row.seq)) or b"")
    elif row.kind == "f":
        row = row._replace(value=_opened_error(codec, row.value, error_place(run_id, row.key)))
    if is_sealed(row.meta):
        place = arguments_place(run_id if row.kind in _FAILED else home, row.key, row.seq)
        row = row._replace(meta=_opened(codec, row.meta, place) or b"")
    return row


def _opened(codec: PayloadCodec, data: bytes | None, place: PayloadContext) -> bytes | None:
    try:
        return unseal(codec, data, place) if data else data
    except NotDecodableError:
        return data


def _opened_error(codec: PayloadCodec, data: bytes, place: PayloadContext) -> bytes:
    return encode_error(unseal_error(codec, data, place))
