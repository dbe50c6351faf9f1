"""The tester's database: stops in its functions, a fresh state for each order, and what must be true afterwards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import psycopg

from tests import moves
from tests.proof.interleavings.actors import Actor
from tests.proof.interleavings.breakpoints import install
from tests.proof.interleavings.schedules import Tester
from tests.proof.interleavings.touches import tables
from tests.sessions import Session

ACTORS: Final = 3
_ROUNDS: Final = 30
_SWEEP_EVERY: Final = 200


class World:
    """
    One database in which orders are executed.

    `db` is the tester's own session: in it nothing stops.
    """

    def __init__(self, url: str) -> None:
        self.url: Final = url
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(install(ACTORS).encode())
            conn.execute("create table kedge_proof.effects (run uuid)")
            conn.execute(_CLEAN.format(deletes="".join(f"delete from kedge.{t};" for t in sorted(tables()))).encode())
        self.db: Final = Session(url, plan_cache_mode="force_generic_plan")
        self.db.conn.prepare_threshold = 0
        self._monitor = psycopg.connect(url, autocommit=True, prepare_threshold=0)
        self.actors: Final = [Actor(url, number) for number in range(1, ACTORS + 1)]
        self.tester: Final = Tester(self._monitor, self.actors)
        self._cleaned = 0

    def clean(self) -> None:
        """Nothing is left of the order before."""
        self._cleaned += 1
        self.db.rows("select kedge_proof.clean()")
        if self._cleaned % _SWEEP_EVERY == 0:
            self.db.rows("truncate " + ", ".join(f"kedge.{table}" for table in sorted(tables())))

    def be_patient(self, lock_timeout_ms: int) -> None:
        """How long actors wait for a lock; 0: until the other one has let go of it."""
        self.tester.is_impatient = lock_timeout_ms > 0
        for actor in self.actors:
            Session.rows(actor, f"set lock_timeout = {lock_timeout_ms}")

    def quiesce(self) -> list[str]:
        """
        Let the engine go on as it would by itself: letters are sorted, dead workers taken back, times are up.

        Answers what does not come to rest.
        """
        for _ in range(_ROUNDS):
            moved = moves.sort_inbox(self.db).letters
            while (taken := moves.take_back(self.db)) is not None:
                moved += taken.freed + (not taken.remaining)
                if taken.remaining:
                    return [f"a take back of worker {taken.worker} does not come to its end: somebody holds a run"]
            ((ended, _),) = self.db.rows("select ended, owners from kedge.expire_runs(500)")
            moved += len(ended)
            if not moved:
                break
        else:
            return ["letters, take backs and deadlines do not come to rest"]
        found = [
            f"unsorted letter {kind} to {run}"
            for run, kind in self.db.rows("select run_id, kind::text from kedge.inbox")
        ]
        found += [
            f"letter failed: {kind} to {run}: {error}"
            for run, kind, error in self.db.rows("select run_id, kind::text, error from kedge.inbox_failed")
        ]
        found += [
            f"{promise} {run}: {what}"
            for promise, run, what in self.db.rows(
                "select promise, run_id, what from kedge.check_invariants(history => true)"
            )
        ]
        return found

    def shape(self) -> str:
        """What stands in the tables, but for ids and times."""
        return str(self.db.value(_SHAPE))

    def replace(self, function: str) -> None:
        """CREATE OR REPLACE one function."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(function.encode())

    def close(self) -> None:
        for actor in self.actors:
            actor.close()
        self._monitor.close()
        self.db.close()

    # ---- what pairs ask of the tables

    def status(self, run: UUID) -> str:
        return moves.status(self.db, run)

    def value(self, query: str, *parameters: object) -> Any:
        return self.db.value(query, parameters)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.db.rows(query, parameters)


@contextmanager
def world(url: str) -> Generator[World]:
    made = World(url)
    try:
        yield made
    finally:
        made.close()


_SHAPE: Final = """
select concat_ws(' | ',
    (select string_agg(concat_ws(' ', state, epoch, attempt, crashes, request, has_waits), ', ' order by id)
       from kedge.runs),
    (select string_agg(concat_ws(' ', status, epoch, attempt, crashes, next_seq), ', ' order by id)
       from kedge.finished),
    (select string_agg(concat_ws(' ', seq, epoch, kind, key), ', ' order by run_id, seq) from kedge.journal),
    (select string_agg(concat_ws(' ', kind, key), ', ' order by run_id, key) from kedge.waits),
    (select string_agg(concat_ws(' ', slot, consumed_seq), ', ' order by run_id, seq) from kedge.events),
    (select string_agg(message, ', ' order by run_id, id) from kedge.run_log),
    (select count(*) from kedge.workers), (select count(*) from kedge.idle), (select count(*) from kedge.singletons))
"""

_CLEAN: Final = """
create function kedge_proof.clean() returns void language plpgsql as $clean$
begin delete from kedge_proof.effects; {deletes} end $clean$;
"""
