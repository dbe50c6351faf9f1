"""What a claim asks for and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kedge_worker._pipeline import Rows
from kedge_worker._runs import ClaimedRun, Mail, MemoRow, StoredWait

Lane = tuple[str, str]
"""A queue and a workflow."""

MAX_CANDIDATES: Final = 1000
"""That a claim looks at: when others hold them all, the rest is left to the next one."""
LOWEST: Final = (-32768, 0)
"""The floor (rank, seq) of a lane that is looked at from its beginning."""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker would take now."""

    limit: int
    floors: Mapping[Lane, tuple[int, int]]
    timeouts: Mapping[Lane, float]
    """Of definitions that have one, in seconds."""
    spread: int = 1
    """Candidates for each run: those that others hold are passed over."""

    @property
    def candidates(self) -> int:
        return min(self.limit * self.spread, MAX_CANDIDATES)


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """
    What it got; `highest` is the last place taken in each lane, `has_mail` says that the inbox is not empty, `was_cut`
    that more was there within the limit, and too large to be taken together, `was_contended` that others held so many
    of its candidates that it got too few, and that it may look at more.
    """

    limit: int
    runs: list[ClaimedRun]
    highest: dict[Lane, tuple[int, int]]
    has_mail: bool
    was_cut: bool = False
    was_contended: bool = False

    @property
    def is_full(self) -> bool:
        """Whether there may be more."""
        return self.was_cut or self.was_contended or len(self.runs) == self.limit

    @property
    def input_bytes(self) -> int:
        return sum([len(run.input) for run in self.runs])


class Taken(NamedTuple):
    """What is said of a claim when its runs are on their way: they live no longer than they are executed."""

    runs: int
    is_full: bool


def read_claim(request: ClaimRequest, taken: Rows, kept: Rows, waiting: Rows, unread: Rows) -> ClaimAnswer:
    """Put together what CLAIM, READ_CLAIMED, READ_WAITS and READ_MAIL have answered."""
    inputs: dict[bytes, tuple[bytes, bytes]] = {}
    memos: dict[bytes, list[MemoRow]] = {}
    for owner, seq, kind, key, value, meta, at in kept:
        if seq == 0:
            inputs[owner] = (value, meta)
        else:
            memos.setdefault(owner, []).append(MemoRow(seq, kind, key, value, meta, at))
    waits: dict[bytes, list[StoredWait]] = {}
    for owner, *columns in waiting:
        waits.setdefault(owner, []).append(StoredWait(*columns))
    mail = read_mail(unread)
    runs: list[ClaimedRun] = []
    highest: dict[Lane, tuple[int, int]] = {}
    has_mail, was_cut, were_held = bool(taken[0][0]), bool(taken[0][-2]), bool(taken[0][-1])
    for (
        _, run_id, packed_id, epoch, next_seq, attempt, crashes, rank, seq, claimed_at, asked, queue, workflow,
        resource, reason, some_were_due, is_observed, deadline_s, *_,
    ) in taken:  # fmt: skip
        if run_id is None:
            break  # nothing was claimed
        value, meta = inputs.get(packed_id, (b"", b""))
        memo = tuple(memos.get(packed_id, ()))
        if not some_were_due:  # beside due runs the places say nothing about the ready ones
            highest[queue, workflow] = (rank, seq)
        runs.append(
            ClaimedRun(
                id=run_id,
                epoch=epoch,
                next_seq=max(next_seq, memo[-1].seq + 1) if memo else max(next_seq, 1),
                attempt=attempt,
                crashes=crashes,
                request=asked,
                rank=rank,
                deadline_s=deadline_s,
                is_observed=is_observed,
                queue=queue,
                workflow=workflow,
                resource=resource,
                reason=reason,
                input=value,
                meta=meta,
                claimed_at=claimed_at,
                memo=memo,
                waits=tuple(waits.get(packed_id, ())),
                mail=tuple(mail.get(packed_id, ())),
            )
        )
    was_contended = were_held and (bool(runs) or request.candidates < MAX_CANDIDATES)
    return ClaimAnswer(request.limit, runs, highest, has_mail, was_cut, was_contended)


def read_mail(rows: Rows) -> dict[bytes, list[Mail]]:
    """Unread mail by the 16 bytes of the run's id, in order of arrival."""
    mail: dict[bytes, list[Mail]] = {}
    for owner, *columns in rows:
        mail.setdefault(owner, []).append(Mail(*columns))
    return mail
