"""Parents, children, and who is told of an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from uuid import UUID

import psycopg

from kedge.ids import new_run_id
from kedge_worker._errors import is_lease_lost
from kedge_worker._outcomes import End, Move, Park
from kedge_worker._side_writes import OPEN_WAITS, START_CHILDREN
from tests import letters, moves
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.flushes import Flushed, Writes, flush, live
from tests.proof.interleavings.pairs import Scene, client, courier, engine, expect, pair
from tests.proof.interleavings.world import World
from tests.sessions import Session

COMPLETED = End("c", output=b"\x01null")
FAILED = End("f", error=b"\x01{}")
CHILD_WAIT = ("child", "c", None, None, None, None, 0, 0, None, b"")


def family(
    db: Session, *, watched: bool = True, dependent: bool = False, claimed: bool = True
) -> tuple[UUID, moves.Claimed, UUID, moves.Claimed]:
    """A running parent with a wait for its child, and that child, in another worker's hand."""
    worker, parent = letters.running(db)
    moves.keep(db, worker, parent)
    child = moves.Child(parent, 1, new_run_id(), watched=watched, dependent=dependent)
    moves.start_children(db, worker, [child])
    letters.open_wait(db, worker, parent, "child", "c")
    other = moves.register(db)
    if not claimed:
        return worker, parent, other, moves.Claimed(child.id, 0, 1, 0, 0, 0, 0, None, "", "")
    (taken,) = moves.claim_alone(db, other)
    return worker, parent, other, taken


def leave(worker: UUID, run: moves.Claimed, move: Move, *, kept: int = 0) -> Callable[[Actor], Flushed]:
    """A flush with one move; `kept` rows of the run stand already."""

    def program(actor: Actor) -> Flushed:
        mine = live(run)
        mine.next_seq += kept
        writes = Writes()
        writes.move(mine, move)
        return flush(actor, worker, writes.batch)

    return program


def mail_of_child(w: World, parent: UUID) -> int:
    count: int = w.value("select count(*) from kedge.events where run_id = $1 and slot = 'k:child'", parent)
    return count


@pair("child's end / parent's park", "1:1", "1:i child end x parent park", "2:11", timeouts=True)
def end_and_park(w: World) -> Scene:
    worker, parent, other, child = family(w.db)

    def check(*flushed: Flushed) -> Iterable[str]:
        return expect(
            moved=([one.moved for one in flushed], [[child.id], [parent.id]]),
            parent=(w.status(parent.id), "pending"),
            told=(mail_of_child(w, parent.id), 1),
        )

    return Scene((leave(other, child, COMPLETED), leave(worker, parent, Park(()), kept=1)), check)


@pair("child's end, then courier / parent's park", "1:1", "1:i child end x parent park")
def end_sorted_and_park(w: World) -> Scene:
    worker, parent, other, child = family(w.db)

    def end(actor: Actor) -> Flushed:
        flushed = leave(other, child, COMPLETED)(actor)
        engine(moves.sort_inbox)(actor)
        return flushed

    def check(*_: object) -> Iterable[str]:
        return expect(parent=(w.status(parent.id), "pending"), told=(mail_of_child(w, parent.id), 1))

    return Scene((end, leave(worker, parent, Park(()), kept=1)), check)


@pair("child's end / parent's park / courier", "1:1", "1:i child end x parent park")
def three_of_a_family(w: World) -> Scene:
    worker, parent, other, child = family(w.db)

    def check(*_: object) -> Iterable[str]:
        return expect(parent=(w.status(parent.id), "pending"), told=(mail_of_child(w, parent.id), 1))

    return Scene(
        (leave(other, child, COMPLETED), leave(worker, parent, Park(()), kept=1), courier()),
        check,
    )


@pair("two flushes with crossed parents", "1:2a", "1:i flush x flush with crossed parents", timeouts=True)
def crossed(w: World) -> Scene:
    first, parent1 = letters.running(w.db)
    second, parent2 = letters.running(w.db)
    children: list[moves.Claimed] = []
    for worker, parent, keeper in ((first, parent1, second), (second, parent2, first)):
        moves.keep(w.db, worker, parent)
        moves.start_children(w.db, worker, [moves.Child(parent, 1, new_run_id())])
        letters.open_wait(w.db, worker, parent, "child", "c")
        children += moves.claim_alone(w.db, keeper)

    def both(worker: UUID, parent: moves.Claimed, child: moves.Claimed) -> Callable[[Actor], Flushed]:
        def program(actor: Actor) -> Flushed:
            writes = Writes()
            mine = live(parent)
            mine.take_seq()
            writes.move(live(child), COMPLETED).move(mine, Park(()))
            return flush(actor, worker, writes.batch)

        return program

    def check(*_: object) -> Iterable[str]:
        return expect(parents=([w.status(one.id) for one in (parent1, parent2)], ["pending", "pending"]))

    return Scene((both(first, parent1, children[1]), both(second, parent2, children[0])), check)


