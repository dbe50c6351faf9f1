"""Transactional steps, definitions, watchers, doorbells and migrations: what there is one of, and who meets there."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from kedge.schema import functions, render
from kedge_worker._outcomes import End, GiveBack, Park
from tests import letters, moves
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.breakpoints import instrumented, sources
from tests.proof.interleavings.flushes import Flushed, Writes, claim, flush, live
from tests.proof.interleavings.pairs import Program, Scene, client, courier, engine, expect, nothing, pair
from tests.proof.interleavings.pairs_workers import COMPLETED, take_back, writing
from tests.proof.interleavings.world import World

# ---- transactional steps ------------------------------------------------------------------------------------------


def transact(actor: Actor, worker: UUID, run: moves.Claimed, seq: int) -> bool:
    """The application's SQL, then the memo behind the fence; whether both are committed."""
    actor.begin()
    actor.rows("insert into kedge_proof.effects (run) values ($1)", (run.id,))
    memo = {
        "run": run.id,
        "epoch": run.epoch,
        "worker": worker,
        "seq": seq,
        "took_ms": 1,
        "key": "pay",
        "timeline": "",
        "value": b"\x011",
        "meta": b"",
    }
    if actor.count(moves.statement("KEEP_TRANSACTION"), memo) == 0:
        actor.rollback()
        return False
    actor.commit()
    return True


def effects(w: World, run: UUID) -> int:
    count: int = w.value("select count(*) from kedge_proof.effects where run = $1", run)
    return count


@pair("transactional step / take back", "1:22", "2:12", "1:8")
def transaction_and_take_back(w: World) -> Scene:
    worker, run = letters.running(w.db)
    moves.lapse(w.db, worker)

    def check(done: bool, _: object) -> Iterable[str]:
        return expect(
            effect=(effects(w, run.id), int(done)),
            memo=(moves.journal(w.db, run.id), [(1, 1)] if done else []),
            status=(w.status(run.id), "pending"),
        )

    return Scene((lambda actor: transact(actor, worker, run, 1), take_back), check)


@pair("transactional step / courier with cancel", "1:22", "1:i transactional step x cancel flush")
def transaction_and_cancel(w: World) -> Scene:
    worker, run = letters.running(w.db)
    letters.put(w.db, run.id, "x")

    def check(done: bool, _: object) -> Iterable[str]:
        return expect(done=done, effect=(effects(w, run.id), 1), asked=(moves.run_row(w.db, run.id)["request"], "x"))

    return Scene((lambda actor: transact(actor, worker, run, 1), courier()), check)


@pair(
    "transactional step / flush of a sibling that ends the run",
    "1:22",
    "2:12",
    "1:i transactional step x cancel flush",
    "2:i transaction's commit x sibling's step",
)
def transaction_and_flush(w: World) -> Scene:
    worker, run = letters.running(w.db)

    def cancelled(actor: Actor) -> Flushed:
        mine = live(run)
        mine.take_seq()
        writes = Writes()
        writes.move(mine, End("x", reason="asked"))
        return flush(actor, worker, writes.batch)

    def check(done: bool, flushed: Flushed) -> Iterable[str]:
        return expect(
            moved=(flushed.moved, [run.id]),
            effect=(effects(w, run.id), int(done)),
            memo=(moves.journal(w.db, run.id), [(1, 1)] if done else []),
        )

    return Scene((lambda actor: transact(actor, worker, run, 1), cancelled), check)


# ---- singular things ------------------------------------------------------------------------------------------------


@pair("register_definitions / register_definitions, the other way round", "1:2d")
def definitions(w: World) -> Scene:
    def register(names: list[str]) -> Program:
        asked: dict[str, object] = {
            "names": names,
            "total_steps": [1] * len(names),
            "options": [b"\x01{}"] * len(names),
        }
        asked |= {f"keep_{status}_s": [None] * len(names) for status in ("completed", "failed", "cancelled")}
        return engine(lambda s: s.rows(moves.statement("REGISTER_DEFINITIONS"), asked))

    def check(*_: object) -> Iterable[str]:
        return expect(count=(w.value("select count(*) from kedge.definitions"), 2))

    return Scene((register(["a", "b"]), register(["b", "a"])), check)


