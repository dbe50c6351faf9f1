"""Claims, flushes, beats, take backs and farewells: workers meet each other on runs and on their own rows."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID, uuid4

from kedge_worker._outcomes import End, GiveBack, Move, Park, RetryLater
from kedge_worker._side_writes import OPEN_WAITS, SEND_LETTERS
from tests import letters, moves
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.flushes import Flushed, Writes, claim, claiming, flush, give_back, live
from tests.proof.interleavings.pairs import Scene, client, courier, engine, expect, pair
from tests.proof.interleavings.world import World
from tests.sessions import Session

COMPLETED = End("c", output=b"\x01null")
FAILED = End("f", error=b"\x01{}")
SLEEP = ("nap", "d", None, 86_400.0, None, None, 0, 0, None, b"")


def take_back(actor: Actor) -> moves.TakenBack | None:
    return engine(moves.take_back)(actor)


def owner(w: World, run: UUID) -> tuple[str, UUID | None]:
    ((status, worker),) = w.rows("select status, worker_id from kedge.all_runs where id = $1", run)
    return status, worker


def writing(actor: Actor, worker: UUID, run: moves.Claimed, move: Move) -> Flushed:
    """A flush with one row and a move."""
    mine = live(run)
    writes = Writes()
    writes.keep(mine, "step")
    if isinstance(move, Park):
        writes.side(mine, OPEN_WAITS, *SLEEP)
    writes.move(mine, move)
    return flush(actor, worker, writes.batch)


# ---- claims -------------------------------------------------------------------------------------------------------


@pair("claim / claim", "1:R2", "2:20")
def claims(w: World) -> Scene:
    runs = moves.started(w.db, 3)
    workers = [moves.register(w.db) for _ in range(2)]

    def check(*taken: Flushed) -> Iterable[str]:
        owned = [{run.id for run in one.claimed} for one in taken]
        stored = [
            {r for (r,) in w.rows("select id from kedge.runs where worker_id = $1", worker)} for worker in workers
        ]
        return expect(
            known=(owned, stored),
            no_more_than_asked=all(len(one) <= 2 for one in owned),
            none_forgotten=len(owned[0] | owned[1]) >= 2 and owned[0] | owned[1] <= set(runs),
        )

    return Scene([claiming(worker, 2) for worker in workers], check)


@pair("claim / claim of due runs", "1:2b", "2:21")
def due_claims(w: World) -> Scene:
    run = letters.parked(w.db, "nap", kind="d", delay_s=-1)
    workers = [moves.register(w.db) for _ in range(2)]

    def check(*taken: Flushed) -> Iterable[str]:
        claimed = [number for number, one in enumerate(taken) if one.claimed]
        return expect(one=(len(claimed), 1), owner=(owner(w, run.id), ("running", workers[claimed[0]])))

    return Scene([claiming(worker) for worker in workers], check)


@pair("take back / claim of the worker itself", "1:8", "1:i take back x claim at each statement")
def take_back_and_claim(w: World) -> Scene:
    worker, run = letters.running(w.db)
    (other,) = moves.started(w.db)
    moves.lapse(w.db, worker)

    def check(_: object, taken: Flushed) -> Iterable[str]:
        return expect(
            statuses=([w.status(one) for one in (run.id, other)], ["pending", "pending"]),
            row=(w.value("select count(*) from kedge.workers where id = $1", worker), 0),
        )

    return Scene((take_back, lambda actor: claim(actor, worker)), check)


@pair("take back / claim by another worker", "1:8", "1:i take back x claim at each statement")
def take_back_and_other_claim(w: World) -> Scene:
    worker, run = letters.running(w.db)
    other = moves.register(w.db)
    moves.lapse(w.db, worker)

    def check(_: object, taken: Flushed) -> Iterable[str]:
        row = moves.run_row(w.db, run.id)
        return expect(
            owner=(owner(w, run.id), ("running", other) if taken.claimed else ("pending", None)),
            epoch=(row["epoch"], 3 if taken.claimed else 2),
            crashes=(row["crashes"], 1),
        )

    return Scene((take_back, lambda actor: claim(actor, other)), check)


@pair("take back / take back", "1:R2")
def two_takers(w: World) -> Scene:
    dead = [letters.running(w.db) for _ in range(2)]
    for worker, _ in dead:
        moves.lapse(w.db, worker)

    def check(*_: object) -> Iterable[str]:
        rows = [moves.run_row(w.db, run.id) for _, run in dead]
        return expect(
            epochs=([row["epoch"] for row in rows], [2, 2]),
            crashes=([row["crashes"] for row in rows], [1, 1]),
            workers=(w.value("select count(*) from kedge.workers"), 0),
        )

    return Scene((take_back, take_back), check)


@pair("take back / beat", "2:31", "1:11")
def take_back_and_beat(w: World) -> Scene:
    worker, run = letters.running(w.db)
    w.db.rows("update kedge.workers set lease_until = clock_timestamp() - interval '1 min', lease = '1 ms'")

    def beat(actor: Actor) -> bool:
        answer = engine(lambda s: moves.beat(s, worker))(actor)
        return bool(answer)

    def check(_: object, lives: bool) -> Iterable[str]:
        return expect(owner=(owner(w, run.id), {("running", worker), ("pending", None)}), lives_or_free=True) + (
            [] if lives else expect(free=(owner(w, run.id), ("pending", None)))
        )

    # At rest the lease of a millisecond would have lapsed again.
    return Scene((take_back, beat), check, rests=False)


@pair("leave / claim of the same worker", "1:23", "1:i claim answer lost")
def leave_and_claim(w: World) -> Scene:
    worker = moves.register(w.db)
    (run,) = moves.started(w.db)

    def check(_: None, taken: Flushed) -> Iterable[str]:
        stands = w.value("select count(*) from kedge.workers where id = $1", worker) == 1
        return expect(
            owner=(owner(w, run), ("running", worker) if taken.claimed else ("pending", None)),
            found_again=not taken.claimed or stands,
        )

    return Scene((engine(lambda s: moves.leave(s, worker)), lambda actor: claim(actor, worker)), check)


@pair("leave / take back", "1:23")
def leave_and_take_back(w: World) -> Scene:
    worker, run = letters.running(w.db)
    moves.lapse(w.db, worker)

    def check(*_: object) -> Iterable[str]:
        return expect(owner=(owner(w, run.id), ("pending", None)))

    return Scene((engine(lambda s: moves.leave(s, worker)), take_back), check)


@pair("leave / flush of the same worker", "1:23", "2:3")
def leave_and_flush(w: World) -> Scene:
    worker, run = letters.running(w.db)

    def check(_: None, flushed: Flushed) -> Iterable[str]:
        return expect(moved=(flushed.moved, [run.id]), status=(w.status(run.id), "completed"))

    return Scene((engine(lambda s: moves.leave(s, worker)), lambda a: writing(a, worker, run, COMPLETED)), check)


@pair("claim / expire", "1:20")
def claim_and_expire(w: World) -> Scene:
    worker = moves.register(w.db)
    (run,) = moves.started(w.db)
    past_deadline(w.db, run)

    def check(taken: Flushed, _: object) -> Iterable[str]:
        if taken.claimed:
            return expect(asked=(moves.run_row(w.db, run)["request"], "d"))
        return expect(status=(w.status(run), "failed"))

    return Scene((lambda actor: claim(actor, worker), engine(letters.expire)), check)


def past_deadline(db: Session, run: UUID) -> None:
    db.rows(
        "update kedge.runs set timeout_s = 1, deadline_at = kedge.instant() - interval '1 min' where id = $1", (run,)
    )


# ---- what an owner writes while its runs are taken or asked for, or their time is up ---------------------------------

OWN_MOVES: dict[str, tuple[Move, str]] = {
    "completion": (COMPLETED, "completed"),
    "failure": (FAILED, "failed"),
    "park": (Park(()), "waiting"),
    "retry later": (RetryLater(b"\x01{}", 60), "waiting"),
    "release": (GiveBack(), "pending"),
}


def _owners(name: str, move: Move, result: str) -> None:
    @pair(
        f"take back / flush with {name}",
        "1:8",
        "1:6",
        "1:25",
        "2:23",
        "1:i flush repeated after lost answer",
        timeouts=True,
    )
    def with_take_back(w: World) -> Scene:
        worker, run = letters.running(w.db)
        moves.lapse(w.db, worker)

        def check(_: object, flushed: Flushed) -> Iterable[str]:
            wrote = flushed.moved == [run.id]
            return expect(
                settled=wrote or flushed.lease_lost or flushed.lost == [run.id],
                status=(w.status(run.id), result if wrote else "pending"),
                journal=(moves.journal(w.db, run.id), [(1, 1)] if wrote else []),
            )

        return Scene((take_back, lambda actor: writing(actor, worker, run, move)), check)

    @pair(f"expire / flush with {name}", "1:20", timeouts=True)
    def with_deadline(w: World) -> Scene:
        worker, run = letters.running(w.db)
        past_deadline(w.db, run.id)

        def check(_: object, flushed: Flushed) -> Iterable[str]:
            return expect(
                moved=(flushed.moved, [run.id]),
                status=(w.status(run.id), "completed" if name == "completion" else "failed"),
            )

        return Scene((engine(letters.expire), lambda actor: writing(actor, worker, run, move)), check)


for _name, (_move, _result) in OWN_MOVES.items():
    _owners(_name, _move, _result)


@pair("take back / courier with cancel", "1:9", "1:i cancel request x park/retry/give back/take back", "2:7")
def take_back_and_cancel(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.put(w.db, run.id, "x")
    moves.lapse(w.db, worker)
    return Scene((take_back, courier()), lambda *_: expect(status=(w.status(run.id), "cancelled")))


@pair("take back / courier with pause", "1:9", "2:7")
def take_back_and_pause(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.put(w.db, run.id, "s")
    moves.lapse(w.db, worker)
    return Scene((take_back, courier()), lambda *_: expect(status=(w.status(run.id), "paused")))


@pair("take back / courier with event", "1:10")
def take_back_and_event(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.open_wait(w.db, worker, run, "paid")
    letters.send(w.db, run.id)
    moves.lapse(w.db, worker)

    def check(*_: object) -> Iterable[str]:
        return expect(status=(w.status(run.id), "pending"), unread=(len(letters.mail(w.db, run.id)), 1))

    return Scene((take_back, courier()), check)


@pair("take back / expire", "1:20")
def take_back_and_expire(w: World) -> Scene:
    worker, run = letters.running(w.db)
    past_deadline(w.db, run.id)
    moves.lapse(w.db, worker)
    return Scene((take_back, engine(letters.expire)), lambda *_: expect(status=(w.status(run.id), "failed")))


@pair("expire / courier with cancel", "1:20", "2:7")
def expire_and_cancel(w: World) -> Scene:
    worker, run = letters.running(w.db)
    past_deadline(w.db, run.id)
    letters.put(w.db, run.id, "x")

    def check(*_: object) -> Iterable[str]:
        return expect(
            asked=(moves.run_row(w.db, run.id)["request"], "x"), owner=(owner(w, run.id), ("running", worker))
        )

    return Scene((engine(letters.expire), courier()), check)


@pair("give back of a run that is not known / courier with cancel", "1:7", "1:i claim answer lost", "2:7")
def give_back_and_cancel(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.put(w.db, run.id, "x")

    def check(*_: object) -> Iterable[str]:
        if w.status(run.id) == "running":  # passed by while it was locked: the next comparison finds it
            return expect(asked=(moves.run_row(w.db, run.id)["request"], "x"))
        return expect(status=(w.status(run.id), "cancelled"))

    return Scene((lambda actor: give_back(actor, worker, run), courier()), check)


@pair("flush of many / a lock on one of them", "2:6", "2:i one locked run in a flush of 100", "1:R2", timeouts=True)
def one_locked(w: World) -> Scene:
    worker = moves.register(w.db)
    moves.started(w.db, 3)
    runs = moves.claim_alone(w.db, worker)

    def end_all(actor: Actor) -> Flushed:
        writes = Writes()
        for run in runs:
            mine = live(run)
            writes.keep(mine, "step")
            writes.move(mine, COMPLETED)
        return flush(actor, worker, writes.batch)

    def lock(actor: Actor) -> int:
        return len(actor.rows("select 1 from kedge.runs where id = $1 for no key update", (runs[1].id,)))

    def check(flushed: Flushed, _: object) -> Iterable[str]:
        return expect(
            moved=(set(flushed.moved) == {run.id for run in runs}),
            statuses=([w.status(run.id) for run in runs], ["completed"] * 3),
            rows=([moves.journal(w.db, run.id) for run in runs], [[(1, 1)]] * 3),
        )

    return Scene((end_all, engine(lock)), check)


@pair("flush with ctx.send / caller who sends the same event", "2:2", "2:i flush with ctx.send repeated", levels=True)
def flush_with_letter(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)
    other = letters.parked(w.db, "paid")
    letter = uuid4()

    def send(actor: Actor) -> Flushed:
        mine = live(run)
        writes = Writes()
        writes.keep(mine, "sent", "m")
        own = uuid4()
        writes.side(mine, SEND_LETTERS, "e", other.id.bytes, own.bytes, "e:paid", b"\x011", run.id.bytes, letter.bytes)
        writes.move(mine, COMPLETED)
        return flush(actor, worker, writes.batch)

    def check(flushed: Flushed, _: object) -> Iterable[str]:
        return expect(
            moved=(flushed.moved, [run.id]),
            once=(len(letters.mail(w.db, other.id)), 1),
            status=(w.status(other.id), "pending"),
        )

    return Scene((send, client(lambda s: letters.send(s, other.id, letter=letter), level)), check, never_wait=(0,))


@pair(
    "journal taken over / old transaction of the same worker",
    "2:3",
    "2:i old journal session commits after give back",
)
def take_over(w: World) -> Scene:
    worker, run = letters.running(w.db)

    def old(actor: Actor) -> int:
        # Its backend has been told to end, and it is on its way all the same.
        actor.execute_ahead("select 1 from kedge.workers where id = $1 for key share", (worker,))
        kept = moves.keep(actor, worker, run)
        actor.commit()
        return kept

    def new(actor: Actor) -> int:
        engine(lambda s: s.rows(moves.statement("TAKE_OVER_JOURNAL"), (worker, 0, None)))(actor)
        found: int = actor.rows("select count(*) from kedge.journal where run_id = $1 and seq = 1", (run.id,))[0][0]
        engine(lambda s: moves.release(s, worker, run))(actor)
        return found

    def check(kept: int, found: int) -> Iterable[str]:
        stored = len(moves.journal(w.db, run.id))
        # What the settling read shows is final.
        return expect(final=(stored, found), stored=(stored, kept))

    return Scene((old, new), check)
