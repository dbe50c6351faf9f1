"""The engine's moves as the single statements that they are, for tests that interleave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from kedge.ids import new_run_id
from kedge.schema import render
from kedge_worker import _statements
from tests.sessions import Session

QUEUE: Final = "default"
WORKFLOW: Final = "order"
LANE: Final[tuple[str, str]] = (QUEUE, WORKFLOW)
LOWEST: Final = (-32768, 0)

PROTOCOL: Final = 1

# Shorter than any server of these tests has been running: nobody is taken back for one lease after its start.
BLINK: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Started:
    run: UUID | None
    created: bool
    status: str | None
    conflict: str | None


@dataclass(frozen=True, slots=True)
class Claimed:
    id: UUID
    epoch: int
    next_seq: int
    attempt: int
    crashes: int
    rank: int
    seq: int
    request: str | None
    queue: str
    workflow: str


@dataclass(frozen=True, slots=True)
class TakenBack:
    worker: UUID
    freed: int
    ended: list[UUID]
    remaining: bool


@dataclass(frozen=True, slots=True)
class Sorted:
    letters: int
    remaining: bool
    owners: list[UUID]
    ended: list[UUID]
    lanes: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def statement(name: str) -> str:
    """A statement of the worker, for the default schema."""
    return statement_of(getattr(_statements, name))


def statement_of(text: str) -> str:
    """The same of its text."""
    return render(text, "kedge")


# ---- clients ------------------------------------------------------------------------------------------------------


def start(
    session: Session,
    run: UUID | None = None,
    *,
    workflow: str = WORKFLOW,
    queue: str = QUEUE,
    priority: int = 0,
    data: bytes = b"\x01null",
    key: str | None = None,
    key_hash: bytes = b"fingerpr" + b"hash of the input",
    on_conflict: str = "return",
    resource: str | None = None,
    delay_s: float | None = None,
    tags: Sequence[str] | None = None,
    strict: bool = False,
    timeout_s: float | None = None,
    singleton: str | None = None,
    parent: UUID | None = None,
    dependent: bool = False,
) -> Started:
    """`start_run_v1`; of a child, `start_run`."""
    key = "" if key is None and singleton is not None else key
    values = (
        run or new_run_id(),
        workflow,
        queue,
        priority,
        data,
        key,
        None if key is None or singleton is not None else key_hash,
        on_conflict,
        resource,
        delay_s,
        None if tags is None else list(tags),
        strict,
        timeout_s,
        singleton,
    )
    is_child = parent is not None or dependent
    function, of_child = ("start_run", ", $15, $16") if is_child else ("start_run_v1", "")
    ((run_id, created, status, conflict),) = session.rows(
        f"select run_id, created, status, conflict from kedge.{function}("
        f"$1::uuid, $2, $3, $4, $5, null, $6, $7, $8, $9, $10, null, $11, $12, $13, $14{of_child})",
        (*values, parent, dependent) if is_child else values,
    )
    return Started(run_id, created, status, conflict)


def started(session: Session, count: int = 1, **options: Any) -> list[UUID]:
    """The ids of so many new runs, in the order of their start."""
    runs: list[UUID] = []
    for _ in range(count):
        answer = start(session, **options)
        assert answer.run is not None
        runs.append(answer.run)
    return runs


def start_many(
    session: Session,
    runs: Sequence[UUID],
    *,
    keys: Sequence[str | None] | None = None,
    resources: Sequence[str | None] | None = None,
    tags: Sequence[str] | None = None,
    delay_s: float | None = None,
    timeout_s: float | None = None,
    singleton: str | None = None,
    strict: bool = False,
) -> list[tuple[int, Started]]:
    """`start_runs_v1`: what it says of the runs that were not simply created."""
    rows = session.rows(
        "select place, run_id, created, status, conflict from kedge.start_runs_v1($1::uuid[], $2, $3, 0, $4::bytea[],"
        " null, $5::text[], $6::bytea[], 'return', $12::text[], $7, null, $8::text[], $9, $10, $11)",
        (
            list(runs),
            WORKFLOW,
            QUEUE,
            [b"\x01null"] * len(runs),
            None if keys is None else list(keys),
            None if keys is None else [b"fingerprhash"] * len(runs),
            delay_s,
            None if tags is None else list(tags),
            strict,
            timeout_s,
            singleton,
            None if resources is None else list(resources),
        ),
    )
    return [(place, Started(*rest)) for place, *rest in rows]


def cancel(session: Session, run: UUID, *, letter: UUID | None = None, reason: str | None = None) -> tuple[bool, str]:
    """`cancel_run_v1`."""
    ((accepted, status),) = session.rows(
        "select accepted, status from kedge.cancel_run_v1($1, $2, null, $3)", (letter or uuid4(), run, reason)
    )
    return accepted, status


# ---- workers ------------------------------------------------------------------------------------------------------


def register(session: Session, *, lease: timedelta = timedelta(minutes=1), protocol: int = PROTOCOL) -> UUID:
    worker = uuid4()
    session.rows(
        statement("REGISTER_WORKER"),
        {
            "id": worker,
            "lease": lease,
            "protocol": protocol,
            "name": f"test:{worker.hex[:4]}",
            "queues": [QUEUE],
            "workflows": [WORKFLOW],
        },
    )
    return worker


def lapse(session: Session, worker: UUID) -> None:
    """Let the worker have died so long ago that its lease is over."""
    session.rows(
        "update kedge.workers set lease = $2, lease_until = clock_timestamp() - interval '1 minute' where id = $1",
        (worker, BLINK),
    )


def hold(session: Session, worker: UUID) -> None:
    session.rows(statement("HOLD_WORKER"), (worker,))


def claim(
    session: Session,
    worker: UUID,
    limit: int = 100,
    *,
    floors: Mapping[tuple[str, str], tuple[int, int]] | None = None,
    is_alone: bool = True,
    spread: int = 1,
) -> list[Claimed]:
    """CLAIM without the transaction around it, which may be a flush's too: then it is not alone."""
    lanes = {LANE: LOWEST} if floors is None else floors
    rows = session.rows(
        statement("CLAIM"),
        (
            worker,
            [queue for queue, _ in lanes],
            [workflow for _, workflow in lanes],
            [rank for rank, _ in lanes.values()],
            [seq for _, seq in lanes.values()],
            limit,
            None,
            is_alone,
            limit * spread,
        ),
    )
    return [
        Claimed(run, epoch, next_seq, attempt, crashes, rank, seq, request, queue, workflow)
        for (_, run, _, epoch, next_seq, attempt, crashes, rank, seq, _, request, queue, workflow, *_) in rows
        if run is not None
    ]


