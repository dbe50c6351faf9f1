"""A take back meets a flush at each of its statements, beats, locked runs, requests, hung sessions, other takers."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import pq

from tests import moves
from tests.sessions import Session, Sessions

FLUSH: Final = ("begin", "hold", "keep", "end", "release", "commit")
HELD: Final = FLUSH.index("hold") + 1
"""From here on the worker's row is locked by the flush."""


MOVES: Final[dict[str, Callable[[Session, UUID, moves.Claimed], int]]] = {
    "keep": moves.keep,
    "end": moves.end,
    "release": moves.release,
}


def flush(session: Session, worker: UUID, runs: list[moves.Claimed]) -> Iterator[int]:
    """One flush, a statement a step: the first run keeps a row, the second ends, the third is given back."""
    keeping, ending, released = runs
    session.begin()
    yield 1
    moves.hold(session, worker)
    yield 1
    yield moves.keep(session, worker, keeping)
    yield moves.end(session, worker, ending)
    yield moves.release(session, worker, released)
    session.commit()
    yield 1


def dead_worker(db: Session, runs: int) -> tuple[UUID, list[moves.Claimed]]:
    """A worker whose lease is over, and what it has claimed."""
    worker = moves.register(db)
    moves.started(db, runs)
    claimed = moves.claim_alone(db, worker)
    moves.lapse(db, worker)
    return worker, claimed


# ---- flush and take back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", range(HELD), ids=[f"before {step}" for step in FLUSH[:HELD]])
def test_a_flush_behind_a_take_back_stores_nothing(sessions: Sessions, before: int) -> None:
    db, zombie = sessions.open(), sessions.open(lock_timeout="50ms")
    worker, runs = dead_worker(db, 3)
    steps = flush(zombie, worker, runs)
    for _ in range(before):
        next(steps)

    taken = moves.take_back(db)

    with pytest.raises(psycopg.Error) as lost:
        list(steps)
    assert lost.value.sqlstate == "KE001"
    assert taken == moves.TakenBack(worker, freed=3, ended=[], remaining=False)
    zombie.rollback()
    assert set(moves.statuses(db).values()) == {"pending"}
    assert moves.journal(db, runs[0].id) == []


@pytest.mark.parametrize("before", range(HELD, len(FLUSH)), ids=[f"before {step}" for step in FLUSH[HELD:]])
def test_a_take_back_passes_by_a_flush_under_way_and_finds_what_it_left(sessions: Sessions, before: int) -> None:
    db, owner = sessions.open(lock_timeout="50ms"), sessions.open(lock_timeout="50ms")
    worker, runs = dead_worker(db, 3)
    steps = flush(owner, worker, runs)
    for _ in range(before):
        next(steps)

    under_way = moves.take_back(db)
    rest = list(steps)
    after = moves.take_back(db)

    assert under_way is None
    assert set(rest) == {1}
    assert after == moves.TakenBack(worker, freed=1, ended=[], remaining=False)
    assert moves.statuses(db) == {runs[0].id: "pending", runs[1].id: "completed", runs[2].id: "pending"}
    assert moves.journal(db, runs[0].id) == [(1, 1)]


@pytest.mark.parametrize("commits", [True, False])
def test_a_flush_waits_its_turn_behind_an_open_take_back(sessions: Sessions, commits: bool) -> None:
    db, owner = sessions.open(), sessions.open()
    worker, runs = dead_worker(db, 3)
    db.begin()
    moves.take_back(db)

    written = owner.later(lambda session: list(flush(session, worker, runs)))
    sessions.wait_until_blocked(owner, db)
    if commits:
        db.commit()
    else:
        db.rollback()

    if commits:
        with pytest.raises(psycopg.Error) as lost:
            written.result()
        assert lost.value.sqlstate == "KE001"
        owner.rollback()
    else:
        assert set(written.result()) == {1}
    ended = set(moves.statuses(db).values()) - {"pending", "running"}
    assert ended == (set() if commits else {"completed"})


@pytest.mark.parametrize("new_owner", ["another worker", "the same worker"])
@pytest.mark.parametrize("move", MOVES)
def test_each_statement_of_a_zombie_is_refused_by_itself(db: Session, move: str, new_owner: str) -> None:
    worker, (old,) = dead_worker(db, 1)
    if new_owner == "another worker":
        moves.take_back(db)
        owner = moves.register(db)
    else:
        # The row of a worker that a take back has not emptied stays: it may claim its own lost run again.
        owner = worker
        db.rows("update kedge.runs set state = 'p', worker_id = null, epoch = epoch + 1 where id = $1", (old.id,))
    (new,) = moves.claim_alone(db, owner)
    before = moves.run_row(db, old.id)

    # Without hold_worker, which would refuse all of them: the fence is in every statement.
    count = MOVES[move](db, worker, old)

    assert count == 0
    assert moves.run_row(db, old.id) == before
    assert moves.journal(db, old.id) == []
    assert moves.keep(db, owner, new) == 1
    assert moves.end(db, owner, new, rows=(1, 1)) == 1


