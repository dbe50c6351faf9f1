"""A flush that claims is one transaction: what it ends and what it claims come together or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from uuid import UUID

from kedge_worker._outcomes import End
from tests import letters, moves
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.flushes import Flushed, Writes, flush, live
from tests.proof.interleavings.pairs import Scene, client, courier, engine, expect, pair
from tests.proof.interleavings.world import World

COMPLETED = End("c", output=b"\x01null")


def ending_and_claiming(actor: Actor, worker: UUID, run: moves.Claimed) -> Flushed:
    mine = live(run)
    writes = Writes()
    writes.keep(mine, "step")
    writes.move(mine, COMPLETED)
    return flush(actor, worker, writes.batch, claims=2)


@pair("flush that claims / flush that claims")
def two_flushes_that_claim(w: World) -> Scene:
    ending = [letters.running(w.db) for _ in range(2)]
    ready = moves.started(w.db, 3)

    def check(*flushed: Flushed) -> Iterable[str]:
        claimed = [{run.id for run in one.claimed} for one in flushed]
        owned = [
            {r for (r,) in w.rows("select id from kedge.runs where worker_id = $1", worker)} for worker, _ in ending
        ]
        return expect(
            ended=([w.status(run.id) for _, run in ending], ["completed", "completed"]),
            known=(claimed, owned),
            none_forgotten=len(claimed[0] | claimed[1]) >= 2 and claimed[0] | claimed[1] <= set(ready),
            once=not claimed[0] & claimed[1],
        )

    programs = [partial(ending_and_claiming, worker=worker, run=run) for worker, run in ending]
    return Scene(programs, check)


@pair("flush that claims / take back of its worker")
def flush_that_claims_and_take_back(w: World) -> Scene:
    worker, run = letters.running(w.db)
    (ready,) = moves.started(w.db)
    moves.lapse(w.db, worker)

    def check(flushed: Flushed, _: object) -> Iterable[str]:
        statuses = [w.status(one) for one in (run.id, ready)]
        # All of it or nothing; what it had claimed is taken back with the worker, in the same order or a later one.
        stored = w.value("select count(*) from kedge.journal where run_id = $1 and seq > 0", run.id)
        return expect(
            whole=((statuses[0], stored), {("completed", 1), ("pending", 0)}),
            told=(flushed.lease_lost, statuses[0] == "pending"),
            claimed=(statuses[1], {"pending", "running"}),
        )

    return Scene((lambda actor: ending_and_claiming(actor, worker, run), engine(moves.take_back)), check)


@pair("flush that claims / cancel of what it would claim / courier", levels=True)
def flush_that_claims_and_cancel(w: World, level: Isolation) -> Scene:
    worker, run = letters.running(w.db)
    (ready,) = moves.started(w.db)

    def check(flushed: Flushed, *_: object) -> Iterable[str]:
        status, request = w.rows("select status, request::text from kedge.all_runs where id = $1", ready)[0]
        return expect(
            ended=(w.status(run.id), "completed"),
            asked=((status, request), {("cancelled", None), ("running", "cancelled")}),
            owner=({one.id for one in flushed.claimed} == {ready}, status == "running"),
        )

    cancel = client(lambda s: letters.put(s, ready, "x"), level)
    return Scene((lambda actor: ending_and_claiming(actor, worker, run), cancel, courier()), check)
