"""What a claim reads of runs with a past is bounded, and so is a look for mail: 8 MiB behind the first."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from kedge_worker._claims import ClaimAnswer, ClaimRequest
from kedge_worker._runs import Batch, LiveRun, Row
from kedge_worker._statements import CLAIM, CLAIM_BYTES
from tests import moves
from tests.sessions import Session
from tests.writer import GIVEN_BACK, Writer, lanes, live, open_store

MIB = 1024 * 1024


async def claim(writer: Writer, limit: int = 100) -> ClaimAnswer:
    answer = await writer.store.flush(Batch(), ClaimRequest(limit, lanes(), {}))
    assert answer.claim is not None
    return answer.claim


def ids(answer: ClaimAnswer) -> list[UUID]:
    return [run.id for run in answer.runs]


def pages(run: LiveRun, count: int, size: int) -> list[Row]:
    return [Row(run, run.take_seq(), "s", f"page#{n}", b"\x01" + b"0" * size) for n in range(count)]


async def given_back(writer: Writer, *sizes: Sequence[int]) -> list[UUID]:
    """Claim as many runs as there are sizes, keep rows of these sizes, and give the runs back in this order."""
    runs = [live(run) for run in (await claim(writer, len(sizes))).runs]
    for run, own in zip(runs, sizes, strict=True):
        flush = Batch()
        flush.rows = [row for size in own for row in pages(run, 1, size)]
        flush.moves = [(run, GIVEN_BACK)]
        await writer.store.flush(flush, None)
    return [run.claimed.id for run in runs]


def send(db: Session, run: UUID, count: int, size: int) -> None:
    """Unread mail, as the courier stores it."""
    db.rows(
        "insert into kedge.events (run_id, id, seq, at, slot, payload)"
        " select $1, gen_random_uuid(), n, now(), 'e:paid', $3 from generate_series(1, $2) n",
        [run, count, b"\x01" + b"0" * size],
    )
    db.rows("update kedge.runs set has_waits = true where id = $1", [run])


async def test_a_claim_brings_no_more_than_eight_mib_behind_its_first_run(database_url: str, db: Session) -> None:
    moves.started(db, 5)
    async with open_store(database_url) as writer:
        runs = await given_back(writer, *[[MIB] * 3] * 5)

        first = await claim(writer)
        second = await claim(writer)
        third = await claim(writer)

    assert (ids(first), first.was_cut, first.is_full) == (runs[:3], True, True)
    assert (ids(second), second.was_cut, second.is_full) == (runs[3:], False, False)
    assert [len(run.memo) for run in first.runs + second.runs] == [3] * 5
    assert ids(third) == []


async def test_a_run_that_is_larger_than_that_is_claimed_alone_and_whole(database_url: str, db: Session) -> None:
    moves.started(db, 3)
    async with open_store(database_url) as writer:
        runs = await given_back(writer, [10], [MIB] * 10, [10])

        claims = [await claim(writer) for _ in range(3)]

    assert [ids(one) for one in claims] == [runs[:1], runs[1:], []]
    assert [len(run.memo) for one in claims for run in one.runs] == [1, 10, 1]


async def test_rows_count_beside_their_payloads(database_url: str, db: Session) -> None:
    moves.started(db, 4)
    async with open_store(database_url) as writer:
        runs = await given_back(writer, [1], [1], [1], [1])
        db.rows(
            "insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)"
            " select id, now(), n, 1, 0, 's', 'page#' || n, '', '' from kedge.runs, generate_series(2, 10000) n"
            " where id <> $1",
            [runs[0]],
        )
        db.rows("update kedge.runs set next_seq = 10001 where id <> $1", [runs[0]])

        first = await claim(writer)

    assert (ids(first), first.was_cut) == (runs[:3], True)


async def test_unread_mail_counts_as_what_is_kept(database_url: str, db: Session) -> None:
    runs = moves.started(db, 4)
    for run in runs:
        send(db, run, 4, MIB)
    async with open_store(database_url) as writer:
        first = await claim(writer)
        second = await claim(writer)

    assert (ids(first), ids(second)) == (runs[:2], runs[2:])
    assert [len(run.mail) for run in first.runs + second.runs] == [4] * 4


async def test_inputs_are_bounded_by_slots_alone(database_url: str, db: Session) -> None:
    runs = moves.started(db, 12, data=b"\x01" + b"0" * (MIB - 1))
    async with open_store(database_url) as writer:
        first = await claim(writer)

    assert (ids(first), first.was_cut) == (runs, False)
    assert first.input_bytes == 12 * MIB


async def test_a_look_for_mail_answers_its_beginning_and_then_the_rest(database_url: str, db: Session) -> None:
    runs = moves.started(db, 3)
    for run in runs:
        send(db, run, 5, MIB)
    async with open_store(database_url) as writer:
        first = await writer.control.new_mail(runs, [])
        known = [mail.id for mails in first.values() for mail in mails]
        second = await writer.control.new_mail(runs, known)

    order = [(run, mail.seq) for one in (first, second) for run in runs for mail in one.get(run, ())]
    assert sum(len(mails) for mails in first.values()) == CLAIM_BYTES // MIB
    assert order == [(run, seq) for run in runs for seq in range(1, 6)]


def test_the_statement_says_the_number_that_the_worker_knows() -> None:
    assert f", {CLAIM_BYTES})" in CLAIM
