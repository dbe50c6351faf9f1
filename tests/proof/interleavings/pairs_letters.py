"""Letters, the courier, and whatever else happens to their runs at the same moment."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from uuid import UUID

from kedge_worker._outcomes import End, GiveBack, Move, Park, RetryLater
from kedge_worker._side_writes import CLOSE_WAITS, CONSUME_MAIL, OPEN_WAITS
from tests import api_letters, letters, moves
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.flushes import Flushed, Writes, claim, flush, live
from tests.proof.interleavings.pairs import Scene, client, courier, engine, expect, pair
from tests.proof.interleavings.world import World
from tests.sessions import Session

EVENT_WAIT = ("paid", "e", "e:paid", None, None, None, 0, 0, None, b"")
COMPLETED = End("c", output=b"\x01null")
FAILED = End("f", error=b"\x01{}")

MOVES: dict[str, Move] = {
    "park": Park(()),
    "retry later": RetryLater(b"\x01{}", 60),
    "release": GiveBack(),
    "release with delay": GiveBack(60, "put off"),
    "completion": COMPLETED,
    "failure": FAILED,
}

# What becomes of a run by a letter that is sorted at the same moment as its owner moves it.
RESULTS = {
    ("event", "park"): {"pending"},
    ("event", "retry later"): {"waiting"},
    ("event", "release"): {"pending"},
    ("event", "release with delay"): {"waiting", "pending"},
    ("event", "completion"): {"completed"},
    ("event", "failure"): {"failed"},
    ("cancel", "park"): {"cancelled"},
    ("cancel", "retry later"): {"cancelled"},
    ("cancel", "release"): {"cancelled"},
    ("cancel", "release with delay"): {"cancelled"},
    ("cancel", "completion"): {"completed"},
    ("cancel", "failure"): {"failed", "cancelled"},
    ("pause", "park"): {"paused"},
    ("pause", "retry later"): {"paused"},
    ("pause", "release"): {"paused"},
    ("pause", "release with delay"): {"paused"},
    ("pause", "completion"): {"completed"},
    ("pause", "failure"): {"failed"},
    ("fast-forward", "park"): {"pending"},
    ("fast-forward", "retry later"): {"waiting"},
    ("fast-forward", "completion"): {"completed"},
}
KINDS = {"event": "e", "cancel": "x", "pause": "s", "fast-forward": "g"}


def put(db: Session, run: UUID, letter: str) -> UUID:
    """One letter in the inbox."""
    if letter == "event":
        return letters.send(db, run)
    return letters.put(db, run, KINDS[letter])


def mail_of(w: World, run: UUID) -> int:
    count: int = w.value("select count(*) from kedge.events where run_id = $1", run)
    return count


def _meets(letter: str, move: str) -> None:
    covers = {
        ("event", "park"): ("1:R1", "2:8", "2:i park x courier between snapshot and lock"),
        ("cancel", "park"): ("1:9", "2:7", "1:i cancel request x park/retry/give back/take back", "2:i request x park"),
        ("cancel", "retry later"): ("1:9", "2:7"),
        ("pause", "park"): ("2:7", "2:i request x park"),
    }.get((letter, move), ())

    @pair(f"courier with {letter} / {move}", *covers, timeouts=True)
    def meet(w: World) -> Scene:
        worker, run = letters.running(w.db)
        if letter == "fast-forward":
            letters.open_wait(w.db, worker, run, "paid")
        put(w.db, run.id, letter)

        def leave(actor: Actor) -> Flushed:
            mine = live(run)
            writes = Writes()
            writes.keep(mine, "step")
            if move == "park" and letter != "fast-forward":
                writes.side(mine, OPEN_WAITS, *EVENT_WAIT)
            writes.move(mine, MOVES[move])
            return flush(actor, worker, writes.batch)

        def check(_: int, flushed: Flushed) -> Iterable[str]:
            wanted = RESULTS[letter, move]
            if (letter, move) == ("cancel", "failure"):
                # Asked in time, it counts.
                wanted = {"cancelled" if letters.notes(w.db, run.id) == ["cancel: asked"] else "failed"}
            return expect(
                moved=(flushed.moved, [run.id]),
                status=(w.status(run.id), wanted),
                journal=(moves.journal(w.db, run.id), [(1, 1)]),
            ) + (
                expect(mail=(mail_of(w, run.id), 1))
                if letter == "event" and move not in ("completion", "failure")
                else []
            )

        return Scene((courier(), leave), check)


for _letter, _move in RESULTS:
    _meets(_letter, _move)


@pair("courier with event / flush that consumes an earlier one and closes its wait", "2:9")
def consumption(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.open_wait(w.db, worker, run, "paid")
    first = letters.send(w.db, run.id, payload=b"\x01111")
    moves.sort_inbox(w.db)
    letters.send(w.db, run.id, payload=b"\x01222")

    def go_on(actor: Actor) -> Flushed:
        mine = live(run)
        writes = Writes()
        seq = writes.keep(mine, "paid", "e")
        writes.side(mine, CLOSE_WAITS, "paid").side(mine, CONSUME_MAIL, seq, first.bytes)
        writes.side(mine, OPEN_WAITS, "next", "e", "e:paid", None, None, None, 0, 0, None, b"")
        writes.move(mine, Park(()))
        return flush(actor, worker, writes.batch)

    def check(_: int, flushed: Flushed) -> Iterable[str]:
        return expect(
            moved=(flushed.moved, [run.id]),
            status=(w.status(run.id), "pending"),
            unread=(letters.mail(w.db, run.id), [("e:paid", b"\x01222")]),
        )

    return Scene((courier(), go_on), check)


@pair(
    "send repeated / courier / flush that consumes it",
    "1:4",
    "2:2",
    "1:i send repeated after consumption",
    "2:i send repeated after consumption",
    levels=True,
)
def repeated_send(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)
    letters.open_wait(w.db, worker, run, "paid")
    letter = letters.send(w.db, run.id)

    def consume(actor: Actor) -> Flushed | None:
        engine(moves.sort_inbox)(actor)
        mail = actor.rows("select id from kedge.events where run_id = $1 and consumed_seq is null", (run.id,))
        if not mail:
            return None
        mine = live(run)
        writes = Writes()
        at = writes.keep(mine, "paid", "e")
        writes.side(mine, CLOSE_WAITS, "paid").side(mine, CONSUME_MAIL, at, letter.bytes)
        return flush(actor, worker, writes.batch)

    def check(sent: api_letters.Sent | None, _: object) -> Iterable[str]:
        return expect(
            accepted=sent is not None and sent.accepted,
            once=(mail_of(w, run.id), 1),
        )

    return Scene((client(lambda s: api_letters.send(s, run.id, letter=letter, event="paid"), level), consume), check)


@pair("two sends / courier", "2:9", levels=True)
def order_of_sends(w: World, level: Isolation) -> Scene:
    run = letters.parked(w.db, "paid")

    def send_two(actor: Actor) -> None:
        for payload in (b"\x011", b"\x012"):
            client(partial(api_letters.send, run=run.id, event="paid", payload=payload), level)(actor)

    def check(*_: object) -> Iterable[str]:
        return expect(
            order=([payload for _, payload in letters.mail(w.db, run.id)], [b"\x011", b"\x012"]),
            status=(w.status(run.id), "pending"),
        )

    return Scene((send_two, courier(2)), check)


@pair("courier / courier", "1:R3", "2:33")
def couriers(w: World) -> Scene:
    runs = [letters.parked(w.db, "paid") for _ in range(2)]
    for run in runs:
        letters.send(w.db, run.id)

    def check(*sorted_: int) -> Iterable[str]:
        return expect(
            statuses=([w.status(run.id) for run in runs], ["pending", "pending"]),
            once=([mail_of(w, run.id) for run in runs], [1, 1]),
        )

    return Scene((courier(), courier()), check)


@pair(
    "due claim / courier with event",
    "1:2b",
    "1:5",
    "1:i due timer claim x event/cancel",
    "1:i timeout queued + completion x event",
)
def due_and_event(w: World) -> Scene:
    worker = moves.register(w.db)
    run = letters.parked(w.db, "paid", delay_s=-1)
    letter = letters.send(w.db, run.id)

    def sort(actor: Actor) -> moves.Sorted:
        return engine(moves.sort_inbox)(actor)

    def check(taken: Flushed, sorted_: moves.Sorted) -> Iterable[str]:
        claimed = {one.id: one for one in taken.claimed}
        told = run.id in claimed and (
            letter in [mail.id for mail in claimed[run.id].mail] or worker in sorted_.owners or sorted_.letters == 0
        )
        return expect(
            status=(w.status(run.id), "running" if claimed else "pending"),
            unread=(len(letters.mail(w.db, run.id)), 1),
            owner_knows=not claimed or told,
        )

    return Scene((lambda actor: claim(actor, worker), sort), check)


@pair("due claim / courier with cancel", "1:2b", "1:i due timer claim x event/cancel")
def due_and_cancel(w: World) -> Scene:
    worker = moves.register(w.db)
    run = letters.parked(w.db, "paid", delay_s=-1)
    letters.put(w.db, run.id, "x")

    def check(taken: Flushed, _: int) -> Iterable[str]:
        if taken.claimed:
            return expect(asked=(moves.run_row(w.db, run.id)["request"], "x"))
        return expect(status=(w.status(run.id), "cancelled"))

    return Scene((lambda actor: claim(actor, worker), courier()), check)


@pair("due claim / courier with fast-forward", "1:16")
def due_and_fast_forward(w: World) -> Scene:
    worker = moves.register(w.db)
    run = letters.parked(w.db, "nap", kind="d", delay_s=-1)
    letters.put(w.db, run.id, "g")

    def check(taken: Flushed, _: int) -> Iterable[str]:
        return expect(status=(w.status(run.id), "running" if taken.claimed else "pending"))

    return Scene((lambda actor: claim(actor, worker), courier()), check)


@pair("timeout and completion / courier with event", "1:5", "1:i timeout queued + completion x event", timeouts=True)
def timeout_and_event(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.open_wait(w.db, worker, run, "paid", delay_s=-1)
    letters.send(w.db, run.id)

    def expire(actor: Actor) -> Flushed:
        mine = live(run)
        writes = Writes()
        writes.keep(mine, "paid", "f")
        writes.side(mine, CLOSE_WAITS, "paid").move(mine, COMPLETED)
        return flush(actor, worker, writes.batch)

    def check(flushed: Flushed, _: int) -> Iterable[str]:
        return expect(
            moved=(flushed.moved, [run.id]),
            status=(w.status(run.id), "completed"),
            journal=(moves.journal(w.db, run.id), [(1, 1)]),
        )

    return Scene((expire, courier()), check)
