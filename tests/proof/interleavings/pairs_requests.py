"""What callers ask of runs, topics, and runs that somebody has locked, while the courier sorts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from uuid import UUID, uuid4

from kedge_worker._outcomes import End, Park
from kedge_worker._side_writes import OPEN_WAITS
from tests import api_letters, letters, moves
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.flushes import Flushed, Writes, claim, flush, live
from tests.proof.interleavings.pairs import Scene, client, courier, engine, expect, pair
from tests.proof.interleavings.pairs_letters import EVENT_WAIT, FAILED, KINDS, mail_of
from tests.proof.interleavings.world import World
from tests.sessions import Session


@pair("pause, event, resume / courier / due claim", "1:12", "2:14", "1:i pause x due timer x resume", levels=True)
def pause_event_resume(w: World, level: Isolation) -> Scene:
    worker = moves.register(w.db)
    run = letters.parked(w.db, "paid", delay_s=-1)

    def ask(actor: Actor) -> list[bool]:
        answers: list[bool] = []
        for verb in ("pause", "resume"):
            answer = client(partial(api_letters.control, verb=verb, run=run.id), level)(actor)
            answers.append(answer is not None and answer[0])
        return answers

    def sort_and_claim(actor: Actor) -> Flushed:
        engine(moves.sort_inbox)(actor)
        return claim(actor, worker)

    def check(answers: list[bool], taken: Flushed) -> Iterable[str]:
        status = w.status(run.id)
        due = w.value("select due_at <= clock_timestamp() from kedge.all_runs where id = $1", run.id)
        return expect(
            pause_accepted=answers[0],
            resume_accepted=answers[1],
            not_paused=(status, {"pending", "waiting", "running"}),
            claimable=bool(taken.claimed) or status == "pending" or bool(due),
            asked=w.value("select request is null from kedge.all_runs where id = $1", run.id),
        )

    return Scene((ask, sort_and_claim), check)


@pair("pause / event / resume, sorted one by one beside a due claim", "1:12")
def one_by_one(w: World) -> Scene:
    worker = moves.register(w.db)
    run = letters.parked(w.db, "paid", delay_s=-1)
    letters.put(w.db, run.id, "s")
    letters.send(w.db, run.id)
    letters.put(w.db, run.id, "u")

    def sort(actor: Actor) -> None:
        for _ in range(3):
            engine(lambda s: moves.sort_inbox(s, 1))(actor)

    def check(_: None, taken: Flushed) -> Iterable[str]:
        return expect(
            status=(w.status(run.id), "running" if taken.claimed else "pending"),
            unread=(len(letters.mail(w.db, run.id)), 1),
        )

    return Scene((sort, lambda actor: claim(actor, worker)), check)


@pair("resume of a run's own pause / park", "2:28")
def resume_of_own_pause(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.open_wait(w.db, worker, run, "hold", "u")
    letters.put(w.db, run.id, "u")

    def park(actor: Actor) -> Flushed:
        writes = Writes()
        writes.move(live(run), Park(()))
        return flush(actor, worker, writes.batch)

    return Scene((courier(), park), lambda *_: expect(status=(w.status(run.id), "pending")))


@pair(
    "topic's expansion / registration of its wait and park",
    "1:17",
    "2:10",
    "1:2c",
    "1:i flush(wake, park) x send",
    "1:i broadcast from REPEATABLE READ",
    timeouts=True,
)
def topic_and_registration(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.broadcast(w.db)

    def wait(actor: Actor) -> Flushed:
        mine = live(run)
        writes = Writes()
        writes.side(mine, OPEN_WAITS, "rates", "e", letters.topic_slot(), None, None, None, 0, 0, None, b"")
        writes.move(mine, Park(()))
        return flush(actor, worker, writes.batch)

    def check(*_: object) -> Iterable[str]:
        got = mail_of(w, run.id)
        return expect(status=(w.status(run.id), "pending" if got else "waiting"), at_most_once=got <= 1)

    return Scene((courier(2), wait), check)


@pair(
    "topic from a caller / registration of its wait and park", "1:17", "1:i broadcast from REPEATABLE READ", levels=True
)
def topic_from_caller(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)

    def send_and_sort(actor: Actor) -> bool:
        sent = client(lambda s: api_letters.send(s, topic="rates", event="changed"), level)(actor)
        return sent is not None and sent.accepted

    def wait(actor: Actor) -> Flushed:
        mine = live(run)
        writes = Writes()
        writes.side(mine, OPEN_WAITS, "rates", "e", letters.topic_slot(), None, None, None, 0, 0, None, b"")
        writes.move(mine, Park(()))
        return flush(actor, worker, writes.batch)

    def check(*_: object) -> Iterable[str]:
        # Sorted behind both: whoever waits then gets it.
        return expect(status=(w.status(run.id), "pending"), once=(mail_of(w, run.id), 1))

    return Scene((send_and_sort, wait), check)


@pair("topic's expansion / a waiter that is locked", "2:10", "2:i topic with one locked waiter")
def topic_and_locked(w: World) -> Scene:
    runs = [letters.parked(w.db, "rates", slot=letters.topic_slot()) for _ in range(2)]
    letters.broadcast(w.db)

    def check(*_: object) -> Iterable[str]:
        return expect(
            statuses=([w.status(run.id) for run in runs], ["pending", "pending"]),
            once=([mail_of(w, run.id) for run in runs], [1, 1]),
        )

    return Scene((courier(3), engine(lambda s: lock_row(s, runs[0].id))), check, never_wait=(0,))


def lock_row(session: Session, run: UUID) -> int:
    """Hold a run as somebody's own SQL might."""
    return len(session.rows("select 1 from kedge.runs where id = $1 for no key update", (run,)))


