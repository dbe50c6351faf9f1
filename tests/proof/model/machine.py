"""Random moves on a real database and on the specification at once; after each of them both must stand alike."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests import moves
from tests.proof.model import system as sql
from tests.proof.model.spec import SKIPPABLE, TERMINAL, Grip, Model, Run, Wait, Worker
from tests.proof.model.system import System
from tests.proof.model.views import UNIT, actual, expected
from tests.sessions import Session

MOST_RUNS: Final = 9
MOST_WORKERS: Final = 3
TENANTS: Final = ("alice", "bob")
TOPIC: Final = "t:rates\x1fe"

T = TypeVar("T")
Write = Callable[[Session], object]
Apply = Callable[[], object]

numbers: Final = st.integers(0, 4095)
delays: Final = st.sampled_from((0, 1, 3))

RULES: Final = (
    "keep", "fail", "event", "event", "impatient", "topic", "sleep", "pause", "outcome", "outcome", "outcome",
    "outcome", "child", "watch", "send",
)  # fmt: skip
EVENTS: Final = ("stall", "stall", "take back", "take back", "take back", "beat", "beat again", "leave", "register")
MOVES: Final = ("park", "park", "retry_later", "release", "end c", "end f", "end x", "finish")


class Machine(RuleBasedStateMachine):
    """`system` is set by the test; `seen` counts (status before, move)."""

    system: ClassVar[System]
    seen: ClassVar[Counter[tuple[str, str]]] = Counter()
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.system.reset()
        self.model = Model()
        self.grips: list[Grip] = []
        self.last: tuple[Grip, Write, Apply | None] | None = None
        self.posted: list[Callable[[], object]] = []
        self._made = self._looked = 0
        self._born_ms = int(time.time() * 1000)

    # ---- small things -----------------------------------------------------------------------------------------------

    def number(self) -> int:
        self._made += 1
        return self._made

    def run_id(self) -> UUID:
        """A UUIDv7; later ones are greater."""
        return UUID(int=(self._born_ms + self.number()) << 80 | 0x7 << 76 | 0b10 << 62)

    def letter_id(self) -> UUID:
        return UUID(int=self.number())

    def note(self, run: Run | None, move: str) -> None:
        self.seen[run.status if run else "-", move] += 1

    def pick(self, n: int, items: Sequence[T]) -> T:
        return items[n % len(items)]

    def pick_run(self, n: int) -> Run:
        """Of any status alike."""
        statuses = sorted({run.status for run in self.model.runs.values()})
        status = self.pick(n, statuses)
        return self.pick(n // len(statuses), [r for r in self.model.runs.values() if r.status == status])

    def held(self) -> list[Grip]:
        return [grip for grip in self.grips if self.model.holds(grip)]

    # ---- clients ----------------------------------------------------------------------------------------------------

    @initialize(kinds=st.tuples(st.sampled_from(("plain", "key")), st.sampled_from(("plain", "raise", "cancel_old"))))
    def begin(self, kinds: tuple[str, str]) -> None:
        for kind in kinds:
            self.start(TENANTS[0], kind, 0, None)
        self._register()

    @precondition(lambda self: len(self.model.runs) < MOST_RUNS)
    @rule(
        tenant=st.sampled_from(TENANTS),
        kind=st.sampled_from(("plain", "plain", "key", "raise", "return", "cancel_old")),
        delay=delays,
        timeout=st.sampled_from((None, None, None, 3, 9)),
    )
    def begin_run(self, tenant: str, kind: str, delay: int, timeout: int | None) -> None:
        self.start(tenant, kind, delay, timeout)

    def start(self, tenant: str, kind: str, delay: int, timeout: int | None) -> None:
        singleton: Any = kind if kind not in {"plain", "key"} else None
        key = None if kind == "plain" else "k" if kind == "key" else "s"
        options: dict[str, Any] = {
            "tenant": tenant, "key": key, "singleton": singleton, "delay": delay * UNIT,
            "timeout": timeout and timeout * UNIT,
        }  # fmt: skip
        id_ = self.run_id()
        self.note(None, f"start {kind}")
        answer = self.system.start(id_, **options)
        assert answer == self.model.start(id_, **options)
        if answer[1]:
            self.posted.append(lambda: self.system.start(id_, **options))

    @rule(
        n=numbers, kind=st.sampled_from("xXsssuuuurrrggeeeeetb"), stranger=st.sampled_from((False, False, False, True))
    )
    def post(self, n: int, kind: str, stranger: bool) -> None:
        if kind == "e":
            self._send(n, "ab"[n % 2], stranger)
        elif kind == "t":
            self._broadcast()
        elif kind == "b":
            if self.posted:
                # An answer that was lost: starts and letters may all be repeated, at any time, for nothing.
                self.note(None, "repeat a client's call")
                self.pick(n, self.posted)()
        else:
            self._control(n, kind, stranger)

    def _control(self, n: int, kind: str, stranger: bool) -> None:
        run, id_ = self.pick_run(n), self.letter_id()
        self.note(run, f"control {kind}")
        if stranger and kind != "g":
            assert self.system.control(kind, run.id, id_, tenant="mallory") is None
            return
        waits = [key for key, wait in run.waits.items() if wait.kind in SKIPPABLE]
        wait = self.pick(n, [None, *waits]) if kind == "g" else None
        accepted = self.model.may_control(kind, run, wait)
        if accepted:
            slot = {"X": "cascade", "g": wait and f"k:{wait}"}.get(kind)
            self.model.post(run.id, id_, kind.lower(), slot)
            self.posted.append(lambda: self.system.control(kind, run.id, id_, tenant=run.tenant, wait=wait))
        assert self.system.control(kind, run.id, id_, tenant=run.tenant, wait=wait) == accepted

    def _send(self, n: int, event: str, stranger: bool) -> None:
        run, id_ = self.pick_run(n), self.letter_id()
        self.note(run, "send")
        if stranger:
            assert self.system.send(run.id, event, id_, tenant="mallory") is None
            return
        accepted = self.model.may_control("e", run)
        if accepted:
            self.model.post(run.id, id_, "e", f"e:{event}")
            self.posted.append(lambda: self.system.send(run.id, event, id_, tenant=run.tenant))
        assert self.system.send(run.id, event, id_, tenant=run.tenant) == accepted

    def _broadcast(self) -> None:
        id_ = self.letter_id()
        self.note(None, "broadcast")
        self.system.broadcast("rates", id_)
        self.model.post(None, id_, "t", TOPIC)

    # ---- the courier, the sweeper, time -----------------------------------------------------------------------------

    @precondition(lambda self: self.model.inbox)
    @rule(limit=st.sampled_from((1, 3, 500, 500, 500, 500)))
    def sort(self, limit: int) -> None:
        if any(letter.kind in "cxw" for letter in self.model.inbox[: limit + 1]):
            limit = 500  # several letters of one statement come in any order
        for letter in self.model.inbox[:limit]:
            self.note(self.model.runs[letter.run] if letter.run else None, f"sort {letter.kind}")
        self.system.sort(limit)
        self.model.sort(limit)

    @rule(units=st.sampled_from((1, 1, 3)), expire=st.booleans())
    def advance(self, units: int, expire: bool) -> None:
        self.note(None, "advance")
        self.system.clock.advance(units * UNIT)
        self.model.now += units * UNIT
        if expire:
            for run in self.model.runs.values():
                if run.deadline is not None and run.deadline <= self.model.now:
                    self.note(run, "expire")
            self.system.expire()
            self.model.expire()

    # ---- workers ----------------------------------------------------------------------------------------------------

    def _register(self) -> UUID:
        worker = self.system.register()
        self.model.workers[worker] = Worker(worker)
        return worker

    @precondition(lambda self: self.model.ready() or self.model.ready(solo=True))
    @rule(n=numbers, limit=st.sampled_from((1, 2, 100, 100)))
    def claim(self, n: int, limit: int) -> None:
        worker = self.pick(n, list(self.model.workers)) if self.model.workers else self._register()
        solo = not self.model.ready() or (n % 2 == 1 and bool(self.model.ready(solo=True)))
        may = {run.id: run for run in self.model.ready(solo=solo)}
        answer = self.system.claim(worker, limit, solo=solo)
        assert answer is not None
        assert set(answer) <= set(may)
        assert len(answer) == len(may) if limit >= MOST_RUNS else len(answer) <= limit
        for id_, believed in answer.items():
            self.note(may[id_], "claim solo" if solo else "claim")
            grip = self.model.claim(may[id_], worker)
            assert believed == (grip.epoch, grip.next_seq)
            self.grips.append(grip)

    @precondition(lambda self: self.held())
    @rule(n=numbers, op=st.sampled_from(RULES), delay=delays)
    def work(self, n: int, op: str, delay: int) -> None:
        self._flush(self.pick(n, self.held()), op, n, delay, holding=True)

    @precondition(lambda self: self.held())
    @rule(n=numbers, op=st.sampled_from(MOVES), delay=delays)
    def move(self, n: int, op: str, delay: int) -> None:
        self._flush(self.pick(n, self.held()), op, n, delay, holding=True)

    @precondition(lambda self: self.grips)
    @rule(n=numbers, op=st.sampled_from(RULES + MOVES), delay=delays, holding=st.booleans())
    def zombie(self, n: int, op: str, delay: int, holding: bool) -> None:
        """What somebody writes who has lost the run, or never had it: refused by the fence of each statement alone."""
        # Most often where somebody else has the run in hand by now.
        running = [grip for grip in self.grips if self.model.runs[grip.run].status == "r"]
        grip = self.pick(n // 4, running if running and n % 4 else self.grips)
        if self.model.holds(grip):
            strangers = [worker for worker in self.model.workers if worker != grip.worker]
            if not strangers:
                return
            grip = replace(grip, worker=self.pick(n, strangers))
        self._flush(grip, op, n, delay, holding=holding, is_zombie=True)

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat_flush(self) -> None:
        """The answer was lost, and the same batch is sent once more."""
        assert self.last is not None
        grip, write, again = self.last
        self.note(self.model.runs[grip.run], "repeat a flush")
        assert self.system.flush(write, grip.worker, holding=True) == (grip.worker in self.model.workers)
        if again is not None:
            again()

    def _flush(self, grip: Grip, op: str, n: int, delay: int, *, holding: bool, is_zombie: bool = False) -> None:
        run = self.model.runs[grip.run]
        plan = self._plan(grip, op, n, delay * UNIT)
        if plan is None:
            return
        write, apply, *again = plan
        self.note(run, f"zombie {op}" if is_zombie else op)
        stands = grip.worker in self.model.workers
        assert self.system.flush(write, grip.worker, holding=holding) == (stands or not holding)
        if not is_zombie:
            self.last = (grip, write, again[0] if again else None)
            apply()

    def _plan(self, grip: Grip, op: str, n: int, delay: int) -> tuple[Write, Apply, *tuple[Apply, ...]] | None:
        """What is sent, with what its worker believes now, and what must become of it."""
        model, run, now = self.model, self.model.runs[grip.run], copy.copy(grip)
        key = f"{op}{self.number()}"
        match op:
            case "keep" | "fail":
                kind = "s" if op == "keep" else "f"
                return lambda db: sql.keep(db, now, kind, key), lambda: model.keep(grip, kind, key)
            case "event" | "impatient" | "topic" | "sleep" | "pause":
                kind = {"sleep": "d", "pause": "u"}.get(op, "e")
                slot = {"event": f"e:{'ab'[n % 2]}", "impatient": "e:a", "topic": TOPIC}.get(op)
                after = max(delay, UNIT) if op in {"sleep", "impatient"} else None
                wait = Wait(kind, slot, None if after is None else model.now + after)
                return lambda db: sql.open_wait(db, now, key, kind, slot, after), lambda: model.open_wait(
                    grip, key, wait
                )
            case "outcome":
                return self._outcome(grip, now, n)
            case "child":
                child, dependent = self.run_id(), n % 2 == 0
                if len(model.runs) >= MOST_RUNS:
                    return None
                return (
                    lambda db: sql.start_child(db, now, child, key, run.tenant, dependent=dependent),
                    lambda: model.start_child(grip, child, key, dependent=dependent),
                )
            case "watch":
                other, id_ = self.pick_run(n).id, self.letter_id()

                def watch(db: Session) -> None:
                    sql.open_wait(db, now, key, "c")
                    sql.send_letter(db, now, "w", other, id_, f"k:{key}")

                # A letter that was sorted meanwhile is put in again: nobody hears of it twice.
                return watch, lambda: model.watch(grip, other, key, id_), lambda: model.watch(grip, other, key, id_)
            case "send":
                other, id_, event_id = self.pick_run(n).id, self.letter_id(), self.letter_id()

                def send(db: Session) -> None:
                    sql.keep(db, now, "m", key)
                    sql.send_letter(db, now, "e", other, id_, "e:a", event_id)

                return (
                    send,
                    lambda: model.send(grip, other, event_id, "e:a", key),
                    lambda: model.send_letter(grip, other, event_id, "e:a"),
                )
            case _:
                return self._move(grip, now, op, delay)

    def _outcome(self, grip: Grip, now: Grip, n: int) -> tuple[Write, Apply, *tuple[Apply, ...]] | None:
        model, run = self.model, self.model.runs[grip.run]
        known = [
            key for key, wait in run.waits.items()
            if wait.kind != "g" and (run.mail_for(key) or (wait.due is not None and wait.due <= model.now))
        ]  # fmt: skip
        if not known:
            return None
        key = self.pick(n, known)
        mail = run.mail_for(key)
        kind = "f" if mail is not None and mail.is_bad else run.waits[key].kind
        return lambda db: sql.close_wait(db, now, key, kind, mail), lambda: model.close_wait(grip, key, kind, mail)

    def _move(self, grip: Grip, now: Grip, op: str, delay: int) -> tuple[Write, Apply, *tuple[Apply, ...]]:
        model, believed = self.model, sql.claimed(now)
        match op:
            case "park":
                return lambda db: sql.park(db, now), lambda: model.park(grip)
            case "retry_later":
                return lambda db: sql.retry_later(db, now, delay), lambda: model.retry_later(grip, delay)
            case "release":
                return lambda db: sql.release(db, now, delay), lambda: model.release(grip, delay)
            case "finish":

                def finish(db: Session) -> None:
                    sql.keep(db, now, "s", "last")
                    moves.end(db, now.worker, believed, "c", rows=(now.next_seq, now.next_seq))

                def finished() -> None:
                    model.keep(grip, "s", "last")
                    model.end(grip, "c")

                return finish, finished
            case _:
                return lambda db: moves.end(db, now.worker, believed, op[-1]), lambda: model.end(grip, op[-1])

    @rule(n=numbers, event=st.sampled_from(EVENTS))
    def live(self, n: int, event: str) -> None:
        """What happens to workers themselves."""
        workers = list(self.model.workers)
        self.note(None, event)
        match event:
            case "register" if len(workers) < MOST_WORKERS:
                self._register()
            case "take back":
                self._take_back()
            case "beat again":
                # Nobody who was taken back comes to life again.
                if dead := sorted({grip.worker for grip in self.grips} - set(workers), key=str):
                    assert not self.system.beat(self.pick(n, dead))
            case "beat" if workers:
                worker = self.pick(n, workers)
                assert self.system.beat(worker)
                self.model.workers[worker].is_lapsed = False
            case "stall" if workers:
                worker = self.pick(n, workers)
                self.system.stall(worker)
                self.model.workers[worker].is_lapsed = True
            case "leave" if workers:
                worker = self.pick(n, workers)
                self.system.leave(worker)
                self.model.leave(worker)
            case _:
                pass

    def _take_back(self) -> None:
        lapsed = {worker.id for worker in self.model.workers.values() if worker.is_lapsed}
        worker = self.system.take_back()
        assert worker in lapsed if lapsed else worker is None
        if worker is not None:
            for run in self.model.runs.values():
                if run.owner == worker:
                    self.note(run, f"take back, crashes {run.crashes}")
            self.model.take_back(worker)

    # ---- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def the_database_stands_as_the_specification_says(self) -> None:
        Machine.steps += 1
        is_, should_be = actual(self.system.view()), expected(self.model)
        wrong = {what: (is_[what], should_be[what]) for what in is_ if is_[what] != should_be[what]}
        assert not wrong, "\n".join(f"{what}:\n  is        {a}\n  should be {b}" for what, (a, b) in wrong.items())
        # Half of the time of a step; what is wrong stays so.
        self._looked += 1
        if self._looked % 5 == 0:
            assert self.system.complaints() == []

    def teardown(self) -> None:
        """Nothing is stuck: who is dead is taken back, every letter gets sorted, every run can be ended."""
        assert self.system.complaints() == []
        for worker in list(self.model.workers):
            self.system.stall(worker)
        while self.system.take_back():
            pass
        for run in self.model.runs.values():
            self.system.control("x", run.id, self.letter_id(), tenant=run.tenant)
        for _ in range(50):
            self.system.sort(500)
        view = actual(self.system.view())
        live = {id_: run for id_, run in view["runs"].items() if run[0] not in TERMINAL}
        # An old retry may bring one back, behind its cancel.
        assert all(run[0] == "p" for run in live.values()), live
        assert not view["inbox"]
        assert self.system.complaints(at_the_end=True) == []