@pair(
    "child's end / courier with a watch letter", "2:11", "2:i call of a keyed run that has ended, or has another parent"
)
def end_and_watch(w: World) -> Scene:
    _, parent, other, child = family(w.db, watched=False)
    letters.watch(w.db, child.id, parent.id)

    def check(*_: object) -> Iterable[str]:
        return expect(told=(mail_of_child(w, parent.id), 1))

    return Scene((leave(other, child, COMPLETED), courier()), check)


@pair("child's end / courier with a cascade from its parent", "1:41", "2:11")
def end_and_cascade(w: World) -> Scene:
    worker, parent, other, child = family(w.db)
    letters.park(w.db, worker, parent, last=1)
    letters.put(w.db, parent.id, "x", slot="cascade")

    def check(*_: object) -> Iterable[str]:
        return expect(parent=(w.status(parent.id), "cancelled"), child=(w.status(child.id), "completed"))

    return Scene((leave(other, child, COMPLETED), courier(2)), check)


def starting(
    worker: UUID, parent: moves.Claimed, child: UUID, *, dependent: bool, move: Move | None
) -> Callable[[Actor], Flushed]:
    """A flush that starts a child and goes on to wait for it."""

    def program(actor: Actor) -> Flushed:
        mine = live(parent)
        writes = Writes()
        seq = writes.keep(mine, "child/start", "n")
        terms = (moves.WORKFLOW, moves.QUEUE, 0, b"\x01null", b"", None, None, None, None, None)
        writes.side(mine, START_CHILDREN, seq, "child", child.bytes, *terms, dependent, True)
        writes.side(mine, OPEN_WAITS, *CHILD_WAIT)
        if move is not None:
            writes.move(mine, move)
        return flush(actor, worker, writes.batch)

    return program


def _cascades(name: str, slot: str | None, dependent: bool) -> None:
    @pair(f"flush that starts a child and parks / courier with {name}", "1:41", timeouts=True)
    def start_and_cancel(w: World) -> Scene:
        worker, parent = letters.running(w.db)
        child = new_run_id()
        letters.put(w.db, parent.id, "x", slot=slot)

        def check(*_: object) -> Iterable[str]:
            return expect(parent=(w.status(parent.id), "cancelled"), child=(w.status(child), "cancelled"))

        return Scene((starting(worker, parent, child, dependent=dependent, move=Park(())), courier()), check)

    @pair(f"flush that starts a child / take back of its parent, which is cancelled with {name}", "1:41", "1:25")
    def start_and_take_back(w: World) -> Scene:
        worker, parent = letters.running(w.db)
        child = new_run_id()
        letters.put(w.db, parent.id, "x", slot=slot)
        moves.sort_inbox(w.db)
        moves.lapse(w.db, worker)

        def check(*_: object) -> Iterable[str]:
            started = w.rows("select status from kedge.all_runs where id = $1", child)
            return expect(parent=(w.status(parent.id), "cancelled"), child=started in ([], [("cancelled",)]))

        return Scene(
            (starting(worker, parent, child, dependent=dependent, move=None), engine(moves.take_back)),
            check,
        )


_cascades("cascade", "cascade", dependent=False)
_cascades("cancel, the child dependent", None, dependent=True)


def start_alone(actor: Actor, worker: UUID, parent: moves.Claimed, child: UUID, *, dependent: bool) -> object:
    """The start of a child with a key, as its own short transaction; None: the parent is in another hand."""
    whose = {"parent": parent.id, "epoch": parent.epoch, "worker": worker}
    if dependent:
        engine(lambda s: s.rows(moves.statement("MIND_DEPENDENT"), whose))(actor)
    terms = {
        "id": child,
        "workflow": moves.WORKFLOW,
        "queue": moves.QUEUE,
        "priority": 0,
        "input": b"\x01null",
        "meta": b"",
        "key": "k",
        "key_hash": b"fingerprhash of the input",
        "on_conflict": "return",
        "resource": None,
        "delay_s": None,
        "start_at": None,
        "tags": None,
        "timeout_s": None,
        "singleton": None,
        "is_dependent": dependent,
        "timeline": "",
    }
    try:
        rows = engine(lambda s: s.rows(moves.statement("START_ALONE"), {**whose, **terms}))(actor)
    except psycopg.Error as error:
        if not is_lease_lost(error):
            raise
        return None
    return rows[0][0] if rows else None


