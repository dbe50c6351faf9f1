"""Starts, keys and singletons: callers meet each other, and the engine."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from kedge.ids import new_run_id
from kedge_worker._outcomes import End
from tests import letters, moves
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.flushes import Flushed, Writes, claim, flush, live
from tests.proof.interleavings.pairs import Program, Scene, client, courier, engine, expect, pair
from tests.proof.interleavings.world import World
from tests.sessions import Session

COMPLETED = End("c", output=b"\x01null")
FAILED = End("f", error=b"\x01{}")
POLICIES = ("raise", "return", "cancel_old")


def runs_of(w: World) -> list[UUID]:
    return [run for (run,) in w.rows("select id from kedge.all_runs order by id")]


def active(w: World) -> list[UUID]:
    """Live singletons that are behind no gate."""
    return [
        run
        for (run,) in w.rows(
            "select r.id from kedge.runs r where r.is_singleton"
            " and not exists (select 1 from kedge.waits w where w.run_id = r.id and w.kind = 'g')"
        )
    ]


@pair("start / start with the same key", "1:2e", "1:36", levels=True)
def same_key(w: World, level: Isolation) -> Scene:
    def check(first: moves.Started, second: moves.Started) -> Iterable[str]:
        return expect(
            one_run=(runs_of(w), [first.run]),
            same=(first.run, second.run),
            created=({first.created, second.created} == {True, False}),
        )

    start = client(lambda s: moves.start(s, key="k"), level)
    return Scene((start, start), check)


@pair("start / start with the same key and another input", "1:36", levels=True)
def same_key_other_input(w: World, level: Isolation) -> Scene:
    def check(*answers: moves.Started) -> Iterable[str]:
        return expect(
            one_run=(len(runs_of(w)), 1),
            conflicts=(sorted(str(a.conflict) for a in answers), ["None", "input"]),
        )

    return Scene(
        (
            client(lambda s: moves.start(s, key="k"), level),
            client(lambda s: moves.start(s, key="k", key_hash=b"fingerprother"), level),
        ),
        check,
    )


@pair("start / the same start again", "2:1", "1:36", levels=True)
def same_id(w: World, level: Isolation) -> Scene:
    run = new_run_id()

    def check(*answers: moves.Started) -> Iterable[str]:
        return expect(one_run=(runs_of(w), [run]), created=([a.created for a in answers], [True, True]))

    start = client(lambda s: moves.start(s, run, key="k"), level)
    return Scene((start, start), check)


@pair("start repeated / end of the run", "2:1", "2:i start repeated after the end", levels=True)
def repeat_and_end(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)

    def end(actor: Actor) -> Flushed:
        writes = Writes()
        writes.move(live(run), COMPLETED)
        return flush(actor, worker, writes.batch)

    def check(again: moves.Started, _: Flushed) -> Iterable[str]:
        return expect(one_run=(runs_of(w), [run.id]), created=again.created, status=(w.status(run.id), "completed"))

    return Scene((client(lambda s: moves.start(s, run.id), level), end), check)


@pair("batch of starts / batch of starts with the same keys the other way round", "1:2e", levels=True)
def crossing_batches(w: World, level: Isolation) -> Scene:
    def start(keys: list[str]) -> Program:
        runs = [new_run_id() for _ in keys]
        return client(lambda s: moves.start_many(s, runs, keys=keys), level)

    return Scene(
        (start(["a", "b"]), start(["b", "a"])),
        lambda *_: expect(runs=(len(runs_of(w)), 2)),
    )


@pair("start / claim that looks before it sleeps", "1:15", "2:15", levels=True)
def start_and_sleep(w: World, level: Isolation) -> Scene:
    """Whoever starts rings behind the commit; whoever goes to sleep looks once more: one of them finds the other."""
    worker = moves.register(w.db)

    def start(actor: Actor) -> None:
        client(moves.start, level)(actor)
        engine(lambda s: s.rows("select kedge.ring_v1($1, $2)", moves.LANE))(actor)

    def sleep(actor: Actor) -> Flushed:
        lane = {"worker": worker, "queues": [moves.QUEUE], "workflows": [moves.WORKFLOW]}
        engine(lambda s: s.rows(moves.statement("GO_IDLE"), lane))(actor)
        return claim(actor, worker)

    def check(_: None, taken: Flushed) -> Iterable[str]:
        rung = w.value("select count(*) from kedge.idle") == 0
        return expect(found=bool(taken.claimed) or rung)

    return Scene((start, sleep), check)


# ---- singletons ---------------------------------------------------------------------------------------------------


def singletons(policy: str) -> None:
    """All that meets the start of a singleton."""

    @pair(f"start / start of a singleton, {policy}", "1:32", levels=True)
    def starts(w: World, level: Isolation) -> Scene:
        start = client(lambda s: moves.start(s, singleton=policy, key="k"), level)

        def check(*answers: moves.Started) -> Iterable[str]:
            created = sum(a.created for a in answers)
            return expect(
                created=(created, 2 if policy == "cancel_old" else 1),
                active=(len(active(w)), 1),
                live=(w.value("select count(*) from kedge.runs"), 1),
                one_run=policy != "return" or len({a.run for a in answers}) == 1,
            )

        return Scene((start, start), check)

    @pair(f"start of a singleton / end of the one before, {policy}", "1:32", levels=True)
    def start_and_end(w: World, level: Isolation) -> Scene:
        worker, run = running_singleton(w.db)

        def end(actor: Actor) -> Flushed:
            writes = Writes()
            writes.move(live(run), COMPLETED)
            return flush(actor, worker, writes.batch)

        def check(answer: moves.Started, _: Flushed) -> Iterable[str]:
            created = answer.created
            return expect(
                old=(w.status(run.id), "completed"),
                active=(active(w), [answer.run] if created else []),
                pending=not created or answer.run is None or w.status(answer.run) == "pending",
                must=created or policy != "cancel_old",
                returned=policy != "return" or created or answer.run == run.id,
            )

        return Scene((client(lambda s: moves.start(s, singleton=policy, key="k"), level), end), check)

    @pair(
        f"start of a singleton / courier with the retry of a failed one, {policy}",
        "2:5",
        "2:i retry x open singleton",
        levels=True,
    )
    def start_and_retry(w: World, level: Isolation) -> Scene:
        worker, run = running_singleton(w.db)
        moves.end(w.db, worker, run, "f")
        letters.put(w.db, run.id, "r")

        def check(answer: moves.Started, _: int) -> Iterable[str]:
            return expect(
                active=(len(active(w)), 1),
                live=(w.value("select count(*) from kedge.runs"), 1),
                who=answer.created or w.status(run.id) == "pending",
            )

        return Scene(
            (client(lambda s: moves.start(s, singleton=policy, key="k"), level), courier(2)), check, never_wait=(1,)
        )

    @pair(f"start of a singleton / rerun of a failed one, {policy}", "1:35", levels=True)
    def start_and_rerun(w: World, level: Isolation) -> Scene:
        worker, run = running_singleton(w.db)
        moves.keep(w.db, worker, run)
        moves.end(w.db, worker, run, "f", rows=(1, 1))

        def check(*_: object) -> Iterable[str]:
            return expect(active=(len(active(w)), 1), live=(w.value("select count(*) from kedge.runs"), 1))

        return Scene(
            (
                client(lambda s: moves.start(s, singleton=policy, key="k"), level),
                client(lambda s: rerun(s, run.id), level),
            ),
            check,
        )

    @pair(f"start of a singleton / claim of the one before and courier, {policy}", "1:32")
    def start_and_claim(w: World) -> Scene:
        worker = moves.register(w.db)
        (run,) = moves.started(w.db, singleton="raise", key="k")

        def work(actor: Actor) -> Flushed:
            taken = claim(actor, worker)
            engine(moves.sort_inbox)(actor)
            return taken

        def check(answer: moves.Started, taken: Flushed) -> Iterable[str]:
            old = w.status(run)
            claimed = {one.id for one in taken.claimed}
            return expect(
                created=(answer.created, policy == "cancel_old"),
                old=(old, {"running", "cancelled", "pending"}),
                asked=policy != "cancel_old" or old == "cancelled" or moves.run_row(w.db, run)["request"] == "x",
                no_second=len(claimed) <= 1 or old == "cancelled",
            )

        return Scene((client(lambda s: moves.start(s, singleton=policy, key="k")), work), check)


def running_singleton(db: Session) -> tuple[UUID, moves.Claimed]:
    worker = moves.register(db)
    moves.started(db, singleton="raise", key="k")
    (run,) = moves.claim_alone(db, worker)
    return worker, run


def rerun(session: Session, run: UUID, step: str = "step1", id_: UUID | None = None) -> tuple[bool, str]:
    """`rerun_run_v1`."""
    ((created, status),) = session.rows(
        "select created, status from kedge.rerun_run_v1($1, $2, null, $3)", (id_ or new_run_id(), run, step)
    )
    return created, status


for _policy in POLICIES:
    singletons(_policy)


@pair("start, cancel_old, twice / end of the one before and courier", "1:32")
def three_generations(w: World) -> Scene:
    worker, run = running_singleton(w.db)

    def start_two(actor: Actor) -> list[moves.Started]:
        return [client(lambda s: moves.start(s, singleton="cancel_old", key="k"))(actor) for _ in range(2)]

    def end(actor: Actor) -> Flushed:
        engine(moves.sort_inbox)(actor)
        writes = Writes()
        writes.move(live(run), End("x", reason="asked"))
        return flush(actor, worker, writes.batch)

    def check(answers: list[moves.Started], _: Flushed) -> Iterable[str]:
        first, second = (a.run for a in answers)
        return expect(active=(active(w), [second]), first=(w.status(first), "cancelled") if first else False)

    return Scene((start_two, end), check)


@pair("rerun / retry of the same failed run", "1:35", levels=True)
def rerun_and_retry(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)
    moves.keep(w.db, worker, run)
    moves.end(w.db, worker, run, "f", rows=(1, 1))
    letters.put(w.db, run.id, "r")

    def check(answer: tuple[bool, str], _: int) -> Iterable[str]:
        return expect(
            old=(w.status(run.id), "pending"),
            answer=(answer, {(True, "failed"), (False, "pending")}),
            runs=(len(runs_of(w)), 1 + answer[0]),
        )

    return Scene((client(lambda s: rerun(s, run.id), level), courier()), check)


@pair("rerun / the same rerun again", "1:35", levels=True)
def rerun_twice(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)
    moves.keep(w.db, worker, run)
    moves.end(w.db, worker, run, "f", rows=(1, 1))
    id_ = new_run_id()
    again = client(lambda s: rerun(s, run.id, id_=id_), level)

    def check(*answers: tuple[bool, str]) -> Iterable[str]:
        return expect(created=([a[0] for a in answers], [True, True]), runs=(len(runs_of(w)), 2))

    return Scene((again, again), check)


@pair("rerun / end of the run", "1:35", levels=True)
def rerun_and_end(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)

    def end(actor: Actor) -> Flushed:
        mine = live(run)
        writes = Writes()
        writes.keep(mine, "step1")
        writes.keep(mine, "step2")
        writes.move(mine, FAILED)
        return flush(actor, worker, writes.batch)

    def check(answer: tuple[bool, str], _: Flushed) -> Iterable[str]:
        new = [one for one in runs_of(w) if one != run.id]
        copied = [w.value("select count(*) from kedge.journal where run_id = $1", one) for one in new]
        return expect(answer=(answer, {(True, "failed"), (False, "running")}), copied=(copied, [2] * answer[0]))

    return Scene((client(lambda s: rerun(s, run.id, "step2"), level), end), check)
