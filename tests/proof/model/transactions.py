"""A worker's transactions, statement by statement: the flush and the claim."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.model.states import (
    NOBODY,
    OLD,
    Batch,
    Broken,
    Label,
    Old,
    Row,
    Run,
    State,
    Worker,
    is_for,
    with_run,
    with_worker,
)


class Transactions:
    def __init__(self, *broken: Broken) -> None:
        self.broken = frozenset(broken)

    @staticmethod
    def in_transaction(phase: str) -> bool:
        return phase in {"flush", "held", "written", "seen", "moving", "commit", "claiming", "looking", "took"}

    def is_ready(self, s: State, n: int) -> bool:
        run = s.runs[n]
        is_due = run.status == "w" and s.is_due and "w1" in run.waits
        return (run.status == "p" or is_due) and ("x", n) not in s.inbox

    def flush(self, s: State, w: int, batch: Batch) -> State:
        return with_worker(s, w, phase="flush", batch=batch, passed=False, decided="")

    def tell(self, s: State, n: int, place: int, key: str, value: str) -> State:
        told = s.told[n]
        if place < len(told):
            return (
                s if told[place] == (key, value) else s._replace(wrong=f"I7: told {(key, value)} after {told[place]}")
            )
        return s._replace(told=tuple((*t, (key, value)) if i == n else t for i, t in enumerate(s.told)))

    def transaction(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        if worker.phase in {"claiming", "looking", "took"}:
            yield from self._claiming(s, w, worker)
            return
        old = Old(
            worker.phase, w, worker.run, worker.epoch, worker.known, worker.batch, worker.passed, worker.decided
        )  # fmt: skip
        for label, after, done in self._flushing(s, old, w):
            if done is None:
                yield label, self.answered(after, w, was_cut=False)
                if s.budget.losses and worker.lives:
                    lost = after._replace(budget=s.budget._replace(losses=s.budget.losses - 1))
                    yield f"!{label}, and its answer is lost", self.answered(lost, w, was_cut=True)
            elif done.phase == "gone":
                yield label, with_worker(after, w, phase="dead", lives=False)
            else:
                yield label, with_worker(after, w, phase=done.phase, passed=done.passed, decided=done.decided)
        if not worker.lives and worker.phase != "commit":
            yield f"! the server drops the transaction of {w}", self.aborted(s, w)
        if s.budget.losses and worker.lives and worker.phase != "flush":
            budget = s.budget._replace(losses=s.budget.losses - 1)
            if Broken.NEW_CONNECTION_DOES_NOT_END_THE_OLD_ONE not in self.broken:
                after = self.aborted(s, w)._replace(budget=budget)
                yield f"! connection of {w} is cut before its commit", with_worker(after, w, phase="unknown")
            elif s.old.phase == "":
                runs = tuple(r._replace(lock=OLD + w) if r.lock == w else r for r in s.runs)
                after = with_worker(s, w, phase="unknown")._replace(old=old, budget=budget, runs=runs)
                yield f"! {w} turns to a new connection", after

    def _flushing(self, s: State, tx: Old, me: int) -> Iterator[tuple[Label, State, Old | None]]:
        """One statement of a flush; None: it has committed."""
        w, n, batch, run = tx.worker, tx.run, tx.batch, s.runs[tx.run]
        is_mine = self._is_mine(s, tx)
        match tx.phase:
            case "flush":
                worker = s.workers[w]
                if Broken.FLUSH_DOES_NOT_HOLD_ITS_WORKER in self.broken:
                    yield f"{w} begins a flush", s, tx._replace(phase="held")
                elif not worker.stands:
                    yield f"{w} finds its row gone", s, tx._replace(phase="gone")
                elif not worker.is_locked:
                    yield f"{w} holds its row", with_worker(s, w, holds=worker.holds + 1), tx._replace(phase="held")
            case "held":
                follows = "written" if batch.move else "commit"
                yield f"{w} writes {batch.row[0] or batch.move}", s, tx._replace(phase=follows, passed=is_mine)
            case "written" if self._looks_early(batch):
                decided = self._decision(s, tx)
                yield f"{w} looks, without the lock", s, tx._replace(phase="seen", decided=decided)
            case "written" | "seen" if run.lock == NOBODY or run.status not in "prw":
                if not is_mine:
                    yield f"{w} is refused", s, tx._replace(phase="commit", decided="")
                else:
                    after = with_run(s, n, lock=me)
                    yield f"{w} locks its run", after, tx._replace(phase="commit" if tx.decided else "moving")
            case "moving":
                yield f"{w} looks", s, tx._replace(phase="commit", decided=self._decision(s, tx))
            case "commit":
                yield f"{w} commits {batch.row[0] or batch.move}", self._committed(s, tx, me), None
            case _:
                pass

    def _looks_early(self, batch: Batch) -> bool:
        # In one statement: its snapshot is older than the lock for which it waits.
        early = {Broken.PARK_LOCKS_AND_LOOKS_IN_ONE_STATEMENT, Broken.PARK_LOOKS_BEFORE_IT_LOCKS}
        return batch.move == "park" and bool(early & self.broken)

    def _is_mine(self, s: State, tx: Old) -> bool:
        run = s.runs[tx.run]
        if run.status not in "prw" or Broken.FLUSH_HAS_NO_FENCE in self.broken:
            return run.status in "prw"
        is_owner = run.owner == tx.worker or Broken.FLUSH_HAS_NO_OWNER in self.broken
        return is_owner and (run.epoch == tx.epoch or Broken.FLUSH_HAS_NO_EPOCH in self.broken)

    def _decision(self, s: State, tx: Old) -> str:
        run = s.runs[tx.run]
        if tx.batch.move == "end c":
            return "c"
        if run.request == "x" and Broken.PARK_FORGETS_REQUESTS not in self.broken:
            return "x"
        if tx.batch.move == "park":
            wakes = any(is_for(m.id, key) for m in run.mail if not m.is_read for key in run.waits)
            return "p" if wakes or not run.waits else "w"
        return "p"

    def _committed(self, s: State, tx: Old, me: int) -> State:
        n, batch, run = tx.run, tx.batch, s.runs[tx.run]
        if batch.starts and Broken.CHILD_STARTS_WITHOUT_ITS_ROW in self.broken:
            s = self._start_child(s)
        if tx.passed and batch.row[0]:
            s = self._stored(s, tx)
        if tx.decided:
            run = s.runs[n]
            if run.epoch != tx.epoch or run.owner != tx.worker:
                s = s._replace(wrong="I3: a run was moved by somebody who had lost it")
            if tx.decided in "cx":
                s = self.ended(s, n, tx.decided)
            else:
                request = run.request if Broken.PARK_FORGETS_REQUESTS in self.broken else ""
                s = with_run(s, n, status=tx.decided, owner=NOBODY, request=request)
        if s.runs[n].lock == me:
            s = with_run(s, n, lock=NOBODY)
        return with_worker(s, tx.worker, holds=max(s.workers[tx.worker].holds - 1, 0))

    def _stored(self, s: State, tx: Old) -> State:
        n, batch, run = tx.run, tx.batch, s.runs[tx.run]
        is_repeat = len(run.rows) > tx.known and Broken.REPEAT_TAKES_A_NEW_SEQ not in self.broken
        if run.status not in "prw":
            return s._replace(wrong="I11: a row behind the end")
        if batch.reads and Broken.EVENT_IS_CONSUMED_BEFORE_ITS_ROW in self.broken and batch.reads not in s.unwritten:
            mail = tuple(m._replace(is_read=True) if m.id == batch.reads else m for m in run.mail)
            return with_run(s, n, mail=mail)._replace(unwritten=(*s.unwritten, batch.reads))
        if not is_repeat:
            if run.epoch != tx.epoch:
                s = s._replace(wrong=f"I3: a row of epoch {tx.epoch} is stored in epoch {run.epoch}")
            elif run.owner != tx.worker:
                s = s._replace(wrong="I3: a row was stored by somebody who does not own the run")
            s = with_run(s, n, rows=(*run.rows, Row(*batch.row, tx.epoch)))
            if batch.starts:
                s = self._start_child(s)
        run = s.runs[n]
        waits = tuple(key for key in run.waits if key != batch.closes)
        if batch.opens and batch.opens not in waits:
            waits = (*waits, batch.opens)
        mail = tuple(m._replace(is_read=True) if m.id == batch.reads else m for m in run.mail)
        if Broken.CONSUMED_MAIL_IS_DELETED in self.broken:
            mail = tuple(m for m in mail if not m.is_read)
        return with_run(s, n, waits=waits, mail=mail)

    def _start_child(self, s: State) -> State:
        child = s.runs[1]
        return (
            with_run(s, 1, status="p") if child.status == "-" else s._replace(wrong="I2: the child was started twice")
        )

    def answered(self, s: State, w: int, *, was_cut: bool) -> State:
        """The worker hears what was stored; fewer rows than it sent, or no move: it has lost the run."""
        worker = s.workers[w]
        if not worker.lives:
            return with_worker(s, w, phase="dead")
        if was_cut:
            return with_worker(s, w, phase="unknown")
        batch, run = worker.batch, s.runs[worker.run]
        if batch.move:
            return self.given_up(s, w)
        if batch.reads and batch.reads in s.unwritten and not _holds(run, batch.reads):
            return with_worker(s, w, phase="flush", passed=False)
        if len(run.rows) <= worker.known or run.rows[worker.known].epoch != worker.epoch:
            return self.given_up(s, w)
        s = self.tell(s, worker.run, worker.known, *batch.row)
        mail = tuple(m for m in worker.mail if m != batch.reads)
        return with_worker(s, w, phase="alive", known=worker.known + 1, mail=mail, batch=Batch())

    def given_up(self, s: State, w: int) -> State:
        worker = s.workers[w]
        if s.budget.leftovers and s.old.phase == "":
            # A handler that swallows its cancellation writes on.
            evil = Batch(row=("evil", "."))
            s = s._replace(
                old=Old("flush", w, worker.run, worker.epoch, worker.known, evil),
                budget=s.budget._replace(leftovers=s.budget.leftovers - 1),
            )
        return with_worker(s, w, phase="idle", mail=(), batch=Batch(), known=0, epoch=0)

    def settle(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        """A read, and what is not stored is sent again. Sent again blindly it must do no harm either."""
        run = s.runs[worker.run]
        is_mine = run.status == "r" and run.owner == w and run.epoch == worker.epoch
        again = with_worker(s, w, phase="flush", passed=False, decided="")
        if worker.batch == Batch():
            # A claim: what the database holds for this worker, and memory does not know, is given back.
            mine = [n for n, r in enumerate(s.runs) if r.status == "r" and r.owner == w]
            for n in mine:
                knowing = with_worker(s, w, run=n, epoch=s.runs[n].epoch)
                yield f"{w} gives back what it does not know", self.flush(knowing, w, Batch(move="release"))
            if not mine:
                yield f"{w} finds nothing", with_worker(s, w, phase="idle")
            return
        if worker.batch.row[0]:
            is_stored = len(run.rows) > worker.known and run.rows[worker.known].epoch == worker.epoch
            if is_stored and Broken.REPEAT_TAKES_A_NEW_SEQ not in self.broken:
                yield f"{w} finds its row", self.answered(s, w, was_cut=False)
            elif not is_mine:
                yield f"{w} finds that it lost the run", self.given_up(s, w)
            yield f"{w} sends it again", again
        elif is_mine or Broken.FLUSH_HAS_NO_FENCE in self.broken:
            yield f"{w} sends it again", again
        else:
            yield f"{w} finds that it does not own the run", self.given_up(s, w)
            yield f"{w} sends it again", again

    def aborted(self, s: State, w: int) -> State:
        runs = tuple(r._replace(lock=NOBODY) if r.lock == w else r for r in s.runs)
        phase = s.workers[w].phase if s.workers[w].lives else "dead"
        has_begun = s.workers[w].phase != "flush"
        return with_worker(s._replace(runs=runs), w, holds=max(s.workers[w].holds - has_begun, 0), phase=phase)

    def _claiming(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        rests = "idle" if worker.lives else "dead"
        holds = max(worker.holds - 1, 0)
        match worker.phase:
            case "claiming":
                for n, run in enumerate(s.runs):
                    if self.is_ready(s, n) and Broken.CLAIM_DOES_NOT_LOOK_BEHIND_ITS_LOCK in self.broken:
                        yield f"{w} sees run {n}", with_worker(s, w, phase="looking", run=n)
                    elif self.is_ready(s, n) and run.lock == NOBODY:
                        yield f"{w} takes run {n}", with_worker(with_run(s, n, lock=w), w, phase="took", run=n)
                yield f"{w} takes nothing", with_worker(s, w, phase=rests, holds=holds)
            case "looking":
                run = s.runs[worker.run]
                if run.lock == NOBODY and run.status in "prw":
                    yield f"{w} takes what it saw", with_worker(with_run(s, worker.run, lock=w), w, phase="took")
                else:
                    yield f"{w} takes nothing", with_worker(s, w, phase=rests, holds=holds)
            case _:
                n, run = worker.run, s.runs[worker.run]
                epoch = run.epoch + (Broken.CLAIM_KEEPS_THE_EPOCH not in self.broken or run.epoch == 0)
                after = with_run(s, n, status="r", owner=w, epoch=epoch, lock=NOBODY)
                if run.owner != NOBODY:
                    after = after._replace(wrong="I3: a run was claimed from its owner")
                follows = "claimed" if worker.lives else "dead"
                yield (
                    f"{w} commits its claim of {n}",
                    with_worker(after, w, phase=follows, epoch=epoch, holds=holds, batch=Batch()),
                )
                if s.budget.losses and worker.lives:
                    lost = after._replace(budget=s.budget._replace(losses=s.budget.losses - 1))
                    yield (
                        f"!{w} commits its claim of {n}, and the answer is lost",
                        with_worker(lost, w, phase="unknown", holds=holds, batch=Batch()),
                    )
        if not worker.lives:
            yield f"! the server drops the transaction of {w}", self.aborted(s, w)

    def old(self, s: State) -> Iterator[tuple[Label, State]]:
        """What a worker does not know of any more."""
        if s.old.phase:
            for label, after, done in self._flushing(s, s.old, OLD + s.old.worker):
                is_over = done is None or done.phase == "gone"
                yield f"(old) {label}", after._replace(old=Old() if is_over or done is None else done)

    def ended(self, s: State, n: int, status: str) -> State:
        if s.runs[n].status not in "prw":
            return s._replace(wrong="I11: a second end")
        s = with_run(s, n, status=status, owner=NOBODY, request="", waits=())
        if n == 1 and Broken.END_TELLS_BEHIND_ITS_COMMIT not in self.broken:
            s = s._replace(inbox=(*s.inbox, ("k:" + status, 0)))
        return s


def _holds(run: Run, value: str) -> bool:
    return any(row.value == value for row in run.rows)
