"""The engine, as the specification sees it: each move as the statements that a worker or client sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import psycopg

from kedge_worker.testing import Clock
from tests import api_letters, letters, moves
from tests.proof.model.spec import Grip, Mail
from tests.sessions import Session

SOLO: Final = "!solo default"
_LOST: Final = "KE001"
_LASTING: Final = ("whose lease ended at", "unsorted since")
"""What is broken only when it lasts: the machine moves the clock, and stalls workers, as it likes."""

_TABLES: Final = (
    "runs", "journal", "finished", "inbox", "inbox_failed", "workers", "idle", "run_keys", "run_tags", "waits",
    "events", "failures", "run_watchers", "singletons", "run_log", "progress", "run_metadata",
)  # fmt: skip

View = dict[str, list[list[Any]]]

_VIEW: Final = {
    "runs": """
        select r.id, r.state, r.epoch, r.worker_id, r.request, r.attempt, r.crashes, r.queue, r.next_seq,
               round(extract(epoch from r.due_at - %(zero)s)), round(extract(epoch from r.deadline_at - %(zero)s))
          from kedge.runs r""",
    "ended": "select f.id, f.status, f.epoch, f.attempt, f.crashes, f.queue from kedge.finished f",
    "rows": "select j.run_id, j.seq, j.epoch, j.kind, j.key from kedge.journal j where j.seq > 0 order by 1, 2",
    "waits": "select w.run_id, w.key, w.kind from kedge.waits w order by 1, 2",
    "mail": "select e.run_id, e.slot, e.consumed_seq, e.id from kedge.events e order by e.run_id, e.seq",
    "watchers": "select w.run_id, w.watcher_id, w.key from kedge.run_watchers w order by 1, 2, 3",
    "workers": "select w.id from kedge.workers w order by 1",
    "inbox": "select i.run_id, i.kind from kedge.inbox i",
}
# In one round trip; every row is an array.
_LOOK: Final = "select json_build_object({})".format(
    ", ".join(
        f"'{name}', (select coalesce(json_agg((select json_agg(c.value) from json_each(to_json(x)) c)), '[]')"
        f" from ({sql}) x)"
        for name, sql in _VIEW.items()
    )
)


class System:
    """One database; `reset` empties it."""

    def __init__(self, db: Session) -> None:
        self.db = db
        self.clock = Clock(db.conn)

    def reset(self) -> None:
        self.db.conn.execute(";".join(f"delete from kedge.{table}" for table in _TABLES))
        (self.zero,) = self.db.rows("select kedge.instant()")[0]

    def view(self) -> View:
        view: View = self.db.rows(_LOOK, {"zero": self.zero})[0][0]
        return view

    def complaints(self, *, at_the_end: bool = False) -> list[tuple[Any, ...]]:
        rows = self.db.rows("select * from kedge.check_invariants(history => true)")
        return [row for row in rows if at_the_end or not any(words in row[2] for words in _LASTING)]

    # ---- clients ----------------------------------------------------------------------------------------------------

    def start(
        self,
        id_: UUID,
        *,
        tenant: str | None,
        key: str | None = None,
        singleton: str | None = None,
        delay: int = 0,
        timeout: int | None = None,
    ) -> tuple[UUID | None, bool, str | None]:
        answer = moves.start(
            self.db,
            id_,
            resource=tenant,
            key=key,
            singleton=singleton,
            delay_s=float(delay) if delay else None,
            timeout_s=None if timeout is None else float(timeout),
        )
        return answer.run, answer.created, answer.conflict

    def control(
        self, kind: str, run: UUID, id_: UUID, *, tenant: str | None = None, wait: str | None = None
    ) -> bool | None:
        """Whether the letter is accepted; None: there is no such run."""
        if kind == "g":
            return api_letters.fast_forward(self.db, run, wait, letter=id_)[0]
        verb = {"x": "cancel", "X": "cascade", "s": "pause", "u": "resume", "r": "retry"}[kind]
        answer = api_letters.control(self.db, verb, run, resource=tenant, letter=id_)
        return None if answer is None else answer[0]

    def send(self, run: UUID, event: str, id_: UUID, *, tenant: str | None = None) -> bool | None:
        answer = api_letters.send(self.db, run, event=event, letter=id_, resource=tenant)
        return None if answer is None else answer.accepted

    def broadcast(self, topic: str, id_: UUID) -> None:
        api_letters.send(self.db, topic=topic, event="e", letter=id_)

    def sort(self, limit: int) -> None:
        moves.sort_inbox(self.db, limit)

    # ---- workers ----------------------------------------------------------------------------------------------------

    def register(self) -> UUID:
        return moves.register(self.db)

    def claim(self, worker: UUID, limit: int, *, solo: bool) -> dict[UUID, tuple[int, int]] | None:
        """Id -> (epoch, next_seq); None: it has lost its lease."""
        self.db.begin()
        try:
            moves.hold(self.db, worker)
            lanes = {(SOLO if solo else moves.QUEUE, moves.WORKFLOW): moves.LOWEST}
            claimed = moves.claim(self.db, worker, limit, floors=lanes)
        except psycopg.Error as error:
            self.db.rollback()
            if error.sqlstate != _LOST:
                raise
            return None
        self.db.commit()
        return {run.id: (run.epoch, run.next_seq) for run in claimed}

    def beat(self, worker: UUID) -> bool:
        """Whether its row still stands."""
        self.db.rows("update kedge.workers set lease = interval '1 min' where id = $1", (worker,))
        return bool(moves.beat(self.db, worker))

    def stall(self, worker: UUID) -> None:
        self.db.rows(
            "update kedge.workers set lease = $2, lease_until = clock_timestamp() - interval '1 s' where id = $1",
            (worker, moves.BLINK),
        )

    def take_back(self) -> UUID | None:
        taken = moves.take_back(self.db)
        return None if taken is None else taken.worker

    def leave(self, worker: UUID) -> None:
        moves.leave(self.db, worker)

    def expire(self) -> None:
        letters.expire(self.db)

    def flush(self, write: Callable[[Session], object], worker: UUID, *, holding: bool) -> bool:
        """A worker's transaction; without `holding` its fence stands alone. False: the worker's row is gone."""
        self.db.begin()
        try:
            if holding:
                moves.hold(self.db, worker)
            write(self.db)
        except psycopg.Error as error:
            self.db.rollback()
            if error.sqlstate != _LOST:
                raise
            return False
        self.db.commit()
        return True


def claimed(grip: Grip) -> moves.Claimed:
    return moves.Claimed(
        grip.run, grip.epoch, grip.next_seq, 0, 0, 0, 0, None, moves.QUEUE, moves.WORKFLOW
    )  # fmt: skip


def keep(db: Session, grip: Grip, kind: str, key: str, mail: Mail | None = None) -> None:
    db.rows(
        moves.statement("KEEP"),
        (grip.worker, [grip.run], [grip.next_seq], [grip.epoch], [1], [kind], [key], [b"\x011"], None),
    )
    if mail is not None:
        db.rows(moves.statement("CONSUME_MAIL"), (grip.worker, [grip.run], [grip.epoch], [grip.next_seq], [mail.id]))


def close_wait(db: Session, grip: Grip, key: str, kind: str, mail: Mail | None) -> None:
    keep(db, grip, kind, key, mail)
    db.rows(moves.statement("CLOSE_WAITS"), (grip.worker, [grip.run], [grip.epoch], [key]))


def open_wait(db: Session, grip: Grip, key: str, kind: str, slot: str | None = None, delay: int | None = None) -> None:
    letters.open_wait(db, grip.worker, claimed(grip), key, kind, slot=slot, delay_s=delay)


def send_letter(
    db: Session, grip: Grip, kind: str, recipient: UUID, id_: UUID, slot: str, event_id: UUID | None = None
) -> None:
    db.rows(
        moves.statement("SEND_LETTERS"),
        (grip.worker, [grip.run], [grip.epoch], [kind], [recipient], [id_], [slot], [b""], [grip.run], [event_id]),
    )


def start_child(db: Session, grip: Grip, child: UUID, key: str, tenant: str | None, *, dependent: bool) -> None:
    keep(db, grip, "n", key)
    moves.start_children(
        db,
        grip.worker,
        [moves.Child(claimed(grip), grip.next_seq, child, key, resource=tenant, dependent=dependent)],
    )
    open_wait(db, grip, key, "c")


def park(db: Session, grip: Grip) -> None:
    letters.park(db, grip.worker, claimed(grip))


def retry_later(db: Session, grip: Grip, delay: int) -> None:
    letters.retry_later(db, grip.worker, claimed(grip), delay_s=delay)


def release(db: Session, grip: Grip, delay: int) -> None:
    db.rows(
        moves.statement("RELEASE"),
        (grip.worker, [grip.run], [grip.epoch], [delay], ["not yet" if delay else None], [grip.next_seq - 1]),
    )