def claim_alone(session: Session, worker: UUID, limit: int = 100) -> list[Claimed]:
    """A whole claim: hold, take, commit."""
    session.begin()
    hold(session, worker)
    claimed = claim(session, worker, limit)
    session.commit()
    return claimed


def keep(session: Session, worker: UUID, run: Claimed, seq: int | None = None, value: bytes = b"\x011") -> int:
    """KEEP one step; answers how many rows the fence let through."""
    number = run.next_seq if seq is None else seq
    return session.count(
        statement("KEEP"), (worker, [run.id], [number], [run.epoch], [1], ["s"], [f"step{number}"], [value], None)
    )


@dataclass(frozen=True, slots=True)
class Child:
    """One row of `start_children`."""

    parent: Claimed
    seq: int
    id: UUID
    key: str = "child"
    workflow: str = WORKFLOW
    queue: str = QUEUE
    priority: int = 0
    resource: str | None = None
    due: datetime | None = None
    delay_s: float | None = None
    timeout_s: float | None = None
    tags: Sequence[str] | None = None
    dependent: bool = False
    watched: bool = True


def start_children(session: Session, worker: UUID, children: Sequence[Child]) -> int:
    """`start_children` alone, without the journal rows before it."""
    number: int = session.value(
        "select kedge.start_children($1, $2::uuid[], $3::int[], $4::int[], $5::text[], $6::uuid[], $7::text[],"
        " $8::text[], $9::int[], $10::bytea[], $11::bytea[], $12::text[], $13::timestamptz[], $14::float8[],"
        " $15::float8[], $16::text[], $17::boolean[], $18::boolean[])",
        (
            worker,
            [child.parent.id for child in children],
            [child.parent.epoch for child in children],
            [child.seq for child in children],
            [child.key for child in children],
            [child.id for child in children],
            [child.workflow for child in children],
            [child.queue for child in children],
            [child.priority for child in children],
            [b"\x01null"] * len(children),
            [b""] * len(children),
            [child.resource for child in children],
            [child.due for child in children],
            [child.delay_s for child in children],
            [child.timeout_s for child in children],
            [None if child.tags is None else "\x1f".join(child.tags) for child in children],
            [child.dependent for child in children],
            [child.watched for child in children],
        ),
    )
    return number