@pair("courier with cancel / a lock on its run", "2:8", "2:i skipped x gone")
def skipped_is_not_gone(w: World) -> Scene:
    locked, free = moves.started(w.db, 2)
    for run in (locked, free):
        letters.put(w.db, run, "x")
    letters.put(w.db, uuid4(), "x")

    def check(*_: object) -> Iterable[str]:
        return expect(statuses=([w.status(run) for run in (locked, free)], ["cancelled", "cancelled"]))

    return Scene((courier(2), engine(lambda s: lock_row(s, locked))), check, never_wait=(0,))


@pair(
    "courier with an event / the end of its run, which is just committing", "1:10", "1:i event x wait of an ended run"
)
def event_and_end(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.open_wait(w.db, worker, run, "paid")
    other = letters.parked(w.db, "paid")
    for one in (run, other):
        letters.send(w.db, one.id)

    def fail(actor: Actor) -> Flushed:
        writes = Writes()
        writes.move(live(run), FAILED)
        return flush(actor, worker, writes.batch)

    def check(*_: object) -> Iterable[str]:
        return expect(
            status=(w.status(run.id), "failed"),
            other=(w.status(other.id), "pending"),
            mail=(mail_of(w, run.id), 1),
        )

    return Scene((courier(), fail), check)


@pair("fail_letter / courier", "2:16", "1:24", "2:i poison letter")
def poison_and_courier(w: World) -> Scene:
    runs = [letters.parked(w.db, "paid") for _ in range(2)]
    for run in runs:
        letters.send(w.db, run.id)

    def give_up(actor: Actor) -> None:
        engine(lambda s: s.rows(moves.statement("FAIL_LETTER"), {"error": "22000: it was bad"}))(actor)

    def check(*_: object) -> Iterable[str]:
        return expect(once=([mail_of(w, run.id) for run in runs], [1, 1]))

    return Scene((give_up, courier()), check)


def _control(verb: str, state: str, results: Sequence[str], *covers: str) -> None:
    @pair(f"caller's {verb} / claim of a {state} run / courier", *covers, levels=True)
    def asked(w: World, level: Isolation) -> Scene:
        worker = moves.register(w.db)
        run = letters.parked(w.db, "paid", delay_s=-1).id if state == "due" else moves.started(w.db)[0]

        def claim_and_sort(actor: Actor) -> Flushed:
            taken = claim(actor, worker)
            engine(moves.sort_inbox)(actor)
            return taken

        def check(answer: tuple[bool, str] | None, taken: Flushed) -> Iterable[str]:
            if taken.claimed:
                return expect(
                    asked=(moves.run_row(w.db, run)["request"], KINDS[verb]), state=(w.status(run), "running")
                )
            return expect(accepted=answer is not None and answer[0], state=(w.status(run), set(results)))

        return Scene((client(lambda s: api_letters.control(s, verb, run), level), claim_and_sort), check)


_control("cancel", "pending", ["cancelled"], "2:17", "1:3", "1:i claim x open cancel of the head run")
_control("cancel", "due", ["cancelled"], "2:17", "1:3")
_control("pause", "pending", ["paused"], "1:12", "2:17")
_control("pause", "due", ["paused"], "1:12")


@pair(
    "flush of the same run / caller's open cancel",
    "1:3",
    "1:i flush x open caller transaction with cancel/send",
    levels=True,
)
def flush_and_open_cancel(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)

    def park(actor: Actor) -> Flushed:
        mine = live(run)
        writes = Writes()
        writes.keep(mine, "step")
        writes.side(mine, OPEN_WAITS, *EVENT_WAIT).move(mine, Park(()))
        return flush(actor, worker, writes.batch)

    def ask(actor: Actor) -> object:
        actor.begin(level)
        api_letters.send(actor, run.id, event="paid")
        answer = api_letters.control(actor, "cancel", run.id)
        actor.commit()
        return answer

    return Scene((park, ask), lambda *_: expect(status=(w.status(run.id), "cancelled")), never_wait=(0,))


@pair("retry / retry, two letters and two couriers", "1:16", "2:18", "1:i repeat of resume/fast_forward/retry")
def two_retries(w: World) -> Scene:
    run = failed_run(w.db)
    for _ in range(2):
        letters.put(w.db, run, "r")

    def check(*_: object) -> Iterable[str]:
        return expect(
            status=(w.status(run), "pending"),
            epoch=(moves.run_row(w.db, run)["epoch"], 2),
            notes=(letters.notes(w.db, run), ["retry: done", "retry: already"]),
        )

    return Scene((courier(), courier()), check)


def failed_run(db: Session) -> UUID:
    worker, run = letters.running(db)
    moves.end(db, worker, run, "f")
    return run.id


@pair("caller's retry and send / courier", "2:14", "2:i pause, resume back to back", levels=True)
def retry_and_send(w: World, level: Isolation) -> Scene:
    run = failed_run(w.db)

    def ask(actor: Actor) -> tuple[bool, bool]:
        retried = client(lambda s: api_letters.control(s, "retry", run), level)(actor)
        sent = client(lambda s: api_letters.send(s, run, event="paid"), level)(actor)
        return retried is not None and retried[0], sent is not None and sent.accepted

    def check(answers: tuple[bool, bool], _: int) -> Iterable[str]:
        return expect(accepted=(answers, (True, True)), status=(w.status(run), "pending"), mail=(mail_of(w, run), 1))

    return Scene((ask, courier(2)), check)


@pair("caller's repeated cancel / courier / end", "1:16", levels=True)
def repeated_cancel(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)
    letter = letters.put(w.db, run.id, "x")

    def sort_and_end(actor: Actor) -> Flushed:
        engine(moves.sort_inbox)(actor)
        writes = Writes()
        writes.move(live(run), End("x", reason="asked"))
        return flush(actor, worker, writes.batch)

    def check(*_: object) -> Iterable[str]:
        notes = [note for note in letters.notes(w.db, run.id) if note.startswith("cancel")]
        return expect(status=(w.status(run.id), "cancelled"), one_note=len(notes) <= 2)

    return Scene(
        (client(lambda s: api_letters.control(s, "cancel", run.id, letter=letter), level), sort_and_end), check
    )
