"""`MOVES`, the CHECKs of the tables and what the SQL can do are three descriptions of one thing."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, get_args
from uuid import UUID, uuid4

import pytest

import kedge
import kedge_client
import kedge_worker
from kedge.run_state import CODES, LIVE, MOVES, STARTS, STATUSES, TERMINAL, RunStatus, may_move
from kedge_worker._outcomes import EndStatus, RowKind
from tests import letters, moves
from tests.sessions import Session, open_sessions

SOURCES: Final = [
    path
    for package in (kedge, kedge_client, kedge_worker)
    for path in sorted(Path(str(package.__file__)).parent.rglob("*"))
    if path.suffix in {".py", ".sql"}
]


@pytest.fixture
def db(database_url: str) -> Generator[Session]:
    with open_sessions(database_url) as sessions:
        yield sessions.open()


# ---- MOVES itself -------------------------------------------------------------------------------------------------


def test_every_status_can_be_reached_and_every_live_one_can_be_left() -> None:
    statuses = set(get_args(RunStatus))

    assert statuses == LIVE | TERMINAL
    assert not LIVE & TERMINAL
    assert {before for before, _ in MOVES} >= LIVE
    assert {after for _, after in MOVES} | STARTS == statuses


def test_an_end_is_final_but_for_the_retry_of_a_failure() -> None:
    assert {(before, after) for before, after in MOVES if before in TERMINAL} == {("failed", "pending")}


def test_only_a_running_run_completes() -> None:
    assert {before for before in LIVE if may_move(before, "completed")} == {"running"}


def test_every_live_run_can_be_cancelled_and_can_fail() -> None:
    for end in ("cancelled", "failed"):
        assert {before for before in LIVE if may_move(before, end)} == LIVE


# ---- letters ------------------------------------------------------------------------------------------------------


def test_codes_and_statuses_are_each_others_inverse_and_the_database_agrees(db: Session) -> None:
    names = {code: db.value('select kedge.status_name($1::"char")', (code,)) for code in STATUSES}

    assert {status: code for code, status in STATUSES.items()} == CODES
    assert names == STATUSES
    assert db.value("select kedge.status_name('?')") is None


@pytest.mark.parametrize(
    ("table", "column", "codes"),
    [
        ("runs", "state", {CODES[status] for status in LIVE}),
        ("finished", "status", {CODES[status] for status in TERMINAL}),
        ("runs", "request", {CODES["cancelled"], CODES["paused"], "d"}),
    ],
)
def test_a_column_takes_its_letters_and_no_other(db: Session, table: str, column: str, codes: set[str]) -> None:
    definitions = [
        definition
        for (definition,) in db.rows(
            "select pg_get_constraintdef(oid) from pg_constraint where conrelid = $1::regclass and contype = 'c'",
            (f"kedge.{table}",),
        )
    ]

    (check,) = [text for text in definitions if re.match(rf"CHECK \(\({column} = ANY", text)]
    assert set(re.findall(r"'(\w)'::\"char\"", check)) == codes


def test_every_kind_of_row_that_a_worker_writes_has_a_name(db: Session) -> None:
    kinds = [*get_args(RowKind), "i"]

    names = [db.value('select kedge.kind_name($1::"char")', (kind,)) for kind in kinds]

    assert len(set(names)) == len(kinds)
    assert not set(names) & set(kinds)


def test_a_worker_ends_runs_with_the_letters_of_ends() -> None:
    assert set(get_args(EndStatus)) == {CODES[status] for status in TERMINAL}


def test_running_is_having_an_owner(db: Session) -> None:
    moves.started(db)

    for change in ("worker_id = gen_random_uuid()", "state = 'r'"):
        with pytest.raises(Exception, match="violates check constraint"):
            db.rows(f"update kedge.runs set {change}")


# ---- what the SQL can do ------------------------------------------------------------------------------------------

Act = Callable[[Session, moves.Claimed], object]


def owner_of(db: Session, run: moves.Claimed) -> UUID | None:
    owner: UUID | None = moves.run_row(db, run.id)["worker_id"]
    return owner


def end_by(db: Session, run: moves.Claimed, *, status: str, owner: bool) -> None:
    """Through the exit door, by the owner or as a run at rest."""
    row = moves.run_row(db, run.id)
    worker = row["worker_id"] if owner else None
    db.rows(
        "select kedge.end_runs($1, array[$2::uuid], array[$3::int], array[$4], array[$5::bytea], array[$6::bytea],"
        " array[null], array[0], array[0], array[0])",
        (worker, run.id, row["epoch"], status, b"1" if status == "c" else None, b"1" if status == "f" else None),
    )


def take_back(db: Session, run: moves.Claimed) -> None:
    if worker := owner_of(db, run):
        moves.lapse(db, worker)
    while moves.take_back(db):
        pass


def cancel(db: Session, run: moves.Claimed) -> None:
    moves.cancel(db, run.id)
    moves.sort_inbox(db)


def claim(db: Session, run: moves.Claimed) -> None:
    db.rows("update kedge.runs set due_at = now() where id = $1 and state = 'w'", (run.id,))
    moves.claim_alone(db, moves.register(db))


def post(db: Session, run: moves.Claimed, *, kind: str) -> None:
    letters.put(db, run.id, kind)
    moves.sort_inbox(db)


def wake(db: Session, run: moves.Claimed) -> None:
    """By an event for which it waits."""
    letters.send(db, run.id)
    moves.sort_inbox(db)


def expire(db: Session, run: moves.Claimed) -> None:
    db.rows("update kedge.runs set deadline_at = now() - interval '1 s' where id = $1", (run.id,))
    letters.expire(db)


def park(db: Session, run: moves.Claimed) -> None:
    if worker := owner_of(db, run):
        claimed = replace(run, epoch=moves.run_row(db, run.id)["epoch"])
        letters.open_wait(db, worker, claimed, "paid")
        letters.park(db, worker, claimed)


def retry_later(db: Session, run: moves.Claimed, *, delay_s: float) -> None:
    row = moves.run_row(db, run.id)
    letters.retry_later(db, row["worker_id"] or uuid4(), replace(run, epoch=row["epoch"]), delay_s=delay_s)


def release(db: Session, run: moves.Claimed, *, delay_s: float = 0) -> None:
    row = moves.run_row(db, run.id)
    db.rows(moves.statement("RELEASE"), (row["worker_id"], [run.id], [row["epoch"]], [delay_s], [None], [0]))


ACTS: Final[dict[str, Act]] = {
    "claim": claim,
    "give back": release,
    "give back with a delay": partial(release, delay_s=60),
    "take back": take_back,
    "park": park,
    "retry later": partial(retry_later, delay_s=60),
    "retry at once": partial(retry_later, delay_s=0),
    "cancel": cancel,
    "pause": partial(post, kind="s"),
    "resume": partial(post, kind="u"),
    "retry": partial(post, kind="r"),
    "wake": wake,
    "expire": expire,
    **{f"end {status} by its owner": partial(end_by, status=status, owner=True) for status in get_args(EndStatus)},
    **{f"end {status} at rest": partial(end_by, status=status, owner=False) for status in get_args(EndStatus)},
}

FROM_OUTSIDE: Final = ("cancel", "pause", "resume", "retry", "wake", "expire")
"""What may meet a run that has ended."""

REQUESTS: Final = (None, "s", "d", "x")
BY_NAME: Final[dict[str, RunStatus]] = {str(status): status for status in get_args(RunStatus)}


def brought_into(db: Session, status: RunStatus, detail: str | None = None) -> moves.Claimed:
    """A run in that status; `detail` is a running one's request, or out of what a paused one was paused."""
    delayed = "waiting" in (status, detail)
    (run,) = moves.started(db, delay_s=60 if delayed else None)
    if delayed:
        db.rows(
            "insert into kedge.waits (run_id, opened_at, due_at, kind, key, slot)"
            " select id, now(), due_at, 'e', 'paid', 'e:paid' from kedge.runs where id = $1",
            (run,),
        )
        db.rows("update kedge.runs set has_waits = true where id = $1", (run,))
    row = moves.run_row(db, run)
    resting = moves.Claimed(run, row["epoch"], row["next_seq"], 0, 0, 0, row["seq"], None, moves.QUEUE, moves.WORKFLOW)
    if status == "paused":
        post(db, resting, kind="s")
    if status in TERMINAL or status == "running":
        (claimed,) = moves.claim_alone(db, worker := moves.register(db))
        db.rows("update kedge.runs set request = $2 where id = $1", (run, detail))
        if status in TERMINAL:
            moves.end(db, worker, claimed, CODES[status])
        return claimed
    return resting