def end(
    session: Session,
    worker: UUID,
    runs: Claimed | Sequence[Claimed],
    status: str = "c",
    *,
    rows: tuple[int, int] | None = None,
) -> int:
    """END runs; `rows` are the first and the last seq that ride in the same flush."""
    ended = [runs] if isinstance(runs, Claimed) else list(runs)
    first, last = rows or (0, 0)
    number: int = session.value(
        statement("END"),
        (
            worker,
            [run.id for run in ended],
            [run.epoch for run in ended],
            [status] * len(ended),
            [b"\x01null" if status == "c" else None] * len(ended),
            [b"\x01{}" if status == "f" else None] * len(ended),
            [None] * len(ended),
            [first] * len(ended),
            [last or run.next_seq - 1 for run in ended],
            [last - first + 1 if rows else 0] * len(ended),
        ),
    )
    return number


def release(session: Session, worker: UUID, run: Claimed, *, delay_s: float = 0, last: int = 0) -> int:
    """RELEASE one run; `last` is its last seq."""
    number: int = session.value(
        statement("RELEASE"), (worker, [run.id], [run.epoch], [delay_s], [None], [last or run.next_seq - 1])
    )
    return number


def beat(session: Session, worker: UUID) -> list[tuple[Any, ...]]:
    return session.rows(statement("BEAT"), {"worker": worker})


def take_back(session: Session, protocol: int = PROTOCOL, *, but: Sequence[UUID] = ()) -> TakenBack | None:
    rows = session.rows(statement("TAKE_BACK"), {"protocol": protocol, "but": list(but)})
    if not rows:
        return None
    ((worker, _, freed, ended, _, _, remaining),) = rows
    return TakenBack(worker, freed, ended, remaining)


def sort_inbox(session: Session, limit: int = 500) -> Sorted:
    (row,) = session.rows(statement("SORT_INBOX"), {"limit": limit})
    letters, remaining, mailed, asked, ended, queues, workflows = row
    return Sorted(letters, remaining, list({*mailed, *asked}), ended, list(zip(queues, workflows, strict=True)))


def leave(session: Session, worker: UUID) -> None:
    session.rows(statement("LEAVE"), {"worker": worker})


# ---- what stands in the tables ------------------------------------------------------------------------------------


def statuses(session: Session, runs: Sequence[UUID] | None = None) -> dict[UUID, str]:
    """Every run (of these) and its status."""
    rows = session.rows(
        "select id, status from kedge.all_runs where $1::uuid[] is null or id = any ($1)",
        (None if runs is None else list(runs),),
    )
    return dict(rows)


def status(session: Session, run: UUID) -> str:
    return statuses(session, [run])[run]


def run_row(session: Session, run: UUID) -> dict[str, Any]:
    """The row of a live run."""
    cursor = session.conn.execute("select * from kedge.runs where id = %s", (run,))
    row = cursor.fetchone()
    assert row is not None
    assert cursor.description is not None
    return {column.name: value for column, value in zip(cursor.description, row, strict=True)}


def journal(session: Session, run: UUID) -> list[tuple[int, int]]:
    """(seq, epoch) of everything behind the input."""
    return session.rows("select seq, epoch from kedge.journal where run_id = $1 and seq > 0 order by seq", (run,))


def letters(session: Session) -> list[UUID]:
    """The runs of the unsorted letters, in order of arrival."""
    return [run for (run,) in session.rows("select run_id from kedge.inbox order by seq")]