@pair(
    "start of a keyed child / caller's start with the same key",
    "2:5",
    "2:i keyed child x caller's open start",
    levels=True,
)
def keyed_child(w: World, level: Isolation) -> Scene:
    worker, parent = letters.running(w.db)
    child = new_run_id()

    def check(found: object, answer: moves.Started) -> Iterable[str]:
        return expect(
            same=(found, answer.run),
            one=(w.value("select count(*) from kedge.run_keys"), 1),
            runs=(w.value("select count(*) from kedge.all_runs"), 2),
        )

    return Scene(
        (
            lambda actor: start_alone(actor, worker, parent, child, dependent=False),
            client(lambda s: moves.start(s, key="k"), level),
        ),
        check,
    )


def _orphans(name: str, slot: str | None, dependent: bool) -> None:
    @pair(
        f"start of a keyed child / take back of its parent, which is cancelled with {name}, then courier", "1:41", "2:5"
    )
    def start_and_end(w: World) -> Scene:
        worker, parent = letters.running(w.db)
        child = new_run_id()
        letters.put(w.db, parent.id, "x", slot=slot)
        moves.sort_inbox(w.db)
        moves.lapse(w.db, worker)

        def end(actor: Actor) -> None:
            engine(moves.take_back)(actor)
            courier(2)(actor)

        def check(*_: object) -> Iterable[str]:
            started = w.rows("select status from kedge.all_runs where id = $1", child)
            return expect(parent=(w.status(parent.id), "cancelled"), child=started in ([], [("cancelled",)]))

        return Scene((lambda actor: start_alone(actor, worker, parent, child, dependent=dependent), end), check)


_orphans("cascade", "cascade", dependent=False)
_orphans("cancel, the child dependent", None, dependent=True)


@pair(
    "child's end / courier with the retry of its failed parent",
    "2:11",
    "2:i child ends while the parent is failed, then retry",
)
def end_and_retry_of_parent(w: World) -> Scene:
    worker, parent, other, child = family(w.db)
    moves.end(w.db, worker, parent, "f", rows=(1, 1))
    letters.put(w.db, parent.id, "r")

    def check(*_: object) -> Iterable[str]:
        return expect(parent=(w.status(parent.id), "pending"), told=(mail_of_child(w, parent.id), 1))

    return Scene((leave(other, child, COMPLETED), courier(2)), check)


@pair("parent's end / end of its dependent child", "1:41")
def both_ends(w: World) -> Scene:
    worker, parent, other, child = family(w.db, dependent=True)

    def check(*_: object) -> Iterable[str]:
        return expect(parent=(w.status(parent.id), "failed"), child=(w.status(child.id), "completed"))

    return Scene((leave(worker, parent, FAILED, kept=1), leave(other, child, COMPLETED)), check)


@pair("parent's end, then courier / park of its dependent child", "1:41", "1:9")
def end_and_park_of_child(w: World) -> Scene:
    worker, parent, other, child = family(w.db, dependent=True)

    def end(actor: Actor) -> None:
        leave(worker, parent, FAILED, kept=1)(actor)
        courier(2)(actor)

    def park(actor: Actor) -> Flushed:
        mine = live(child)
        writes = Writes()
        writes.side(mine, OPEN_WAITS, "nap", "d", None, 86_400.0, None, None, 0, 0, None, b"")
        writes.move(mine, Park(()))
        return flush(actor, other, writes.batch)

    def check(*_: object) -> Iterable[str]:
        return expect(child=(w.status(child.id), "cancelled"))

    return Scene((end, park), check)


@pair("two children's ends / gate of the group, parent's park", "1:26", "2:22")
def gate_of_group(w: World) -> Scene:
    worker, parent = letters.running(w.db)
    moves.keep(w.db, worker, parent)
    ids = [new_run_id() for _ in range(2)]
    moves.start_children(w.db, worker, [moves.Child(parent, 1, id_, key=f"map[{n}]") for n, id_ in enumerate(ids)])
    for n in range(2):
        letters.open_wait(w.db, worker, parent, f"map[{n}]", "c", need=2, group="map")
    other = moves.register(w.db)
    children = moves.claim_alone(w.db, other)

    def end(actor: Actor) -> None:
        for child in children:
            leave(other, child, COMPLETED)(actor)
            engine(moves.sort_inbox)(actor)

    def check(*_: object) -> Iterable[str]:
        return expect(parent=(w.status(parent.id), "pending"))

    return Scene((end, leave(worker, parent, Park(()), kept=1)), check)