@pytest.mark.parametrize("move", MOVES)
def test_a_worker_cannot_write_for_another_one_though_it_knows_the_epoch(db: Session, move: str) -> None:
    owner, stranger = moves.register(db), moves.register(db)
    moves.started(db)
    (run,) = moves.claim_alone(db, owner)

    count = MOVES[move](db, stranger, run)

    assert count == 0
    assert moves.status(db, run.id) == "running"
    assert moves.journal(db, run.id) == []


@pytest.mark.parametrize("move", MOVES)
def test_nothing_can_be_written_for_a_run_at_rest(db: Session, move: str) -> None:
    worker = moves.register(db)
    moves.started(db)
    (run,) = moves.claim_alone(db, worker)
    moves.release(db, worker, run)

    count = MOVES[move](db, worker, run)

    assert count == 0
    assert moves.status(db, run.id) == "pending"


# ---- rows and their end -------------------------------------------------------------------------------------------


def test_an_end_whose_rows_were_refused_is_refused_too(db: Session) -> None:
    worker = moves.register(db)
    moves.started(db)
    (old,) = moves.claim_alone(db, worker)
    moves.keep(db, worker, old, 1)
    moves.lapse(db, worker)
    moves.take_back(db)
    second = moves.register(db)
    (new,) = moves.claim_alone(db, second)

    # seq 1 stands there already, of an older epoch: this worker's value was computed beside it.
    kept = [moves.keep(db, second, new, seq) for seq in (1, 2)]
    refused = moves.end(db, second, new, rows=(1, 2))
    allowed = moves.end(db, second, new, rows=(2, 2))

    assert kept == [0, 1]
    assert (refused, allowed) == (0, 1)
    assert moves.journal(db, old.id) == [(1, 1), (2, 3)]


def test_a_row_once_stored_never_changes(db: Session) -> None:
    worker = moves.register(db)
    moves.started(db)
    (run,) = moves.claim_alone(db, worker)
    moves.keep(db, worker, run, 1, b"\x01first")

    again = moves.keep(db, worker, run, 1, b"\x01second")

    assert again == 0
    assert db.value("select value from kedge.journal where run_id = $1 and seq = 1", (run.id,)) == b"\x01first"
    moves.end(db, worker, run, rows=(1, 1))


# ---- locked runs --------------------------------------------------------------------------------------------------


def test_one_locked_run_does_not_hold_up_the_others_and_follows_in_a_later_round(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, runs = dead_worker(db, 3)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (runs[1].id,))

    first = moves.take_back(db)
    second = moves.take_back(db)
    holder.rollback()
    third = moves.take_back(db)
    fourth = moves.take_back(db)

    assert first == moves.TakenBack(worker, freed=2, ended=[], remaining=True)
    assert second == moves.TakenBack(worker, freed=0, ended=[], remaining=True)
    assert third == moves.TakenBack(worker, freed=1, ended=[], remaining=False)
    assert fourth is None
    assert set(moves.statuses(db).values()) == {"pending"}
    assert db.value("select count(*) from kedge.workers") == 0


def test_a_worker_whose_row_still_stands_after_a_take_back_lives_on_without_the_runs_it_lost(
    sessions: Sessions,
) -> None:
    db, holder = sessions.open(), sessions.open()
    worker, (locked, lost) = dead_worker(db, 2)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.id,))
    moves.take_back(db)
    holder.rollback()

    beaten = moves.beat(db, worker)
    written = list(flush(db, worker, [lost, locked, lost]))

    assert len(beaten) == 1
    assert written == [1, 1, 0, 1, 0, 1]
    assert moves.statuses(db) == {locked.id: "completed", lost.id: "pending"}
    assert [run.id for run in moves.claim_alone(db, worker)] == [lost.id]


# ---- beats --------------------------------------------------------------------------------------------------------