def test_the_sql_can_do_every_move_that_exists_and_no_other(db: Session) -> None:
    details = {"running": REQUESTS, "paused": (None, "waiting")}
    seen: dict[tuple[RunStatus, RunStatus], set[str]] = {}
    for before in get_args(RunStatus):
        for detail in details.get(before, (None,)):
            for name in FROM_OUTSIDE if before in TERMINAL else ACTS:
                run = brought_into(db, before, detail)
                ACTS[name](db, run)
                after = BY_NAME[moves.status(db, run.id)]
                if after != before:
                    seen.setdefault((before, after), set()).add(name)
                for table in (
                    "inbox",
                    "finished",
                    "runs",
                    "workers",
                    "waits",
                    "events",
                    "failures",
                    "journal",
                    "run_log",
                ):
                    db.rows(f"delete from kedge.{table}")

    assert set(seen) <= MOVES, {move: seen[move] for move in set(seen) - MOVES}
    assert set(seen) == MOVES


@pytest.mark.parametrize(
    "name", ["give back", "give back with a delay", "park", "retry later", "retry at once", "take back"]
)
@pytest.mark.parametrize("request_", REQUESTS)
def test_what_is_at_rest_after_any_move_has_no_owner_and_no_request(
    db: Session, name: str, request_: str | None
) -> None:
    run = brought_into(db, "running", request_)

    ACTS[name](db, run)

    assert db.rows("select 1 from kedge.runs where worker_id is not null or request is not null") == []


