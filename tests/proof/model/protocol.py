"""
The protocol as a machine of small steps: each is one statement of one transaction, or its commit.

A statement sees what is committed when it begins; what it writes counts from its commit on. A lock of a row is held
until then. Workers may be stopped beyond their lease and go on as if nothing had been (zombies); they may die, and then
the transaction that the server has in hand commits or does not; an answer may be lost, and with it the knowledge
whether the transaction has committed. `Broken` takes one of the precautions away.

Run 0 keeps a step, waits for an event with a timeout, waits for another one without, and completes. As a parent it
starts run 1, waits for its end, and completes.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.model.states import (
    COURIER,
    NOBODY,
    TAKER,
    Batch,
    Broken,
    Courier,
    Label,
    Mail,
    Row,
    State,
    Taker,
    Worker,
    is_for,
    with_run,
    with_worker,
)
from tests.proof.model.transactions import Transactions


class Protocol(Transactions):
    def successors(self, state: State) -> Iterator[tuple[Label, State]]:
        """Labels that begin with ! are faults, or what nobody is obliged to do."""
        if state.wrong:
            return
        yield from self._clients(state)
        yield from self._courier(state)
        yield from self._taker(state)
        for w, worker in enumerate(state.workers):
            yield from self._life(state, w, worker)
        yield from self.old(state)
        if Broken.TIMEOUT_IS_DECIDED_BY_THE_SWEEPER in self.broken:
            yield from self._sweeper(state)

    # ---- clients and faults -----------------------------------------------------------------------------------------

    def _clients(self, s: State) -> Iterator[tuple[Label, State]]:
        budget = s.budget
        if budget.events:
            yield (
                f"! client sends e{s.sent + 1}",
                s._replace(
                    inbox=(*s.inbox, (f"e{s.sent + 1}", 0)),
                    sent=s.sent + 1,
                    budget=budget._replace(events=budget.events - 1),
                ),
            )
        if budget.resends and s.sent and ("e1", 0) not in s.inbox:
            yield (
                "! client sends e1 again",
                s._replace(inbox=(*s.inbox, ("e1", 0)), budget=budget._replace(resends=budget.resends - 1)),
            )
        if budget.cancels:
            yield (
                "! client cancels",
                s._replace(inbox=(*s.inbox, ("x", 0)), budget=budget._replace(cancels=budget.cancels - 1)),
            )
        if budget.ticks and not s.is_due:
            yield "! the wait's time comes", s._replace(is_due=True, budget=budget._replace(ticks=budget.ticks - 1))

    def _faults(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        budget = s.budget
        if budget.stalls and worker.stands and not worker.has_lapsed:
            yield (
                f"! lease of {w} lapses",
                with_worker(s, w, has_lapsed=True)._replace(budget=budget._replace(stalls=budget.stalls - 1)),
            )
        if budget.crashes and worker.lives:
            is_over = not self.in_transaction(worker.phase)
            after = with_worker(s, w, lives=False, has_lapsed=True, **({"phase": "dead"} if is_over else {}))
            yield f"! {w} dies", after._replace(budget=budget._replace(crashes=budget.crashes - 1))

    # ---- the courier ------------------------------------------------------------------------------------------------

    def _courier(self, s: State) -> Iterator[tuple[Label, State]]:
        courier = s.courier
        match courier.phase:
            case "" if s.inbox:
                yield "courier reads the batch", s._replace(courier=Courier("batch", s.inbox))
            case "batch" if Broken.COURIER_DECIDES_IN_THE_LOCKING_STATEMENT in self.broken and not courier.waits:
                waits = tuple((".", *run.waits) for run in s.runs)
                yield "courier's locking statement begins", s._replace(courier=courier._replace(waits=waits))
            case "batch":
                wanted = sorted({run for _, run in courier.letters})
                got = tuple(n for n in wanted if s.runs[n].status in "prw" and s.runs[n].lock == NOBODY)
                runs = tuple(r._replace(lock=COURIER) if n in got else r for n, r in enumerate(s.runs))
                yield f"courier locks {got}", s._replace(runs=runs, courier=courier._replace(phase="locked", runs=got))
            case "locked":
                yield "courier decides and commits", self._sorted(s)
            case _:
                pass

    def _sorted(self, s: State) -> State:
        courier = s.courier
        kept: list[tuple[str, int]] = []
        for letter, n in courier.letters:
            run = s.runs[n]
            if n in courier.runs:
                s = self._sort(s, letter, n, courier.waits[n] if courier.waits else (".", *run.waits))
            elif run.status in "prw" and Broken.COURIER_TAKES_SKIPPED_FOR_GONE not in self.broken:
                kept.append((letter, n))
            elif letter == "x" and run.status == "c" and Broken.CANCEL_OVERWRITES_COMPLETED in self.broken:
                s = with_run(s, n, status="x")._replace(wrong="I11: an end was overwritten")
        runs = tuple(r._replace(lock=NOBODY) if r.lock == COURIER else r for r in s.runs)
        gone = [one for one in courier.letters if one not in kept]
        return s._replace(runs=runs, inbox=tuple(i for i in s.inbox if i not in gone), courier=Courier())

    def _sort(self, s: State, letter: str, n: int, waits: tuple[str, ...]) -> State:
        run = s.runs[n]
        if run.status not in "prw":
            return s
        if letter == "x":
            return with_run(s, n, request="x") if run.status == "r" else self.ended(s, n, "x")
        if any(m.id == letter for m in run.mail):
            return s
        wakes = run.status == "w" and any(is_for(letter, key) for key in waits)
        return with_run(s, n, mail=(*run.mail, Mail(letter, False)), status="p" if wakes else run.status)

    # ---- take back --------------------------------------------------------------------------------------------------

    def _taker(self, s: State) -> Iterator[tuple[Label, State]]:
        taker = s.taker
        by_id = Broken.TAKE_BACK_GOES_BY_ID in self.broken
        match taker.phase:
            case "":
                for w, worker in enumerate(s.workers):
                    if worker.stands and worker.has_lapsed and not worker.holds:
                        locked = s if by_id else with_worker(s, w, is_locked=True)
                        yield f"taker locks the row of {w}", locked._replace(taker=Taker("worker", w))
            case "worker":
                mine = tuple(
                    n for n, r in enumerate(s.runs)
                    if r.status == "r" and r.owner == taker.worker and (by_id or r.lock == NOBODY)
                )  # fmt: skip
                runs = tuple(r._replace(lock=TAKER) if n in mine and not by_id else r for n, r in enumerate(s.runs))
                yield f"taker locks runs {mine}", s._replace(runs=runs, taker=taker._replace(phase="runs", runs=mine))
            case "runs":
                more = any(
                    r.status == "r" and r.owner == taker.worker and n not in taker.runs for n, r in enumerate(s.runs)
                )
                yield "taker looks for more", s._replace(taker=taker._replace(phase="looked", has_more=more))
            case _:
                yield f"taker frees {taker.runs} and commits", self._freed(s)

    def _freed(self, s: State) -> State:
        taker = s.taker
        for n in taker.runs:
            run = s.runs[n]
            if run.lock not in {NOBODY, TAKER}:
                return s._replace(wrong="I10: a take back waits for a run")
            if run.owner not in {taker.worker, NOBODY}:
                s = s._replace(wrong="I3: a run was taken from a worker that lives")
            if run.request == "x":
                s = self.ended(s, n, "x")
            elif run.status in "prw":
                grown = 0 if Broken.TAKE_BACK_KEEPS_THE_EPOCH in self.broken else 1
                s = with_run(s, n, status="p", owner=NOBODY, epoch=run.epoch + grown, request="")
        s = s._replace(runs=tuple(r._replace(lock=NOBODY) if r.lock == TAKER else r for r in s.runs), taker=Taker())
        stays = taker.has_more and Broken.TAKE_BACK_DROPS_ITS_WORKER_AT_ONCE not in self.broken
        return with_worker(s, taker.worker, stands=stays, is_locked=False)

    def _sweeper(self, s: State) -> Iterator[tuple[Label, State]]:
        run = s.runs[0]
        if s.is_due and "w1" in run.waits and run.lock == NOBODY and run.status in "prw":
            rows = (*run.rows, Row("w1", "time", run.epoch))
            status = "p" if run.status == "w" else run.status
            yield "sweeper decides the timeout", with_run(s, 0, rows=rows, waits=("w2",), status=status)

    # ---- a worker ---------------------------------------------------------------------------------------------------

    def _life(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        yield from self._faults(s, w, worker)
        if worker.phase == "dead":
            return
        if self.in_transaction(worker.phase):
            yield from self.transaction(s, w, worker)
            return
        if worker.has_lapsed and not worker.is_locked:
            if not worker.lives:
                return
            if worker.stands or Broken.BEAT_REVIVES in self.broken:
                yield f"! {w} beats again", with_worker(s, w, stands=True, has_lapsed=False)
            else:
                yield f"{w} hears that its lease is lost", with_worker(s, w, phase="dead", lives=False)
        match worker.phase:
            case "idle":
                yield from self._claim(s, w, worker)
            case "claimed":
                yield f"{w} reads what it claimed", self._begun(s, w, worker)
            case "alive":
                yield from self._handler(s, w, worker)
            case "unknown":
                yield from self.settle(s, w, worker)
            case _:
                pass

    def _claim(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        if not any(self.is_ready(s, n) for n in range(len(s.runs))):
            return
        if Broken.CLAIM_DOES_NOT_HOLD_ITS_WORKER in self.broken:
            yield f"{w} begins a claim", with_worker(s, w, phase="claiming")
        elif not worker.stands:
            yield f"{w} finds its row gone", with_worker(s, w, phase="dead", lives=False)
        elif not worker.is_locked:
            yield f"{w} holds its row to claim", with_worker(s, w, phase="claiming", holds=worker.holds + 1)

    def _handler(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        """What the handler does next, as the batch that its flush carries."""
        run = s.runs[worker.run]
        if run.request and run.owner == w:
            yield f"{w} is asked to end", self.flush(s, w, Batch(move="end f"))
        if len(s.runs) == 2:
            yield from self._relative(s, w, worker)
            return
        if worker.known == 0:
            yield f"{w} keeps a step", self.flush(s, w, Batch(row=("s", "."), opens="w1"))
            return
        if worker.known == 3:
            yield f"{w} completes", self.flush(s, w, Batch(move="end c"))
            return
        key, then = ("w1", "w2") if worker.known == 1 else ("w2", "")
        unread = tuple(m.id for m in run.mail if not m.is_read)
        if worker.mail:
            event = worker.mail[0]
            yield f"{w} takes {event} for {key}", self.flush(s, w, Batch((key, event), then, key, event))
        elif key == "w1" and s.is_due:
            yield f"{w} takes the time for {key}", self.flush(s, w, Batch((key, "time"), then, key))
        elif not self._is_told(s, w, unread):
            yield f"{w} parks", self.flush(s, w, Batch(move="park"))
        if not worker.mail and self._is_told(s, w, unread):
            yield f"{w} looks for mail", with_worker(s, w, mail=unread)
            yield f"{w} parks", self.flush(s, w, Batch(move="park"))

    @staticmethod
    def _is_told(s: State, w: int, unread: tuple[str, ...]) -> bool:
        return bool(unread) and s.runs[s.workers[w].run].owner == w

    def _relative(self, s: State, w: int, worker: Worker) -> Iterator[tuple[Label, State]]:
        """The parent starts a child and waits for its end; the child keeps a step."""
        run = s.runs[worker.run]
        if worker.run == 1:
            batch = Batch(row=("s", ".")) if worker.known == 0 else Batch(move="end c")
            yield f"{w} goes on with the child", self.flush(s, w, batch)
        elif worker.known == 0:
            yield f"{w} starts the child", self.flush(s, w, Batch(row=("n", "."), opens="k", starts=True))
        elif worker.known == 2:
            yield f"{w} completes", self.flush(s, w, Batch(move="end c"))
        elif worker.mail:
            yield f"{w} hears of the end", self.flush(s, w, Batch(("k", worker.mail[0]), "", "k", worker.mail[0]))
        else:
            unread = tuple(m.id for m in run.mail if not m.is_read)
            if self._is_told(s, w, unread):
                yield f"{w} looks for mail", with_worker(s, w, mail=unread)
            yield f"{w} parks", self.flush(s, w, Batch(move="park"))

    def _begun(self, s: State, w: int, worker: Worker) -> State:
        """Behind the commit: the rows, which are told in their order, and the mail. It may have lost the run by now."""
        run = s.runs[worker.run]
        if run.owner != w or run.epoch != worker.epoch:
            return with_worker(s, w, phase="idle", mail=())
        unread = tuple(m.id for m in run.mail if not m.is_read)
        s = with_worker(s, w, phase="alive", known=len(run.rows), mail=unread)
        for place, row in enumerate(run.rows):
            s = self.tell(s, worker.run, place, row.key, row.value)
        return s
