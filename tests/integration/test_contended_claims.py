"""Several workers claim at once: each sees the same runs first, and none goes to sleep because the others had them."""

from __future__ import annotations

import psycopg

from kedge import WorkflowRef
from kedge_worker import Context, Worker, workflow
from kedge_worker._claims import MAX_CANDIDATES, ClaimAnswer, ClaimRequest
from kedge_worker._runs import Batch
from tests import moves
from tests.sessions import Session, Sessions
from tests.writer import Writer, lanes, open_store


@workflow(WorkflowRef(moves.WORKFLOW))
async def handle(ctx: Context) -> None:
    """Nothing to do."""


def hold(session: Session, runs: int) -> None:
    """As a claim does before its commit: the first ones in the order in which all claims take them."""
    session.begin()
    session.rows("select 1 from kedge.runs order by rank, seq limit $1 for update", (runs,))


async def claimed(writer: Writer, limit: int, spread: int) -> ClaimAnswer:
    answer = await writer.store.flush(Batch(), ClaimRequest(limit, lanes(), {}, spread))
    assert answer.claim is not None
    return answer.claim


async def test_a_claim_says_whether_others_held_what_it_looked_at_while_there_may_be_more(
    database_url: str, sessions: Sessions
) -> None:
    holder = sessions.open()
    runs = moves.started(holder, 12)
    hold(holder, 6)
    async with open_store(database_url) as writer:
        none = await claimed(writer, 4, 1)
        some = await claimed(writer, 4, 2)
        enough = await claimed(writer, 2, 6)
        last = await claimed(writer, 4, 3)

    assert ([run.id for run in none.runs], none.was_contended, none.is_full) == ([], True, True)
    assert ([run.id for run in some.runs], some.was_contended, some.is_full) == (runs[6:8], True, True)
    assert ([run.id for run in enough.runs], enough.was_contended, enough.is_full) == (runs[8:10], False, True)
    # It has seen all that is there: what others hold now is theirs.
    assert ([run.id for run in last.runs], last.was_contended, last.is_full) == (runs[10:], False, False)
    holder.rollback()


async def test_a_claim_that_got_nothing_of_the_most_that_it_may_look_at_is_not_repeated_at_once(
    database_url: str, sessions: Sessions
) -> None:
    holder = sessions.open()
    moves.started(holder, MAX_CANDIDATES + 1)
    hold(holder, MAX_CANDIDATES)
    async with open_store(database_url) as writer:
        answer = await claimed(writer, 10, MAX_CANDIDATES)

    assert (answer.runs, answer.is_full) == ([], False)
    holder.rollback()


async def test_a_worker_executes_what_is_free_behind_runs_that_somebody_holds(
    database_url: str, sessions: Sessions, conn: psycopg.Connection
) -> None:
    holder = sessions.open()
    runs = moves.started(holder, 30)
    hold(holder, 12)
    worker = Worker(database_url, workflows=[handle], concurrency=2)

    assert await worker.run_until_idle() == 18
    ended = conn.execute("select id from kedge.finished order by id").fetchall()
    assert [run for (run,) in ended] == sorted(runs[12:])

    holder.rollback()
    assert await worker.run_until_idle() == 12