# ---- one door -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [r"insert\s+into\s+kedge\.finished", r"delete\s+from\s+kedge\.runs\b", r"update\s+kedge\.finished\b"],
)
def test_nothing_but_the_exit_door_ends_a_run(statement: str) -> None:
    found = {path.name for path in SOURCES if re.search(statement, path.read_text("utf-8"), re.IGNORECASE)}

    assert found <= {"end_runs.sql"}


def test_the_exit_door_is_found_by_that_search() -> None:
    (door,) = [path for path in SOURCES if path.name == "end_runs.sql"]

    text = door.read_text("utf-8")

    assert re.search(r"insert\s+into\s+kedge\.finished", text)
    assert re.search(r"delete\s+from\s+kedge\.runs\b", text)


def test_only_the_exit_door_writes_ends_and_only_a_retry_or_their_age_takes_them_away(db: Session) -> None:
    writers = db.rows(
        "select proname, substring(prosrc from $1) from pg_proc where pronamespace = 'kedge'::regnamespace"
        " and prosrc ~* $1 order by 1",
        (r"(insert into|update|delete from)\s+\S*finished",),
    )

    assert writers == [("end_runs", "insert into"), ("remove_runs", "delete from"), ("retry_run", "delete from")]


def test_no_client_statement_writes_a_table() -> None:
    package = Path(str(kedge_client.__file__)).parent

    for path in package.rglob("*.py"):
        assert not re.search(r"(insert\s+into|update|delete\s+from)\s+kedge\.", path.read_text("utf-8"), re.IGNORECASE)
