"""The deletion of ended runs meets another one, the courier with what was sent, reruns, and starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

from kedge.ids import new_run_id
from tests import letters, moves, retention
from tests.proof.interleavings.actors import Actor, Isolation
from tests.proof.interleavings.pairs import Scene, client, courier, engine, expect, pair
from tests.proof.interleavings.world import World

HOURS_S: Final = 7200.0
KINDS: Final = {"retry": "r", "event": "e", "cancel": "x", "watch": "w"}


def old(w: World, status: str = "f", *, key: str | None = None, steps: int = 1) -> UUID:
    """A run that has ended three hours ago; its id says that it was started then."""
    retention.keep(w.db, completed_s=HOURS_S, failed_s=HOURS_S, cancelled_s=HOURS_S)
    young = retention.ended(w.db, status, key=key, steps=steps)
    run: UUID = w.value(
        "select (left(kedge.id_floor(kedge.clock() - interval '3 hours')::text, 13) || substr($1::text, 14))::uuid",
        str(young),
    )
    for table in ("journal", "run_keys"):
        w.rows(f"update kedge.{table} set run_id = $2 where run_id = $1", young, run)
    w.rows("update kedge.finished set id = $2, ended_at = ended_at - interval '3 hours' where id = $1", young, run)
    return run


def remove(actor: Actor) -> int:
    return engine(retention.deleted)(actor)


@pair("start with a key / retention of the run that holds it", "2:30", levels=True)
def key_and_retention(w: World, level: Isolation) -> Scene:
    held = old(w, "c", key="k")

    def check(answer: moves.Started, count: int) -> Iterable[str]:
        live = [run for (run,) in w.rows("select id from kedge.runs")]
        if answer.run == held:
            return expect(not_created=not answer.created, deleted=(count, 1), live=(live, []))
        return expect(
            created=answer.created,
            deleted=(count, 1),
            live=(live, [answer.run]),
            key=(w.rows("select run_id from kedge.run_keys"), [(answer.run,)]),
        )

    return Scene((client(lambda s: moves.start(s, key="k"), level), remove), check)


@pair("retention / retention of the same runs")
def two_removers(w: World) -> Scene:
    old(w)
    old(w, "c")
    return Scene((remove, remove), lambda *counts: expect(deleted=(sum(counts), 2)))


def letters_and_retention(name: str, kind: str) -> None:
    """A letter that is sorted while its run is being deleted."""

    @pair(f"courier with a {name} / retention of its run")
    def sorted_meanwhile(w: World) -> Scene:
        run, asking = old(w), new_run_id()

        def send(actor: Actor) -> int:
            client(lambda s: letters.put(s, run, kind, slot="e:a" if kind == "e" else "k:a", sender=asking))(actor)
            return courier()(actor)

        def check(_: int, count: int) -> Iterable[str]:
            left = retention.rows_of(w.db, run)
            lives = w.value("select count(*) from kedge.runs")
            return expect(
                whole=count == 0 or not left,
                once=(count + w.value("select count(*) from kedge.finished") + lives, 1),
                revived_by_a_retry_only=lives == 0 or kind == "r",
            )

        return Scene((send, remove), check)


for _name, _kind in KINDS.items():
    letters_and_retention(_name, _kind)


@pair("rerun / retention of the run that it takes over", levels=True)
def rerun_and_retention(w: World, level: Isolation) -> Scene:
    run, new = old(w, steps=2), new_run_id()
    rerun: Callable[[Actor], list[tuple[bool]]] = client(
        lambda s: s.rows("select created from kedge.rerun_run_v1($1, $2, null, 'step2')", (new, run)), level
    )

    def check(answer: list[tuple[bool]], count: int) -> Iterable[str]:
        stored = w.value("select count(*) from kedge.journal where run_id = $1", new)
        return expect(
            deleted=(count, 1),
            whole_or_none=((len(answer), stored), {(1, 2), (0, 0)}),
            live=(w.value("select count(*) from kedge.runs where id = $1", new), len(answer)),
        )

    return Scene((rerun, remove), check)