def test_a_beat_under_way_saves_the_worker(sessions: Sessions) -> None:
    db, keeper = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, _ = dead_worker(db, 1)
    keeper.rows("update kedge.workers set lease = '1 minute' where id = $1", (worker,))
    db.rows("update kedge.workers set lease_until = clock_timestamp() - interval '1 s' where id = $1", (worker,))
    keeper.begin()
    moves.beat(keeper, worker)

    under_way = moves.take_back(db)
    keeper.commit()
    after = moves.take_back(db)

    assert (under_way, after) == (None, None)
    assert set(moves.statuses(db).values()) == {"running"}


def test_a_beat_behind_a_take_back_answers_that_the_row_is_gone(sessions: Sessions) -> None:
    db, keeper = sessions.open(), sessions.open()
    worker, _ = dead_worker(db, 1)
    db.begin()
    moves.take_back(db)

    beaten = keeper.later(moves.beat, worker)
    sessions.wait_until_blocked(keeper, db)
    db.commit()

    assert beaten.result() == []


def test_a_beat_passes_a_flush_under_way(sessions: Sessions) -> None:
    db, owner, keeper = sessions.open(), sessions.open(), sessions.open(lock_timeout="50ms")
    worker = moves.register(db)
    owner.begin()
    moves.hold(owner, worker)

    beaten = moves.beat(keeper, worker)
    owner.commit()

    assert len(beaten) == 1


def test_a_living_worker_is_left_alone(db: Session) -> None:
    worker = moves.register(db)
    moves.started(db)
    moves.claim_alone(db, worker)

    assert moves.take_back(db) is None
    assert set(moves.statuses(db).values()) == {"running"}


# ---- who is taken back, and when ----------------------------------------------------------------------------------


def test_nobody_is_taken_back_for_one_lease_after_the_servers_start_but_who_said_that_it_leaves(db: Session) -> None:
    # A lease that is longer than this server has been up.
    lease = db.value("select clock_timestamp() - pg_postmaster_start_time() + interval '1 hour'")
    assert isinstance(lease, timedelta)
    moves.started(db)
    worker = moves.register(db, lease=lease)
    (run,) = moves.claim_alone(db, worker)
    db.rows("update kedge.workers set lease_until = clock_timestamp() - interval '1 minute'")

    in_the_grace = moves.take_back(db)
    db.rows(moves.statement("ABANDON"), {"worker": worker})
    when_it_left = moves.take_back(db)

    assert in_the_grace is None
    assert when_it_left == moves.TakenBack(worker, freed=1, ended=[], remaining=False)
    assert moves.run_row(db, run.id)["crashes"] == 0


def test_a_worker_of_a_newer_protocol_is_left_to_its_like(db: Session) -> None:
    newer = moves.register(db, protocol=moves.PROTOCOL + 1)
    moves.lapse(db, newer)

    by_an_older = moves.take_back(db, moves.PROTOCOL)
    by_its_like = moves.take_back(db, moves.PROTOCOL + 1)

    assert by_an_older is None
    assert by_its_like is not None


def test_two_takers_at_once_take_two_workers_and_wait_for_nobody(sessions: Sessions) -> None:
    one, other = sessions.open(), sessions.open(lock_timeout="50ms")
    first, _ = dead_worker(one, 2)
    second, _ = dead_worker(one, 2)
    one.begin()
    taken = moves.take_back(one)

    by_the_other = moves.take_back(other)
    once_more = moves.take_back(other)
    one.commit()

    assert taken is not None
    assert by_the_other is not None
    assert {taken.worker, by_the_other.worker} == {first, second}
    assert (taken.freed, by_the_other.freed) == (2, 2)
    assert once_more is None


def test_a_take_back_of_a_sleeper_takes_its_doorbell_away(db: Session) -> None:
    worker = moves.register(db)
    db.rows(moves.statement("GO_IDLE"), {"worker": worker, "queues": [moves.QUEUE], "workflows": [moves.WORKFLOW]})
    moves.lapse(db, worker)

    moves.take_back(db)

    assert db.value("select count(*) from kedge.idle") == 0


def test_the_word_of_a_dead_worker_that_it_sleeps_comes_too_late(db: Session) -> None:
    worker = moves.register(db)
    moves.lapse(db, worker)
    moves.take_back(db)

    db.rows(moves.statement("GO_IDLE"), {"worker": worker, "queues": [moves.QUEUE], "workflows": [moves.WORKFLOW]})

    assert db.value("select count(*) from kedge.idle") == 0


# ---- crashes ------------------------------------------------------------------------------------------------------


