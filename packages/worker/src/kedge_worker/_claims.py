"""What a claim asks for and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import kedge_worker._binary as _binary
from kedge_worker._pipeline import int_of, text_of, value_of
from kedge_worker._runs import ClaimedRun, Mail, MemoRow, StoredWait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

Lane = tuple[str, str]
"""A queue and a workflow."""

LOWEST: Final = (-32768, 0)
"""The floor (rank, seq) of a lane that is looked at from its beginning."""

_UNSET: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker would take now."""

    limit: int
    floors: Mapping[Lane, tuple[int, int]]
    timeouts: Mapping[Lane, float]
    """Of definitions that have one, in seconds."""


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """
    What it got; `highest` is the last place taken in each lane, `has_mail` says that the inbox is not empty, `was_cut`
    that more was there within the limit, and too large to be taken together.
    """

    limit: int
    runs: list[ClaimedRun]
    highest: dict[Lane, tuple[int, int]]
    has_mail: bool
    was_cut: bool = False

    @property
    def is_full(self) -> bool:
        """Whether there may be more."""
        return self.was_cut or len(self.runs) == self.limit

    @property
    def input_bytes(self) -> int:
        return sum([len(run.input) for run in self.runs])


class Taken(NamedTuple):
    """What is said of a claim when its runs are on their way: they live no longer than they are executed."""

    runs: int
    is_full: bool


def read_claim(
    request: ClaimRequest, taken: PGresult, kept: PGresult, waiting: PGresult, unread: PGresult
) -> ClaimAnswer:
    """Put together what CLAIM, READ_CLAIMED, READ_WAITS and READ_MAIL have answered."""
    inputs: dict[bytes, tuple[bytes, bytes, datetime]] = {}
    memos: dict[bytes, list[MemoRow]] = {}
    for i in range(kept.ntuples):
        owner, seq = value_of(kept, i, 0), int_of(kept, i, 1)
        value, meta = value_of(kept, i, 4), value_of(kept, i, 5)
        at = _binary.to_datetime(value_of(kept, i, 6))
        if seq == 0:
            inputs[owner] = (value, meta, at)
        else:
            row = MemoRow(seq, text_of(kept, i, 2), text_of(kept, i, 3), value, meta, at)
            memos.setdefault(owner, []).append(row)
    waits = _waits(waiting) if waiting.ntuples else {}
    mail = read_mail(unread) if unread.ntuples else {}
    runs: list[ClaimedRun] = []
    highest: dict[Lane, tuple[int, int]] = {}
    for i in range(taken.ntuples):
        run_id = taken.get_value(i, 1)
        if run_id is None:
            break  # nothing was claimed
        value, meta, at = inputs.get(run_id, (b"", b"", _UNSET))
        memo = tuple(memos.get(run_id, ()))
        queue, workflow = text_of(taken, i, 10), text_of(taken, i, 11)
        resource, reason = taken.get_value(i, 12), taken.get_value(i, 13)
        asked, deadline_s = taken.get_value(i, 9), taken.get_value(i, 16)
        if taken.get_value(i, 14) == b"\0":  # beside due runs the places say nothing about the ready ones
            highest[queue, workflow] = (int_of(taken, i, 6), int_of(taken, i, 7))
        runs.append(
            ClaimedRun(
                id=UUID(bytes=run_id),
                epoch=int_of(taken, i, 2),
                next_seq=max(int_of(taken, i, 3), memo[-1].seq + 1 if memo else 1),
                attempt=int_of(taken, i, 4),
                crashes=int_of(taken, i, 5),
                request=None if asked is None else asked.decode(),
                rank=int_of(taken, i, 6),
                deadline_s=None if deadline_s is None else _binary.to_float(deadline_s),
                is_observed=taken.get_value(i, 15) == b"\x01",
                queue=queue,
                workflow=workflow,
                resource=None if resource is None else resource.decode(),
                reason=None if reason is None else reason.decode(),
                input=value,
                meta=meta,
                created_at=at,
                claimed_at=_binary.to_datetime(value_of(taken, i, 8)),
                memo=memo,
                waits=tuple(waits.get(run_id, ())),
                mail=tuple(mail.get(run_id, ())),
            )
        )
    was_cut = value_of(taken, 0, 17) == b"\x01"
    return ClaimAnswer(request.limit, runs, highest, value_of(taken, 0, 0) == b"\x01", was_cut)


def _waits(result: PGresult) -> dict[bytes, list[StoredWait]]:
    waits: dict[bytes, list[StoredWait]] = {}
    for i in range(result.ntuples):
        slot = result.get_value(i, 7)
        left_s, limit_s = result.get_value(i, 3), result.get_value(i, 4)
        waits.setdefault(value_of(result, i, 0), []).append(
            StoredWait(
                key=text_of(result, i, 1),
                kind=text_of(result, i, 2),
                slot=None if slot is None else slot.decode(),
                left_s=None if left_s is None else _binary.to_float(left_s),
                limit_s=None if limit_s is None else _binary.to_float(limit_s),
                attempt=int_of(result, i, 5),
                state=value_of(result, i, 6),
            )
        )
    return waits


def read_mail(result: PGresult) -> dict[bytes, list[Mail]]:
    """Unread mail by the 16 bytes of the run's id, in order of arrival."""
    mail: dict[bytes, list[Mail]] = {}
    for i in range(result.ntuples):
        one = Mail(
            UUID(bytes=value_of(result, i, 1)), int_of(result, i, 2), text_of(result, i, 3), value_of(result, i, 4)
        )
        mail.setdefault(value_of(result, i, 0), []).append(one)
    return mail