@pair("watch, then look / end, then notify", "1:29", "2:19", "2:i watch x exit")
def watch_and_end(w: World) -> Scene:
    worker, run = letters.running(w.db)

    def watch(actor: Actor) -> str:
        engine(lambda s: s.rows("select kedge.watch_v1($1::uuid[], 'ears')", ([run.id],)))(actor)
        ((status,),) = engine(lambda s: s.rows("select status from kedge.results_v1($1::uuid[])", ([run.id],)))(actor)
        return str(status)

    def check(status: str, flushed: Flushed) -> Iterable[str]:
        told = w.value("select count(*) from kedge.watchers") == 0
        return expect(moved=(flushed.moved, [run.id]), hears=status == "completed" or told)

    return Scene((watch, lambda actor: writing(actor, worker, run, COMPLETED)), check)


@pair("observe / courier / flush that begins to be observed", "1:29", levels=True)
def observe(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)

    def check(*_: object) -> Iterable[str]:
        if w.status(run.id) == "completed":
            return ()
        return expect(observed=(moves.run_row(w.db, run.id)["is_observed"], True))

    return Scene(
        (
            client(lambda s: s.rows("select kedge.observe_v1($1::uuid[], 'ears')", ([run.id],)), level),
            lambda actor: writing(actor, worker, run, GiveBack()),
        ),
        check,
    )


@pair("observers of two runs / observers of the same, the other way round", "1:2e", levels=True)
def observers(w: World, level: Isolation) -> Scene:
    runs = moves.started(w.db, 2)

    def register(order: list[UUID]) -> Program:
        return client(lambda s: s.rows("select kedge.observe_v1($1::uuid[], 'ears')", (order,)), level)

    return Scene((register(runs), register(runs[::-1])), nothing)


@pair("doorbell / doorbell", "1:15")
def bells(w: World) -> Scene:
    workers = [moves.register(w.db) for _ in range(2)]
    for worker in workers:
        lane = {"worker": worker, "queues": [moves.QUEUE], "workflows": [moves.WORKFLOW]}
        w.db.rows(moves.statement("GO_IDLE"), lane)
    ring = engine(lambda s: s.rows("select kedge.ring_v1($1, $2)", moves.LANE))
    return Scene((ring, ring), lambda *_: expect(both=(w.value("select count(*) from kedge.idle"), 0)))


def migrate(actor: Actor) -> None:
    """What a migration does when nothing but the functions has changed; with their stops, for those that follow."""
    texts = [render(text, "kedge") for _, text in functions()]
    again = "\n".join(render(instrumented(f), "kedge") for f in sources().values() if f.is_split)
    actor.begin()
    actor.rows("select pg_advisory_xact_lock(hashtext('kedge-migrate'), hashtext('kedge'))")
    actor.execute_script("\n".join([*texts, again]))
    actor.commit()


def _migrations() -> None:
    @pair("migrate / start", "1:38", levels=True)
    def with_start(w: World, level: Isolation) -> Scene:
        return Scene((migrate, client(lambda s: moves.start(s, key="k"), level)), nothing)

    @pair("migrate / migrate", "1:38")
    def with_itself(w: World) -> Scene:
        return Scene((migrate, migrate), nothing)

    @pair("migrate / courier", "1:38")
    def with_courier(w: World) -> Scene:
        run = letters.parked(w.db, "paid")
        letters.send(w.db, run.id)
        return Scene((migrate, courier()), lambda *_: expect(status=(w.status(run.id), "pending")))

    @pair("migrate / flush", "1:38")
    def with_flush(w: World) -> Scene:
        worker, run = letters.running(w.db)
        return Scene(
            (migrate, lambda actor: writing(actor, worker, run, Park(()))),
            lambda *_: expect(status=(w.status(run.id), "waiting")),
        )

    def claims_one(_: None, taken: Flushed) -> Iterable[str]:
        return expect(claimed=(len(taken.claimed), 1))

    @pair("migrate / claim", "1:38")
    def with_claim(w: World) -> Scene:
        worker = moves.register(w.db)
        moves.started(w.db)
        return Scene(
            (migrate, lambda actor: claim(actor, worker)),
            claims_one,
        )

    @pair("migrate / take back", "1:38")
    def with_take_back(w: World) -> Scene:
        worker, run = letters.running(w.db)
        moves.lapse(w.db, worker)
        return Scene((migrate, take_back), lambda *_: expect(status=(w.status(run.id), "pending")))


_migrations()