def test_a_journal_row_of_the_epoch_that_was_taken_back_resets_the_count_and_an_older_one_does_not(
    db: Session,
) -> None:
    (run,) = moves.started(db)
    counts: list[int] = []

    for keeps in (False, True, False, True):
        worker = moves.register(db)
        (claimed,) = moves.claim_alone(db, worker)
        if keeps:
            moves.keep(db, worker, claimed)
        moves.lapse(db, worker)
        moves.take_back(db)
        counts.append(moves.run_row(db, run)["crashes"])

    assert counts == [1, 0, 1, 0]


@pytest.mark.parametrize("how", ["LEAVE", "ABANDON"])
def test_a_worker_that_left_charges_nobody(db: Session, how: str) -> None:
    (run,) = moves.started(db)
    crashed = moves.register(db)
    moves.claim_alone(db, crashed)
    moves.lapse(db, crashed)
    moves.take_back(db)
    before = moves.run_row(db, run)["crashes"]
    worker = moves.register(db)
    moves.claim_alone(db, worker)

    db.rows(moves.statement(how), {"worker": worker})
    moves.lapse(db, worker)
    taken = moves.take_back(db)

    assert taken is not None
    assert taken.freed == 1
    assert (before, moves.run_row(db, run)["crashes"]) == (1, 1)


def test_a_worker_that_owns_nothing_leaves_no_row(db: Session) -> None:
    worker = moves.register(db)
    db.rows(moves.statement("GO_IDLE"), {"worker": worker, "queues": [moves.QUEUE], "workflows": [moves.WORKFLOW]})

    moves.leave(db, worker)

    assert db.value("select count(*) from kedge.workers") == 0
    assert db.value("select count(*) from kedge.idle") == 0


# ---- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 2])
def test_a_run_whose_cancel_was_sorted_ends_cancelled_with_the_take_back(db: Session, rows: int) -> None:
    worker = moves.register(db)
    moves.started(db)
    (run,) = moves.claim_alone(db, worker)
    for seq in range(1, rows + 1):
        moves.keep(db, worker, run, seq)
    moves.cancel(db, run.id, reason="enough")
    moves.sort_inbox(db)
    moves.lapse(db, worker)

    taken = moves.take_back(db)

    assert taken == moves.TakenBack(worker, freed=1, ended=[run.id], remaining=False)
    assert moves.status(db, run.id) == "cancelled"
    assert db.rows("select reason, next_seq from kedge.finished") == [("enough", rows + 1)]


def test_a_cancel_that_nobody_has_sorted_outlives_the_take_back(db: Session) -> None:
    _, (run,) = dead_worker(db, 1)
    moves.cancel(db, run.id)

    moves.take_back(db)
    between = moves.status(db, run.id)
    claimed = moves.claim_alone(db, moves.register(db))
    moves.sort_inbox(db)

    assert (between, claimed) == ("pending", [])
    assert moves.status(db, run.id) == "cancelled"


def test_a_run_that_the_courier_holds_is_taken_back_in_the_next_round_and_ends_cancelled(sessions: Sessions) -> None:
    db, courier = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, (run, other) = dead_worker(db, 2)
    moves.cancel(db, run.id)
    courier.begin()
    moves.sort_inbox(courier)

    first = moves.take_back(db)
    courier.commit()
    second = moves.take_back(db)

    assert first == moves.TakenBack(worker, freed=1, ended=[], remaining=True)
    assert second == moves.TakenBack(worker, freed=1, ended=[run.id], remaining=False)
    assert moves.statuses(db) == {run.id: "cancelled", other.id: "pending"}


def test_a_courier_behind_an_open_take_back_leaves_the_letter_for_the_next_round(sessions: Sessions) -> None:
    db, courier = sessions.open(), sessions.open(lock_timeout="50ms")
    _, (run,) = dead_worker(db, 1)
    moves.cancel(db, run.id)
    db.begin()
    moves.take_back(db)

    while_open = moves.sort_inbox(courier)
    db.commit()
    after = moves.sort_inbox(courier)

    assert (while_open.letters, while_open.remaining) == (0, True)
    assert after.ended == [run.id]
    assert moves.status(db, run.id) == "cancelled"


# ---- clients that stop reading ------------------------------------------------------------------------------------

BIG: Final = 1024 * 1024


