"""An event to a topic reaches every run that waits for it when the letter is sorted, and keeps nothing for later."""

from __future__ import annotations

from typing import Final

from tests import letters, moves
from tests.sessions import Session, Sessions

LANES: Final = [moves.LANE]


def listeners(db: Session, count: int = 1, topic: str = "rates") -> list[moves.Claimed]:
    return [letters.parked(db, "rate", slot=letters.topic_slot(topic)) for _ in range(count)]


def sort_all(db: Session, limit: int = 500) -> list[int]:
    """How many letters each round has sorted, until nothing moves."""
    rounds: list[int] = []
    while (sorted_ := moves.sort_inbox(db, limit)).letters:
        rounds.append(sorted_.letters)
        assert len(rounds) < 50, "it does not come to an end"
    return rounds


def test_an_event_to_a_topic_wakes_all_that_wait_for_it_and_no_other(db: Session) -> None:
    hearing, deaf = listeners(db, 3), listeners(db, 2, "weather")
    letters.broadcast(db, payload=b"\x017")

    sort_all(db)

    assert moves.statuses(db, [run.id for run in hearing]) == {run.id: "pending" for run in hearing}
    assert moves.statuses(db, [run.id for run in deaf]) == {run.id: "waiting" for run in deaf}
    assert {tuple(letters.mail(db, run.id)) for run in hearing} == {((letters.topic_slot(), b"\x017"),)}
    assert moves.letters(db) == []


def test_an_event_of_another_name_of_the_topic_wakes_nobody(db: Session) -> None:
    (run,) = listeners(db)
    letters.broadcast(db, event="closed")

    sort_all(db)

    assert moves.status(db, run.id) == "waiting"


def test_a_topic_reaches_a_running_run_by_its_owner_and_a_paused_one_when_it_is_resumed(db: Session) -> None:
    worker, running = letters.running(db)
    letters.open_wait(db, worker, running, "rate", slot=letters.topic_slot())
    (paused,) = listeners(db)
    letters.put(db, paused.id, "s")
    moves.sort_inbox(db)
    letters.broadcast(db)

    moves.sort_inbox(db)
    sorted_ = moves.sort_inbox(db)
    letters.put(db, paused.id, "u")
    moves.sort_inbox(db)

    assert (sorted_.owners, len(letters.mail(db, running.id))) == ([worker], 1)
    assert moves.status(db, paused.id) == "pending"


def test_a_topic_without_listeners_keeps_nothing(db: Session) -> None:
    letters.broadcast(db)
    sort_all(db)
    (late,) = listeners(db)

    sort_all(db)

    assert (moves.status(db, late.id), letters.mail(db, late.id)) == ("waiting", [])


def test_a_run_that_waits_for_a_topic_twice_gets_the_event_once(db: Session) -> None:
    worker, run = letters.running(db)
    for key in ("one", "two"):
        letters.open_wait(db, worker, run, key, slot=letters.topic_slot())
    letters.park(db, worker, run)
    letters.broadcast(db)

    sort_all(db)

    assert len(letters.mail(db, run.id)) == 1


def test_who_stopped_waiting_before_its_letter_was_sorted_does_not_find_it_at_its_next_wait(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "one", slot=letters.topic_slot())
    letters.broadcast(db)
    moves.sort_inbox(db)
    db.rows(moves.statement("CLOSE_WAITS"), (worker, [run.id], [run.epoch], ["one"]))

    moves.sort_inbox(db)

    assert letters.mail(db, run.id) == []


def test_one_locked_listener_gets_the_event_later_and_the_others_get_it_once(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    locked, free = listeners(db, 2)
    letters.broadcast(db)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.id,))
    sort_all(db)
    early = moves.statuses(db)

    # Whoever has read it and waits again must not get it a second time.
    worker = moves.register(db)
    (again,) = moves.claim_alone(db, worker)
    letters.consume(db, worker, again, db.value("select id from kedge.events"), 1)
    letters.open_wait(db, worker, again, "next", slot=letters.topic_slot())
    db.rows(moves.statement("CLOSE_WAITS"), (worker, [again.id], [again.epoch], ["rate"]))
    letters.park(db, worker, again, last=1)
    holder.rollback()
    sort_all(db)

    assert early == {locked.id: "waiting", free.id: "pending"}
    assert moves.statuses(db) == {locked.id: "pending", free.id: "waiting"}


def test_events_to_a_topic_arrive_in_their_order_beside_a_locked_listener_too(sessions: Sessions) -> None:
    db, holder = sessions.open(lock_timeout="50ms"), sessions.open()
    locked, free = listeners(db, 2)
    holder.begin()
    holder.rows("select 1 from kedge.runs where id = $1 for no key update", (locked.id,))
    for number in range(3):
        letters.broadcast(db, payload=b"%d" % number)
        sort_all(db)
    holder.rollback()

    sort_all(db)

    for run in (locked, free):
        assert [payload for _, payload in letters.mail(db, run.id)] == [b"0", b"1", b"2"]


def test_what_is_sent_to_a_run_behind_a_broadcast_arrives_behind_it(db: Session) -> None:
    (run,) = listeners(db)
    letters.broadcast(db)
    letters.send(db, run.id)

    sort_all(db)

    assert [slot for slot, _ in letters.mail(db, run.id)] == [letters.topic_slot(), "e:paid"]


def test_a_topic_with_many_listeners_is_expanded_in_rounds_and_later_ones_wait_their_turn(db: Session) -> None:
    worker, run = letters.running(db)
    letters.open_wait(db, worker, run, "rate", slot=letters.topic_slot())
    db.rows(
        """
        with made as (
            insert into kedge.runs (id, since, state, queue, workflow, has_waits)
            select gen_random_uuid(), now(), 'w', 'default', 'order', true from generate_series(1, 2499) returning id),
        inputs as (
            insert into kedge.journal select id, now(), 0, 0, 0, 'i', '', '', '' from made)
        insert into kedge.waits (run_id, opened_at, kind, key, slot) select id, now(), 'e', 'rate', $1 from made
        """,
        (letters.topic_slot(),),
    )
    for payload in (b"first", b"second"):
        letters.broadcast(db, payload=payload)

    first = moves.sort_inbox(db)
    written = db.value("select count(*) from kedge.inbox where kind = 'e'")
    rest = sort_all(db)

    assert (first.letters, first.remaining, written) == (1, True, 1000)
    assert sum(rest) > 5000
    assert db.value("select count(*) from kedge.events") == 5000
    assert db.value("select count(*) from kedge.runs where state = 'p'") == 2499
    assert [payload for _, payload in letters.mail(db, run.id)] == [b"first", b"second"]
    assert moves.letters(db) == []


def test_a_large_event_is_expanded_by_fewer_at_a_time(db: Session) -> None:
    listeners(db, 5)
    letters.broadcast(db, payload=bytes(3 << 20))

    moves.sort_inbox(db)
    written = db.value("select count(*) from kedge.inbox where kind = 'e'")
    sort_all(db)

    assert written == 2
    assert db.value("select count(*) from kedge.events") == 5