def test_a_client_that_stops_in_the_middle_of_a_claims_answer_holds_no_locks(sessions: Sessions) -> None:
    db = sessions.open(lock_timeout="50ms")
    worker = moves.register(db)
    moves.started(db, 30, data=b"\x01" + b"1" * BIG)
    stopped = ClientThatDoesNotRead(sessions.url)
    stopped.send(
        ("begin", []),
        (moves.statement("HOLD_WORKER"), [str(worker)]),
        (
            moves.statement("CLAIM"),
            [str(worker), "{default}", "{order}", "{-32768}", "{0}", "100", "{null}", "f", "100"],
        ),
        ("commit", []),
        (moves.statement("READ_CLAIMED"), []),
    )
    sessions.wait_until(
        "select wait_event = 'ClientWrite' from pg_stat_activity where pid = %(pid)s",
        {"pid": stopped.pid},
        what="the server to stand in the middle of the answer",
    )

    moves.lapse(db, worker)
    taken = moves.take_back(db)

    assert taken == moves.TakenBack(worker, freed=30, ended=[], remaining=False)
    next_one = moves.register(db)
    claimed: list[moves.Claimed] = []
    while share := moves.claim_alone(db, next_one):  # of runs that were claimed before, 8 MiB at a time
        claimed += share
    assert len(claimed) == 30
    stopped.close()


def test_a_session_that_hangs_with_a_dead_workers_row_is_ended_by_the_taker(sessions: Sessions) -> None:
    db = sessions.open(lock_timeout="50ms")
    worker = moves.register(db)
    moves.started(db, 30, data=b"\x01" + b"1" * BIG)
    hung = ClientThatDoesNotRead(sessions.url)
    hung.send(
        ("begin", []),
        ("select kedge.take_over_journal($1::uuid, 0, null)", [str(worker)]),
        ("commit", []),
        ("begin", []),
        (moves.statement("HOLD_WORKER"), [str(worker)]),
        ("select j.value from kedge.journal j", []),  # payloads inside the transaction: what no claim does
    )
    sessions.wait_until(
        "select wait_event = 'ClientWrite' from pg_stat_activity where pid = %(pid)s",
        {"pid": hung.pid},
        what="the server to stand in the middle of the answer",
    )
    moves.lapse(db, worker)

    in_its_way = moves.take_back(db)
    sessions.wait_until(
        "select not exists (select 1 from pg_stat_activity where pid = %(pid)s)",
        {"pid": hung.pid},
        what="the hung session to be ended",
    )
    taken = moves.take_back(db)

    assert in_its_way is None
    assert taken == moves.TakenBack(worker, freed=0, ended=[], remaining=False)
    hung.close()


def test_another_process_that_got_the_same_pid_is_not_ended_for_a_dead_worker(sessions: Sessions) -> None:
    db, innocent = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, _ = dead_worker(db, 1)
    db.rows(
        "update kedge.workers set pids = array[$2::int], pids_started = array[now() - interval '1 day'] where id = $1",
        (worker, innocent.pid),
    )
    innocent.begin()
    moves.hold(innocent, worker)

    assert moves.take_back(db) is None

    assert innocent.value("select 1") == 1
    innocent.rollback()


def test_a_hung_session_of_another_role_stops_no_taker(sessions: Sessions) -> None:
    db, hung = sessions.open(lock_timeout="50ms"), sessions.open()
    worker, _ = dead_worker(db, 1)
    db.rows(
        "update kedge.workers w set pids = array[a.pid], pids_started = array[a.backend_start]"
        " from pg_stat_activity a where a.pid = $1",
        (hung.pid,),
    )
    hung.begin()
    moves.hold(hung, worker)
    role = f"taker_{uuid4().hex[:12]}"
    db.rows(f"create role {role} in role pg_read_all_stats")
    db.rows(f"grant usage on schema kedge to {role}")
    db.rows(f"grant all on all tables in schema kedge to {role}")
    db.rows(f"grant all on all functions in schema kedge to {role}")
    db.rows(f"set role {role}")

    taken = moves.take_back(db)

    db.rows("reset role")
    db.rows(f"drop owned by {role}")
    db.rows(f"drop role {role}")
    assert taken is None
    assert hung.value("select 1") == 1
    hung.rollback()


class ClientThatDoesNotRead:
    """Sends statements in one pipeline and reads no answer, as a stopped process does."""

    def __init__(self, url: str) -> None:
        self._pg = pq.PGconn.connect(url.encode())
        assert self._pg.status == pq.ConnStatus.OK, self._pg.get_error_message()
        self.pid = self._pg.backend_pid

    def send(self, *statements: tuple[str, list[str]]) -> None:
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        for text, parameters in statements:
            self._pg.send_query_params(text.encode(), [value.encode() for value in parameters])
        self._pg.pipeline_sync()
        while self._pg.flush():
            pass

    def close(self) -> None:
        self._pg.finish()
